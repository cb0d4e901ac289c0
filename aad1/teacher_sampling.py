"""The teacher's denoising, as a function that yields: an Euler sampler of the bidirectional model.

    x0 = x_t - t v        eps = x_t + (1 - t) v        v guided: v_uncond + w (v_cond - v_uncond)
    x_{t'} = (1 - t') x0 + t' (sqrt(1 - c^2) eps + c z)        z fresh noise, c the churn

Without churn this is x_t + (t' - t) v, the deterministic path whose points stage I stores. With churn every step
draws a part of its noise anew, and later steps mend what earlier ones decided badly: a clip of the same
marginals, of which a small teacher makes better ones (docs/log.md). Evaluation shows its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from aad1.flow import Noise, add_noise, euler_grid, guide, per_frame, with_clean_image, x0_from_v
from aad1.limits import Count, Number, Positive, Share
from aad1.models.causal_wan import CausalWanTransformer3DModel


@dataclass(frozen=True)
class TeacherSampling:
    """How the many-step teacher is shown: Euler steps, shift of their grid, guidance, and churn (0 = the ODE);
    clean_image: it is given the image too, for a teacher trained with teacher.clean_image, else the caption alone.
    """

    steps: Count = 48
    shift: Positive = 5.0
    guidance: Number = 4.0
    churn: Share = 0.0
    clean_image: bool = False


def trajectory(
    teacher: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    negative: Tensor,
    *,
    grid: Sequence[float],
    guidance: float,
    churn: float = 0.0,
    renoise: Noise = torch.randn_like,
    image: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield x_t at every time of ``grid`` (falling from 1 to 0), the pure noise first.

    noise: [batch, channels, frames, height, width]; text, negative: [batch, length, dim]; guidance in
    the standard convention (1 = conditional only); renoise: gives the fresh noise of a step with churn;
    image: [batch, channels, 1, height, width], a first frame that is held clean, for a teacher that knows that.
    """
    latents = noise if image is None else torch.cat([image, noise[:, :, 1:]], dim=2)
    yield latents
    for level, following in pairwise(grid):
        t, t_next = (_levels(latents, value, image is not None) for value in (level, following))
        v = guided_velocity(teacher, latents, t, text, negative, guidance)
        x0, eps = x0_from_v(latents, v, t), latents + (1 - per_frame(t, latents)) * v
        if churn:
            eps = (1 - churn**2) ** 0.5 * eps + churn * renoise(eps)
        latents = add_noise(x0, eps, t_next)
        yield latents


def _levels(latents: Tensor, level: float, clean_image: bool) -> Tensor:
    t = latents.new_full((latents.shape[0], latents.shape[2]), level)
    return with_clean_image(t) if clean_image else t


@torch.no_grad()
def guided_velocity(
    teacher: CausalWanTransformer3DModel, latents: Tensor, t: Tensor, text: Tensor, negative: Tensor, guidance: float
) -> Tensor:
    """The teacher's guided velocity at ``t`` [batch, frames], without gradient."""
    cond = teacher(latents, t, text)
    return cond if guidance == 1 else guide(cond, teacher(latents, t, negative), guidance)


def sample_teacher(
    teacher: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    negative: Tensor,
    sampling: TeacherSampling,
    renoise: Noise = torch.randn_like,
    image: Tensor | None = None,
) -> Tensor:
    """A clean clip: the end of a trajectory; arguments as for ``trajectory``, ``image`` where the sampling wants it."""
    if sampling.clean_image and image is None:
        raise ValueError("this sampling gives the teacher the image: pass one")
    *_, clean = trajectory(
        teacher,
        noise,
        text,
        negative,
        grid=euler_grid(sampling.steps, sampling.shift),
        guidance=sampling.guidance,
        churn=sampling.churn,
        renoise=renoise,
        image=image if sampling.clean_image else None,
    )
    return clean
