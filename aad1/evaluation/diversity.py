"""Diversity of a model's clips on the free track: headings over all of them, and spread over seeds of one image.

Samples whose truths have the same scene are seeds of one image. What the world itself allows stands beside them:
``truth_samples`` sets the objects of each image off anew, as the world draws headings and speeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aad1.data.world import FPS, FREE_SPEED, Clip, Scene, Shape, render, simulate
from aad1.errors import UserError
from aad1.evaluation.intervals import Interval, draws, mean_interval
from aad1.evaluation.report import Column, Curves
from aad1.evaluation.world import Sample
from aad1.measures.diversity import Motion, entropy, heading_counts, heading_spread, motion_of, position_spread
from aad1.measures.reference import Reference

SEEDS = 8
COLUMNS = (
    Column(
        "heading_entropy",
        "head-bits",
        "3",
        "entropy of the first headings over eight octants, bits (free): 3 where all are alike, 0 where everything "
        "sets off one way; low by about 5 / objects",
    ),
    Column("seed_heading", "seed-deg", "90", "mean angle between first headings of two seeds of one image (free)", 1),
    Column("seed_position", "seed-px", "truth", "mean distance between an object's places in two seeds (free), px", 1),
)


@dataclass(frozen=True)
class Diversity:
    """One model's row and curve; images, and clips of them, that it is over; missing: what could not be measured."""

    row: dict[str, Interval | None]
    curve: list[tuple[float, float | None]]
    images: int
    clips: int
    missing: tuple[str, ...]


def diversity_row(samples: Iterable[Sample], seed: int = 0) -> Diversity:
    """Diversity of the free clips among ``samples``, which are read one at a time; others are passed over.

    The spread over seeds is None where no image has two clips. Intervals are 95 % bootstraps over images. Raises
    UserError for clips of one image that differ in length.
    """
    images: dict[Scene, list[Motion]] = {}
    for frames, truth, image_given in samples:
        if truth.scene.track == "free":
            images.setdefault(truth.scene, []).append(motion_of(frames, Reference.of(truth, image_given)))
    several = [clips for clips in images.values() if len(clips) > 1]
    _check_lengths(several)
    spreads = [position_spread([clip.positions for clip in clips]) for clips in several]
    headings = [heading_spread([clip.velocities for clip in clips]) for clips in several]
    row = {
        "heading_entropy": _entropy(list(images.values()), seed),
        "seed_heading": mean_interval(headings, seed=seed),
        "seed_position": mean_interval([_mean(spread) for spread in spreads], seed=seed),
    }
    return Diversity(row, _curve(spreads), len(images), sum(map(len, images.values())), _missing(row))


def diversity_curves(models: Mapping[str, Diversity]) -> Curves:
    """Distance between seeds by time, a line a model."""
    return Curves("Spread over seeds of one image", "seconds", "px", {name: d.curve for name, d in models.items()})


def seeded(clips: Iterable[Clip], seeds: int = SEEDS) -> Iterator[Clip]:
    """Each free clip ``seeds`` times: what a model is given, with noise of its own for each."""
    for clip in clips:
        if clip.truth.scene.track == "free":
            yield from (clip for _ in range(seeds))


def truth_samples(clips: Iterable[Clip], seeds: int = SEEDS) -> Iterator[Sample]:
    """``seeds`` futures of each free clip's image that the world could draw, the first being the clip's own."""
    for clip in clips:
        scene = clip.truth.scene
        if scene.track != "free":
            continue
        yield Sample(clip.frames, clip.truth)
        rng = np.random.default_rng(zlib.crc32(repr(scene).encode()))
        for _ in range(seeds - 1):
            other = simulate(replace(scene, shapes=tuple(_set_off(s, rng) for s in scene.shapes)), len(clip.frames))
            yield Sample(render(other.scene, other.positions), clip.truth)


def _set_off(shape: Shape, rng: np.random.Generator) -> Shape:
    """The same object with another heading and speed."""
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*FREE_SPEED)
    return replace(shape, velocity=(float(speed * np.cos(heading)), float(speed * np.sin(heading))))


def _entropy(images: Sequence[Sequence[Motion]], seed: int) -> Interval | None:
    """Over all clips; the interval is over images, shifted onto the estimate: resamples see fewer different ones."""
    counts = np.array([sum(heading_counts(clip.velocities) for clip in clips) for clips in images])
    if not counts.sum():
        return None
    value, *resampled = entropy(draws(len(counts), seed=seed) @ counts)
    low, high = np.nanpercentile(resampled, [2.5, 97.5]) - np.nanmean(resampled)
    return Interval(float(value), max(0.0, float(value + low)), min(3.0, float(value + high)))


def _check_lengths(images: Sequence[Sequence[Motion]]) -> None:
    lengths = {clip.positions.shape[1] for clips in images for clip in clips}
    if len(lengths) > 1:
        raise UserError(f"clips of {' and '.join(map(str, sorted(lengths)))} frames; evaluate each length separately")


def _curve(spreads: Sequence[NDArray[np.float64]]) -> list[tuple[float, float | None]]:
    if not spreads:
        return []
    means = [_mean(column) for column in np.stack(spreads).T]
    return [(i / FPS, None if np.isnan(mean) else mean) for i, mean in enumerate(means)]


def _mean(values: NDArray[np.float64]) -> float:
    """Without nan; nan where all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _missing(row: Mapping[str, Interval | None]) -> tuple[str, ...]:
    reasons = {
        "heading_entropy": "no object of a free clip showed a first heading",
        "seed_heading": "no image has two clips that show one object's heading; make several seeds of an image",
        "seed_position": "no image has two clips that show one object; make several seeds of an image",
    }
    return tuple(f"{name}: {reason}" for name, reason in reasons.items() if row[name] is None)
