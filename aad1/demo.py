"""The demo: distil the bundled teacher in minutes, score every stage against the truth, and show it on a page.

Everything it finishes is on disk at once, so an interrupted demo goes on where it stopped: stages from their
checkpoints, evaluated rows from ``evaluation/``.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from aad1.assembly import Assembly, user_errors
from aad1.data.clips import read_video
from aad1.data.media import VideoWriter
from aad1.data.world import FPS, SIZE, WORLD_VERSION, Clip
from aad1.errors import UserError
from aad1.evaluation.models import student_samples, teacher_samples, vae_samples
from aad1.evaluation.page import DemoPage, Panels, render
from aad1.evaluation.world import CONTROLS, Row, Sample, evaluate, protocol_clips, table
from aad1.files import write_atomic
from aad1.models.checkpoint_io import folder_hash
from aad1.models.vae import geometry
from aad1.progress import Progress
from aad1.recipe import Recipe
from aad1.runtime import peak_memory
from aad1.training.metrics import read_metrics
from aad1.workspace import DISTILLATION, Workspace

ROWS = ("truth", "truth_vae", "frozen", "teacher", *DISTILLATION)
SHOWN = ("truth", "teacher", *DISTILLATION)
PAGE, TABLE, SUMMARY, PROGRESS = "index.html", "table.json", "summary.json", "phases.json"
KEPT_SCALE, KEPT_CRF = 2, 6  # kept samples: two pixels a side, so that halved chroma loses nothing
PAGE_SCALE, PAGE_CRF = 3, 18
PACKAGES = ("aad1", "torch", "diffusers", "transformers", "numpy")

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
        values = table([self._row(name) for name in ROWS])
        self._write(TABLE, json.dumps(values, indent=1))
        with self.ledger.phase("page"):
            mp4 = self._panels_video()
        self._write(SUMMARY, json.dumps(self._summary(), indent=1))
        self._write(PAGE, render(self._page(values, mp4)))
        return self.root / PAGE

    def _write(self, name: str, text: str) -> None:
        write_atomic(self.root / name, text.encode())

    # --- evaluation ----------------------------------------------------------------------------

    @cached_property
    def _clips(self) -> list[Clip]:
        return list(protocol_clips(self.recipe.data.frames, self.config.clips))

    def _row(self, name: str) -> Row:
        """The row, measured now or by an earlier run on the same weights and clips."""
        path = self.root / "evaluation" / f"{name}.json"
        with self.ledger.phase(f"evaluation {name}"):
            key = self._key(name)
            row = _stored_row(path, key) if path.with_suffix(".mp4").exists() else None
            if row is None:
                row = self._measure(name, path.with_suffix(".mp4"))
                write_atomic(path, json.dumps({"key": key, "row": asdict(row)}).encode())
        return row

    def _key(self, name: str) -> dict[str, Any]:
        """What a stored row must agree on to be used again."""
        recipe = self.recipe
        sampling = asdict(recipe.showing.teacher) | {"not": recipe.negative_prompt} if name == "teacher" else {}
        weights = [folder_hash(part) for part in self._weights(name)]
        return {
            "frames": recipe.data.frames,
            "weights": weights,
            "world": WORLD_VERSION,
            **asdict(self.config),
            "seed": recipe.seed,
            **sampling,
        }

    def _weights(self, name: str) -> list[Path]:
        if name in CONTROLS:
            return []
        folder = self.assembly.folder.path
        models = {"teacher": [folder / "transformer"], "truth_vae": []}
        return [folder / "vae", *models.get(name, [self.assembly.workspace.student(name)])]

    def _measure(self, name: str, video: Path) -> Row:
        """Generate and measure every clip; the first few are kept as a strip in ``video``."""
        kept: list[Frames] = []
        with Progress(f"evaluating {name}", self.config.clips, unit="clip") as bar:

            def watched() -> Iterator[Sample]:
                for sample in self._samples(name):
                    kept.extend([sample.frames] if len(kept) < self.config.shown else [])
                    yield sample
                    bar.advance()

            chunk = self.recipe.student.num_frames_per_block * geometry(self.assembly.vae).temporal
            row = evaluate(name, watched(), chunk_frames=chunk, seed=self.recipe.seed)
        _write_video(video, np.concatenate(kept, axis=2), KEPT_SCALE, KEPT_CRF)
        return row

    def _samples(self, name: str) -> Iterable[Sample]:
        assembly, clips, seed = self.assembly, self._clips, self.recipe.seed
        if name in CONTROLS:
            return (Sample(CONTROLS[name](clip), clip.truth) for clip in clips)
        if name == "truth_vae":
            return vae_samples(assembly.vae, clips)
        if name == "teacher":
            model = assembly.teacher().eval()
            sampling, negative = self.recipe.showing.teacher, self.recipe.negative_prompt
            return teacher_samples(model, assembly.vae, assembly.text, clips, sampling, negative, seed=seed)
        return student_samples(assembly.student(name).eval(), assembly.vae, assembly.text, clips, seed=seed)

    # --- results -------------------------------------------------------------------------------

    def _summary(self) -> dict[str, Any]:
        recipe, ledger = self.recipe, self.ledger
        return {
            "seconds": {name: round(value, 2) for name, value in ledger.seconds.items()},
            "total_seconds": round(sum(ledger.seconds.values()), 2),
            "peak_memory_bytes": ledger.peak_memory,
            "seed": recipe.seed,
            "versions": _versions(),
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
        """The kept clips of every shown row in one video: a scene a line, a model a column."""
        size, count = (SIZE * KEPT_SCALE, SIZE * KEPT_SCALE * self.config.shown), self.recipe.data.frames
        strips = []
        for name in SHOWN:
            path = self.root / "evaluation" / f"{name}.mp4"
            strip = read_video(path, size=size, fps=FPS, frames=count)[:, ::KEPT_SCALE, ::KEPT_SCALE]
            strips.append(np.concatenate(np.split(strip, self.config.shown, axis=2), axis=1))
        path = self.root / "comparison.mp4"
        _write_video(path, np.concatenate(strips, axis=2), PAGE_SCALE, PAGE_CRF)
        return path.read_bytes()

    def _page(self, values: dict[str, dict[str, list[float] | None]], mp4: bytes) -> DemoPage:
        captions = [clip.caption for clip in islice(self._clips, self.config.shown)]
        panels = Panels(mp4, captions, SHOWN, SIZE * PAGE_SCALE, self.recipe.data.frames, FPS)
        metrics = {name: read_metrics(self.root / name / "metrics.jsonl") for name in DISTILLATION}
        seconds: dict[str, float] = {}
        for name, value in self.ledger.seconds.items():  # the rows of the evaluation as one
            seconds[name.split()[0]] = seconds.get(name.split()[0], 0.0) + value
        return DemoPage(panels, values, self.config.clips, metrics, seconds, self._facts(), self._commands())

    def _facts(self) -> list[tuple[str, str]]:
        summary = self._summary()
        return [
            ("memory at its peak", f"{summary['peak_memory_bytes'] / 2**30:.1f} GiB"),
            ("device", f"{summary['device']}, {summary['threads']} threads"),
            ("seed", str(summary["seed"])),
            ("clips", ", ".join(f"{count} {name}" for name, count in summary["clips"].items())),
            ("steps", ", ".join(f"{name} {count}" for name, count in summary["steps"].items())),
            ("versions", ", ".join(f"{name} {number}" for name, number in summary["versions"].items())),
        ]

    def _commands(self) -> list[tuple[str, str]]:
        student = self.assembly.workspace.student(DISTILLATION[-1])
        model, caption = self.recipe.model, self._clips[0].caption
        return [
            (
                "Animate a picture with this student, for as long as you like:",
                "source .venv/bin/activate  # where make set it up\naad1 world-image 0 -o still.png\n"
                f"aad1 generate --model {model} --student {student} --image still.png \\\n"
                f'    --prompt "{caption}" --seconds 20 -o video.mp4',
            ),
            ("Distil for longer, with the full recipe:", f"aad1 distill --recipe tiny --model {model} -o runs/tiny"),
        ]


def _stored_row(path: Path, key: dict[str, Any]) -> Row | None:
    """The row in the file, if it was measured under the same ``key``."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Row).validate_python(held["row"]) if held["key"] == key else None
    except (OSError, ValueError, KeyError, ValidationError):
        return None


def _write_video(path: Path, frames: Frames, scale: int, crf: int) -> None:
    with VideoWriter(path, fps=FPS, scale=scale, crf=crf) as video:
        video.write(frames)


def _last_step(run: Path) -> int:
    steps: Sequence[float] = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
    return int(max(steps, default=0))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
