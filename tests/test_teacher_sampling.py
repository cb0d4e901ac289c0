"""The many-step teacher: Euler's path, a clean image that stays, and noise drawn anew."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from lively import clip_of, lively, normal, text_of
from torch import Tensor

from aad1.flow import euler_grid
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.teacher_sampling import TeacherSampling, sample_teacher, trajectory

BATCH, FRAMES = 2, 5
GRID = euler_grid(4, 5.0)


@pytest.fixture(scope="module")
def teacher() -> CausalWanTransformer3DModel:
    return lively(seed=0).requires_grad_(False)


def path_of(teacher: CausalWanTransformer3DModel, **options: Any) -> list[Tensor]:
    noise, text, negative = normal(*clip_of(FRAMES, batch=BATCH).shape, seed=3), text_of(BATCH), text_of(BATCH, seed=9)
    return list(trajectory(teacher, noise, text, negative, grid=GRID, **{"guidance": 3.0, **options}))


def test_a_trajectory_is_eulers_method_written_out(teacher: CausalWanTransformer3DModel) -> None:
    path = path_of(teacher)
    assert len(path) == len(GRID)
    for (t, following), (now, after) in zip(pairwise(GRID), pairwise(path), strict=True):
        levels = torch.full((BATCH, FRAMES), t)
        cond, uncond = (teacher(now, levels, text) for text in (text_of(BATCH), text_of(BATCH, seed=9)))
        torch.testing.assert_close(after, now + (following - t) * (uncond + 3 * (cond - uncond)), atol=1e-5, rtol=1e-4)


def test_a_clean_image_stays_and_is_at_level_0(teacher: CausalWanTransformer3DModel) -> None:
    image = normal(BATCH, *clip_of(FRAMES).shape[1:2], 1, *clip_of(FRAMES).shape[3:], seed=5)
    path = path_of(teacher, image=image, guidance=1.0)
    assert all(torch.equal(latents[:, :, :1], image) for latents in path)
    levels = torch.full((BATCH, FRAMES), 1.0)
    levels[:, 0] = 0
    v = teacher(path[0], levels, text_of(BATCH))
    step = path[0] + (GRID[1] - GRID[0]) * v
    torch.testing.assert_close(path[1][:, :, 1:], step[:, :, 1:], atol=1e-5, rtol=1e-4)


def test_churn_draws_that_share_of_the_noise_anew(teacher: CausalWanTransformer3DModel) -> None:
    fresh = normal(*clip_of(FRAMES, batch=BATCH).shape, seed=7)
    plain, half, whole = (path_of(teacher, churn=c, renoise=lambda like: fresh)[1] for c in (0.0, 0.6, 1.0))
    noise = path_of(teacher)[0]
    v = (noise - plain) / (GRID[0] - GRID[1])
    for made, churn in ((half, 0.6), (whole, 1.0)):
        eps = 0.8 * noise + 0.6 * fresh if churn < 1 else fresh  # at t = 1 the noise is all there is
        torch.testing.assert_close(made, (1 - GRID[1]) * (noise - v) + GRID[1] * eps, atol=1e-5, rtol=1e-4)


def test_the_end_of_a_trajectory_is_a_sample(teacher: CausalWanTransformer3DModel) -> None:
    noise, text, negative = normal(*clip_of(FRAMES, batch=BATCH).shape, seed=3), text_of(BATCH), text_of(BATCH, seed=9)
    sampling = TeacherSampling(steps=4, shift=5.0, guidance=3.0)
    assert torch.equal(sample_teacher(teacher, noise, text, negative, sampling), path_of(teacher)[-1])


def test_a_sampling_with_a_clean_image_needs_one_and_one_without_ignores_it(
    teacher: CausalWanTransformer3DModel,
) -> None:
    noise, text, negative = normal(*clip_of(FRAMES, batch=BATCH).shape, seed=3), text_of(BATCH), text_of(BATCH, seed=9)
    image = normal(*noise[:, :, :1].shape, seed=5)
    plain, given = (TeacherSampling(steps=4, shift=5.0, guidance=3.0, clean_image=c) for c in (False, True))
    end = path_of(teacher, image=image)[-1]
    assert torch.equal(sample_teacher(teacher, noise, text, negative, given, image=image), end)
    assert torch.equal(sample_teacher(teacher, noise, text, negative, plain, image=image), path_of(teacher)[-1])
    with pytest.raises(ValueError, match="pass one"):
        sample_teacher(teacher, noise, text, negative, given)
