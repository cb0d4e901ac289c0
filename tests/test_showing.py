"""What held-out samples say of motion where there is no truth to compare with, and of how pictures change."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from aad1.data.world import make_clip
from aad1.stages.showing import Showing, looks

Frames = NDArray[np.uint8]
LENGTH = 33
PERIOD = 16  # px: two latent pixels of eight


@cache
def real_clips() -> Frames:
    """Four clips; the last stands nearly still at first, so that its own last quarter is many times its first."""
    clips = [make_clip("train", index, LENGTH).frames for index in range(4)]
    clips[-1] = np.concatenate([np.repeat(clips[-1][:1], LENGTH // 2, axis=0), clips[-1][: LENGTH - LENGTH // 2]])
    return np.stack(clips)


def measured(made: Frames) -> dict[str, float]:
    showing = object.__new__(Showing)
    vars(showing)["_real"] = real_clips()
    return showing._against_real(made)


def test_the_real_clips_move_as_the_real_clips() -> None:
    assert measured(real_clips()) == {"rho": 1, "kappa": 1, "static": 0}


def test_one_clip_that_starts_still_does_not_decide() -> None:
    moving = np.concatenate([real_clips()[:3], real_clips()[:1]])
    assert measured(moving)["kappa"] == pytest.approx(1, abs=0.5)


def test_a_clip_that_freezes_half_way_has_lost_its_last_quarter() -> None:
    half = real_clips().copy()
    half[:, LENGTH // 2 :] = half[:, LENGTH // 2 : LENGTH // 2 + 1]
    found = measured(half)
    assert found["kappa"] == 0
    assert 0.2 < found["rho"] < 0.8


def test_frozen_clips_have_no_motion() -> None:
    frozen = np.repeat(real_clips()[:, :1], LENGTH, axis=1)
    assert measured(frozen) == {"rho": 0, "kappa": 0, "static": 1}


def test_twice_the_speed_is_twice_the_motion() -> None:
    assert measured(real_clips()[:, ::2])["rho"] == pytest.approx(2, abs=0.5)


def looks_of(made: Frames) -> dict[str, float]:
    return looks(made, real_clips(), PERIOD)


def test_real_clips_look_like_real_clips() -> None:
    assert looks_of(real_clips()) == {"luma_slope": 0, "saturation_slope": 0, "grid": 1}


def test_a_picture_that_brightens_has_a_slope_of_brightness() -> None:
    ramp = np.linspace(0, 25.5, LENGTH)[None, :, None, None, None]  # a tenth of the range over the clip
    found = looks_of((real_clips() * 0.8 + ramp).round().astype(np.uint8))
    assert found["luma_slope"] == pytest.approx(0.1 * 100 / (LENGTH - 1), abs=0.05)
    assert abs(found["saturation_slope"]) < 0.05
    assert found["grid"] == pytest.approx(1, abs=0.3)


def test_colours_that_fade_have_a_slope_of_saturation() -> None:
    grey = real_clips().mean(axis=-1, keepdims=True)
    share = np.linspace(1, 0, LENGTH)[None, :, None, None, None]
    found = looks_of((grey + share * (real_clips() - grey)).round().astype(np.uint8))
    assert found["saturation_slope"] < -0.1
    assert abs(found["luma_slope"]) < 0.05


def test_a_grid_of_tokens_shows_and_a_small_picture_has_none() -> None:
    printed = real_clips() * 0.9
    printed[:, :, ::PERIOD] += 2
    printed[:, :, :, ::PERIOD] += 2
    assert looks_of(printed.round().astype(np.uint8))["grid"] > 2
    small = real_clips()[:, :, :32, :32]
    assert looks(small, small, PERIOD).keys() == {"luma_slope", "saturation_slope"}
