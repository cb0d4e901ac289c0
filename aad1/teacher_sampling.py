"""The teacher's denoising trajectory: an Euler sampler of the bidirectional model, as a function that yields.

    x_{t'} = x_t + (t' - t) v(x_t, t),      v guided: v_uncond + w (v_cond - v_uncond)

Stage I stores points of it, evaluation its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from aad1.flow import guide
from aad1.models.causal_wan import CausalWanTransformer3DModel


def trajectory(
    teacher: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    negative: Tensor,
    *,
    grid: Sequence[float],
    guidance: float,
) -> Iterator[Tensor]:
    """Yield x_t at every time of ``grid`` (falling from 1 to 0), the pure noise first.

    noise: [batch, channels, frames, height, width]; text, negative: [batch, length, dim]; guidance in
    the standard convention (1 = conditional only).
    """
    latents = noise
    yield latents
    for t, following in pairwise(grid):
        latents = latents + (following - t) * guided_velocity(teacher, latents, t, text, negative, guidance)
        yield latents


@torch.no_grad()
def guided_velocity(
    teacher: CausalWanTransformer3DModel,
    latents: Tensor,
    t: Tensor | float,
    text: Tensor,
    negative: Tensor,
    guidance: float,
) -> Tensor:
    """The teacher's guided velocity at ``t`` ([batch, frames] or one number), without gradient."""
    if not isinstance(t, Tensor):
        t = latents.new_full((latents.shape[0], latents.shape[2]), t)
    cond = teacher(latents, t, text)
    return cond if guidance == 1 else guide(cond, teacher(latents, t, negative), guidance)


def sample_teacher(
    teacher: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    negative: Tensor,
    *,
    grid: Sequence[float],
    guidance: float,
) -> Tensor:
    """The end of the trajectory: a clean clip."""
    *_, clean = trajectory(teacher, noise, text, negative, grid=grid, guidance=guidance)
    return clean
