"""Evaluation on the embedded world: one row of measures per model, beside controls that need none.

A row pools its clips by summing numerators and denominators; its intervals are 95 % percentile
bootstraps over clips, seeded. Determined and free clips are reported apart and together. Every
evaluation first checks the detector on its own truths. These are not VBench numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aad1.data.world import SHORT_FRAMES, Clip, Truth, make_clip, render
from aad1.errors import UserError
from aad1.evaluation.intervals import RESAMPLES, Interval, draws, interval
from aad1.evaluation.report import Column
from aad1.measures.detect import detect
from aad1.measures.motion import CHUNK_FRAMES
from aad1.measures.reference import Reference
from aad1.measures.world import CURVES, MEASURES, ClipMeasures, combine, measure_clip

TRACKS = ("determined", "free", "all")
CLIPS = 100
DETECTOR_LIMIT = 0.15  # px
CHECKED_TRUTHS = 8
COLUMNS = tuple(Column(m.name, m.column, m.ideal, m.legend, m.digits) for m in MEASURES)
NOTE = "Mean [95 % bootstrap interval over clips]; N/A where a measure does not apply. These are not VBench numbers."
NO_OPENCV = "dyn is N/A: it needs OpenCV (pip install 'aad1[eval]')"

Frames = NDArray[np.uint8]


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
    """One clip's measures and the track and caption of its truth."""

    track: str
    caption: str
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
        scene = truth.scene
        yield Measured(scene.track, scene.caption, measure_clip(frames, reference, chunk_frames, with_flow=with_flow))


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
