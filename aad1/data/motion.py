"""How much the frames of a clip change: what the selection of clips and every measure of motion stand on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REDUCED_SIDE = 64  # px of a reduced picture's shorter side, at least: noise averages out, motion stays
AROUND = 4  # frame steps on either side that a jump is compared with; a source of 4 fps read at 16 repeats each frame
JUMP_FLOOR = 1 / 255  # added to both sides of a jump, so that rounding alone reads 1


def motion_energy(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean absolute change of a pixel between neighbouring frames, [frames - 1] in [0, 1]."""
    return np.array([_change(before, after) for before, after in pairwise(frames)], np.float64)


def _change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    # A frame at a time: temporaries as large as a clip cost more than the arithmetic.
    difference = np.maximum(before, after) - np.minimum(before, after)
    return float(difference.sum(dtype=np.uint64) / (255 * difference.size))


def reduced(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Uint8 [frames, height, width, 3] with blocks of pixels averaged, to a shorter side of 64 to 127 px."""
    factor = min(frames.shape[1:3]) // REDUCED_SIDE
    if factor < 2:
        return frames
    every = max(1, factor // 3)  # rows: a third of the pixels average noise out as well, in half the time
    blocks = factor, factor // every
    return np.stack([np.asarray(Image.fromarray(frame[::every]).reduce(blocks)) for frame in frames])


def largest_jump(energy: NDArray[np.float64]) -> tuple[float, int]:
    """How many times as much as every near step the most sudden one changes, and which it is (0: frames 0 to 1).

    1 or so for steady motion; a cut from one scene to another stands alone, so it has 10 and more.
    """
    padded = np.pad(energy, AROUND, constant_values=0.0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)
    near = np.delete(windows, AROUND, axis=1).max(axis=1)
    jumps = (energy + JUMP_FLOOR) / (near + JUMP_FLOOR)
    step = int(jumps.argmax())
    return float(jumps[step]), step
