"""The embedded world: moving shapes on a quiet background, with captions and exact truth.

One to three coloured shapes move straight between bounces, elastically reflected by the walls and
by each other (mass ~ radius^2), so energy is conserved and no shape hides another: any loss
of motion or identity in a generated clip is the model's. Two tracks: in ``determined`` clips the
caption states heading and speed exactly; in ``free`` clips it names the shapes alone.

Axes: frames are uint8 [frames, height, width, 3]; positions are [objects, frames, (x, y)] in pixels,
x to the right and y down, with pixel centres at half-integers; speeds are pixels per frame.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WORLD_VERSION = 1
SIZE = 64
FPS = 16
SHORT_FRAMES = 81

Track = Literal["determined", "free"]
SHAPES = ("disc", "square", "triangle")
HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "cyan": 1 / 2, "blue": 2 / 3, "pink": 5 / 6}
HEADINGS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")
SPEEDS = {"slowly": 1.0, "steadily": 1.35, "fast": 1.7}
FREE_SPEED = (0.9, 1.8)
RADIUS = (4.5, 6.5)
HELD_OUT_PAIRS = (("red", "triangle"), ("green", "square"), ("blue", "disc"))
SPLITS = ("train", "val", "test", "test_slow", "test_fast", "test_count", "test_pairs")

WALL_MARGIN = {"disc": 1.0, "square": 0.85, "triangle": 1.25}  # farthest point from the centre, in radii
COLLISION_GAP = 1.25  # shapes bounce before their farthest corners touch, so each keeps its own pixels
SUBSTEPS = 4


@dataclass(frozen=True)
class Shape:
    """One object: what it looks like and how it starts."""

    hue: str
    shape: str
    radius: float
    position: tuple[float, float]
    velocity: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip: its objects, its background and its caption."""

    shapes: tuple[Shape, ...]
    background: tuple[tuple[float, float, float], ...]  # RGB in [0, 1] at the four corners
    caption: str
    track: Track


@dataclass(frozen=True)
class Truth:
    """What really happens in a clip.

    positions, velocities: [objects, frames, 2]; events: [objects, frames], true where the velocity
    changed between the frame before and this one (a wall or another shape).
    """

    scene: Scene
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    events: NDArray[np.bool_]

    @property
    def speeds(self) -> NDArray[np.float64]:
        """Distance covered between neighbouring frames, [objects, frames - 1]."""
        return np.linalg.norm(np.diff(self.positions, axis=1), axis=-1)

    def masks(self) -> NDArray[np.float64]:
        """Coverage of every object in every frame, [objects, frames, height, width] in [0, 1]."""
        return np.stack([coverage(s, p) for s, p in zip(self.scene.shapes, self.positions, strict=True)])

    def flow(self) -> NDArray[np.float64]:
        """Exact motion of each pixel to the next frame, [frames - 1, height, width, 2]."""
        steps = np.diff(self.positions, axis=1)
        solid = self.masks()[:, :-1] > 0.5
        return np.einsum("nfhw,nfc->fhwc", solid.astype(np.float64), steps)


def rng_for(split: str, index: int) -> np.random.Generator:
    """The random stream of one clip; it depends on the world's version, the split and the index."""
    return np.random.default_rng(np.random.SeedSequence([WORLD_VERSION, SPLITS.index(split), index]))


def palette() -> NDArray[np.float64]:
    """RGB in [0, 1] of every hue, [hues, 3], in the order of HUES."""
    return np.array([colorsys.hsv_to_rgb(h, 0.85, 0.9) for h in HUES.values()])


# --- drawing a scene at random ---------------------------------------------------------------


def sample_scene(split: str, index: int, track: Track | None = None) -> Scene:
    """Draw the scene with this index; ``track`` None alternates the two tracks."""
    rng = rng_for(split, index)
    chosen: Track = track or ("determined" if index % 2 == 0 else "free")
    count = 4 if split == "test_count" else int(rng.integers(1, 4))
    scale = {"test_slow": 0.5, "test_fast": 1.5}.get(split, 1.0)
    looks = _sample_looks(rng, count, held_out=split == "test_pairs")
    radii = rng.uniform(*RADIUS, size=count)
    places = _sample_places(rng, looks, radii)
    clauses, shapes = [], []
    for (hue, shape), radius, place in zip(looks, radii, places, strict=True):
        heading, speed, words = _sample_motion(rng, chosen, scale)
        velocity = (speed * np.cos(heading), speed * np.sin(heading))
        shapes.append(Shape(hue, shape, float(radius), place, velocity))
        clauses.append(f"a {hue} {shape}{words}")
    return Scene(tuple(shapes), _sample_background(rng), ", ".join(clauses), chosen)


def _sample_looks(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[str, str]]:
    """Distinct hues with any shape; held-out pairs appear only, and then surely, in their own split."""
    while True:
        hues = rng.permutation(list(HUES))[:count]
        pairs = [(str(hue), str(rng.choice(SHAPES))) for hue in hues]
        if any(pair in HELD_OUT_PAIRS for pair in pairs) == held_out:
            return pairs


def _sample_places(
    rng: np.random.Generator, looks: list[tuple[str, str]], radii: NDArray[np.float64]
) -> list[tuple[float, float]]:
    """Positions inside the walls and clear of each other, by rejection."""
    margins = np.array([WALL_MARGIN[shape] for _, shape in looks]) * radii
    while True:
        xy = rng.uniform(margins[:, None] + 1, SIZE - margins[:, None] - 1, size=(len(radii), 2))
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=-1) - COLLISION_GAP * (radii[:, None] + radii[None])
        if (gaps[~np.eye(len(radii), dtype=bool)] > 2).all():
            return [(float(x), float(y)) for x, y in xy]


def _sample_motion(rng: np.random.Generator, track: Track, scale: float) -> tuple[float, float, str]:
    """Heading (radians), speed and, on the determined track, the words that state them."""
    if track == "free":
        return float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(*FREE_SPEED)) * scale, ""
    heading, word = int(rng.integers(len(HEADINGS))), str(rng.choice(list(SPEEDS)))
    return heading * np.pi / 4, SPEEDS[word] * scale, f" moves {HEADINGS[heading]} {word}"


def _sample_background(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    """Four corner colours of low chroma around one brightness."""
    value = rng.uniform(0.25, 0.65)
    corners = value + rng.uniform(-0.12, 0.12, size=(4, 1)) + rng.uniform(-0.03, 0.03, size=(4, 3))
    return tuple((float(r), float(g), float(b)) for r, g, b in corners)


# --- motion ----------------------------------------------------------------------------------


def simulate(scene: Scene, frames: int) -> Truth:
    """Move the scene's shapes for ``frames`` frames."""
    radii = np.array([s.radius for s in scene.shapes])
    margins = radii * np.array([WALL_MARGIN[s.shape] for s in scene.shapes])
    xy = np.array([s.position for s in scene.shapes])
    v = np.array([s.velocity for s in scene.shapes])
    positions, velocities, events = [xy.copy()], [v.copy()], [np.zeros(len(radii), bool)]
    for _ in range(frames - 1):
        hit = np.zeros(len(radii), bool)
        for _ in range(SUBSTEPS):
            xy = xy + v / SUBSTEPS
            hit |= _bounce_walls(xy, v, margins) | _bounce_shapes(xy, v, radii)
        positions.append(xy.copy())
        velocities.append(v.copy())
        events.append(hit)
    return Truth(scene, np.stack(positions, 1), np.stack(velocities, 1), np.stack(events, 1))


def _bounce_walls(xy: NDArray[np.float64], v: NDArray[np.float64], margins: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mirror position and velocity at the walls, in place; true for every shape that hit one."""
    low, high = margins[:, None], SIZE - margins[:, None]
    under, over = xy < low, xy > high
    np.copyto(xy, np.where(under, 2 * low - xy, np.where(over, 2 * high - xy, xy)))
    np.copyto(v, np.where(under, np.abs(v), np.where(over, -np.abs(v), v)))
    return np.asarray((under | over).any(axis=1))


def _bounce_shapes(xy: NDArray[np.float64], v: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Elastic collision of every approaching pair that is closer than its gap, in place."""
    hit = np.zeros(len(radii), bool)
    for i in range(len(radii)):
        for j in range(i):
            apart = xy[i] - xy[j]
            distance = float(np.linalg.norm(apart))
            normal = apart / max(distance, 1e-9)
            closing = float((v[i] - v[j]) @ normal)
            if distance < COLLISION_GAP * (radii[i] + radii[j]) and closing < 0:
                mass_i, mass_j = radii[i] ** 2, radii[j] ** 2
                impulse = 2 * closing / (mass_i + mass_j) * normal
                v[i] -= mass_j * impulse
                v[j] += mass_i * impulse
                hit[[i, j]] = True
    return hit


# --- pictures --------------------------------------------------------------------------------


def coverage(shape: Shape, positions: NDArray[np.float64], size: int = SIZE) -> NDArray[np.float64]:
    """How much of each pixel the shape covers, [frames, size, size], anti-aliased over 1 px.

    ``positions`` is [frames, 2], the shape's centre of mass.
    """
    centres = np.arange(size) + 0.5
    dx = centres[None, None, :] - positions[:, 0, None, None]
    dy = centres[None, :, None] - positions[:, 1, None, None]
    return np.clip(0.5 - signed_distance(shape.shape, shape.radius, dx, dy), 0, 1)


def signed_distance(shape: str, radius: float, dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the outline in pixels, negative inside."""
    if shape == "disc":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.asarray(np.maximum(np.abs(dx), np.abs(dy)) - WALL_MARGIN["square"] * radius)
    inner = WALL_MARGIN["triangle"] * radius / 2  # inradius of the equilateral triangle, apex up
    slanted = np.sqrt(3) / 2 * np.abs(dx) - dy / 2
    return np.asarray(np.maximum(dy, slanted) - inner)


def background(scene: Scene, size: int = SIZE) -> NDArray[np.float64]:
    """The gradient behind the shapes, [size, size, 3] in [0, 1]."""
    top_left, top_right, bottom_left, bottom_right = (np.array(c) for c in scene.background)
    x = ((np.arange(size) + 0.5) / size)[None, :, None]
    y = ((np.arange(size) + 0.5) / size)[:, None, None]
    top, bottom = top_left * (1 - x) + top_right * x, bottom_left * (1 - x) + bottom_right * x
    return np.asarray(top * (1 - y) + bottom * y)


def render(scene: Scene, positions: NDArray[np.float64], size: int = SIZE) -> NDArray[np.uint8]:
    """Draw the scene with its shapes at ``positions`` [objects, frames, 2] -> uint8 [frames, size, size, 3]."""
    colours = dict(zip(HUES, palette(), strict=True))
    picture = np.repeat(background(scene, size)[None], positions.shape[1], axis=0)
    for shape, path in zip(scene.shapes, positions, strict=True):
        alpha = coverage(shape, path, size)[..., None]
        picture = picture * (1 - alpha) + colours[shape.hue] * alpha
    return np.round(picture * 255).astype(np.uint8)


@dataclass(frozen=True)
class Clip:
    """A rendered scene: frames uint8 [frames, height, width, 3], its caption and its truth."""

    frames: NDArray[np.uint8]
    caption: str
    truth: Truth


def make_clip(split: str, index: int, frames: int = SHORT_FRAMES, track: Track | None = None, start: int = 0) -> Clip:
    """The clip with this index, beginning ``start`` frames into its scene.

    A scene that is entered late is captioned as free unless ``start`` is 0: its heading has changed.
    """
    scene = sample_scene(split, index, track)
    truth = simulate(scene, start + frames)
    if start:
        scene = replace(scene, track="free", caption=", ".join(f"a {s.hue} {s.shape}" for s in scene.shapes))
    truth = Truth(scene, truth.positions[:, start:], truth.velocities[:, start:], truth.events[:, start:])
    return Clip(render(scene, truth.positions), scene.caption, truth)


def crowded_frames(rng: np.random.Generator, frames: int, size: int, count: int) -> NDArray[np.uint8]:
    """A small window that ``count`` shapes cross in straight lines, uint8 [frames, size, size, 3].

    Not a clip of the world: whole frames are mostly background, and an autoencoder learns shapes sooner
    from pictures that are full of them.
    """
    shapes = []
    for _ in range(count):
        heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.25) * FREE_SPEED[1]
        place = rng.uniform(0, size, size=2)
        velocity = (float(speed * np.cos(heading)), float(speed * np.sin(heading)))
        hue, shape = str(rng.choice(list(HUES))), str(rng.choice(SHAPES))
        shapes.append(Shape(hue, shape, float(rng.uniform(*RADIUS)), (float(place[0]), float(place[1])), velocity))
    time = np.arange(frames)[:, None] - frames / 2
    positions = np.stack([np.array(s.position) + np.array(s.velocity) * time for s in shapes])
    return render(Scene(tuple(shapes), _sample_background(rng), "", "free"), positions, size)


def vocabulary() -> tuple[str, ...]:
    """Every word and sign a caption can contain."""
    words = {"a", "moves", ",", "and", *HUES, *SHAPES, *SPEEDS}
    return tuple(sorted(words | {w for heading in HEADINGS for w in heading.split()}))
