"""The embedded world's measures of one clip: motion, physics, identity, appearance and seams.

X is the true position, P the detected one, A the detected area, s_t = |P_{t+1} - P_t| and g_t the
true speed. Every measure is kept as a numerator and a denominator, so that clips are pooled by
summing both; a denominator of 0 is N/A.

Absence. A lost object always counts in presence and id_ok, and costs the cap in position error.
Measures that need a position (rho, kappa, freeze, law residual, energy, kinematic seam) use the
steps where it was found, in numerator and denominator alike, so read them beside presence. A clip
that does not move (rho < .1, or nothing found to move) has no drift or consistency: those measures
are N/A, or a frozen picture would be perfect; ``static`` counts such clips.

These are not VBench numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from aad1.data.world import SIZE, SPEEDS
from aad1.errors import UserError
from aad1.measures.detect import Detection, detect, grow
from aad1.measures.motion import (
    CHUNK_FRAMES,
    dynamic_degree,
    has_opencv,
    luma,
    saturation,
    seam_parts,
    slope_per_100,
)
from aad1.measures.reference import Reference, octant

STATIC_RHO = 0.1
FROZEN_STEP = 0.1  # of the true speed
REACH = 1.25  # a bounce can lie within this many steps of a frame (of the fastest true step), plus half a pixel
HEADING_STEPS = 8
POSITION_CAP = 16.0  # px, a quarter of the picture: an absent object is as wrong as this
VALID_ERROR = 3.0  # px, about half a radius
AREA_OK = (0.6, 1.6)
LAB_OK = 20.0
ENDS = 0.15  # first and last 15 % of a clip
DRIFT_SEGMENTS = 10
KINEMATIC_FLOOR = 0.02  # px, added to both sides of the kinematic seam

Pair = tuple[float, float]
NOT_APPLICABLE: Pair = (0.0, 0.0)


@dataclass(frozen=True)
class Measure:
    """One column of a table: pooled sum over sum, or for kappa a ratio of two such ratios."""

    name: str
    column: str
    ideal: str
    legend: str
    digits: int = 2
    parts: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The numerator-denominator pairs it is made of."""
        return self.parts or (self.name,)


MEASURES = (
    Measure("rho", "rho", "1", "speed ratio, sum of detected over sum of true speed; < .1 static, > 1.3 jitter"),
    Measure("kappa", "kappa", "1", "retention, rho of the last quarter over the first", 2, ("rho_last", "rho_first")),
    Measure("freeze", "phi", "0", "share of steps slower than a tenth of the true speed", 3),
    Measure("static", "static", "0", "share of clips with rho < .1, for which drift and consistency are N/A"),
    Measure("dynamic", "dyn", "1", "VBench's dynamic-degree rule with Farneback flow (N/A without OpenCV)"),
    Measure("heading", "head", "1", "share of objects that set off in the caption's octant (determined)"),
    Measure("speed", "speed", "1", "share of objects whose first speed is nearest the caption's word (determined)"),
    Measure("law_residual", "law", "truth", "mean |second difference of position| away from walls and shapes, px"),
    Measure("position_error", "pos", "0", "mean |P - X| before the first collision, capped at 16 px (determined)"),
    Measure("horizon", "valid", "1", "share of frames before the first collision until the error passes 3 px"),
    Measure("energy", "energy", "1", "kinetic energy of the detected motion over the truth's"),
    Measure("presence", "pres", "1", "share of objects and frames found", 3),
    Measure("presence_last", "pres-end", "1", "presence in the last quarter", 3),
    Measure("id_ok", "id", "1", "share present with 0.6 to 1.6 times the first area and colour within 20 Lab", 3),
    Measure("foreign", "foreign", "0", "share of coloured pixels that belong to no tracked object", 3),
    Measure("radius_drift", "radius", "0", "|change of radius| from first to last 15 %, relative", 3),
    Measure("quality", "Q", "100", "re-render quality 2.5 min(40, PSNR against the drawn detected state)", 1),
    Measure("drift", "drift", "0", "std of Q over 10 segments"),
    Measure("quality_change", "Q-ends", "0", "|Q of the first 15 % - Q of the last 15 %|"),
    Measure("quality_slope", "Q-slope", "0", "slope of Q per 100 frames"),
    Measure("luma_slope", "luma", "0", "slope of mean luma (0 to 1) per 100 frames", 3),
    Measure("saturation_slope", "sat", "0", "slope of mean saturation (0 to 1) per 100 frames", 3),
    Measure("background_error", "bg", "0", "mean |error| of the background (0 to 1)", 4),
    Measure("background_drift", "bg-ends", "0", "background error of the last 15 % minus the first 15 %", 4),
    Measure("sharpness", "sharp", "1", "gradient energy over that of the drawn detected state"),
    Measure("seam_background", "seam-bg", "1", "background change at chunk boundaries over change elsewhere"),
    Measure("seam_luma", "seam-luma", "1", "change of luma at chunk boundaries over change elsewhere"),
    Measure("seam_kinematic", "seam-kin", "1", "second difference of position at chunk boundaries over elsewhere"),
)
CURVES = ("rho", "id_ok", "quality")  # measures that are also kept by chunk
MEASURE = {measure.name: measure for measure in MEASURES}
MOTION = frozenset({"rho", "rho_first", "rho_last", "freeze", "static", "dynamic", "heading", "speed", "energy"})
ALWAYS = MOTION | {"position_error", "horizon", "presence", "presence_last"}  # the others are N/A for a static clip


@dataclass(frozen=True)
class ClipMeasures:
    """One clip's measures as (numerator, denominator) pairs; curves: of CURVES, such pairs by chunk, [chunks, 2]."""

    sums: dict[str, Pair]
    curves: dict[str, NDArray[np.float64]]

    def value(self, name: str) -> float:
        """The measure of this clip alone, nan where N/A."""
        totals = {key: (np.array([a]), np.array([b])) for key, (a, b) in self.sums.items()}
        return float(combine(MEASURE[name], totals)[0])

    def speed_curve(self) -> NDArray[np.float64]:
        """Speed ratio of each chunk, nan where nothing was found."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.curves["rho"][:, 0] / self.curves["rho"][:, 1])


def combine(
    measure: Measure, totals: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """The measure from summed numerators and denominators of any one shape; nan where N/A.

    kappa is N/A where the first quarter is itself static: there is nothing to retain.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = [np.where(totals[k][1] > 0, totals[k][0] / totals[k][1], np.nan) for k in measure.keys]
        if len(ratios) == 1:
            return np.asarray(ratios[0])
        return np.asarray(np.where(ratios[1] >= STATIC_RHO, ratios[0] / ratios[1], np.nan))


@dataclass(frozen=True)
class Observed:
    """One clip with what was detected in it; the reference is fitted."""

    frames: NDArray[np.uint8]
    reference: Reference
    detection: Detection
    chunk_frames: int

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """Detected speeds s, [objects, frames - 1], nan where the object is absent at either end."""
        return np.asarray(np.linalg.norm(np.diff(self.detection.positions, axis=1), axis=-1))

    @cached_property
    def drawn(self) -> NDArray[np.uint8]:
        """The detected state drawn afresh, [frames, height, width, 3]."""
        return self.reference.draw(self.detection.positions)

    @cached_property
    def empty(self) -> NDArray[np.bool_]:
        """Pixels of background alone, [frames, height, width]: no colour there nor next to it, and nothing drawn."""
        bare = self.reference.draw(np.full_like(self.detection.positions[:, :1], np.nan))
        return ~grow(self.detection.foreground | (_distance(self.drawn, bare) > 0))

    @cached_property
    def clear(self) -> NDArray[np.bool_]:
        """Where an object is too far from walls and from others to bounce, [objects, frames].

        Judged by the detected state, for a generated clip has events of its own.
        """
        reach = REACH * self.reference.true_speeds.max() + 0.5
        xy = self.detection.positions
        room = np.minimum(xy, SIZE - xy).min(axis=-1) - self.reference.wall_margins()[:, None]
        apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
        near = apart < self.reference.collision_distances()[..., None] + 2 * reach
        near &= ~np.eye(len(xy), dtype=bool)[..., None]
        return np.asarray((room > reach) & ~near.any(axis=1))

    @cached_property
    def growth(self) -> NDArray[np.float64]:
        """Area over that of the first frame, [objects, frames], nan where absent or never begun."""
        areas, first = self.detection.areas, self.detection.areas[:, :1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.detection.present & (first > 0), areas / first, np.nan)

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """Where an object is still what it was: there, of its size and of its colour, [objects, frames]."""
        like = self.detection.lab_distance < LAB_OK
        return np.asarray((self.growth >= AREA_OK[0]) & (self.growth <= AREA_OK[1]) & like)

    @cached_property
    def quality(self) -> NDArray[np.float64]:
        """Re-render quality of each frame, [frames]."""
        return quality(self.frames, self.drawn)

    @cached_property
    def bends(self) -> NDArray[np.float64]:
        """|P_{t+1} - 2 P_t + P_{t-1}| by middle frame, [objects, frames - 2], nan unless clear and found."""
        second = np.linalg.norm(np.diff(self.detection.positions, 2, axis=1), axis=-1)
        return np.where(self.clear[:, 1:-1], second, np.nan)


def measure_clip(
    frames: NDArray[np.uint8],
    reference: Reference,
    chunk_frames: int = CHUNK_FRAMES,
    fps: float = 16,
    with_flow: bool = True,
) -> ClipMeasures:
    """Measure uint8 frames [frames, 64, 64, 3] against their reference.

    ``chunk_frames`` places the seams; ``with_flow`` False skips optical flow (dynamic degree is then
    N/A, as it is without OpenCV). Raises UserError when frames do not fit the reference.
    """
    expected = (reference.true_speeds.shape[1] + 1, SIZE, SIZE, 3)
    if frames.shape != expected:
        raise UserError(f"the clip has shape {list(frames.shape)}, its truth {list(expected)}; generate as many frames")
    detection = detect(frames, reference.hues)
    seen = Observed(frames, reference.fitted(frames, detection), detection, chunk_frames)
    sums = _motion(seen) | _prompt(seen) | _physics(seen) | _identity(seen)
    sums["dynamic"] = (float(dynamic_degree(frames, fps)), 1.0) if with_flow and has_opencv() else NOT_APPLICABLE
    moved, due = sums["rho"]
    static = not moved >= STATIC_RHO * due or due == 0
    sums["static"] = (float(static), 1.0)
    sums |= _appearance(seen) | _quality(seen) | _seams(seen)
    if static:
        sums = {name: pair if name in ALWAYS else NOT_APPLICABLE for name, pair in sums.items()}
    return ClipMeasures(sums, _curves(seen, static))


# --- motion ----------------------------------------------------------------------------------


def _motion(seen: Observed) -> dict[str, Pair]:
    """Speed ratio, its first and last quarter, and the share of frozen steps; absent steps in neither sum."""
    s, g = seen.steps, seen.reference.true_speeds
    quarter = max(1, s.shape[1] // 4)
    known = ~np.isnan(s)
    return {
        "rho": _speed_sums(s, g),
        "rho_first": _speed_sums(s[:, :quarter], g[:, :quarter]),
        "rho_last": _speed_sums(s[:, -quarter:], g[:, -quarter:]),
        "freeze": (float((s[known] < FROZEN_STEP * g[known]).sum()), float(known.sum())),
    }


def _speed_sums(s: NDArray[np.float64], g: NDArray[np.float64]) -> Pair:
    known = ~np.isnan(s)
    return float(s[known].sum()), float(g[known].sum())


def _curves(seen: Observed, static: bool) -> dict[str, NDArray[np.float64]]:
    """The pairs of CURVES in each chunk; step i, from frame i to frame i + 1, and that frame are in chunk i // n.

    A static clip has a curve of motion alone.
    """
    s, g, n = seen.steps, seen.reference.true_speeds, seen.chunk_frames
    same, quality = seen.same[:, 1:], seen.quality[1:]
    starts = range(0, s.shape[1], n)
    found = {
        "rho": np.array([_speed_sums(s[:, i : i + n], g[:, i : i + n]) for i in starts]),
        "id_ok": np.array([(same[:, i : i + n].sum(), same[:, i : i + n].size) for i in starts], np.float64),
        "quality": np.array([(quality[i : i + n].sum(), quality[i : i + n].size) for i in starts], np.float64),
    }
    return {name: pairs if name in ALWAYS or not static else np.zeros_like(pairs) for name, pairs in found.items()}


def _prompt(seen: Observed) -> dict[str, Pair]:
    """Heading and speed-word agreement of the first steps, before an object's first event.

    An object that starts within two steps of an event shows no heading and is not counted; one that
    is absent, or hardly moves, disagrees.
    """
    ref = seen.reference
    if ref.headings is None or ref.speed_words is None:
        return {"heading": NOT_APPLICABLE, "speed": NOT_APPLICABLE}
    counted, velocities = first_velocities(seen)
    headings = speeds = 0
    for i in np.flatnonzero(counted):
        speed = float(np.linalg.norm(velocities[i]))
        if not np.isfinite(speed):
            continue
        headings += int(octant(velocities[i])) == ref.headings[i]
        word = min(SPEEDS, key=lambda w, v=speed: abs(SPEEDS[w] * ref.speed_scale - v))  # type: ignore[misc]
        speeds += word == ref.speed_words[i]
    return {"heading": (float(headings), float(counted.sum())), "speed": (float(speeds), float(counted.sum()))}


def first_velocities(seen: Observed) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which objects have two steps or more before their first event, [objects], and their mean velocity, [objects, 2].

    Velocities are px a frame; nan for the other objects, and for those that are lost or hardly move.
    """
    xy, spans = seen.detection.positions, np.array(_free_steps(seen))
    velocities = (xy[np.arange(len(xy)), spans] - xy[:, 0]) / np.maximum(spans, 1)[:, None]
    moves = np.linalg.norm(velocities, axis=-1) > FROZEN_STEP * seen.reference.true_speeds.mean(axis=1)
    return spans >= 2, np.where(((spans >= 2) & moves)[:, None], velocities, np.nan)


def _free_steps(seen: Observed) -> list[int]:
    """Steps of each object before its first event, at most HEADING_STEPS.

    Events are the truth's for a clip that continues a given image, else judged by the detected state.
    """
    limit = min(HEADING_STEPS, seen.steps.shape[1])
    if seen.reference.events is not None:
        disturbed = seen.reference.events[:, 1 : limit + 1]
    else:
        disturbed = seen.detection.present[:, 1 : limit + 1] & ~seen.clear[:, 1 : limit + 1]
    return [int(row.argmax()) if row.any() else limit for row in disturbed]


# --- physics ---------------------------------------------------------------------------------


def _physics(seen: Observed) -> dict[str, Pair]:
    """Law residual, energy ratio, and on the determined track position error and valid horizon.

    Energy needs the first image's masses and speeds: collisions hand speed from one object to another.
    """
    s, g = seen.steps, seen.reference.true_speeds
    mass = np.array(seen.reference.radii)[:, None] ** 2
    known = ~np.isnan(s)
    energy = ((mass * s**2)[known].sum(), (mass * g**2)[known].sum())
    bends = seen.bends[~np.isnan(seen.bends)]
    return {
        "law_residual": (float(bends.sum()), float(bends.size)),
        "energy": NOT_APPLICABLE if seen.reference.events is None else (float(energy[0]), float(energy[1])),
    } | _position(seen)


def _position(seen: Observed) -> dict[str, Pair]:
    """Error against the true path until each object's first collision, after which it is chaotic.

    An absent object is wrong by the cap. The valid horizon counts frames before the error first
    passes VALID_ERROR, over the frames there were.
    """
    ref = seen.reference
    if ref.track != "determined" or ref.true_positions is None:
        return {"position_error": NOT_APPLICABLE, "horizon": NOT_APPLICABLE}
    error = np.linalg.norm(seen.detection.positions - ref.true_positions, axis=-1)
    error = np.where(np.isnan(error), POSITION_CAP, np.minimum(error, POSITION_CAP))
    total = valid = frames = 0.0
    for row, end in zip(error, first_collisions(ref), strict=True):
        judged = row[1:end]  # frame 0 was given
        total, frames = total + judged.sum(), frames + len(judged)
        wrong = judged > VALID_ERROR
        valid += wrong.argmax() if wrong.any() else len(judged)
    return {"position_error": (total, frames), "horizon": (valid, frames)}


def first_collisions(reference: Reference) -> list[int]:
    """Frame of each object's first true collision with another, or the number of frames.

    A collision is an event that two objects share while they are within a step of touching.
    """
    xy, events = reference.true_positions, reference.events
    assert xy is not None
    assert events is not None
    reach = reference.collision_distances() + 2 * reference.true_speeds.max()
    touching = np.linalg.norm(xy[:, None] - xy[None], axis=-1) < reach[..., None]
    touching &= ~np.eye(len(xy), dtype=bool)[..., None]
    collided = (touching & events[:, None] & events[None]).any(axis=1)
    return [int(row.argmax()) if row.any() else len(row) for row in collided]


# --- identity --------------------------------------------------------------------------------


def _identity(seen: Observed) -> dict[str, Pair]:
    """Presence, id_ok (an absent object is not ok), foreign colour and radius drift (of found objects)."""
    found = seen.detection
    late = found.present[:, -max(1, found.areas.shape[1] // 4) :]
    size, foreign = float(seen.same.size), float(found.foreign.sum())
    change = np.abs(np.diff(_ends(np.sqrt(seen.growth)), axis=0))[0]
    change = change[~np.isnan(change)]
    return {
        "presence": (float(found.present.sum()), size),
        "presence_last": (float(late.sum()), float(late.size)),
        "id_ok": (float(seen.same.sum()), size),
        "foreign": (foreign, foreign + float(found.areas.sum())),
        "radius_drift": (float(change.sum()), float(change.size)),
    }


def _ends(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of the first and last 15 % over the last axis, [2, ...], ignoring nan, nan where all are."""
    count = max(1, round(ENDS * series.shape[-1]))
    parts = np.stack([series[..., :count], series[..., -count:]])
    known = ~np.isnan(parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, parts, 0).sum(axis=-1) / known.sum(axis=-1))


# --- appearance ------------------------------------------------------------------------------


def _appearance(seen: Observed) -> dict[str, Pair]:
    """Luma and saturation slopes, background error outside every object, sharpness."""
    error = _masked_mean(_distance(seen.frames, seen.drawn), seen.empty)
    first, last = _ends(error)
    known = error[~np.isnan(error)]
    return {
        "luma_slope": (slope_per_100(luma(seen.frames)), 1.0),
        "saturation_slope": (slope_per_100(saturation(seen.frames)), 1.0),
        "background_error": (float(known.sum()), float(known.size)),
        "background_drift": NOT_APPLICABLE if np.isnan(last - first) else (float(last - first), 1.0),
        "sharpness": (_gradient_energy(seen.frames), _gradient_energy(seen.drawn)),
    }


def _distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean |a - b| over colours, [frames, height, width] in [0, 1]."""
    return _channel_sum(np.maximum(a, b) - np.minimum(a, b)) / np.float32(765)


def _channel_sum(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """R + G + B, much faster than a reduction over an axis of three."""
    r, g, b = (pictures[..., i].astype(np.float32) for i in range(3))
    return r + g + b


def _masked_mean(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the mask in each frame, [frames], nan where it is empty."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((values * mask).sum(axis=(1, 2)) / mask.sum(axis=(1, 2)), np.float64)


def _gradient_energy(frames: NDArray[np.uint8]) -> float:
    """Sum of squared differences of neighbouring pixels, both ways."""
    grey = _channel_sum(frames) / 3
    across, down = np.diff(grey, axis=2).ravel(), np.diff(grey, axis=1).ravel()
    return float(across @ across + down @ down)


def _quality(seen: Observed) -> dict[str, Pair]:
    """Re-render quality and its drift: AAD-1's std over segments with Q in place of MUSIQ.

    An absent object is not drawn, so vanishing cleanly costs presence, not Q.
    """
    q = seen.quality
    first, last = _ends(q)
    segments = [part.mean() for part in np.array_split(q, DRIFT_SEGMENTS)]
    return {
        "quality": (float(q.sum()), float(q.size)),
        "drift": (float(np.std(segments)), 1.0),
        "quality_change": (float(abs(last - first)), 1.0),
        "quality_slope": (slope_per_100(q), 1.0),
    }


def quality(frames: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Q = 2.5 min(40, PSNR(frame, drawn state)) of each frame, [frames] in [0, 100]."""
    error = (frames.astype(np.float32) - drawn.astype(np.float32)) / 255
    psnr = -10 * np.log10(np.maximum((error**2).mean(axis=(1, 2, 3)), 1e-8))
    return np.asarray(2.5 * np.clip(psnr, 0, 40), np.float64)


def _seams(seen: Observed) -> dict[str, Pair]:
    """Change at chunk boundaries against change elsewhere, in background, luma and motion."""
    both = seen.empty[1:] & seen.empty[:-1]
    background = _masked_mean(_distance(seen.frames[1:], seen.frames[:-1]), both)
    middle = np.arange(1, seen.bends.shape[1] + 1)
    at_seam = np.broadcast_to(middle % seen.chunk_frames <= 1, seen.bends.shape)  # both frames of a seam's step
    known = ~np.isnan(seen.bends)
    at, elsewhere = seen.bends[at_seam & known], seen.bends[~at_seam & known]
    kinematic = NOT_APPLICABLE
    if at.size and elsewhere.size:
        kinematic = float(at.mean()) + KINEMATIC_FLOOR, float(elsewhere.mean()) + KINEMATIC_FLOOR
    return {
        "seam_background": _known(seam_parts(background, seen.chunk_frames)),
        "seam_luma": _known(seam_parts(np.abs(np.diff(luma(seen.frames))), seen.chunk_frames)),
        "seam_kinematic": kinematic,
    }


def _known(pair: Pair) -> Pair:
    return NOT_APPLICABLE if np.isnan(sum(pair)) else pair


def pooled(clips: Sequence[ClipMeasures]) -> dict[str, float]:
    """Every measure over several clips, numerators and denominators summed; nan where N/A."""
    totals = {
        key: (np.array([sum(c.sums[key][0] for c in clips)]), np.array([sum(c.sums[key][1] for c in clips)]))
        for key in clips[0].sums
    }
    return {measure.name: float(combine(measure, totals)[0]) for measure in MEASURES}
