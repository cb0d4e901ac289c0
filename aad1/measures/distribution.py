"""Distances between two distributions of videos, from features of their clips: Frechet, and squared MMD.

Axes: features are float64 [clips, windows, dim], the same window being the same stretch of time in every clip. Each
window is compared with its own of the other side, and the windows' distances are averaged: a fault that comes late
would be thinned out if all windows were one sample. Clips are independent, windows of one clip are not, so clips
are what is left out when a spread is estimated.

Frechet distance (Heusel et al. 2017; FVD, Unterthiner et al. 2018): |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2).
From N clips it is too large, by about dim^2 / 2N for white features: 4 for 64 features and 512 clips. Jackknives of
both sides take away the part of the bias that falls as 1 / N (Quenouille 1956), which leaves truth against truth
near 0, on either side of it, but what is left still depends on N: compare values of the same number of clips.
MMD^2 (Gretton et al. 2012, the unbiased estimate) with k(x, y) = exp(-|x - y|^2 / (2 dim)) has no bias for any N. The
kernel's width is that of white features, not of the clips at hand, so values compare between evaluations; it is
at most 2. KID's cubic kernel saw no more, and gave clips that are far off values in the thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aad1.errors import UserError

GROUPS = 16  # parts that the clips of one side are split into, each of which is left out once

Features = NDArray[np.float64]
Leaving = Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.float64]]  # which clips of each side are kept


class Estimate(NamedTuple):
    """A distance, its standard error by leaving out a group of clips of either side in turn, and its windows' own."""

    value: float
    error: float
    windows: NDArray[np.float64]


def frechet(a: Features, b: Features) -> Estimate:
    """Frechet distance, averaged over windows, of features [clips, windows, dim]; without its bias of order 1 / N.

    Raises UserError for features that do not compare, are not finite, or are of fewer than three clips.
    """
    a, b = _checked(a, b)

    def distances(keep_a: NDArray[np.bool_], keep_b: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.array([frechet_distance(x[keep_a], y[keep_b]) for x, y in zip(*map(_by_window, (a, b)), strict=True)])

    return _jackknife(distances, len(a), len(b), biased=True)


def mmd(a: Features, b: Features) -> Estimate:
    """Unbiased squared MMD with a Gaussian kernel, averaged over windows; arguments and errors as for ``frechet``."""
    a, b = _checked(a, b)
    within_a, within_b, across = kernel(a, a), kernel(b, b), kernel(a, b)

    def distances(keep_a: NDArray[np.bool_], keep_b: NDArray[np.bool_]) -> NDArray[np.float64]:
        own = _pair_mean(within_a[:, keep_a][:, :, keep_a]) + _pair_mean(within_b[:, keep_b][:, :, keep_b])
        return own - 2 * across[:, keep_a][:, :, keep_b].mean(axis=(1, 2))

    return _jackknife(distances, len(a), len(b), biased=False)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Frechet distance of the Gaussians with the means and (unbiased) covariances of two samples, [count, dim] each.

    tr (C_a C_b)^1/2 is the sum of the square roots of the eigenvalues of S C_b S with S S = C_a, which is symmetric.
    """
    covariance_a, covariance_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    apart = a.mean(axis=0) - b.mean(axis=0)
    return float(apart @ apart + np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared)


def kernel(a: Features, b: Features) -> NDArray[np.float64]:
    """k(x, y) = exp(-|x - y|^2 / (2 dim)) of every clip of ``a`` with every clip of ``b``, [windows, a, b]."""
    x, y = _by_window(a), _by_window(b)
    apart = np.square(x).sum(axis=-1)[:, :, None] + np.square(y).sum(axis=-1)[:, None] - 2 * x @ y.transpose(0, 2, 1)
    return np.asarray(np.exp(apart.clip(min=0) / (-2 * a.shape[-1])))


def _by_window(features: Features) -> NDArray[np.float64]:
    return features.transpose(1, 0, 2)


def _pair_mean(within: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over pairs of different clips, [windows]: a clip's kernel with itself would bias the estimate."""
    count = within.shape[-1]
    return np.asarray((within.sum(axis=(1, 2)) - np.trace(within, axis1=1, axis2=2)) / (count * (count - 1)))


def _jackknife(distances: Leaving, count_a: int, count_b: int, *, biased: bool) -> Estimate:
    """The mean of the windows' distances, with its standard error from those that leave out a group of clips.

    A bootstrap would count some clips twice, which both distances mistake for a difference. Groups are runs of
    neighbours, so that each holds clips of both tracks. ``biased`` adds (groups - 1) (d - mean of d without a group)
    for either side, which is minus the bias of order 1 / N.
    """
    whole_a, whole_b = np.ones(count_a, bool), np.ones(count_b, bool)
    found = distances(whole_a, whole_b)
    without_a = np.array([distances(keep, whole_b) for keep in _all_but_one_group(count_a)])
    without_b = np.array([distances(whole_a, keep) for keep in _all_but_one_group(count_b)])
    variance = sum((len(parts) - 1) * parts.mean(axis=1).var() for parts in (without_a, without_b))
    if biased:
        found = found + sum((len(parts) - 1) * (found - parts.mean(axis=0)) for parts in (without_a, without_b))
    return Estimate(float(found.mean()), float(np.sqrt(variance)), found)


def _all_but_one_group(count: int) -> list[NDArray[np.bool_]]:
    groups = min(GROUPS, count)
    member = np.arange(count) * groups // count
    return [member != group for group in range(groups)]


def _checked(a: Features, b: Features) -> tuple[Features, Features]:
    for features in (a, b):
        if features.ndim != 3 or features.shape[1:] != a.shape[1:]:
            raise UserError(
                f"features of shapes {list(a.shape)} and {list(b.shape)} do not compare: both must be "
                "[clips, windows, dim] of as many windows; give clips of one length"
            )
        if len(features) < 3:
            raise UserError(f"a distribution of {len(features)} clips has no spread; give at least 3, better 512")
        if not np.isfinite(features).all():
            raise UserError("features are not finite: the clips or the encoder's weights hold nan; check both")
    return np.asarray(a, np.float64), np.asarray(b, np.float64)
