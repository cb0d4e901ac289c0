"""A distillation so small that its steps take milliseconds, trained by torchrun on two processes, to be disturbed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from aad1.assembly import Assembly, new_folder
from aad1.recipe import load_recipe
from aad1.training.checkpoint import complete, verified
from aad1.training.loop import CHECKPOINTS
from aad1.training.metrics import read_metrics
from aad1.workspace import DISTILLATION, Workspace

RANKS = 2
PATIENCE = 300.0  # seconds after which something that does not come has failed
PREPARED = "prepared"
NARROW = ["--new.transformer.num_layers=2", "--new.transformer.num_attention_heads=2", "--new.transformer.ffn_dim=64"]
SMALL = [
    *("--device=cpu", "--threads=1", "--data.frames=17", "--data.clips=8", "--data.validation=2", "--data.batch=1"),
    *("--showing.clips=2", "--showing.teacher.steps=2", "--trajectories.count=8", "--trajectories.batch=2"),
    *("--trajectories.steps=4", "--adversarial.head_start=0", "--adversarial.critic.layers=[0,1]"),
    *("--dmd_warmup.fake_score_updates=1", "--guard.min_rho=0", "--guard.min_kappa=0"),
    *(
        f"--{stage}.{key}={value}"
        for stage in DISTILLATION
        for key, value in (("batch", 2), ("accumulate", 1), ("log_every", 1), ("evaluate_every", 0), ("save_every", 2))
    ),
]


@dataclass
class World:
    """A Wan folder with random weights in ``folder``, and runs beside it."""

    folder: Path
    running: list[Launched] = field(default_factory=list)

    @cached_property
    def model(self) -> Path:
        """The Wan folder."""
        new_folder(load_recipe("tiny", NARROW), self.folder / "model")
        return self.folder / "model"

    def start(
        self, out: str, *words: str, ranks: int = RANKS, restarts: int = 0, steps: int = 24, by: Sequence[str] = ()
    ) -> Launched:
        """Start a command of aad1's into the folder ``out``, on ``ranks`` processes of torchrun's (0: without it).

        ``words``: the command and values of its recipe; ``by``: options of torchrun's.
        """
        plain = [word for word in words if not word.startswith("--")]
        given = [word for word in words if word.startswith("--")]
        lengths = [f"--{stage}.steps={steps}" for stage in DISTILLATION]
        recipe = ["--recipe", "tiny", "--model", str(self.model), "-o", str(self.folder / out), *SMALL, *lengths]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher = [*launcher, f"--max-restarts={restarts}", *by] if ranks else []
        log = self.folder / f"log-{len(self.running):02d}-{out}.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *launcher, "-m", "aad1", *plain, *recipe, *given],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.running.append(Launched(process, log))
        return self.running[-1]

    def run(self, out: str, *words: str, **options: Any) -> Launched:
        """Start a command and wait for its end."""
        launched = self.start(out, *words, **options)
        launched.end()
        return launched

    def fresh(self, out: str) -> str:
        """A folder with clips and trajectories and no run; its name."""
        if not (self.folder / PREPARED).exists():
            assembly = Assembly(load_recipe("tiny", [f"--model={self.model}", *SMALL]), self.at(PREPARED))
            assembly.prepare_clips()
            assembly.prepare_trajectories()
        shutil.copytree(self.folder / PREPARED, self.folder / out)
        return out

    def unbroken(self, *words: str, **options: Any) -> str:
        """The folder of a command that nothing disturbs."""
        out = self.fresh(f"unbroken-{len(self.running)}")
        made = self.run(out, *words, **options)
        assert made.code == 0, made.said()
        return out

    def stop_all(self) -> None:
        """End what still runs, with all that it has started."""
        for launched in self.running:
            for pid in [*launched.children, launched.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            launched.process.wait()

    # --- what has come of a run ---------------------------------------------------------------

    def at(self, out: str) -> Workspace:
        """Where a command's results lie."""
        return Workspace(self.folder / out)

    def rows(self, out: str, stage: str = "ode_init") -> list[dict[str, Any]]:
        """The log of a stage."""
        path = self.at(out).run(stage) / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def steps(self, out: str) -> int:
        """How many steps are in the logs of all stages."""
        return sum(len(self.rows(out, stage)) for stage in DISTILLATION)

    def weights(self, out: str, stage: str = "ode_init") -> str:
        """Digest of the student that a stage has exported."""
        sha = hashlib.sha256()
        for path in sorted(self.at(out).student(stage).glob("*.safetensors")):
            sha.update(path.read_bytes())
        return sha.hexdigest()[:16]

    def checkpoints(self, out: str, stage: str = "ode_init") -> list[Path]:
        """By rising step."""
        return complete(self.at(out).run(stage) / CHECKPOINTS)

    def unreadable(self, out: str) -> int:
        """How many checkpoints of all stages are not whole."""
        paths = [path for stage in DISTILLATION for path in self.checkpoints(out, stage)]
        return sum(isinstance(verified(path), str) for path in paths)


@dataclass
class Launched:
    """A running command and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def children(self) -> list[int]:
        """What the command has started."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    @property
    def ranks(self) -> dict[int, int]:
        """Processes of torchrun's, by rank."""
        found = {}
        for child in self.children:
            with suppress(OSError):
                words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found |= {int(word[5:]): child for word in words if word.startswith(b"RANK=")}
        return found

    @property
    def code(self) -> int | None:
        """Its exit code, if it has ended."""
        return self.process.poll()

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait for it; raises AssertionError when the command ends first or it does not come."""
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            assert self.code is None, f"ended with {self.code}:\n{self.said()}"
            assert time.monotonic() < end, f"did not come:\n{self.said()}"
            time.sleep(0.02)
        return found

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to a rank, or to what was started."""
        os.kill(self.process.pid if rank is None else self.ranks[rank], number)

    def end(self) -> int:
        """The exit code of the command, when it has ended."""
        return self.process.wait(PATIENCE)

    @property
    def exits(self) -> list[str]:
        """Exit codes of ranks in torchrun's report, where it gives one."""
        return [line.split(":", 1)[1].strip() for line in self.said().splitlines() if "exitcode  :" in line]

    def said(self) -> str:
        """Everything in the log."""
        return self.log.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """What aad1 itself has said, warnings of libraries aside."""
        return [line for line in self.said().splitlines() if line.startswith("aad1: ") and "TypedStorage" not in line]


def anew(launched: Launched, before: dict[int, int]) -> bool:
    """Whether all ranks are there, none of them of those before."""
    now = launched.ranks
    return len(now) == RANKS and not {*now.values()} & {*before.values()}


def stepping(world: World, out: str) -> Callable[[], bool]:
    """Whether a step was logged since; a run that resumes first cuts its log back to the checkpoint."""
    least = world.steps(out)

    def stepped() -> bool:
        nonlocal least
        now = world.steps(out)
        least = min(least, now)
        return now > least

    return stepped


def alive(pid: int) -> bool:
    """Whether a process computes; one that has ended may wait for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
