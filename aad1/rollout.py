"""The rollout: one function that yields chunks; training collects them, streaming iterates them (Eq. 1, 4, 7).

    x_k = G(noise_k; t = 1, text, context of x_0 .. x_{k-1})        one forward pass a chunk

The image is the first chunk, one latent frame at noise level 0. A chunk's own passes read a detached
context; afterwards a pass at t = 0, without gradient, writes the clean chunk into the context. That
extra pass is what lets the next chunk see finished frames: keys made at t = 1 describe noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat

import torch
from torch import Tensor

from aad1.flow import Noise, add_noise, x0_from_v
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.context import Context


def rollout(
    generator: CausalWanTransformer3DModel,
    image: Tensor,
    text: Tensor | Iterable[Tensor],
    noise: Iterable[Tensor],
    *,
    levels: Sequence[float] = (1.0,),
    renoise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Yield one clean chunk for each chunk of ``noise``.

    image: [batch, channels, 1, height, width], the encoded image. text: [batch, length, dim], or an
    iterable with one such tensor a chunk (a prompt that changes; the chunk before it is written into
    the context under the new one). noise: chunks [batch, channels, frames, height, width] of standard
    normal noise. The stream ends with the shorter of the two, endless iterables never. levels: the
    noise levels of the passes of a chunk, falling from 1; between passes the estimate is noised again
    with ``renoise``. With several levels only the last pass carries gradient.
    """
    context, finished = Context(), image
    for chunk, current in zip(noise, repeat(text) if isinstance(text, Tensor) else text, strict=False):
        context = generator.extend(context, finished.detach(), current)
        finished = denoise_chunk(generator, chunk, current, context, levels, renoise)
        yield finished


def denoise_chunk(
    generator: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    context: Context,
    levels: Sequence[float],
    renoise: Noise = torch.randn_like,
) -> Tensor:
    """x0 of one chunk from pure noise, in ``len(levels)`` passes over ``context``."""
    latents = noise
    with torch.no_grad():
        for level, following in pairwise(levels):
            x0 = one_pass(generator, latents, text, context, level)
            latents = add_noise(x0, renoise(x0), following)
    return one_pass(generator, latents, text, context, levels[-1])


def one_pass(
    generator: CausalWanTransformer3DModel, latents: Tensor, text: Tensor, context: Context, level: float
) -> Tensor:
    """x_hat = x_t - t v(x_t, t)."""
    t = latents.new_full((latents.shape[0], latents.shape[2]), level)
    v = generator(latents, t, text, visibility="block_causal", context=context)
    return x0_from_v(latents, v, t)


def roll_clip(
    generator: CausalWanTransformer3DModel,
    image: Tensor,
    text: Tensor,
    noise: Tensor,
    *,
    levels: Sequence[float] = (1.0,),
    renoise: Noise = torch.randn_like,
) -> Tensor:
    """A whole clip, image frame first: ``noise`` [batch, channels, frames, h, w] -> [.., 1 + frames, ..]."""
    chunks = noise.split(generator.config.num_frames_per_block, dim=2)
    made = rollout(generator, image, text, chunks, levels=levels, renoise=renoise)
    return torch.cat([image, *made], dim=2)
