"""The rollout: one function that yields chunks; training collects them, streaming iterates them (Eq. 1, 4, 7).

    x_k = G(noise_k; t = 1, text, context of x_0 .. x_{k-1})        one forward pass a chunk

The image is the first chunk, one latent frame at noise level 0. A finished chunk enters the context at t = 0,
without gradient: only so does the next chunk see finished frames, for keys made at t = 1 describe noise. That
costs no pass of its own where the next chunk's first pass carries no gradient: one forward takes both chunks,
each frame at its own t. A graded chunk reads a detached context, so it is written before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat

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
    first_levels: Sequence[float] | None = None,
    renoise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Yield one clean chunk for each chunk of ``noise``.

    image: [batch, channels, 1, height, width], the encoded image. text: [batch, length, dim], or an
    iterable with one such tensor a chunk (a prompt that changes; the chunk before it is written into
    the context under the new one). noise: chunks [batch, channels, frames, height, width] of standard
    normal noise. The stream ends with the shorter of the two, endless iterables never. levels: the
    noise levels of the passes of a chunk, falling from 1, and first_levels those of the first chunk, if it
    has others; between passes the estimate is noised again with ``renoise``. With several levels only
    the last pass carries gradient.
    """
    context, finished = Context(), image
    texts = repeat(text) if isinstance(text, Tensor) else text
    for chunk, current, own in zip(noise, texts, chain([first_levels or levels], repeat(levels)), strict=False):
        finished, context = next_chunk(generator, chunk, current, context, finished.detach(), own, renoise)
        yield finished


def next_chunk(
    generator: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    context: Context,
    finished: Tensor,
    levels: Sequence[float],
    renoise: Noise = torch.randn_like,
) -> tuple[Tensor, Context]:
    """x0 of one chunk from pure noise in ``len(levels)`` passes, and the context they saw.

    That is ``context`` with the ``finished`` chunk before this one.
    """
    graded = torch.is_grad_enabled()
    if graded and len(levels) == 1:
        context = generator.extend(context, finished, text)
        return one_pass(generator, noise, text, context, levels[0]), context
    t = level_of(noise, levels[0])
    v, context = generator.advance(context, finished, noise, t, text)
    x0 = x0_from_v(noise, v, t)
    for level in levels[1:]:
        with torch.set_grad_enabled(graded and level == levels[-1]):
            x0 = one_pass(generator, add_noise(x0, renoise(x0), level), text, context, level)
    return x0, context


def one_pass(
    generator: CausalWanTransformer3DModel, latents: Tensor, text: Tensor, context: Context, level: float
) -> Tensor:
    """x_hat = x_t - t v(x_t, t)."""
    t = level_of(latents, level)
    v = generator(latents, t, text, visibility="block_causal", context=context)
    return x0_from_v(latents, v, t)


def level_of(latents: Tensor, level: float) -> Tensor:
    """One noise level for every frame, [batch, frames]."""
    return latents.new_full((latents.shape[0], latents.shape[2]), level)


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
