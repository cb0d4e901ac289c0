"""How pictures look over time, without ground truth: sharpness, flicker, similarity to the first frame, and a grid.

Frames are uint8 [frames, height, width, 3]. A frozen picture is perfect by all of these but the grid, so whoever
shows them shows motion beside them and leaves clips that stand still out. These are not VBench numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aad1.data.media import evenly_spaced

GRID_PERIOD = 16  # px: two latent pixels a token, eight pixels a latent pixel, for Wan and the bundled model alike
GRID_FRAMES = 16  # evenly spaced frames are looked at
GRID_PERIODS = 4  # that a side must hold
GRID_FLOOR = 0.1  # grey levels of |gradient|: a weaker grid than this is rounding
MAIN_LOBE = 2  # bins: a Hann window spreads a frequency less far than this

Series = NDArray[np.float64]


def greys(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rec. 709 luma of every pixel in [0, 255], [frames, height, width]."""
    return np.asarray(frames @ np.array([0.2126, 0.7152, 0.0722], np.float32))


# --- the grid --------------------------------------------------------------------------------


def grid_peak(frames: NDArray[np.uint8], period: int = GRID_PERIOD) -> float:
    """How much stronger |gradient| is at a grid's period than at the frequencies around it: ~1 ideal.

    The |horizontal gradient| of grey is reduced to one line for each row of tokens (the median over its ``period``
    pixel rows, which a small shape's edges do not move), and likewise downwards. P_k is the power of those lines
    (Hann window), each over its own mean, averaged over tokens and frames. Each harmonic of 1 / period below Nyquist
    is set against the geometric mean of P on its two sides, as far as half way to the next harmonic; the mean over
    harmonics and both directions is returned.

    frames: uint8 [frames, height, width, 3], tokens begin at the upper left; period: in px, 3 or more. nan where
    neither side holds four periods. Blocks of video compression show at 8 and 16 px too: look at lossless videos.
    """
    picked = frames[evenly_spaced(len(frames), GRID_FRAMES)]
    wide = [side >= GRID_PERIODS * period for side in picked.shape[1:3]]
    if period < 3 or not any(wide):
        return float("nan")
    grey = greys(picked)
    across, down = ([_harmonics(g, period)] if w else [] for g, w in ((grey, wide[1]), (grey.swapaxes(1, 2), wide[0])))
    return float(np.mean(across + down))


def _harmonics(grey: NDArray[np.float32], period: int) -> Series:
    """The ratio of each harmonic along the last axis of [frames, lines, pixels]."""
    apart, rows = grey.shape[-1] // period, max(1, grey.shape[1] // period)
    grey = grey[:, : rows * period, : apart * period]
    change = np.abs(np.diff(grey, axis=-1, append=grey[..., -1:]))
    lines = np.median(change.reshape(len(grey), rows, -1, apart * period), axis=2)
    window = np.hanning(apart * period + 1)[:-1]
    power = np.abs(np.fft.rfft(lines * window)) ** 2 + (GRID_FLOOR * window.sum() / period) ** 2
    power = (power / power[..., apart // 2 :].mean(axis=-1, keepdims=True)).mean(axis=(0, 1))
    reach = np.arange(MAIN_LOBE, apart // 2 + 1)
    return np.array([_beside(power, h * apart, reach) for h in range(1, (period + 1) // 2)])


def _beside(power: Series, peak: int, reach: NDArray[np.int_]) -> float:
    """The power of a bin over the geometric mean of its two sides' means."""
    return float(power[peak] / np.sqrt(power[peak - reach].mean() * power[peak + reach].mean()))
