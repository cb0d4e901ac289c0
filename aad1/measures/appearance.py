"""How pictures look over time, without ground truth: sharpness, flicker, similarity to the first frame, and a grid.

Frames are uint8 [frames, height, width, 3]. A frozen picture is perfect by all of these but the grid, so whoever
shows them shows motion beside them and leaves clips that stand still out. These are not VBench numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aad1.data.media import evenly_spaced

FLICKER_BLOCKS = 8  # a side
LAYOUT_SIDE = 16  # cells along the short side: what is where, without detail
LAYOUT_FLOOR = 0.5  # grey levels: a picture whose cells differ by less shows nothing

GRID_PERIOD = 16  # px: two latent pixels a token, eight pixels a latent pixel, for Wan and the bundled model alike
GRID_FRAMES = 16  # evenly spaced frames are looked at
GRID_PERIODS = 4  # that a side must hold
GRID_FLOOR = 0.1  # grey levels of |gradient|: a weaker grid than this is rounding
MAIN_LOBE = 2  # bins: a Hann window spreads a frequency less far than this

Series = NDArray[np.float64]


def greys(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rec. 709 luma of every pixel in [0, 255], [..., height, width, 3] -> [..., height, width]."""
    return np.asarray(frames @ np.array([0.2126, 0.7152, 0.0722], np.float32))


# --- over time -------------------------------------------------------------------------------


def sharpness(frames: NDArray[np.uint8]) -> Series:
    """Energy of grey's second differences over that of its first, along rows and columns, [frames].

    Blur lowers it; brightness, contrast and how much there is to see do not. nan for a picture of one colour.
    """
    return np.array([_sharpness(greys(frame)) for frame in frames])


def _sharpness(grey: NDArray[np.float32]) -> float:
    first, second = (sum(_energy(np.diff(grey, order, axis=axis)) for axis in (0, 1)) for order in (1, 2))
    return second / first if first > 0 else float("nan")


def _energy(values: NDArray[np.float32]) -> float:
    return float(np.vdot(values, values)) / max(1, values.size)


def flicker(frames: NDArray[np.uint8]) -> Series:
    """Alternation of brightness around each inner frame, [frames - 2], in grey levels of 255.

    m is the mean grey of a block (8x8 blocks a picture): the median over blocks of |m_{t+1} - 2 m_t + m_{t-1}| / 4.
    Brightness that alternates by +-a reads a. The second difference leaves a steady change of brightness out, and the
    median what moves on less than half of the picture.
    """
    blocks = np.stack([_block_means(greys(frame)).ravel() for frame in frames])
    return np.asarray(np.median(np.abs(np.diff(blocks, 2, axis=0)), axis=1) / 4)


def _block_means(grey: NDArray[np.float32]) -> Series:
    """Means of 8x8 blocks (fewer where there are fewer pixels) of one picture [height, width]."""
    edges = [np.linspace(0, side, min(side, FLICKER_BLOCKS) + 1).astype(int) for side in grey.shape]
    sums = np.add.reduceat(np.add.reduceat(grey, edges[1][:-1], axis=1), edges[0][:-1], axis=0)
    return np.asarray(sums / np.outer(np.diff(edges[0]), np.diff(edges[1])), np.float64)


def similarity(frames: NDArray[np.uint8]) -> Series:
    """Correlation of each frame's layout with the first frame's, [frames] in [-1, 1]; 1 is the same picture.

    The layout is the picture reduced to 16 cells along its short side, each colour about its own mean: brightness,
    contrast and detail do not count, what is where does. Motion lowers it, so compare clips that move alike. 0 where
    a frame shows nothing; nan throughout where the first one does.
    """
    layouts = np.stack([_layout(frame) for frame in frames])
    lengths = np.linalg.norm(layouts, axis=1)
    if lengths[0] == 0:
        return np.full(len(frames), np.nan)
    return np.asarray(layouts @ layouts[0] / np.maximum(lengths * lengths[0], 1e-9))


def _layout(frame: NDArray[np.uint8]) -> Series:
    """One picture's cells about their means, [cells x 3]; zeros where they hardly differ."""
    height, width = frame.shape[:2]
    scale = LAYOUT_SIDE / min(height, width)
    size = (max(LAYOUT_SIDE, round(width * scale)), max(LAYOUT_SIDE, round(height * scale)))
    cells = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), np.float64)
    cells -= cells.mean(axis=(0, 1))
    return np.where(cells.std() < LAYOUT_FLOOR, 0.0, cells).ravel()


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
