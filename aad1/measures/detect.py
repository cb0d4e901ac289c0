"""Where the world's shapes are in any frames: one tracked component per expected hue, to sub-pixel.

A pixel is foreground where its Lab chroma passes a gate; it takes the palette's nearest hue on the
HSV circle, because there anti-aliasing (mixing with a near-grey background) keeps the hue, whereas in
Lab blue mixed with grey turns towards pink. The largest component of each expected hue is the object;
its position is the centroid of the pixels' share of that hue, so the soft rim counts by its coverage.

Axes: frames are uint8 [frames, height, width, 3]; positions are (x, y) in pixels with pixel centres
at half-integers, as in the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aad1.data.world import HUES, palette
from aad1.errors import UserError, nearest

CHROMA_GATE = 20.0  # Lab chroma; the background stays under 10, a half-covered rim pixel lies above
MIN_AREA = 6  # pixels; smaller components are noise, neither objects nor foreign colour
RAMP_BITS = 6  # bits a channel of the hue table; positions never see this rounding
IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = True  # eight neighbours within a frame, none between frames


@dataclass(frozen=True)
class Detection:
    """What the detector found.

    positions: [objects, frames, 2] px, nan where absent. areas: [objects, frames] effective pixels
    ((sum w)^2 / sum w^2 of the hue shares w, which fading colour does not change), 0 where absent.
    lab_distance: [objects, frames] between the component's colour and its palette colour, nan where
    absent. foreign: [frames] foreground pixels outside every tracked component. foreground: bool
    [frames, height, width], all chroma-gated pixels.
    """

    hues: tuple[str, ...]
    positions: NDArray[np.float64]
    areas: NDArray[np.float64]
    lab_distance: NDArray[np.float64]
    foreign: NDArray[np.float64]
    foreground: NDArray[np.bool_]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Where each object was found, [objects, frames]."""
        return self.areas > 0


def to_lab(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of sRGB in [0, 1], [..., 3] -> [..., 3]."""
    rgb = np.asarray(rgb, np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _opponent(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """The part of a colour that is not grey, linear in the colour, [..., 3] -> [..., 2]."""
    r, g, b = (np.asarray(rgb[..., i], np.float64) for i in range(3))
    return np.stack([r - (g + b) / 2, np.sqrt(3) / 2 * (g - b)], axis=-1)


@lru_cache(maxsize=1)
def hue_table() -> NDArray[np.int8]:
    """Index into HUES of every quantised colour, -1 where its chroma is under the gate."""
    steps = 1 << RAMP_BITS
    ramp = (np.arange(steps) + 0.5) / steps
    rgb = np.stack(np.meshgrid(ramp, ramp, ramp, indexing="ij"), axis=-1).reshape(-1, 3)
    chroma = np.hypot(*to_lab(rgb)[:, 1:].T)
    share = _opponent(rgb) @ _opponent(palette()).T  # the palette's opponent vectors have one length
    return np.where(chroma > CHROMA_GATE, share.argmax(axis=1), -1).astype(np.int8)


def label_hues(frames: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Index into HUES of every pixel, -1 for background, [frames, height, width]."""
    shift = 8 - RAMP_BITS
    r, g, b = ((frames[..., i] >> shift).astype(np.int32) for i in range(3))
    return hue_table()[(r << 2 * RAMP_BITS) | (g << RAMP_BITS) | b]


def detect(frames: NDArray[np.uint8], hues: Sequence[str]) -> Detection:
    """Find the object of each hue in every frame.

    Raises UserError for frames that are not uint8 [frames, height, width, 3] or an unknown hue.
    """
    _check(frames, hues)
    labels = label_hues(frames)
    tracked = np.zeros(labels.shape, bool)
    found = []
    for hue in hues:
        index = list(HUES).index(hue)
        core = _largest_component(labels == index)
        rim = grow(core) & ((labels == index) | (labels < 0))  # another object's pixels are not this one's rim
        tracked = tracked | core
        found.append(_summarise(frames, core | rim, np.asarray(core.any(axis=(1, 2))), index))
    positions, areas, distances = (np.stack(parts) for parts in zip(*found, strict=True))
    # The rim of a tracked object may lean to a neighbouring hue; it is the object's, not foreign.
    stray = (labels >= 0) & ~grow(tracked)
    foreign = _drop_specks(stray).sum(axis=(1, 2)).astype(np.float64)
    return Detection(tuple(hues), positions, areas, distances, foreign, labels >= 0)


def _check(frames: NDArray[np.uint8], hues: Sequence[str]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise UserError(
            f"detect needs uint8 frames [frames, height, width, 3], got {frames.dtype} {list(frames.shape)}; "
            "convert pictures in [0, 1] with (255 * x).round().astype('uint8')"
        )
    if not hues:
        raise UserError("detect needs at least one hue; give the hues of the caption's shapes")
    for hue in hues:
        if hue not in HUES:
            raise UserError(f"unknown hue '{hue}'{nearest(hue, HUES)}")


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """In-frame components [frames, height, width] and the size of each label, background's set to 0."""
    labels, _ = ndimage.label(mask, IN_PLANE)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest in-frame component of each frame, empty where it is under MIN_AREA."""
    labels, sizes = _components(mask)
    inside = np.nonzero(labels)
    frame_of = np.zeros(len(sizes), np.int64)
    frame_of[labels[inside]] = inside[0]
    by_size = np.argsort(sizes, kind="stable")
    by_size = by_size[sizes[by_size] >= MIN_AREA]
    best = np.full(len(mask), -1)
    best[frame_of[by_size]] = by_size  # ascending, so the last and largest write stays
    return np.asarray(labels == best[:, None, None])


def _drop_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its components under MIN_AREA."""
    labels, sizes = _components(mask)
    return np.asarray((sizes >= MIN_AREA)[labels])


def grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its eight neighbours in each frame."""
    rows = mask.copy()
    rows[:, 1:] |= mask[:, :-1]
    rows[:, :-1] |= mask[:, 1:]
    grown = rows.copy()
    grown[:, :, 1:] |= rows[:, :, :-1]
    grown[:, :, :-1] |= rows[:, :, 1:]
    return grown


def _summarise(
    frames: NDArray[np.uint8], mask: NDArray[np.bool_], present: NDArray[np.bool_], hue: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Position [frames, 2], effective area [frames] and Lab distance [frames] of one masked object."""
    frame, y, x = np.nonzero(mask)
    rgb = frames[frame, y, x] / 255.0
    axis = _opponent(palette()[hue])
    weight = np.clip(_opponent(rgb) @ axis / (axis @ axis), 0, 1)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(frame, values, minlength=len(frames)), np.float64)

    with np.errstate(invalid="ignore", divide="ignore"):
        mass = total(weight)
        position = np.stack([total(weight * (x + 0.5)), total(weight * (y + 0.5))], axis=-1) / mass[:, None]
        area = mass**2 / total(weight**2)
        inner = weight**4  # the rim is mixed with background; the fourth power leaves the inside
        colour = np.stack([total(inner * rgb[:, i]) for i in range(3)], axis=-1) / total(inner)[:, None]
    distance = np.linalg.norm(to_lab(colour) - to_lab(palette()[hue]), axis=-1)
    position[~present], distance[~present] = np.nan, np.nan
    return position, np.where(present, area, 0.0), distance
