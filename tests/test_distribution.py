"""Distances between distributions: closed forms, slow transcriptions, and what the bundled encoder sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import corruptions
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg

from aad1.data.world import HUES, SHAPES, Clip, make_clip, render
from aad1.errors import UserError
from aad1.evaluation.distribution import (
    CLIPS,
    COLUMNS,
    Distribution,
    FeatureBank,
    compare,
    cut,
    features_of,
    reference_clips,
)
from aad1.measures.distribution import Estimate, frechet, frechet_distance, mmd
from aad1.models.state_encoder import MIDDLE, WINDOW, StateEncoder, load_state_encoder
from aad1.stages.state_encoder import (
    Shown,
    StateEncoderConfig,
    StateEncoderStage,
    StateWindows,
    blurred,
    held_out_windows,
    scores,
    true_state,
    whole_clip,
)
from aad1.training.loop import Turn
from aad1.training.player import OptimizerConfig

RNG = np.random.default_rng(0)


def normal(count: int, windows: int = 2, dim: int = 5, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, windows, dim))


# --- Frechet -----------------------------------------------------------------------------------


def test_frechet_of_a_sample_and_itself_is_nothing() -> None:
    a = normal(40)[:, 0] @ RNG.normal(size=(5, 5))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_a_shifted_sample_is_the_shift_squared() -> None:
    a, shift = normal(40)[:, 0], np.array([3.0, 4.0, 0, 0, 0])
    assert frechet_distance(a, a + shift) == pytest.approx(25)


def test_frechet_of_a_scaled_sample_is_the_change_of_its_spread() -> None:
    """(s - 1)^2 tr C, and for Gaussians of variances 1 and 4 in every direction d (2 - 1)^2."""
    a = normal(40)[:, 0]
    a -= a.mean(axis=0)
    assert frechet_distance(a, 3 * a) == pytest.approx(4 * np.trace(np.cov(a, rowvar=False)))
    many = normal(100_000)
    assert frechet_distance(many[:, 0], 2 * many[:, 1]) == pytest.approx(5, rel=0.02)


def test_frechet_equals_the_formula_with_a_matrix_root() -> None:
    a, b = normal(60)[:, 0] @ RNG.normal(size=(5, 5)), normal(50, seed=1)[:, 0] @ RNG.normal(size=(5, 5)) + 1
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = a.mean(0) - b.mean(0)
    expected = apart @ apart + np.trace(one + other - 2 * np.real(linalg.sqrtm(one @ other)))
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_is_symmetric_and_holds_when_clips_are_fewer_than_features() -> None:
    a, b = normal(4, dim=9)[:, 0], normal(6, dim=9, seed=1)[:, 0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_of_few_clips_is_too_large_and_its_bias_is_taken_away() -> None:
    """The plain distance of a distribution and itself is about dim^2 / 2N."""
    pairs = [(normal(128, 1, 16, 2 * i), normal(128, 1, 16, 2 * i + 1)) for i in range(20)]
    plain = [frechet_distance(a[:, 0], b[:, 0]) for a, b in pairs]
    corrected = np.array([frechet(a, b).value for a, b in pairs])
    assert np.mean(plain) == pytest.approx(16**2 / (2 * 128), rel=0.4)
    assert abs(corrected.mean()) < 0.15 * np.mean(plain)
    shifted = [frechet(a, b + 0.5).value for a, b in pairs]
    assert np.mean(shifted) == pytest.approx(16 / 4, rel=0.12)


def test_windows_are_compared_each_with_its_own_and_averaged() -> None:
    a, b = normal(3000), 2 * normal(3000, seed=1)
    b[:, 1] += 1
    found = frechet(a, b)
    assert found.windows == pytest.approx([5, 10], rel=0.05)
    assert found.value == pytest.approx(found.windows.mean())
    few, more = a[:40], b[:50]
    assert mmd(few, more).windows == pytest.approx([mmd(few[:, [i]], more[:, [i]]).value for i in range(2)])


# --- MMD ---------------------------------------------------------------------------------------


def slow_mmd(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Sums over pairs as they are written in the paper, one window."""

    def k(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float(np.exp(-((x - y) ** 2).sum() / (2 * len(x))))

    m, n = len(a), len(b)
    one = sum(k(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    other = sum(k(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return one + other - 2 * sum(k(x, y) for x in a for y in b) / (m * n)


def test_mmd_equals_a_slow_transcription() -> None:
    a, b = normal(9), 0.5 + 2 * normal(7, seed=1)
    expected = np.mean([slow_mmd(a[:, i], b[:, i]) for i in range(2)])
    assert mmd(a, b).value == pytest.approx(expected)


def test_mmd_is_unbiased() -> None:
    drawn = [mmd(normal(12, 1, 3, 2 * i), normal(12, 1, 3, 2 * i + 1)).value for i in range(300)]
    assert abs(np.mean(drawn)) < 3 * np.std(drawn) / np.sqrt(len(drawn))
    assert min(drawn) < 0 < max(drawn)


def test_mmd_of_two_gaussians_is_what_the_kernel_expects() -> None:
    """For N(0, 1) and N(c, 1) in one dimension: E k = 3^-1/2 within, and times exp(-c^2 / 6) across."""
    c, count = 1.5, 1000
    found = mmd(normal(count, 1, 1), c + normal(count, 1, 1, 1))
    assert found.value == pytest.approx(2 * 3**-0.5 * (1 - np.exp(-c * c / 6)), abs=4 * found.error)
    assert found.error < 0.04


@pytest.mark.parametrize("distance", [frechet, mmd])
def test_the_error_is_how_much_other_clips_would_change_the_distance(
    distance: Callable[..., Estimate],
) -> None:
    drawn = [distance(normal(64, 1, 4, 2 * i), 0.5 + normal(64, 1, 4, 2 * i + 1)) for i in range(60)]
    values, errors = np.array([(one.value, one.error) for one in drawn]).T
    assert 0.7 < errors.mean() / values.std() < 1.4


@pytest.mark.parametrize("distance", [frechet, mmd])
def test_what_does_not_compare_is_refused(distance: Callable[..., object]) -> None:
    with pytest.raises(UserError, match=r"do not compare.*one length"):
        distance(normal(8, windows=2), normal(8, windows=3))
    with pytest.raises(UserError, match="2 clips has no spread; give at least 3, better 512"):
        distance(normal(8), normal(2))
    with pytest.raises(UserError, match="not finite"):
        distance(normal(8), np.full((8, 2, 5), np.nan))


# --- features ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> StateEncoder:
    return load_state_encoder()


def clips(count: int, first: int = 0, frames: int = 33) -> list[Clip]:
    return [make_clip("test", index, frames) for index in range(first, first + count)]


def test_a_clip_is_cut_into_windows_that_share_a_frame() -> None:
    frames = make_clip("test", 0).frames
    windows = cut(frames)
    assert windows.shape == (5, WINDOW, 64, 64, 3)
    assert all(np.array_equal(window, frames[16 * i : 16 * i + 17]) for i, window in enumerate(windows))
    assert np.array_equal(windows[-1][-1], frames[-1])


def test_what_is_no_clip_of_the_world_is_refused(encoder: StateEncoder) -> None:
    with pytest.raises(UserError, match=r"17 or more, 64, 64, 3\], got uint8 \[16, 64, 64, 3\]"):
        cut(np.zeros((16, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"got float64"):
        cut(np.zeros((17, 64, 64, 3)))  # type: ignore[arg-type]
    bank = FeatureBank(encoder)
    bank.add(np.zeros((17, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="2 windows follows clips of 1"):
        bank.add(np.zeros((33, 64, 64, 3), np.uint8))


def test_the_bundled_encoder_reads_the_state(encoder: StateEncoder) -> None:
    """On clips of the validation split; docs/results.md has the exact figures."""
    read = scores(encoder, list(held_out_windows(16)))
    assert read["presence"] > 0.98
    assert read["position_r2"] > 0.9
    assert read["velocity_r2"] > 0.7  # at the middle frame: a bounce just there is hard to read
    assert read["speed_r2"] > 0.8
    assert read["shape"] > 0.9


def test_features_are_white(encoder: StateEncoder) -> None:
    found = np.concatenate([features_of(encoder, cut(clip.frames)) for clip in clips(64)])
    assert np.abs(found.mean(axis=0)).mean() < 0.2
    assert np.abs(np.corrcoef(found, rowvar=False) - np.eye(found.shape[1])).mean() < 0.15
    assert (found.var(axis=0) < 2).all()


# --- rows --------------------------------------------------------------------------------------


def bank_of(frames: Iterable[NDArray[np.uint8]], encoder: StateEncoder) -> FeatureBank:
    bank = FeatureBank(encoder)
    for clip in frames:
        bank.add(clip)
    return bank


def compared(
    models: Mapping[str, Iterable[NDArray[np.uint8]]], reference: Iterable[Clip], encoder: StateEncoder
) -> Distribution:
    banks = {name: bank_of(frames, encoder) for name, frames in models.items()}
    return compare(banks, bank_of((clip.frames for clip in reference), encoder))


def test_rows_stand_beside_the_truths_own_and_say_when_clips_are_few(encoder: StateEncoder) -> None:
    asked, other = clips(64, 0, 17), clips(64, 64, 17)
    spoilt = {
        "truth": [c.frames for c in asked],
        "half speed": [corruptions.half_speed(c) for c in asked],
        "shuffled": [corruptions.shuffled_time(c) for c in asked],
    }
    found = compared(spoilt, other, encoder)
    assert list(found.rows) == list(spoilt)
    assert all(set(row) == {column.name for column in COLUMNS} for row in found.rows.values())
    for measure in ("frechet", "mmd"):
        floor, half, shuffled = (row[measure] for row in found.rows.values())
        assert floor is not None and half is not None and shuffled is not None  # noqa: PT018
        assert floor.low < 0 < floor.high
        assert floor.high < half.low < half.high < shuffled.low
    assert any(f"over 64 clips ({CLIPS} are wanted" in note for note in found.notes)
    assert not found.missing
    assert [x for x, _ in found.curves.lines["truth"]] == [1]


def test_fewer_clips_than_features_have_no_frechet_distance(encoder: StateEncoder) -> None:
    few = clips(6)
    found = compared({"one": [c.frames for c in few]}, few, encoder)
    assert found.rows["one"]["frechet"] is None
    assert found.rows["one"]["mmd"] is not None
    assert "FD of one: 6 clips have no covariance of 64 features; give at least 64, better 512" in found.missing


def test_a_model_without_clips_is_missing_and_the_others_stay(encoder: StateEncoder) -> None:
    some = clips(4)
    found = compared({"one": [c.frames for c in some], "none": []}, some, encoder)
    assert found.rows["none"] == {"frechet": None, "mmd": None}
    assert "FD and MMD of none: no clips to take features of; give at least 3, better 512" in found.missing
    assert found.rows["one"]["mmd"] is not None


def test_the_reference_is_of_clips_that_no_model_was_asked_for() -> None:
    asked, other = clips(2), list(reference_clips(33, 2))
    assert len(other) == 2
    assert not {c.truth.scene for c in asked} & {c.truth.scene for c in other}


# --- training ----------------------------------------------------------------------------------

ADAM = OptimizerConfig(lr=1e-3)
SMALL = {"channels": (4, 4, 4), "hidden": 8, "features": 8}


def test_the_true_state_of_a_window() -> None:
    clip = make_clip("val", 3, WINDOW)
    state, scene = true_state(Shown(clip.frames, clip.truth, 0.5)), clip.truth.scene
    assert (float(state.softness), float(state.roughness)) == (0.5, 0)
    assert state.presence.sum() == len(scene.shapes)
    for i, shape in enumerate(scene.shapes):
        hue = list(HUES).index(shape.hue)
        assert state.position[hue].numpy() == pytest.approx(clip.truth.positions[i, MIDDLE], abs=1e-4)
        assert state.velocity[hue].numpy() == pytest.approx(clip.truth.velocities[i, MIDDLE], abs=1e-4)
        assert float(state.speed[hue]) == pytest.approx(clip.truth.speeds[i].mean(), abs=1e-4)
        assert state.shape[hue].argmax() == SHAPES.index(shape.shape)


def test_training_windows_are_of_many_speeds_and_always_the_same() -> None:
    data = StateWindows(1.6, 1.2, 1.0)
    one, again = data.read(range(24)), data.read(range(24))
    assert torch.equal(one.frames, again.frames)
    speeds = one.state.speed[one.state.presence > 0]
    assert speeds.min() < 0.4
    assert speeds.max() > 1.8
    for condition, most in ((one.state.softness, 1.2), (one.state.roughness, 1.0)):
        assert 0.2 < (condition > 0).float().mean() < 0.8
        assert condition.max() < most


def test_training_windows_in_good_condition_are_true() -> None:
    window = next(w for w in map(StateWindows(1.0, 0.0, 0.0)._window, range(9)) if len(w.truth.scene.shapes) == 3)
    assert np.array_equal(window.frames, render(window.truth.scene, window.truth.positions))
    soft = blurred(window.frames, 1.0)
    sharpest, softer = (np.abs(np.diff(frames.astype(float), axis=1)).max() for frames in (window.frames, soft))
    assert softer < sharpest
    assert np.array_equal(soft, np.stack([blurred(frame[None], 1.0)[0] for frame in window.frames]))


def test_the_windows_of_a_clip_are_those_of_the_evaluation() -> None:
    frames = (whole_clip("val", 1).frames.permute(0, 2, 3, 4, 1) + 1) * 127.5
    assert np.abs(frames.numpy() - cut(make_clip("val", 1).frames)).max() < 0.01


def test_a_stage_learns_and_its_export_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = StateEncoderConfig(steps=1, batch=8, optimizer=ADAM, validation=1, **SMALL)  # type: ignore[arg-type]
    stage = StateEncoderStage(config, StateEncoder(config.channels, config.hidden, config.features))
    batch, losses = stage.dataset.read(range(8)), []
    for _ in range(8):
        loss = stage.loss(Turn("encoder", 0), batch, torch.Generator())
        loss.value.backward()
        stage.players["encoder"].step(0.0)
        losses.append(float(loss.value.detach()))
    assert losses[-1] < losses[0]
    assert {"position_r2", "velocity_error", "presence"} <= set(stage.evaluate(0, tmp_path))
    stage.encoder.whiten([batch.frames])
    stage.encoder.save_pretrained(tmp_path / "state_encoder")
    loaded = load_state_encoder(tmp_path)
    assert torch.allclose(loaded(batch.frames), stage.encoder(batch.frames), atol=1e-5)


def test_whitening_makes_the_covariance_the_unit_matrix() -> None:
    """But for directions in which features hardly vary, which stay small."""
    torch.manual_seed(0)
    encoder, windows = StateEncoder((4, 4, 4), 8, 4).requires_grad_(False), StateWindows(1.6, 1.2, 1.0).read(range(24))
    encoder.whiten([windows.frames[:12], windows.frames[12:]])
    found = encoder(windows.frames)
    covariance = found.T.cov()
    assert found.mean(0).abs().max() < 1e-3
    assert torch.allclose(covariance, torch.diag(covariance.diag()), atol=1e-3)
    assert covariance.diag().max() == pytest.approx(1, abs=1e-3)
    assert covariance.diag().median() == pytest.approx(1, abs=1e-3)


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no state_encoder; `aad1 train state_encoder --install`"):
        load_state_encoder(tmp_path)


def test_clips_are_read_one_at_a_time(encoder: StateEncoder) -> None:
    """A model's samples are not gathered: what is read is let go of."""
    import gc
    import weakref

    seen: list[weakref.ref[NDArray[np.uint8]]] = []

    def watched() -> Iterator[NDArray[np.uint8]]:
        for clip in clips(4):
            frames = clip.frames.copy()
            seen.append(weakref.ref(frames))
            yield frames
            del frames
            gc.collect()
            assert sum(ref() is not None for ref in seen) <= 1

    compared({"model": watched()}, islice(reference_clips(33, 3), 3), encoder)
    assert len(seen) == 4
