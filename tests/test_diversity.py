"""Diversity: entropies and spreads against closed forms, and clips that all go one way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from aad1.data.world import Clip, Scene, Shape, make_clip, render, simulate
from aad1.errors import UserError
from aad1.evaluation.diversity import COLUMNS, diversity_curves, diversity_row, seeded, truth_samples
from aad1.evaluation.world import Sample, frozen_frames
from aad1.measures.diversity import entropy, heading_counts, heading_spread, motion_of, position_spread
from aad1.measures.reference import Reference, octant

FRAMES = 33


def heading(degrees: float, speed: float = 1.0) -> tuple[float, float]:
    return float(speed * np.cos(np.radians(degrees))), float(speed * np.sin(np.radians(degrees)))


def free_clip(velocity: tuple[float, float], frames: int = FRAMES, hue: str = "red") -> Clip:
    """One disc in the middle."""
    scene = Scene((Shape(hue, "disc", 5.5, (32.0, 32.0), velocity),), ((0.4, 0.4, 0.4),) * 4, f"a {hue} disc", "free")
    truth = simulate(scene, frames)
    return Clip(render(scene, truth.positions), scene.caption, truth)


# --- measures ----------------------------------------------------------------------------------


def test_entropy_of_even_headings_is_three_bits_and_of_one_heading_none() -> None:
    assert entropy(np.full(8, 5.0)) == pytest.approx(3)
    assert entropy(np.eye(8)[3]) == 0
    assert entropy(np.array([1.0, 1, 0, 0, 0, 0, 0, 0])) == pytest.approx(1)
    assert np.isnan(entropy(np.zeros(8)))


def test_entropy_is_low_by_what_its_legend_says() -> None:
    drawn = np.random.default_rng(0).multinomial(50, np.full(8, 1 / 8), size=2000)
    assert 3 - entropy(drawn.astype(float)).mean() == pytest.approx(5 / 50, rel=0.1)


def test_headings_are_counted_by_octant_and_unknown_ones_nowhere() -> None:
    velocities = np.array([heading(2), heading(44), heading(46), heading(181), (np.nan, np.nan)])
    assert heading_counts(velocities).tolist() == [1, 2, 0, 0, 1, 0, 0, 0]


def test_position_spread_is_the_mean_over_pairs_by_time() -> None:
    rng = np.random.default_rng(0)
    clips = [rng.uniform(0, 64, size=(2, 5, 2)) for _ in range(4)]
    clips[1][0, 3] = np.nan
    expected = []
    for t in range(5):
        apart = [
            float(np.hypot(*(clips[i][o, t] - clips[j][o, t])))
            for i in range(4)
            for j in range(i)
            for o in range(2)
            if not np.isnan(clips[i][o, t] + clips[j][o, t]).any()
        ]
        expected.append(sum(apart) / len(apart))
    assert position_spread(clips) == pytest.approx(np.array(expected))
    lost = [np.full((1, 3, 2), np.nan)] * 2
    assert np.isnan(position_spread(lost)).all()


def test_heading_spread_is_the_mean_angle_between_seeds() -> None:
    a, b = np.array([heading(10)]), np.array([heading(350, 2.0)])
    assert heading_spread([a, b]) == pytest.approx(20)
    assert heading_spread([a, a, b]) == pytest.approx(40 / 3)
    assert np.isnan(heading_spread([a, np.full((1, 2), np.nan)]))
    angles = np.random.default_rng(0).uniform(0, 360, 400)
    assert heading_spread([np.array([heading(x)]) for x in angles]) == pytest.approx(90, abs=3)


@pytest.mark.parametrize("degrees", [0, 77, 130, 255])
def test_first_headings_are_detected(degrees: float) -> None:
    clip = free_clip(heading(degrees, 1.3))
    found = motion_of(clip.frames, Reference.of(clip.truth))
    assert found.velocities[0] == pytest.approx(np.array(heading(degrees, 1.3)), abs=0.03)
    assert found.positions.shape == (1, FRAMES, 2)


def test_an_object_goes_its_own_way_and_is_judged_by_it() -> None:
    """The truth hits a wall in its second frame; the clip, moving away from it, shows its heading."""
    scene = free_clip(heading(0)).truth.scene
    at_wall = replace(scene, shapes=(replace(scene.shapes[0], position=(56.0, 32.0), velocity=(1.7, 0.0)),))
    other = replace(at_wall, shapes=(replace(at_wall.shapes[0], position=(50.0, 32.0), velocity=(-1.0, 0.0)),))
    truth, made = simulate(at_wall, FRAMES), simulate(other, FRAMES)
    found = motion_of(render(other, made.positions), Reference.of(truth))
    assert octant(found.velocities[0]) == 4


def test_what_does_not_move_shows_no_heading() -> None:
    clip = free_clip(heading(30))
    assert np.isnan(motion_of(frozen_frames(clip), Reference.of(clip.truth)).velocities).all()


# --- rows --------------------------------------------------------------------------------------


def clips(count: int) -> list[Clip]:
    return [make_clip("test", index, FRAMES) for index in range(count)]


def as_samples(made: list[Clip]) -> list[Sample]:
    return [Sample(clip.frames, clip.truth) for clip in made]


def test_the_worlds_own_futures_are_diverse() -> None:
    found = diversity_row(truth_samples(clips(16), seeds=6))
    assert (found.images, found.clips) == (8, 48)
    assert set(found.row) == {column.name for column in COLUMNS}
    bits, angle, distance = (found.row[c.name].mean for c in COLUMNS)  # type: ignore[union-attr]
    assert bits > 2.7
    assert angle == pytest.approx(90, abs=12)
    assert distance > 15
    assert found.curve[0][0] == 0
    assert found.curve[0][1] == pytest.approx(0.0, abs=0.01)
    assert found.curve[-1][0] == 2.0
    assert not found.missing


def test_a_model_that_answers_every_seed_alike_has_no_spread() -> None:
    found = diversity_row(as_samples(list(seeded(clips(8), seeds=3))))
    assert found.images == 4
    assert found.row["seed_heading"].mean == pytest.approx(0)  # type: ignore[union-attr]
    assert found.row["seed_position"].mean == pytest.approx(0)  # type: ignore[union-attr]


def test_a_model_that_sends_everything_one_way_has_no_entropy() -> None:
    made = [free_clip(heading(90, 1.0), hue=hue) for hue in ("red", "blue", "green")]
    assert diversity_row(as_samples(made)).row["heading_entropy"].mean == 0  # type: ignore[union-attr]


def test_what_cannot_be_measured_is_missing() -> None:
    free = [clip for clip in clips(6) if clip.truth.scene.track == "free"]
    found = diversity_row(as_samples(free))
    assert found.row["seed_heading"] is None
    assert any("make several seeds of an image" in line for line in found.missing)
    still = diversity_row(Sample(frozen_frames(clip), clip.truth) for clip in free)
    assert still.row["heading_entropy"] is None
    assert any("no object of a free clip showed a first heading" in line for line in still.missing)
    assert diversity_row([]).row["heading_entropy"] is None


def test_only_the_free_track_counts() -> None:
    determined = [clip for clip in clips(6) if clip.truth.scene.track == "determined"]
    assert diversity_row(as_samples(determined)).images == 0


def test_seeds_of_different_lengths_are_refused() -> None:
    a, b = free_clip(heading(0), 17), free_clip(heading(0), 33)
    with pytest.raises(UserError, match="17 and 33 frames; evaluate each length separately"):
        diversity_row(as_samples([a, b, a, b]))


def test_the_same_clips_give_the_same_numbers() -> None:
    once, again = (diversity_row(truth_samples(clips(6), seeds=2)) for _ in range(2))
    assert once == again
    lines: NDArray[np.float64] = np.array(diversity_curves({"truth": once}).lines["truth"], float)
    assert np.isfinite(lines).all()
