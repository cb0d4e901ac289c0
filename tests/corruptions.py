"""Known ways to spoil a true clip, one for each measure that must notice.

Every corruption takes a Clip and returns uint8 frames [frames, 64, 64, 3].
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aad1.data.world import HUES, SIZE, WALL_MARGIN, Clip, Scene, render

CHUNK = 16
OFF_STAGE = -640.0

Frames = NDArray[np.uint8]


def _seed(clip: Clip) -> np.random.Generator:
    return np.random.default_rng(len(clip.frames))


def _time_warp(clip: Clip, times: NDArray[np.float64]) -> Frames:
    """The clip with frame i showing the state at ``times[i]``, between two states linearly."""
    path = clip.truth.positions
    low = np.minimum(times.astype(int), path.shape[1] - 2)
    share = (times - low)[None, :, None]
    return render(clip.truth.scene, path[:, low] * (1 - share) + path[:, low + 1] * share)


def _ramp(clip: Clip) -> NDArray[np.float64]:
    return np.linspace(0, 1, len(clip.frames))[:, None, None, None]


def _to_bytes(values: NDArray[np.float64]) -> Frames:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


# --- motion ----------------------------------------------------------------------------------


def frozen(clip: Clip) -> Frames:
    return np.repeat(clip.frames[:1], len(clip.frames), axis=0)


def frozen_second_half(clip: Clip) -> Frames:
    return clip.frames[np.minimum(np.arange(len(clip.frames)), len(clip.frames) // 2)]


def half_speed(clip: Clip) -> Frames:
    return _time_warp(clip, np.arange(len(clip.frames)) / 2)


def decaying_speed(clip: Clip) -> Frames:
    """Speed falls linearly from 1 to .1."""
    speed = np.linspace(1, 0.1, len(clip.frames) - 1)
    return _time_warp(clip, np.concatenate([[0.0], np.cumsum(speed)]))


def shuffled_time(clip: Clip) -> Frames:
    return clip.frames[_seed(clip).permutation(len(clip.frames))]


def jitter(clip: Clip) -> Frames:
    """White noise of .7 px on every position."""
    noise = _seed(clip).normal(0, 0.7, clip.truth.positions.shape)
    return render(clip.truth.scene, clip.truth.positions + noise)


def jumps_at_seams(clip: Clip) -> Frames:
    """Every object hops sideways by 3 px while each second chunk lasts, but not through a wall."""
    chunk = (np.arange(len(clip.frames)) + CHUNK - 1) // CHUNK
    margins = np.array([WALL_MARGIN[s.shape] * s.radius for s in clip.truth.scene.shapes])[:, None, None]
    hopped = clip.truth.positions + 3.0 * (chunk % 2)[None, :, None]
    return render(clip.truth.scene, np.minimum(hopped, SIZE - margins))


# --- identity --------------------------------------------------------------------------------


def one_vanishes(clip: Clip) -> Frames:
    """The first object is gone in the second half."""
    path = clip.truth.positions.copy()
    path[0, path.shape[1] // 2 :] = OFF_STAGE
    return render(clip.truth.scene, path)


def one_recolours(clip: Clip) -> Frames:
    """The first object takes a hue of no other from the middle on."""
    scene, half = clip.truth.scene, len(clip.frames) // 2
    spare = next(hue for hue in HUES if hue not in {s.hue for s in scene.shapes})
    other = Scene((replace(scene.shapes[0], hue=spare), *scene.shapes[1:]), scene.background, "", scene.track)
    return np.concatenate([clip.frames[:half], render(other, clip.truth.positions[:, half:])])


def _resized(clip: Clip, factor: float) -> Frames:
    """Every radius is multiplied in the second half."""
    scene, half = clip.truth.scene, len(clip.frames) // 2
    other = replace(scene, shapes=tuple(replace(s, radius=factor * s.radius) for s in scene.shapes))
    return np.concatenate([clip.frames[:half], render(other, clip.truth.positions[:, half:])])


def grows(clip: Clip) -> Frames:
    """Every radius is a fifth larger in the second half."""
    return _resized(clip, 1.2)


def swells(clip: Clip) -> Frames:
    """Every area is almost doubled in the second half."""
    return _resized(clip, 1.4)


def shrinks(clip: Clip) -> Frames:
    """Every area is halved in the second half."""
    return _resized(clip, 0.7)


# --- appearance ------------------------------------------------------------------------------


def over_exposure(clip: Clip) -> Frames:
    """Brightness rises by .27 of full scale over the clip."""
    return _to_bytes(clip.frames + 0.27 * 255 * _ramp(clip))


def desaturation(clip: Clip) -> Frames:
    """Colour fades to two fifths."""
    grey = clip.frames.mean(axis=-1, keepdims=True)
    return _to_bytes(clip.frames + 0.6 * _ramp(clip) * (grey - clip.frames))


def blur(clip: Clip) -> Frames:
    """Sharpness falls from none to a Gaussian of 1.2 px."""
    widths = np.linspace(0, 1.2, len(clip.frames))
    return np.stack([ndimage.gaussian_filter(f, (w, w, 0)) for f, w in zip(clip.frames, widths, strict=True)])


def noise(clip: Clip) -> Frames:
    """Grey noise of 3 % of full scale, which leaves hues alone."""
    shape = (*clip.frames.shape[:3], 1)
    return _to_bytes(clip.frames + _seed(clip).normal(0, 0.03 * 255, shape))


def brightness_at_seams(clip: Clip) -> Frames:
    """Each second chunk is brighter by 4 grey levels."""
    chunk = (np.arange(len(clip.frames)) + CHUNK - 1) // CHUNK
    return _to_bytes(clip.frames + 4.0 * (chunk % 2)[:, None, None, None])
