"""A distillation so small that its steps take milliseconds, trained by torchrun on two processes, to be disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aad1.assembly import new_folder
from aad1.recipe import load_recipe
from aad1.workspace import DISTILLATION, Workspace

RANKS = 2
PATIENCE = 300.0  # seconds until a step that does not come is a failure of the script
SMALL = [
    *("--device=cpu", "--threads=1", "--data.frames=17", "--data.clips=8", "--data.validation=2", "--data.batch=1"),
    *("--showing.clips=2", "--showing.teacher.steps=2", "--trajectories.count=8", "--trajectories.batch=2"),
    *("--trajectories.steps=4", "--adversarial.head_start=0", "--adversarial.critic.layers=[0,1]"),
    *("--dmd_warmup.fake_score_updates=1", "--compute.shard=2", "--guard.min_rho=0", "--guard.min_kappa=0"),
    *(
        f"--{stage}.{key}={value}"
        for stage in DISTILLATION
        for key, value in (("batch", 2), ("accumulate", 1), ("log_every", 1), ("evaluate_every", 0), ("save_every", 2))
    ),
]
NARROW = ["--new.transformer.num_layers=2", "--new.transformer.num_attention_heads=2", "--new.transformer.ffn_dim=64"]


@dataclass
class World:
    """A Wan folder with random weights in ``folder``, and a recipe of ``steps`` steps a stage."""

    folder: Path
    steps: int = 12
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.folder / "model"
        if not self.model.exists():
            new_folder(load_recipe("tiny", NARROW), self.model)

    def words(self, out: str, *command: str) -> list[str]:
        """A command of aad1's, with this world's recipe, into a folder of that name."""
        steps = [f"--{stage}.steps={self.steps}" for stage in DISTILLATION]
        given = [word for word in command if word.startswith("--")]
        plain = [word for word in command if not word.startswith("--")]
        recipe = ["--recipe", "tiny", "--model", str(self.model), "-o", str(self.folder / out)]
        return [*plain, *recipe, *SMALL, *steps, *given]

    def start(self, words: Sequence[str], restarts: int = 0, ranks: int = RANKS, by: Sequence[str] = ()) -> Launched:
        """Start a command, on ``ranks`` processes of torchrun's (0: without it); ``by``: options of torchrun's."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher = [*launcher, f"--max-restarts={restarts}", *by] if ranks else []
        log = self.folder / f"log-{len(self.running)}.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *launcher, "-m", "aad1", *words],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.running.append(process)
        return Launched(process, log)

    def stop_all(self) -> None:
        """End what still runs."""
        for process in self.running:
            if process.poll() is None:
                for rank in ranks_of(process.pid).values():
                    os.kill(rank, signal.SIGKILL)
                process.kill()
                process.wait()

    def workspace(self, out: str) -> Workspace:
        """Where a command's results lie."""
        return Workspace(self.folder / out)

    def steps_logged(self, out: str, stage: str) -> int:
        """How far a stage has come, by its log."""
        path = self.workspace(out).run(stage) / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def digest(self, out: str, stage: str) -> str:
        """Of the weights that a stage has exported."""
        sha = hashlib.sha256()
        for path in sorted(self.workspace(out).student(stage).glob("*.safetensors")):
            sha.update(path.read_bytes())
        return sha.hexdigest()[:16]


@dataclass
class Launched:
    """A running command and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ranks(self) -> dict[int, int]:
        """Process numbers by rank."""
        return ranks_of(self.process.pid)

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait for it; raises AssertionError when the command ends first or it does not come."""
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < end, f"did not come:\n{self.said()}"
            time.sleep(0.02)
        return found

    def end(self, limit: float = PATIENCE) -> int:
        """The exit code of the command, when it has ended."""
        return self.process.wait(limit)

    def said(self) -> str:
        """Everything in the log."""
        return self.log.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """What aad1 itself has said, but for warnings."""
        return [line for line in self.said().splitlines() if line.startswith("aad1: ") and "warning" not in line]


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes that torchrun has started, by their rank."""
    found = {}
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        for child in map(int, children):
            words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            named = dict(word.split(b"=", 1) for word in words if b"=" in word)
            if b"RANK" in named:
                found[int(named[b"RANK"])] = child
    except (OSError, ValueError):
        return found
    return dict(sorted(found.items()))


def recorded(name: str, done: str, outcome: dict[str, Any]) -> str:
    """One fault's line of the record."""
    return json.dumps({"fault": name, "done": done, **outcome})
