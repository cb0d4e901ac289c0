"""The one flow-matching convention of the project.

    x_t = (1 - t) x0 + t eps        v = eps - x0        x0 = x_t - t v        t in [0, 1]

t = 0 is the clean latent, t = 1 pure noise; the network is given 1000 t. Source: Wan 2.1 and
Self Forcing; used by every equation of AAD-1.

Axes: latents are [batch, channels, frames, height, width]; ``t`` is [batch, frames] (or a float).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Noise = Callable[[Tensor], Tensor]  # gives fresh noise shaped like its argument
TIMESTEP_SCALE = 1000.0
GRID_TOLERANCE = 5e-4  # so that people may write 0.8333


def per_frame(t: Tensor | float, latents: Tensor) -> Tensor | float:
    """Shape ``t`` [batch, frames] so that it broadcasts over ``latents``; a float passes through."""
    if not isinstance(t, Tensor):
        return t
    return t.to(latents.dtype)[:, None, :, None, None]


def add_noise(x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = per_frame(t, x0)
    return (1 - t) * x0 + t * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0, what the network predicts."""
    return eps - x0


def x0_from_v(x_t: Tensor, v: Tensor, t: Tensor | float) -> Tensor:
    """x0 = x_t - t v."""
    return x_t - per_frame(t, x_t) * v


def guide(cond: Tensor, uncond: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance in the standard convention: weight 1 is the conditional output."""
    return uncond + weight * (cond - uncond)


def with_clean_image(t: Tensor) -> Tensor:
    """``t`` [batch, frames] with the first frame, the image, at noise level 0."""
    return torch.cat([torch.zeros_like(t[:, :1]), t[:, 1:]], dim=1)


def shift_t(u: Tensor, shift: float) -> Tensor:
    """t = s u / (1 + (s - 1) u): move uniform levels towards noise (s > 1)."""
    return shift * u / (1 + (shift - 1) * u)


def shifted_levels(u: Sequence[float], shift: float) -> tuple[float, ...]:
    """Shift a list of levels; (1, .75, .5, .25) at shift 5 gives (1, .9375, .8333, .625)."""
    return tuple(shift_t(torch.tensor(u, dtype=torch.float64), shift).tolist())


def euler_grid(steps: int, shift: float) -> tuple[float, ...]:
    """The ``steps + 1`` times of an Euler sampler from 1 down to 0."""
    return shifted_levels(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist(), shift)


def grid_index(grid: Sequence[float], level: float) -> int | None:
    """Where ``level`` stands in ``grid``, or None when the grid does not contain it."""
    index = min(range(len(grid)), key=lambda i: abs(grid[i] - level))
    return index if abs(grid[index] - level) < GRID_TOLERANCE else None


def are_pass_levels(levels: Sequence[float]) -> bool:
    """Whether a chunk can be denoised at these noise levels: the first is 1, they fall, the last is above 0."""
    return (
        len(levels) > 0
        and levels[0] == 1
        and levels[-1] > 0
        and all(after < before for before, after in pairwise(levels))
    )
