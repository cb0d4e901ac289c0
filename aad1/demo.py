"""The demo: distil the bundled teacher in minutes, score every stage against the truth, and show it on a page.

Everything it finishes is on disk at once, so an interrupted demo goes on where it stopped: stages from their
checkpoints, evaluated rows from ``evaluation/``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aad1.assembly import Assembly
from aad1.data.clips import read_whole
from aad1.data.media import VideoWriter
from aad1.data.world import FPS, SIZE
from aad1.errors import UserError
from aad1.evaluation import sources
from aad1.evaluation.page import DemoPage, Panels, render
from aad1.evaluation.protocols import PROTOCOLS, Protocol
from aad1.evaluation.publishing import publish
from aad1.evaluation.report import Report
from aad1.evaluation.sources import Source
from aad1.evaluation.world_report import WorldEvaluation
from aad1.files import user_errors, write_atomic
from aad1.models.vae import geometry
from aad1.recipe import Recipe
from aad1.runtime import peak_memory
from aad1.training.metrics import read_metrics
from aad1.workspace import DISTILLATION, Workspace

ROWS = ("truth", "truth_vae", "frozen", "teacher", *DISTILLATION)
SHOWN = ("truth", "teacher", *DISTILLATION)
PAGE, SUMMARY, PROGRESS = "index.html", "summary.json", "phases.json"
PAGE_SCALE, PAGE_CRF = 3, 18

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class DemoConfig:
    """clips: test clips that every row is measured on; shown: how many of them are on the page."""

    clips: int = 16
    shown: int = 4


@dataclass(frozen=True)
class Phase:
    """What a part of the demo has cost so far, in seconds, and whether it is done."""

    seconds: float = 0.0
    finished: bool = False


@dataclass
class Ledger:
    """Seconds of every phase and the peak of memory over all runs in one folder, kept on disk."""

    path: Path
    phases: dict[str, Phase] = field(default_factory=dict)
    peak_memory: int = 0

    def __post_init__(self) -> None:
        with suppress(
            OSError, ValueError, LookupError, TypeError, AttributeError
        ):  # none yet, or damaged: time is counted anew
            held = json.loads(self.path.read_text(encoding="utf-8"))
            self.phases = {name: Phase(**phase) for name, phase in held["phases"].items()}
            self.peak_memory = held["peak_memory"]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; what an unfinished one has cost counts, checking a finished one does not."""
        before, start = self.phases.get(name, Phase()), time.monotonic()
        done = False
        try:
            yield
            done = True
        finally:
            if not before.finished:
                self.phases[name] = Phase(before.seconds + time.monotonic() - start, done)
            self.save()

    def save(self) -> None:
        """Write the file."""
        self.peak_memory = max(self.peak_memory, peak_memory())
        held = {"phases": {n: asdict(p) for n, p in self.phases.items()}, "peak_memory": self.peak_memory}
        write_atomic(self.path, json.dumps(held, indent=1).encode())

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each phase, in the order they ran."""
        return {name: phase.seconds for name, phase in self.phases.items()}


@dataclass
class Demo:
    """One demo in the folder ``root``.

    Raises UserError when the recipe is not about the embedded world, and when ``root`` holds a demo and
    ``resume`` is not asked for.
    """

    recipe: Recipe
    root: Path
    config: DemoConfig = field(default_factory=DemoConfig)
    resume: bool = False

    def __post_init__(self) -> None:
        if self.recipe.data.source != "world":
            raise UserError("the demo needs data.source 'world': its table is measured against known truth")
        if not 1 <= self.config.shown <= self.config.clips:
            raise UserError(f"{self.config.shown} of {self.config.clips} clips cannot be shown; use 1 to all of them")
        if (self.root / PROGRESS).exists() and not self.resume:
            raise UserError(f"{self.root} holds a demo; add --resume to go on with it, or choose another -o")
        self.assembly = Assembly(self.recipe, Workspace(self.root))
        self.assembly.preflight(self.resume)  # what is wrong shows before anything is written
        with user_errors():
            self.root.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(self.root / PROGRESS)

    def run(self) -> Path:
        """Distil, evaluate and write the page; returns the page's path."""
        self.assembly.distill(self.resume, self.ledger.phase)
        report = self._evaluate()
        with self.ledger.phase("page"):
            publish(report, self.root / "evaluation")
            mp4 = self._panels_video()
        self._write(SUMMARY, json.dumps(self._summary(report), indent=1))
        self._write(PAGE, render(self._page(report, mp4)))
        return self.root / PAGE

    def _write(self, name: str, text: str) -> None:
        write_atomic(self.root / name, text.encode())

    # --- evaluation ----------------------------------------------------------------------------

    @cached_property
    def _protocol(self) -> Protocol:
        return replace(PROTOCOLS["short"], frames=self.recipe.data.frames, clips=self.config.clips)

    @cached_property
    def _evaluation(self) -> WorldEvaluation:
        chunk = self.recipe.student.num_frames_per_block * geometry(self.assembly.vae).temporal
        return WorldEvaluation(self.root / "evaluation", [self._protocol], chunk, self.recipe.seed)

    def _evaluate(self) -> Report:
        """Every row, measured now or by an earlier run on the same weights and clips."""
        rows = [self._source(name) for name in ROWS]
        for row in rows:
            with self.ledger.phase(f"evaluation {row.name}"):
                self._evaluation.outcome(row, self._protocol)
        return self._evaluation.run(rows, "The demo's stages on the embedded world")

    def _source(self, name: str) -> Source:
        folder, seed = self.assembly.folder, self.recipe.seed
        if name in DISTILLATION:
            return sources.student(name, folder, self.assembly.workspace.student(name), seed)
        return sources.beside(name, folder, self.recipe, seed)

    # --- results -------------------------------------------------------------------------------

    def _summary(self, report: Report) -> dict[str, Any]:
        recipe, ledger = self.recipe, self.ledger
        return {
            "seconds": {name: round(value, 2) for name, value in ledger.seconds.items()},
            "total_seconds": round(sum(ledger.seconds.values()), 2),
            "peak_memory_bytes": ledger.peak_memory,
            "seed": recipe.seed,
            "versions": dict(report.made),
            "clips": {
                "train": recipe.data.clips,
                "validation": recipe.data.validation,
                "trajectories": recipe.trajectories.count,
                "test": self.config.clips,
            },
            "steps": {name: _last_step(self.root / name) for name in DISTILLATION},
            "device": str(self.assembly.device),
            "threads": torch.get_num_threads(),
        }

    def _panels_video(self) -> bytes:
        """The first clips of every shown row in one video: a scene a line, a model a column."""
        scenes = [clip for clip, _ in islice(self._protocol.load(), self.config.shown)]
        columns = [np.concatenate([self._frames(name, scene) for scene in scenes], axis=1) for name in SHOWN]
        path = self.root / "comparison.mp4"
        with VideoWriter(path, fps=FPS, scale=PAGE_SCALE, crf=PAGE_CRF) as video:
            video.write(np.concatenate(columns, axis=2))
        return path.read_bytes()

    def _frames(self, name: str, clip: str) -> Frames:
        return read_whole(self._evaluation.video(name, self._protocol, clip))[0]

    def _page(self, report: Report, mp4: bytes) -> DemoPage:
        captions = [clip.caption for clip in report.clips[: self.config.shown]]
        panels = Panels(mp4, captions, SHOWN, SIZE * PAGE_SCALE, self.recipe.data.frames, FPS)
        metrics = {name: read_metrics(self.root / name / "metrics.jsonl") for name in DISTILLATION}
        seconds: dict[str, float] = {}
        for name, value in self.ledger.seconds.items():  # the rows of the evaluation as one
            seconds[name.split()[0]] = seconds.get(name.split()[0], 0.0) + value
        return DemoPage(panels, report, metrics, seconds, self._facts(report), self._commands(captions[0]))

    def _facts(self, report: Report) -> list[tuple[str, str]]:
        summary = self._summary(report)
        return [
            ("memory at its peak", f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB"),
            ("device", f"{summary['device']}, {summary['threads']} threads"),
            ("seed", str(summary["seed"])),
            ("clips", ", ".join(f"{count} {name}" for name, count in summary["clips"].items())),
            ("steps", ", ".join(f"{name} {count}" for name, count in summary["steps"].items())),
            ("versions", ", ".join(f"{name} {number}" for name, number in summary["versions"].items())),
        ]

    def _commands(self, caption: str) -> list[tuple[str, str]]:
        student = self.assembly.workspace.student(DISTILLATION[-1])
        model = self.recipe.model
        return [
            (
                "Animate a picture with this student, for as long as you like:",
                "source .venv/bin/activate  # where make set it up\naad1 world-image 0 -o still.png\n"
                f"aad1 generate --model {model} --student {student} --image still.png \\\n"
                f'    --prompt "{caption}" --seconds 20 -o video.mp4',
            ),
            ("Distil for longer, with the full recipe:", f"aad1 distill --recipe tiny --model {model} -o runs/tiny"),
        ]


def _last_step(run: Path) -> int:
    steps: Sequence[float] = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
    return int(max(steps, default=0))
