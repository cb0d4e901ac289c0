"""How many futures a model finds: headings over clips, and the spread over seeds of one image.

On the free track a caption says nothing of motion, so one image leaves its future open. A model whose motion
collapses onto one mode sends everything the same way, or every seed of an image: no measure of a single clip sees it.

Axes: positions are detected, [objects, frames, 2] px, nan where an object is lost; velocities are the first ones,
[objects, 2] px a frame, nan where an object shows none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aad1.data.world import HEADINGS
from aad1.measures.detect import detect
from aad1.measures.motion import CHUNK_FRAMES
from aad1.measures.reference import Reference, octant
from aad1.measures.world import Observed, first_velocities


class Motion(NamedTuple):
    """What diversity needs of a clip: detected positions and first velocities."""

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]


def motion_of(frames: NDArray[np.uint8], reference: Reference) -> Motion:
    """Detect the motion in uint8 frames [frames, 64, 64, 3].

    A clip of a free scene takes its own way, so its bounces are judged by what is detected, not by the truth's.
    """
    detection = detect(frames, reference.hues)
    fitted = replace(reference.fitted(frames, detection), events=None)
    return Motion(detection.positions, first_velocities(Observed(frames, fitted, detection, CHUNK_FRAMES))[1])


def heading_counts(velocities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many objects set off in each octant, [headings], of velocities [objects, 2]; nan counts nowhere."""
    known = velocities[~np.isnan(velocities).any(axis=-1)]
    return np.bincount(octant(known), minlength=len(HEADINGS)).astype(np.float64)


def entropy(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """H = -sum_k p_k log2 p_k in bits, [..., headings] -> [...]: 3 where all eight are alike, nan without any count.

    The estimate from n objects is low by about 7 / (2 n ln 2) = 5 / n bits (Miller 1955).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p = counts / counts.sum(axis=-1, keepdims=True)
        return np.asarray(-np.where(p == 0, 0, p * np.log2(p)).sum(axis=-1) + 0.0)


def position_spread(positions: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean distance in px between the same object's places in any two of the clips, [frames], by time.

    nan where no two clips show the same object.
    """
    apart = np.stack([np.linalg.norm(a - b, axis=-1) for a, b in combinations(positions, 2)])
    return _known_mean(apart.reshape(-1, apart.shape[-1]))


def heading_spread(velocities: Sequence[NDArray[np.float64]]) -> float:
    """Mean angle in degrees between the same object's first headings in any two of the clips: 90 where they are
    independent and all alike, 0 where every clip sets off the same way; nan where no two clips show one.
    """
    angles = [_angle(a, b) for a, b in combinations(velocities, 2)]
    return float(_known_mean(np.concatenate(angles)))


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Degrees between vectors, [..., 2] -> [...]."""
    turned = np.arctan2(a[..., 1], a[..., 0]) - np.arctan2(b[..., 1], b[..., 0])
    return np.asarray(np.abs(np.degrees((turned + np.pi) % (2 * np.pi) - np.pi)))


def _known_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis without nan, nan where all are."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=0) / known.sum(axis=0))
