"""The flow-matching convention: conversions invert each other, and the published levels are on the grid."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from lively import normal

from aad1.flow import (
    add_noise,
    euler_grid,
    grid_index,
    guide,
    per_frame,
    shift_t,
    shifted_levels,
    velocity,
    x0_from_v,
)

LEVELS = (1.0, 0.75, 0.5, 0.25)


def test_the_clean_clip_comes_back_from_the_noised_one() -> None:
    x0, eps = normal(2, 3, 4, 2, 2, seed=0).double(), normal(2, 3, 4, 2, 2, seed=1).double()
    t = torch.rand(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(x0_from_v(add_noise(x0, eps, t), velocity(x0, eps), t), x0)
    torch.testing.assert_close(x0_from_v(add_noise(x0, eps, 0.3), velocity(x0, eps), 0.3), x0)


def test_t_zero_is_clean_and_t_one_is_noise() -> None:
    x0, eps = normal(1, 2, 3, 2, 2, seed=0), normal(1, 2, 3, 2, 2, seed=1)
    assert torch.equal(add_noise(x0, eps, 0.0), x0)
    assert torch.equal(add_noise(x0, eps, 1.0), eps)
    assert torch.equal(velocity(x0, eps), eps - x0)


def test_every_frame_takes_its_own_level() -> None:
    x0, eps = normal(2, 3, 4, 2, 2, seed=0), normal(2, 3, 4, 2, 2, seed=1)
    t = torch.arange(8).reshape(2, 4) / 10
    noised = add_noise(x0, eps, t)
    for sample in range(2):
        for frame in range(4):
            level = float(t[sample, frame])
            expected = (1 - level) * x0[sample, :, frame] + level * eps[sample, :, frame]
            torch.testing.assert_close(noised[sample, :, frame], expected)
    assert per_frame(0.5, x0) == 0.5


def test_published_levels_at_shift_5() -> None:
    assert shifted_levels(LEVELS, 5.0) == pytest.approx((1, 0.9375, 5 / 6, 0.625), abs=1e-12)
    assert shifted_levels(LEVELS, 1.0) == LEVELS
    assert float(shift_t(torch.tensor(0.0), 5.0)) == 0


def test_48_euler_steps_contain_the_levels_and_50_do_not() -> None:
    levels = shifted_levels(LEVELS, 5.0)
    fine, coarse = euler_grid(48, 5.0), euler_grid(50, 5.0)
    assert [grid_index(fine, level) for level in levels] == [0, 12, 24, 36]
    assert [grid_index(coarse, level) is None for level in levels] == [False, True, False, True]
    assert all(grid_index(euler_grid(48, 8.0), level) is None for level in levels[1:])


def test_the_grid_falls_from_one_to_zero() -> None:
    grid = euler_grid(48, 5.0)
    assert len(grid) == 49
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    assert all(later < earlier for earlier, later in pairwise(grid))


def test_guidance_is_in_the_standard_convention() -> None:
    cond, uncond = normal(5, seed=0), normal(5, seed=1)
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 4.0), cond + 3 * (cond - uncond))  # Self Forcing writes it so


def test_euler_along_the_true_velocity_ends_in_the_clean_clip() -> None:
    x0, eps = normal(4, seed=0).double(), normal(4, seed=1).double()
    x, grid = eps, euler_grid(7, 3.0)
    for t, following in pairwise(grid):
        x = x + (following - t) * velocity(x0, eps)
    torch.testing.assert_close(x, x0)
