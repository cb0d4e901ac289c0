"""One piece of evidence: a condition's student, of one seed, measured clip by clip, in a small JSON file.

It keeps every clip's numerators and denominators, so that seeds and clips can be pooled, and conditions compared clip
by clip, later and elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from aad1.assembly import Assembly
from aad1.data.media import VideoWriter
from aad1.data.world import FPS, WORLD_VERSION, Clip
from aad1.evaluation.models import student_samples, teacher_samples, vae_samples
from aad1.evaluation.world import Sample, measured, protocol_clips
from aad1.files import write_atomic
from aad1.measures.world import CURVES, MEASURES, ClipMeasures
from aad1.progress import Progress
from aad1.reproduction.experiments import PROTOCOLS, Condition
from aad1.training.metrics import read_metrics

FORMAT = 1
DIGITS = 5  # significant, of every number kept
SHOWN = 6  # clips of each protocol whose frames are kept
SCALE = 2
PARTS = tuple(dict.fromkeys(key for measure in MEASURES for key in measure.keys))


@dataclass(frozen=True)
class ProtocolResult:
    """sums: [clips][parts of MEASURES] pairs; curves: pooled over clips, by chunk."""

    frames: int
    tracks: Sequence[str]
    sums: Sequence[Sequence[tuple[float, float]]]
    curves: Mapping[str, Sequence[tuple[float, float]]]

    def array(self) -> NDArray[np.float64]:
        """[clips, parts, 2]."""
        return np.asarray(self.sums, np.float64)


@dataclass(frozen=True)
class Piece:
    """key: of the weights and protocols it was measured with; training: what the last stage measured as it went."""

    format: int
    key: str
    recipe: str
    stage: str
    seed: int
    parts: Sequence[str]
    protocols: Mapping[str, ProtocolResult]
    training: Sequence[Mapping[str, float]]


def read_piece(path: Path, key: str) -> Piece | None:
    """The piece in the file if it is whole and of this key; else None: it is measured anew."""
    try:
        piece = TypeAdapter(Piece).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    current = (piece.format, piece.key, list(piece.parts)) == (FORMAT, key, list(PARTS))
    return piece if current else None


def measure_piece(
    assembly: Assembly, condition: Condition, seed: int, key: str, path: Path, videos: Path, clips: int | None
) -> None:
    """Animate and measure every protocol's clips and write the piece; some of the frames go into ``videos``."""
    protocols = {}
    for name, (frames, count) in PROTOCOLS.items():
        if name == "long" and condition.stage == "teacher":
            continue  # it knows one length only
        chosen = list(protocol_clips(frames, min(count, clips or count)))
        protocols[name] = _measured(assembly, condition, chosen, videos / f"{path.stem}-{name}.mp4")
    log = assembly.workspace.run(condition.stage) / "metrics.jsonl"
    rows = read_metrics(log) if log.exists() else []
    evaluated = [{k: _short(v) for k, v in row.items() if k == "step" or k.startswith("eval/")} for row in rows]
    training = [row for row in evaluated if len(row) > 1]
    piece = Piece(FORMAT, key, condition.recipe, condition.stage, seed, PARTS, protocols, training)
    write_atomic(path, json.dumps(asdict(piece), separators=(",", ":")).encode())


def _measured(assembly: Assembly, condition: Condition, clips: Sequence[Clip], video: Path) -> ProtocolResult:
    kept: list[NDArray[np.uint8]] = []
    with Progress(video.stem, len(clips), unit="clip") as bar:

        def watched() -> Iterator[Sample]:
            for sample in _samples(assembly, condition, clips):
                kept.extend([sample.frames] if len(kept) < SHOWN else [])
                yield sample
                bar.advance()

        found = list(measured(watched()))
    with VideoWriter(video, fps=FPS, scale=SCALE) as file:
        file.write(np.concatenate(kept, axis=2))
    curves = {name: np.sum([m.clip.curves[name] for m in found], axis=0) for name in CURVES}
    return ProtocolResult(
        len(clips[0].frames),
        [m.track for m in found],
        [_pairs(m.clip) for m in found],
        {name: [(_short(a), _short(b)) for a, b in total] for name, total in curves.items()},
    )


def _samples(assembly: Assembly, condition: Condition, clips: Sequence[Clip]) -> Iterable[Sample]:
    """The same noise for every condition and seed: clip i has that of seed i."""
    if condition.stage == "truth_vae":
        return vae_samples(assembly.vae, clips)
    recipe = assembly.recipe
    if condition.stage == "teacher":
        teacher, sampling = assembly.teacher().eval(), recipe.showing.teacher
        return teacher_samples(teacher, assembly.vae, assembly.text, clips, sampling, recipe.negative_prompt)
    return student_samples(assembly.student(condition.stage).eval(), assembly.vae, assembly.text, clips)


def _pairs(clip: ClipMeasures) -> list[tuple[float, float]]:
    return [(_short(a), _short(b)) for a, b in (clip.sums[part] for part in PARTS)]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def protocol_key(training: str, condition: Condition, clips: int | None) -> dict[str, Any]:
    """What a piece depends on: its weights and the clips it is measured on."""
    wanted = {name: (frames, min(count, clips or count)) for name, (frames, count) in PROTOCOLS.items()}
    return {"weights": training, "student": dict(condition.student), "world": WORLD_VERSION, "protocols": wanted}
