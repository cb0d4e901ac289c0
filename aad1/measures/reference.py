"""What a clip of the embedded world is measured against.

Image-to-video clips start from a given image: looks, radii, background, first state and, while no
two shapes have met, positions are known. Text-to-video clips draw their own first frame from the
caption, so only looks, speeds and headings are known; radii and background are read off the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aad1.data.world import COLLISION_GAP, RADIUS, SIZE, SPEEDS, WALL_MARGIN, Scene, Shape, Track, Truth, render
from aad1.measures.detect import Detection, detect, grow

BACKGROUND_FRAMES = 8  # first frames that the background of a text-to-video clip is fitted on
OFF_STAGE = -10.0 * SIZE  # where an absent object is drawn

Corners = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Reference:
    """What is known of a clip before it is measured.

    hues, shapes: one of each per object. radii (px), background (corner colours), true_positions
    [objects, frames, 2] and events [objects, frames] are None where the model draws its own first
    frame. true_speeds: [objects, frames - 1] px per frame. headings: index into HEADINGS, and
    speed_scale: stated speed over the word's own; both None where the caption does not state motion.
    """

    hues: tuple[str, ...]
    shapes: tuple[str, ...]
    radii: tuple[float, ...] | None
    background: Corners | None
    true_positions: NDArray[np.float64] | None
    true_speeds: NDArray[np.float64]
    events: NDArray[np.bool_] | None
    caption: str
    track: Track
    headings: tuple[int, ...] | None
    speed_words: tuple[str, ...] | None
    speed_scale: float

    @staticmethod
    def of(truth: Truth, image_given: bool = True) -> Reference:
        """The reference of a clip generated from the truth's first image, or from its caption alone.

        Without the image a clip bounces at its own times, so the true speed is each object's mean.
        """
        scene, speeds = truth.scene, truth.speeds
        stated = _stated_motion(scene) if scene.track == "determined" else None
        return Reference(
            hues=tuple(s.hue for s in scene.shapes),
            shapes=tuple(s.shape for s in scene.shapes),
            radii=tuple(s.radius for s in scene.shapes) if image_given else None,
            background=scene.background if image_given else None,
            true_positions=truth.positions if image_given else None,
            true_speeds=speeds if image_given else np.broadcast_to(speeds.mean(axis=1, keepdims=True), speeds.shape),
            events=truth.events if image_given else None,
            caption=scene.caption,
            track=scene.track,
            headings=stated[0] if stated else None,
            speed_words=stated[1] if stated else None,
            speed_scale=stated[2] if stated else 1.0,
        )

    def fitted(self, frames: NDArray[np.uint8], detection: Detection) -> Reference:
        """The same reference with missing radii and background read off the clip's first frames."""
        radii, corners = self.radii, self.background
        if radii is None:
            pairs = zip(self.shapes, detection.areas[:, 0], strict=True)
            radii = tuple(radius_of(shape, area) for shape, area in pairs)
        if corners is None:
            corners = fit_background(frames[:BACKGROUND_FRAMES], detection.foreground[:BACKGROUND_FRAMES])
        return replace(self, radii=radii, background=corners)

    def scene(self) -> Scene:
        """The scene to draw, with its shapes nowhere in particular; the reference must be fitted."""
        assert self.radii is not None
        assert self.background is not None
        looks = zip(self.hues, self.shapes, self.radii, strict=True)
        shapes = tuple(Shape(hue, shape, radius, (0.0, 0.0), (0.0, 0.0)) for hue, shape, radius in looks)
        return Scene(shapes, self.background, self.caption, self.track)

    def draw(self, positions: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The clip with its objects at ``positions`` [objects, frames, 2]; nan draws no object."""
        return render(self.scene(), np.where(np.isnan(positions), OFF_STAGE, positions))

    def wall_margins(self) -> NDArray[np.float64]:
        """Distance from the wall at which each object bounces, [objects] px."""
        return np.array([WALL_MARGIN[s] for s in self.shapes]) * np.array(self.radii)

    def collision_distances(self) -> NDArray[np.float64]:
        """Distance at which each pair of objects bounces, [objects, objects] px."""
        radii = np.array(self.radii)
        return np.asarray(COLLISION_GAP * (radii[:, None] + radii[None]))


def _stated_motion(scene: Scene) -> tuple[tuple[int, ...], tuple[str, ...], float]:
    """Heading octants, speed words and the split's speed scale of a determined scene."""
    velocities = np.array([s.velocity for s in scene.shapes])
    octants = tuple(int(o) for o in octant(velocities))
    words = tuple(clause.split()[-1] for clause in scene.caption.split(", "))
    scale = float(np.linalg.norm(velocities[0])) / SPEEDS[words[0]]
    return octants, words, scale


def octant(velocities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index into HEADINGS of the nearest heading, [..., 2] -> [...]."""
    angle = np.arctan2(velocities[..., 1], velocities[..., 0])
    return np.round(angle / (np.pi / 4)).astype(np.int64) % 8


@lru_cache(maxsize=8)
def _area_curve(shape: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Detected areas of drawn shapes of many radii: (areas, radii), both rising."""
    radii = np.arange(2.0, 12.0, 0.5)
    grey = ((0.5, 0.5, 0.5),) * 4
    offsets = np.array([[SIZE / 2 + dx, SIZE / 2 + dy] for dx in (0, 0.3, 0.6) for dy in (0, 0.3, 0.6)])
    areas = []
    for radius in radii:
        scene = Scene((Shape("red", shape, radius, (0, 0), (0, 0)),), grey, "", "free")
        areas.append(detect(render(scene, offsets[None]), ["red"]).areas.mean())
    return np.array(areas), radii


def radius_of(shape: str, area: float) -> float:
    """Radius whose detected area is ``area``; the world's middle radius for an absent object."""
    areas, radii = _area_curve(shape)
    return float(np.interp(area, areas, radii)) if area > 0 else sum(RADIUS) / 2


def fit_background(frames: NDArray[np.uint8], foreground: NDArray[np.bool_]) -> Corners:
    """Corner colours of the bilinear gradient nearest to the pixels outside ``foreground``.

    Least squares on every pixel's mean over the frames where it is free, weighted by their number.
    """
    height, width = frames.shape[1:3]
    free = ~grow(foreground)  # the rim under the chroma gate still carries some of the object
    count = free.sum(axis=0)
    mean = (frames * free[..., None]).sum(axis=0) / np.maximum(count, 1)[..., None] / 255
    x = ((np.arange(width) + 0.5) / width)[None, :]
    y = ((np.arange(height) + 0.5) / height)[:, None]
    basis = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=-1).reshape(-1, 4)
    weight = np.sqrt(count.reshape(-1, 1))
    corners = np.linalg.lstsq(basis * weight, mean.reshape(-1, 3) * weight, rcond=None)[0]
    return tuple((float(r), float(g), float(b)) for r, g, b in np.clip(corners, 0, 1))
