"""Each corruption of true clips moves its own measure by the stated amount and leaves others alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from types import SimpleNamespace

import corruptions
import numpy as np
import pytest

from aad1.data.motion import motion_energy
from aad1.data.world import Clip, make_clip
from aad1.errors import UserError
from aad1.evaluation import world as evaluation
from aad1.measures import motion, world
from aad1.measures.detect import detect
from aad1.measures.reference import Reference, fit_background, radius_of
from aad1.measures.world import CURVES, MEASURE, ClipMeasures, measure_clip

needs_opencv = pytest.mark.skipif(not motion.has_opencv(), reason="optical flow needs OpenCV (the eval extra)")
WITH_FLOW = {"truth", "frozen", "frozen_second_half", "half_speed"}

# What a true clip reads, with room for the detector's own noise: (lowest, highest).
CALM = {
    "motion": {
        "rho": (0.97, 1.03),
        "kappa": (0.95, 1.05),
        "freeze": (0, 0.02),
        "law_residual": (0, 0.11),
        "energy": (0.95, 1.05),
    },
    "position": {"position_error": (0, 0.15), "horizon": (1, 1)},
    "identity": {"presence": (1, 1), "id_ok": (0.99, 1), "foreign": (0, 0.01), "radius_drift": (0, 0.02)},
    "foreign": {"foreign": (0, 0.01)},
    "drift": {"drift": (0, 0.5), "quality_change": (0, 1), "luma_slope": (-0.01, 0.01)},
    "picture": {
        "quality": (99, 100),
        "drift": (0, 0.5),
        "luma_slope": (-0.01, 0.01),
        "saturation_slope": (-0.01, 0.01),
        "background_error": (0, 0.001),
        "sharpness": (0.97, 1.03),
    },
    "seams": {"seam_background": (0.8, 1.2), "seam_luma": (0.7, 1.4), "seam_kinematic": (0.5, 1.6)},
}


@dataclass(frozen=True)
class Effect:
    """A corruption's own measures, as (lowest, highest), and the groups it must leave alone."""

    moves: dict[str, tuple[float, float]]
    calm: str


EFFECTS = {
    "truth": Effect({}, "motion position identity picture seams"),
    "frozen_second_half": Effect({"kappa": (0, 0.05), "freeze": (0.45, 0.55)}, "identity picture"),
    "half_speed": Effect(
        {"rho": (0.45, 0.55), "horizon": (0, 0.4), "energy": (0.22, 0.28), "position_error": (7, 11)},
        "identity picture seams",
    ),
    "decaying_speed": Effect({"kappa": (0.15, 0.3), "rho": (0.5, 0.62)}, "identity picture seams"),
    "over_exposure": Effect(
        {
            "drift": (12, 25),
            "quality_change": (50, 65),
            "quality_slope": (-85, -65),
            "luma_slope": (0.25, 0.4),
            "background_error": (0.12, 0.15),
            "background_drift": (0.15, 0.3),
        },
        "motion position",
    ),
    "desaturation": Effect(
        {"drift": (8, 16), "saturation_slope": (-0.2, -0.02), "id_ok": (0.3, 0.7)}, "motion position"
    ),
    "blur": Effect({"drift": (5, 13), "sharpness": (0.3, 0.75)}, "motion position"),
    "noise": Effect({"quality": (72, 80), "sharpness": (2, 20)}, "motion position identity drift"),
    "jumps_at_seams": Effect({"seam_kinematic": (9, 200), "law_residual": (0.3, 2)}, "identity picture"),
    "brightness_at_seams": Effect({"seam_background": (30, 50), "seam_luma": (20, 60)}, "motion position identity"),
    "one_vanishes": Effect({"presence": (0.81, 0.85), "presence_last": (0.6, 0.7)}, "motion foreign drift"),
    "one_recolours": Effect(
        {"presence": (0.81, 0.85), "id_ok": (0.81, 0.85), "foreign": (0.12, 0.22), "quality": (60, 90)}, "motion"
    ),
    "grows": Effect({"radius_drift": (0.15, 0.25)}, "motion position"),
    "swells": Effect({"id_ok": (0.45, 0.6), "radius_drift": (0.3, 0.5)}, ""),
    "shrinks": Effect({"id_ok": (0.45, 0.6), "radius_drift": (0.2, 0.4)}, "motion position"),
    "jitter": Effect({"law_residual": (1.5, 3), "rho": (1.25, 1.8)}, "identity picture"),
    "shuffled_time": Effect({"law_residual": (10, 40), "rho": (5, 30)}, "identity picture"),
}


@lru_cache(maxsize=1)
def clips() -> tuple[Clip, ...]:
    """Four true clips of three objects, two of each track."""
    return tuple([c for c in (make_clip("val", i) for i in range(20)) if len(c.truth.scene.shapes) == 3][:4])


@cache
def spoiled(name: str) -> tuple[ClipMeasures, ...]:
    make: Callable = (lambda clip: clip.frames) if name == "truth" else getattr(corruptions, name)
    flow = name in WITH_FLOW
    return tuple(measure_clip(make(c), Reference.of(c.truth), with_flow=flow) for c in clips())


def read(name: str, measure: str) -> float:
    value = evaluation.pool(spoiled(name), resamples=1)[measure]
    return float("nan") if value is None else value.mean


def test_the_clips_cover_both_tracks():
    assert {c.truth.scene.track for c in clips()} == {"determined", "free"}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_corruption_moves_its_own_measures(name):
    for measure, (low, high) in EFFECTS[name].moves.items():
        assert low <= read(name, measure) <= high, measure


@pytest.mark.parametrize("name", EFFECTS)
def test_a_corruption_leaves_the_others_alone(name):
    for group in EFFECTS[name].calm.split():
        for measure, (low, high) in CALM[group].items():
            assert low <= read(name, measure) <= high, measure


ELSEWHERE = {"static", "dynamic", "heading", "speed"}  # frozen clips, mirrored and slowed ones: tests of their own


def test_every_measure_is_moved_by_a_corruption():
    assert set(MEASURE) - {measure for effect in EFFECTS.values() for measure in effect.moves} == ELSEWHERE


def test_every_moved_measure_would_fail_on_the_truth():
    """The table can fail: no range of a moved measure holds the true clips' own reading."""
    for name, effect in EFFECTS.items():
        for measure, (low, high) in effect.moves.items():
            assert not low <= read("truth", measure) <= high, (name, measure)


def test_a_frozen_clip_is_static_and_has_no_drift():
    assert read("frozen", "rho") < 0.01
    assert read("frozen", "freeze") == 1
    assert read("frozen", "static") == 1
    assert read("frozen", "presence") == 1
    for measure in ("kappa", "drift", "quality", "id_ok", "law_residual", "seam_background", "background_error"):
        assert np.isnan(read("frozen", measure)), measure


@needs_opencv
def test_dynamic_degree_sees_only_a_frozen_clip():
    assert [read(n, "dynamic") for n in ("truth", "frozen_second_half", "half_speed")] == [1, 1, 1]
    assert read("frozen", "dynamic") == 0


def test_flow_measures_without_opencv(monkeypatch):
    monkeypatch.setattr(motion, "has_opencv", lambda: False)
    frames = clips()[0].frames
    with pytest.raises(UserError, match="aad1\\[eval\\]"):
        motion.dynamic_degree(frames)
    assert motion.measure_motion(frames).flow is None


def test_speed_curve_follows_the_chunks():
    curve = np.nanmean([m.speed_curve() for m in spoiled("decaying_speed")], axis=0)
    assert len(curve) == 5
    assert (np.diff(curve) < 0).all()


def test_seams_are_looked_for_at_the_given_chunks():
    clip = clips()[0]
    frames = corruptions.brightness_at_seams(clip)
    right = measure_clip(frames, Reference.of(clip.truth), with_flow=False).value("seam_background")
    wrong = measure_clip(frames, Reference.of(clip.truth), chunk_frames=12, with_flow=False).value("seam_background")
    assert wrong < right / 3


def test_a_lost_object_is_counted_wherever_it_can_be():
    """Losing everything reads presence 1 / frames and the capped position error, not N/A."""
    clip = next(c for c in clips() if c.truth.scene.track == "determined")
    frames = clip.frames.copy()
    frames[1:] = 128
    lost = measure_clip(frames, Reference.of(clip.truth), with_flow=False)
    assert lost.value("presence") == pytest.approx(1 / len(frames))
    assert lost.value("position_error") == 16
    assert lost.value("horizon") == 0
    assert lost.value("static") == 1
    assert np.isnan(lost.value("drift"))


def test_prompt_agreement_reads_the_first_heading_and_speed():
    clip = next(c for c in clips() if c.truth.scene.track == "determined")
    path = clip.truth.positions
    mirrored = corruptions.render(clip.truth.scene, 2 * path[:, :1] - path)  # the opposite heading
    against = measure_clip(mirrored, Reference.of(clip.truth), with_flow=False)
    assert measure_clip(clip.frames, Reference.of(clip.truth), with_flow=False).value("heading") == 1
    assert against.value("heading") == 0
    assert read("half_speed", "heading") == 1
    assert read("half_speed", "speed") < 0.5


def test_text_to_video_needs_no_first_image():
    """A clip that draws another background, other radii and places is judged by its own first frames."""
    for clip in clips():
        asked = make_clip("val", 1).truth.scene.background
        reference = Reference.of(clip.truth, image_given=False)
        assert (reference.radii, reference.background, reference.true_positions) == (None, None, None)
        fitted = reference.fitted(clip.frames, detect(clip.frames, reference.hues))
        np.testing.assert_allclose(fitted.radii, [s.radius for s in clip.truth.scene.shapes], atol=0.2)
        np.testing.assert_allclose(fitted.background, clip.truth.scene.background, atol=0.005)
        assert not np.allclose(fitted.background, asked, atol=0.005)
        measured = measure_clip(clip.frames, reference, with_flow=False)
        assert measured.value("quality") > 99
        assert measured.value("law_residual") < 0.11
        assert np.isnan(measured.value("position_error"))


def test_fitting_helpers_cope_with_nothing():
    assert 4.5 <= radius_of("disc", 0.0) <= 6.5
    frames = np.full((2, 64, 64, 3), 51, np.uint8)
    np.testing.assert_allclose(fit_background(frames, np.zeros((2, 64, 64), bool)), 0.2)


def test_a_clip_of_another_length_is_refused():
    clip = clips()[0]
    with pytest.raises(UserError, match="generate as many frames"):
        measure_clip(clip.frames[:-1], Reference.of(clip.truth))


# --- motion without ground truth -------------------------------------------------------------


def test_motion_report_tells_a_static_clip_from_a_moving_one():
    clip = clips()[0]
    moving, still = motion.measure_motion(clip.frames), motion.measure_motion(corruptions.frozen(clip))
    assert not moving.static
    assert still.static
    assert motion.measure_motion(corruptions.frozen_second_half(clip)).retention < 0.05
    slowed = motion_energy(corruptions.frozen(clip)) + 0.05 * moving.energy
    assert motion.is_static(slowed, reference_energy=moving.energy)


def test_motion_report_sees_seams_and_slopes():
    clip = clips()[0]
    assert motion.measure_motion(corruptions.brightness_at_seams(clip)).luma_seam > 20
    assert motion.measure_motion(corruptions.over_exposure(clip)).luma_slope > 0.2
    assert motion.measure_motion(corruptions.desaturation(clip)).saturation_slope < -0.02
    calm = motion.measure_motion(clip.frames)
    assert abs(calm.luma_slope) < 0.01
    assert 0.7 < calm.luma_seam < 1.4


def test_motion_refuses_what_is_not_a_clip():
    with pytest.raises(UserError, match="at least two uint8 frames"):
        motion.measure_motion(clips()[0].frames[:1])


# --- single measures, written out ------------------------------------------------------------


def test_energy_is_mass_times_speed_squared():
    """One object stands still: what is left is the others' share of r^2 v^2."""
    clip = make_clip("val", 4, frames=17)
    path, radii = clip.truth.positions.copy(), [[s.radius] for s in clip.truth.scene.shapes]
    path[2] = path[2, :1]
    due = (np.square(radii) * clip.truth.speeds**2).sum(axis=1)
    measured = measure_clip(corruptions.render(clip.truth.scene, path), Reference.of(clip.truth), with_flow=False)
    assert measured.value("energy") == pytest.approx(1 - due[2] / due.sum(), abs=0.03)


def test_drift_is_the_spread_of_ten_segments_and_change_that_of_the_ends():
    drawn = np.full((40, 4, 4, 3), 100, np.uint8)
    offsets = np.random.default_rng(0).integers(3, 30, 40).astype(np.uint8)[::-1]  # the end is worse than the beginning
    frames = drawn + offsets[:, None, None, None]
    q = -25 * np.log10((offsets / 255.0) ** 2)
    sums = world._quality(SimpleNamespace(frames=frames, drawn=drawn, quality=world.quality(frames, drawn)))
    segments = [np.mean(q[start : start + 4]) for start in range(0, 40, 4)]
    assert sums["quality"] == pytest.approx((q.sum(), 40), rel=1e-5)
    assert sums["drift"] == pytest.approx((np.std(segments), 1), rel=1e-5)
    assert sums["quality_change"] == pytest.approx((abs(q[:6].mean() - q[-6:].mean()), 1), rel=1e-4)
    assert sums["quality_slope"] == pytest.approx((100 * np.polyfit(np.arange(40), q, 1)[0], 1), rel=1e-4)


# --- pooling and tables ----------------------------------------------------------------------


def fake(num: float, den: float) -> ClipMeasures:
    sums = {key: (num, den) for m in MEASURE.values() for key in m.keys}
    return ClipMeasures(sums, {name: np.array([[num, den]]) for name in CURVES})


def test_ratios_pool_by_sums_not_by_means():
    pooled = evaluation.pool([fake(1, 1), fake(0, 3)])["rho"]
    assert pooled.mean == pytest.approx(0.25)
    assert (pooled.low, pooled.high) == (0, 1)


def test_intervals_are_seeded_and_shrink_with_clips():
    values = np.random.default_rng(0).normal(1, 0.2, 400)
    few = evaluation.pool([fake(v, 1) for v in values[:25]])["rho"]
    many = evaluation.pool([fake(v, 1) for v in values])["rho"]
    assert few == evaluation.pool([fake(v, 1) for v in values[:25]])["rho"]
    assert few != evaluation.pool([fake(v, 1) for v in values[:25]], seed=1)["rho"]
    assert few.high - few.low == pytest.approx(2 * 1.96 * 0.2 / 5, rel=0.4)
    assert many.high - many.low < (few.high - few.low) / 2


def test_an_interval_holds_95_percent_of_the_resampled_means():
    values = np.random.default_rng(0).exponential(1.0, 25)
    found = evaluation.pool([fake(v, 1) for v in values], resamples=20_000)["rho"]
    means = np.random.default_rng(1).choice(values, (20_000, 25)).mean(axis=1)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.03 * means.std())


@lru_cache(maxsize=1)
def control_rows() -> list[evaluation.Row]:
    clips = list(evaluation.protocol_clips(frames=33, count=4))
    made = {n: [evaluation.Sample(make(c), c.truth) for c in clips] for n, make in evaluation.CONTROLS.items()}
    return [evaluation.evaluate(name, samples, with_flow=False) for name, samples in made.items()]


def test_controls_stand_where_they_should():
    whole = {row.name: row.measures["all"] for row in control_rows()}
    assert list(whole) == ["truth", "frozen", "constant_velocity"]
    assert whole["truth"]["rho"].mean == pytest.approx(1, abs=0.02)
    assert whole["frozen"]["rho"].mean == 0
    assert whole["frozen"]["drift"] is None
    assert whole["constant_velocity"]["presence"].mean < whole["truth"]["presence"].mean == 1
    assert whole["constant_velocity"]["law_residual"].mean < 0.11


def test_a_frozen_clip_has_a_curve_of_motion_alone():
    curves = control_rows()[1].curves["all"]
    assert curves["rho"] == [0, 0]
    assert curves["id_ok"] == curves["quality"] == [None, None]


def test_tracks_are_reported_apart_and_together():
    row = control_rows()[0]
    assert row.clips == {"determined": 2, "free": 2, "all": 4}
    assert row.measures["free"]["position_error"] is None
    assert row.measures["determined"]["position_error"].mean < 0.15


def test_evaluation_refuses_nothing():
    with pytest.raises(UserError, match="no clips"):
        evaluation.evaluate("teacher", [])


def test_a_detector_that_fails_stops_the_evaluation(monkeypatch):
    clip = clips()[0]
    good = evaluation.check_detector(clip.truth)
    assert good < 0.05

    def shifted(frames, hues):
        return detect(np.roll(frames, 1, axis=2), hues)

    monkeypatch.setattr(evaluation, "detect", shifted)
    with pytest.raises(UserError, match="no measure can be trusted"):
        evaluation.evaluate("teacher", [evaluation.Sample(clip.frames, clip.truth)])
