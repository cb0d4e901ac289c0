"""The embedded world keeps its promises: determinism, held-out looks, physics, captions, exact truth."""

from __future__ import annotations

import numpy as np
import pytest

from aad1.data.world import (
    HELD_OUT_PAIRS,
    HUES,
    SIZE,
    SPEEDS,
    SPLITS,
    WALL_MARGIN,
    background,
    make_clip,
    sample_scene,
    vocabulary,
)
from aad1.errors import UserError
from aad1.measures.detect import detect, to_lab

CLIPS = [make_clip(split, index) for split in ("train", "test_fast", "test_count") for index in range(4)]


def test_a_clip_is_determined_by_split_and_index():
    first, again = make_clip("train", 7, 9), make_clip("train", 7, 9)
    assert np.array_equal(first.frames, again.frames)
    assert first.caption == again.caption
    for other in (make_clip("train", 8, 9), make_clip("val", 7, 9)):
        assert not np.array_equal(first.frames, other.frames)


def test_a_longer_clip_begins_with_the_shorter():
    assert np.array_equal(make_clip("val", 3, 33).frames[:17], make_clip("val", 3, 17).frames)


def test_a_late_start_is_the_same_scene_captioned_as_free():
    whole, late = make_clip("train", 0, 20), make_clip("train", 0, 12, start=8)
    assert np.array_equal(whole.frames[8:], late.frames)
    assert late.truth.scene.track == "free"
    assert "moves" not in late.caption


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_are_in_their_own_split_alone(split):
    for index in range(150):
        pairs = {(s.hue, s.shape) for s in sample_scene(split, index).shapes}
        assert bool(pairs & set(HELD_OUT_PAIRS)) == (split == "test_pairs")


@pytest.mark.parametrize("split", SPLITS)
def test_captions_consist_of_the_vocabulary_and_state_the_motion(split):
    for index in range(20):
        scene = sample_scene(split, index)
        words = scene.caption.replace(",", " ,").split()
        assert set(words) <= set(vocabulary())
        assert ("moves" in words) == (scene.track == "determined") == (index % 2 == 0)
        assert len({s.hue for s in scene.shapes}) == len(scene.shapes)


def test_stated_speeds_are_scaled_out_of_distribution():
    for split, scale in (("train", 1.0), ("test_slow", 0.5), ("test_fast", 1.5)):
        scene = sample_scene(split, 0, track="determined")
        for shape, clause in zip(scene.shapes, scene.caption.split(", "), strict=True):
            assert np.hypot(*shape.velocity) == pytest.approx(scale * SPEEDS[clause.split()[-1]])


@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: c.caption)
def test_energy_is_conserved(clip):
    mass = np.array([s.radius**2 for s in clip.truth.scene.shapes])
    energy = np.einsum("n,nfc->f", mass, clip.truth.velocities**2)
    np.testing.assert_allclose(energy, energy[0], rtol=1e-9)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: c.caption)
def test_shapes_stay_inside_the_walls_and_whole(clip):
    margins = np.array([WALL_MARGIN[s.shape] * s.radius for s in clip.truth.scene.shapes])[:, None, None]
    assert (clip.truth.positions >= margins - 1e-9).all()
    assert (clip.truth.positions <= SIZE - margins + 1e-9).all()
    areas = clip.truth.masks().sum(axis=(2, 3))
    np.testing.assert_allclose(areas / areas[:, :1], 1, atol=0.03)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: c.caption)
def test_velocity_changes_at_events_and_only_there(clip):
    change = np.abs(np.diff(clip.truth.velocities, axis=1)).max(axis=-1)
    assert (change[~clip.truth.events[:, 1:]] == 0).all()
    assert (change[clip.truth.events[:, 1:]] > 0).mean() > 0.95  # two bounces in one frame may cancel


@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: c.caption)
def test_masks_and_flow_agree_with_positions(clip):
    masks, flow = clip.truth.masks(), clip.truth.flow()
    centres = np.arange(SIZE) + 0.5
    mass = masks.sum(axis=(2, 3))
    centroid = np.stack([masks.sum(axis=2) @ centres, masks.sum(axis=3) @ centres], axis=-1) / mass[..., None]
    assert np.linalg.norm(centroid - clip.truth.positions, axis=-1).max() < 0.1
    nowhere = (masks[:, :-1] <= 0.5).all(axis=0)
    assert (flow[nowhere] == 0).all()
    alone = (masks[:, :-1] > 0.5).sum(axis=0) == 1
    for mask, path in zip(masks[:, :-1], clip.truth.positions, strict=True):
        frame, y, x = np.nonzero((mask > 0.5) & alone)
        np.testing.assert_allclose(flow[frame, y, x], np.diff(path, axis=0)[frame])


def test_the_background_is_constant_and_quiet():
    for clip in CLIPS[:4]:
        empty = clip.truth.masks().max(axis=0) == 0
        drawn = np.round(background(clip.truth.scene) * 255)
        assert (np.abs(clip.frames - drawn)[empty] == 0).all()
        assert np.hypot(*np.moveaxis(to_lab(background(clip.truth.scene))[..., 1:], -1, 0)).max() < 15


@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: c.caption)
def test_the_detector_is_true_to_a_twentieth_of_a_pixel(clip):
    found = detect(clip.frames, [s.hue for s in clip.truth.scene.shapes])
    assert found.present.all()
    assert found.foreign.max() == 0
    assert np.linalg.norm(found.positions - clip.truth.positions, axis=-1).mean() < 0.05
    assert found.lab_distance.max() < 6


def test_the_detector_reports_absence_and_foreign_colour():
    clip = make_clip("train", 1)
    present = {s.hue for s in clip.truth.scene.shapes}
    absent = next(hue for hue in HUES if hue not in present)
    found = detect(clip.frames, [absent])
    assert not found.present.any()
    assert np.isnan(found.positions).all()
    assert found.foreign.min() > 20


def test_the_detector_refuses_what_it_cannot_read():
    frames = make_clip("train", 1, 5).frames
    with pytest.raises(UserError, match="did you mean 'green'"):
        detect(frames, ["gren"])
    with pytest.raises(UserError, match="uint8"):
        detect(frames / 255, ["red"])  # type: ignore[arg-type]
