"""Every measure of one video that needs no truth, as a numerator and a denominator, so that clips are pooled by sums.

What does not apply is a gap with its reason, never a number. A clip that stands still has no drift, flicker, seams or
similarity: a frozen picture would be perfect by all of them. These are not VBench numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aad1.data.motion import motion_energy
from aad1.measures.appearance import GRID_PERIOD, GRID_PERIODS, flicker, grid_peak, sharpness, similarity
from aad1.measures.motion import (
    STILL_FLOW,
    check_frames,
    dynamic_degree,
    flow_fields,
    has_opencv,
    is_static,
    luma,
    saturation,
    seam_parts,
    slope_per_100,
)
from aad1.measures.world import NOT_APPLICABLE, Measure, Pair

FASTEST = 0.05  # of the pixels, as in VBench's dynamic degree
STILL_FASTEST = 0.1  # px a frame of the (reduced) picture: grain and compression of a still picture stay below it
COHERENT = 8  # steps over which a pixel's flow is averaged for that: what grain seems to move goes back and forth
FLOW_WINDOW = 4 * COHERENT  # pairs of frames whose flow is held at once
FEWEST = 8  # frames that quarters and slopes need
DYNAMIC_FPS, DYNAMIC_FRAMES = 8, 4  # of fewer frames VBench's rule asks no motion at all

NO_OPENCV = "OpenCV is not installed (pip install 'aad1[eval]')"
STANDS_STILL = "it stands still"
TOO_SHORT = f"it has fewer than {FEWEST} frames"
TOO_SHORT_FOR_VBENCH = f"it has fewer than {DYNAMIC_FRAMES} frames at {DYNAMIC_FPS} a second"
NO_CHUNKS = "how many frames a chunk has is unknown (--chunk_frames says it)"
ONE_CHUNK = "it is not longer than a chunk"
UNDEFINED = "there is nothing to measure it against"

MEASURES = (
    Measure("dynamic", "dyn", "higher", "VBench's dynamic-degree rule with Farneback flow for RAFT: no VBench number"),
    Measure(
        "motion", "motion", "higher", "mean optical flow, % of the short side a second; far above real clips: jitter"
    ),
    Measure("retention", "kappa", "1", "motion of the last quarter over that of the first"),
    Measure(
        "static", "static", "0", "share of clips that stand still; a frozen picture is perfect by what leaves them out"
    ),
    Measure("luma_slope", "luma", "0", "slope of mean luma (0 to 1) per 100 frames, without still clips", 3),
    Measure("saturation_slope", "sat", "0", "slope of mean saturation (0 to 1) per 100 frames, without still clips", 3),
    Measure(
        "sharpness_slope",
        "sharp",
        "0",
        "slope of sharpness over its first quarter's, per 100 frames, without still clips",
    ),
    Measure("flicker", "flicker", "0", "brightness that alternates, in grey levels of 255, without still clips"),
    Measure("seam", "seam", "1", "change of pixels at chunk boundaries over change elsewhere, without still clips"),
    Measure(
        "seam_luma", "seam-luma", "1", "change of luma at chunk boundaries over change elsewhere, without still clips"
    ),
    Measure(
        "similarity",
        "first",
        "higher",
        "what is where in the last quarter, correlated with the first frame, without still clips; motion lowers it",
    ),
    Measure("grid_peak", "grid", "1", "|gradient| at the token's period over that at the frequencies beside it"),
)
ALWAYS = ("dynamic", "motion", "static", "grid_peak")  # the others are N/A for a clip that stands still
OF_ANY_KIND = (*ALWAYS, "seam", "seam_luma")  # mean the same at any length, size and rate
CURVES = {
    "motion": "motion, % of the short side a second",
    "retention": "motion over that of the first quarter",
    "sharpness": "sharpness over that of the first quarter",
    "similarity": "similarity to the first frame",
    "luma": "mean luma, 0 to 1",
}

Series = NDArray[np.float64]
Found = dict[str, Pair | str]  # a measure's numerator and denominator, or why it is N/A


@dataclass(frozen=True)
class VideoMeasures:
    """One clip's measures as (numerator, denominator) pairs, (0, 0) where N/A; gaps: why, by measure.

    curves: of CURVES, such pairs for every ``part`` steps: a chunk, or a second where the chunks are unknown.
    """

    sums: Mapping[str, Pair]
    curves: Mapping[str, list[Pair]]
    part: int
    gaps: Mapping[str, str]

    def value(self, name: str) -> float | None:
        """The measure of this clip alone, None where it is N/A."""
        over, under = self.sums[name]
        return over / under if under else None


def measure_video(
    frames: NDArray[np.uint8], fps: float, chunk_frames: int | None = None, period: int = GRID_PERIOD
) -> VideoMeasures:
    """Measure uint8 frames [frames, height, width, 3].

    chunk_frames: pixel frames a chunk, which places the seams (None: unknown); period: of a token, in px. Raises
    UserError for frames of another shape or fewer than two.
    """
    check_frames(frames)
    moved, looks = movement(frames, fps), _looks(frames)
    found = _motion(frames, fps, moved) | _drift(frames, looks) | _seams(moved, looks["luma"], chunk_frames)
    if moved.static:
        kept = (*ALWAYS, "retention") if moved.begins else ALWAYS  # it moved and stopped: nothing of it is retained
        found = {name: pair if name in kept else STANDS_STILL for name, pair in found.items()}
        looks = {name: np.full(len(frames), np.nan) for name in looks}
    found["grid_peak"] = _known(grid_peak(frames, period), f"its sides are under {GRID_PERIODS * period} px")
    part = chunk_frames or max(1, round(fps))
    return VideoMeasures(
        {m.name: NOT_APPLICABLE if isinstance(pair := found[m.name], str) else pair for m in MEASURES},
        _curves(moved, looks, part),
        part,
        {m.name: reason for m in MEASURES if isinstance(reason := found[m.name], str)},
    )


def _known(value: float, reason: str = UNDEFINED) -> Pair | str:
    return reason if np.isnan(value) else (value, 1.0)


def _quarters(values: Series) -> tuple[float, float]:
    """Means of the first and of the last quarter."""
    quarter = max(1, len(values) // 4)
    return float(values[:quarter].mean()), float(values[-quarter:].mean())


# --- motion ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Movement:
    """Of each step from a frame to the next: energy is the mean absolute change of a pixel in [0, 1], flow the mean
    optical flow in % of the short side a second (None without OpenCV).

    static: the clip stands still; begins: its first quarter does not, so that there is motion to retain.
    """

    energy: Series
    flow: Series | None
    static: bool
    begins: bool

    @property
    def best(self) -> Series:
        """Flow where there is one, else the change of pixels."""
        return self.energy if self.flow is None else self.flow


def movement(frames: NDArray[np.uint8], fps: float) -> Movement:
    """A clip stands still when the fastest 5 % of its pixels move by less than .1 px a frame, on average.

    So a small moving shape on a large still picture counts as motion; grain, compression, and a still picture that
    grows brighter do not. Without OpenCV the change of pixels decides (``is_static``).
    """
    energy = motion_energy(frames)
    quarter = max(1, len(energy) // 4)
    if not has_opencv():
        return Movement(energy, None, is_static(energy), not is_static(energy[:quarter]))
    mean, fastest, side = _flow(frames)
    begins = bool(fastest[:quarter].mean() >= STILL_FASTEST)
    return Movement(energy, 100 * fps * mean / side, bool(fastest.mean() < STILL_FASTEST), begins)


def _flow(frames: NDArray[np.uint8]) -> tuple[Series, Series, int]:
    """Of each step in px of the (reduced) picture, [frames - 1]: mean flow, and that of the fastest 5 % of pixels, each
    averaged over COHERENT steps; and the picture's short side.
    """
    mean, fastest, side = list[Series](), list[Series](), 0
    for start in range(0, len(frames) - 1, FLOW_WINDOW):
        fields = flow_fields(frames[start : start + FLOW_WINDOW + 1])
        side = min(fields.shape[1:3])
        mean.append(_lengths(fields).mean(axis=1, dtype=np.float64))
        for part in range(0, len(fields), COHERENT):
            steps = fields[part : part + COHERENT]
            lengths = _lengths(steps.mean(axis=0, keepdims=True))[0]
            few = max(1, int(FASTEST * lengths.size))
            fastest.append(np.full(len(steps), np.partition(lengths, -few)[-few:].mean(dtype=np.float64)))
    found = np.concatenate(mean)
    return np.where(found < STILL_FLOW, 0.0, found), np.concatenate(fastest), side


def _lengths(fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Magnitudes of [steps, height, width, 2], [steps, pixels]."""
    return np.asarray(np.hypot(fields[..., 0], fields[..., 1])).reshape(len(fields), -1)


def _motion(frames: NDArray[np.uint8], fps: float, moved: Movement) -> Found:
    first, last = _quarters(moved.best)
    sampled = -(-len(frames) // max(1, round(fps / DYNAMIC_FPS)))
    found: Found = dict.fromkeys(("dynamic", "motion"), NO_OPENCV)
    if moved.flow is not None:
        found["motion"] = (float(moved.flow.mean()), 1.0)
        found["dynamic"] = TOO_SHORT_FOR_VBENCH
        if sampled >= DYNAMIC_FRAMES:
            found["dynamic"] = (float(dynamic_degree(frames, fps)), 1.0)
    found["static"] = (float(moved.static), 1.0)
    found["retention"] = (last, first) if moved.begins else STANDS_STILL
    if len(frames) < FEWEST:
        found["retention"] = TOO_SHORT
    return found


# --- appearance ------------------------------------------------------------------------------


def _looks(frames: NDArray[np.uint8]) -> dict[str, Series]:
    """What is followed frame by frame, [frames] each; nan where it is not defined."""
    sharp = sharpness(frames)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "luma": luma(frames),
            "saturation": saturation(frames),
            "sharpness": sharp / _quarters(sharp)[0],
            "similarity": similarity(frames),
        }


def _drift(frames: NDArray[np.uint8], looks: Mapping[str, Series]) -> Found:
    names = [f"{name}_slope" for name in ("luma", "saturation", "sharpness")]
    if len(frames) < FEWEST:
        return dict.fromkeys([*names, "flicker", "similarity"], TOO_SHORT)
    found: Found = {name: _known(slope_per_100(looks[name.removesuffix("_slope")])) for name in names}
    found["flicker"] = _known(float(flicker(frames).mean()))
    found["similarity"] = _known(_quarters(looks["similarity"])[1])
    return found


def _seams(moved: Movement, brightness: Series, chunk_frames: int | None) -> Found:
    names = ("seam", "seam_luma")
    if chunk_frames is None or len(brightness) <= chunk_frames + 1:
        return dict.fromkeys(names, NO_CHUNKS if chunk_frames is None else ONE_CHUNK)
    parts = (seam_parts(change, chunk_frames) for change in (moved.energy, np.abs(np.diff(brightness))))
    return {name: UNDEFINED if np.isnan(part).any() else part for name, part in zip(names, parts, strict=True)}


# --- over time -------------------------------------------------------------------------------


def _curves(moved: Movement, looks: Mapping[str, Series], size: int) -> dict[str, list[Pair]]:
    """The pairs of CURVES by ``size`` steps; the step from frame i to i + 1, and frame i + 1, are in part i // size."""
    unknown = np.full(len(moved.best), np.nan)
    series = {name: values[1:] for name, values in looks.items()}
    series["motion"] = unknown if moved.flow is None else moved.flow
    found = {name: [_sum(part) for part in _parts(series[name], size)] for name in CURVES if name in series}
    first = _quarters(moved.best)[0] if moved.begins else 0.0
    found["retention"] = [(float(part.mean()) if first else 0.0, first) for part in _parts(moved.best, size)]
    return found


def _parts(values: Series, size: int) -> list[Series]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _sum(values: Series) -> Pair:
    known = values[~np.isnan(values)]
    return float(known.sum()), float(known.size)
