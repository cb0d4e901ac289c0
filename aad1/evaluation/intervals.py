"""95 % percentile bootstrap intervals over clips, seeded: the same clips give the same interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A measure with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def draws(count: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """How often each clip counts, [1 + resamples, count]; the first line is the clips as they are."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.vstack([np.ones(count), drawn])


def interval(values: NDArray[np.float64]) -> Interval | None:
    """The point value first, then its resamples; None where the point is N/A (nan).

    Resamples that lost every clip which defines the measure are nan and left out.
    """
    if np.isnan(values[0]):
        return None
    low, high = np.nanpercentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(values[0]), float(low), float(high))


def mean_interval(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The mean over clips with its interval; nan is a clip for which the measure is N/A, None if all are."""
    given = np.asarray(values, np.float64)
    if not given.size:
        return None
    weights, known = draws(given.size, resamples, seed), ~np.isnan(given)
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval((weights @ np.where(known, given, 0)) / (weights @ known.astype(np.float64)))
