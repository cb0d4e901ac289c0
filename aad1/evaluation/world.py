"""Evaluation on the embedded world: one row of measures per model, beside controls that need none.

A row pools its clips by summing numerators and denominators; its intervals are 95 % percentile
bootstraps over clips, seeded. Determined and free clips are reported apart and together. Every
evaluation first checks the detector on its own truths. These are not VBench numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aad1.data.world import SHORT_FRAMES, Clip, Truth, make_clip, render
from aad1.errors import UserError, nearest
from aad1.evaluation.intervals import RESAMPLES, Interval, draws, interval
from aad1.measures.detect import detect
from aad1.measures.motion import CHUNK_FRAMES, has_opencv
from aad1.measures.reference import Reference
from aad1.measures.world import CURVES, MEASURES, ClipMeasures, Measure, combine, measure_clip

TRACKS = ("determined", "free", "all")
CLIPS = 100
DETECTOR_LIMIT = 0.15  # px
CHECKED_TRUTHS = 8
NOTE = "Mean [95 % bootstrap interval over clips]; N/A where a measure does not apply. These are not VBench numbers."

Frames = NDArray[np.uint8]
JsonTable = dict[str, dict[str, list[float] | None]]


class Sample(NamedTuple):
    """Frames that a model made and the truth they were asked for; ``image_given`` False if the model had the caption
    alone and drew its own first frame.
    """

    frames: Frames
    truth: Truth
    image_given: bool = True


@dataclass(frozen=True)
class Row:
    """One model's measures by track; None is N/A. curves: of CURVES, by chunk, None where nothing was found."""

    name: str
    clips: dict[str, int]
    measures: dict[str, dict[str, Interval | None]]
    curves: dict[str, dict[str, list[float | None]]]


class Measured(NamedTuple):
    """One clip's measures and the track of its truth."""

    track: str
    clip: ClipMeasures


def protocol_clips(frames: int = SHORT_FRAMES, count: int = CLIPS, split: str = "test") -> Iterator[Clip]:
    """The clips of a protocol: 81 frames for motion (short), 321 for drift (long); the tracks alternate."""
    for index in range(count):
        yield make_clip(split, index, frames)


def evaluate(
    name: str,
    samples: Iterable[Sample],
    chunk_frames: int = CHUNK_FRAMES,
    with_flow: bool = True,
    seed: int = 0,
) -> Row:
    """Measure generated frames against the truth each was asked for, and pool them.

    Raises UserError without samples, for frames of another length or size, or when the detector fails.
    """
    return pooled_row(name, measured(samples, chunk_frames, with_flow), seed)


def measured(samples: Iterable[Sample], chunk_frames: int = CHUNK_FRAMES, with_flow: bool = True) -> Iterator[Measured]:
    """Each clip's own measures; raises UserError for frames of another length or size, or when the detector fails."""
    for index, (frames, truth, image_given) in enumerate(samples):
        if index < CHECKED_TRUTHS:
            check_detector(truth)
        reference = Reference.of(truth, image_given)
        yield Measured(truth.scene.track, measure_clip(frames, reference, chunk_frames, with_flow=with_flow))


def pooled_row(name: str, clips: Iterable[Measured], seed: int = 0) -> Row:
    """The clips pooled by track; raises UserError without any."""
    held = list(clips)
    if not held:
        raise UserError(f"row '{name}' has no clips to evaluate; give at least one")
    chosen = {track: [m.clip for m in held if track in (m.track, "all")] for track in TRACKS}
    return Row(
        name,
        {track: len(part) for track, part in chosen.items()},
        {track: pool(part, seed=seed) for track, part in chosen.items()},
        {track: pooled_curves(part) for track, part in chosen.items()},
    )


def check_detector(truth: Truth) -> float:
    """Mean error in px of the detector on the drawn truth; raises UserError above .15 px or for a lost object."""
    found = detect(render(truth.scene, truth.positions), [s.hue for s in truth.scene.shapes])
    error = float(np.linalg.norm(found.positions - truth.positions, axis=-1).mean())
    if not error <= DETECTOR_LIMIT:
        raise UserError(
            f"the detector is off by {error:.2f} px (limit {DETECTOR_LIMIT}) on true frames of "
            f"'{truth.scene.caption}': the world or its palette has changed, so no measure can be trusted"
        )
    return error


# --- controls --------------------------------------------------------------------------------


def truth_frames(clip: Clip) -> Frames:
    """The truth itself: the floor or ceiling of every measure."""
    return clip.frames


def frozen_frames(clip: Clip) -> Frames:
    """The first frame, repeated: what total motion collapse scores."""
    return np.repeat(clip.frames[:1], len(clip.frames), axis=0)


def constant_velocity_frames(clip: Clip) -> Frames:
    """Every shape straight on from its first state, through each other and out of the picture."""
    time = np.arange(len(clip.frames))[None, :, None]
    start, velocity = clip.truth.positions[:, :1], clip.truth.velocities[:, :1]
    return render(clip.truth.scene, start + velocity * time)


CONTROLS: dict[str, Callable[[Clip], Frames]] = {
    "truth": truth_frames,
    "frozen": frozen_frames,
    "constant_velocity": constant_velocity_frames,
}


# --- pooling ---------------------------------------------------------------------------------


def pool(clips: Sequence[ClipMeasures], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval | None]:
    """Every measure over the clips with its interval; None where no clip defines it."""
    if not clips:
        return {measure.name: None for measure in MEASURES}
    weights = draws(len(clips), resamples, seed)
    totals = {
        key: (weights @ np.array([c.sums[key][0] for c in clips]), weights @ np.array([c.sums[key][1] for c in clips]))
        for key in clips[0].sums
    }
    return {measure.name: interval(combine(measure, totals)) for measure in MEASURES}


def pooled_curves(clips: Sequence[ClipMeasures]) -> dict[str, list[float | None]]:
    """Each of CURVES by chunk over all clips, which must be of one length."""
    if len({c.curves["rho"].shape for c in clips}) > 1:
        raise UserError("clips of different lengths in one row; evaluate the short and the long protocol separately")
    totals = {name: np.sum([c.curves[name] for c in clips], axis=0) for name in CURVES if clips}
    return {name: [float(a / b) if b > 0 else None for a, b in total] for name, total in totals.items()}


# --- tables ----------------------------------------------------------------------------------


def table(rows: Iterable[Row], track: str = "all") -> JsonTable:
    """{row: {measure: [mean, low, high] or None}} of one track, ready for JSON."""
    if track not in TRACKS:
        raise UserError(f"unknown track '{track}'{nearest(track, TRACKS)}")
    return {
        row.name: {name: [v.mean, v.low, v.high] if v else None for name, v in row.measures[track].items()}
        for row in rows
    }


def report(rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    """Everything of the rows, by track: table, number of clips and per-chunk speed curves; ready for JSON."""
    return {
        track: {
            "table": table(rows, track),
            "clips": {row.name: row.clips[track] for row in rows},
            "curves": {row.name: row.curves[track] for row in rows},
        }
        for track in TRACKS
    }


def _cell(measure: Measure, value: list[float] | None, interval: bool) -> str:
    if value is None:
        return "N/A"
    mean, low, high = (
        f"{round(v, measure.digits) + 0.0:.{measure.digits}f}" for v in value
    )  # + 0.0 drops a minus zero
    return f"{mean} [{low}, {high}]" if interval else mean


def _shown(values: Mapping[str, Mapping[str, list[float] | None]], names: Collection[str]) -> list[Measure]:
    """Measures that at least one row defines, of those named (none named: of all)."""
    wanted = [m for m in MEASURES if not names or m.name in names]
    return [m for m in wanted if any(row.get(m.name) is not None for row in values.values())]


def missing_note() -> str:
    """Why optional measures are N/A on this machine; empty when none is."""
    return "" if has_opencv() else "dyn is N/A: it needs OpenCV (pip install 'aad1[eval]')."


def to_markdown(values: JsonTable, title: str = "", interval: bool = True, measures: Collection[str] = ()) -> str:
    """The table and its legend in Markdown: a line per measure (all, or those named), a column per row."""
    shown = _shown(values, measures)
    lines = [f"### {title}", ""] if title else []
    lines += ["| measure | ideal | " + " | ".join(values) + " |", "|" + "---|" * (2 + len(values))]
    for m in shown:
        cells = (_cell(m, row.get(m.name), interval) for row in values.values())
        lines.append(f"| {m.column} | {m.ideal} | " + " | ".join(cells) + " |")
    # A bar would end a table cell; the legend is a list, where bars are plain.
    lines += ["", *(f"- **{m.column}** (ideal {m.ideal}): {m.legend}" for m in shown), "", NOTE]
    return "\n".join([*lines, missing_note()]).rstrip() + "\n"
