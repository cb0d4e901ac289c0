"""The rollout: one function that yields chunks; training collects them, streaming iterates them (Eq. 1, 4, 7).

    x_k = G(noise_k; t = 1, text, context of x_0 .. x_{k-1})        one forward pass a chunk

The image is the first chunk, one latent frame at noise level 0. A finished chunk enters the context at t = 0,
without gradient: only so does the next chunk see finished frames, for keys made at t = 1 describe noise. That
costs no pass of its own where the next chunk's first pass carries no gradient: one forward takes both chunks,
each frame at its own t. A graded chunk reads a detached context, so it is written before. Hence a clip's gradient
can also be found chunk by chunk, once d loss / d clip is known (``roll_clip_replayed``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    if len(levels) == 1 and not torch.is_grad_enabled():
        t = level_of(noise, levels[0])
        v, context = generator.advance(context, finished, noise, t, text)
        return x0_from_v(noise, v, t), context
    x_t, context = before_last_pass(generator, noise, text, context, finished, levels, renoise)
    return one_pass(generator, x_t, text, context, levels[-1]), context


@torch.no_grad()
def before_last_pass(
    generator: CausalWanTransformer3DModel,
    noise: Tensor,
    text: Tensor,
    context: Context,
    finished: Tensor,
    levels: Sequence[float],
    renoise: Noise,
) -> tuple[Tensor, Context]:
    """What a chunk's last pass is given, the one that may be graded: its input and its context, without gradient."""
    if len(levels) == 1:
        return noise, generator.extend(context, finished, text)
    t = level_of(noise, levels[0])
    v, context = generator.advance(context, finished, noise, t, text)
    x0 = x0_from_v(noise, v, t)
    for level in levels[1:-1]:
        x0 = one_pass(generator, add_noise(x0, renoise(x0), level), text, context, level)
    return add_noise(x0, renoise(x0), levels[-1]), context


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


class ClipRollout(Protocol):
    """A way to roll out a whole clip: ``roll_clip`` or ``roll_clip_replayed``."""

    def __call__(
        self,
        generator: CausalWanTransformer3DModel,
        image: Tensor,
        text: Tensor,
        noise: Tensor,
        *,
        levels: Sequence[float],
        renoise: Noise,
    ) -> Tensor:
        """As ``roll_clip``."""
        ...


def roll_clip_replayed(
    generator: CausalWanTransformer3DModel,
    image: Tensor,
    text: Tensor,
    noise: Tensor,
    *,
    levels: Sequence[float] = (1.0,),
    renoise: Noise = torch.randn_like,
) -> Tensor:
    """The same clip as ``roll_clip`` and the same gradient of the weights, with the activations of one chunk at a time.

    Contexts are detached, so a chunk depends on the weights through its own last pass alone:
    d loss / d theta = sum over chunks of J_k^T d loss / d x_k. The clip is made without gradient; the backward, once
    it has d loss / d clip, makes the contexts anew and runs each chunk's last pass with gradient, pushed back at once.
    It adds to the weights' ``grad`` (``torch.autograd.grad`` does not find them) and takes the weights as they
    then are: do not change them in between. Without gradient it is ``roll_clip``.

    Raises ValueError when image, text or noise requires gradient: only the weights get it.
    """
    if not torch.is_grad_enabled():
        return roll_clip(generator, image, text, noise, levels=levels, renoise=renoise)
    if any(given.requires_grad for given in (image, text, noise)):
        raise ValueError("a replayed rollout gives gradient to the weights alone; use roll_clip")
    learns = any(parameter.requires_grad for parameter in generator.parameters())
    root = image.new_zeros(()).requires_grad_(learns)  # autograd calls a backward only for an input that wants gradient
    return _Replayed.apply(root, generator, image, text, noise, levels, renoise)


class _Replayed(torch.autograd.Function):
    """A clip whose backward runs the chunks again; of its forward it keeps the clip and the last passes' inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        root: Tensor,
        generator: CausalWanTransformer3DModel,
        image: Tensor,
        text: Tensor,
        noise: Tensor,
        levels: Sequence[float],
        renoise: Noise,
    ) -> Tensor:
        context, chunks, inputs = Context(), [image], []
        for chunk in noise.split(generator.config.num_frames_per_block, dim=2):
            x_t, context = before_last_pass(generator, chunk, text, context, chunks[-1], levels, renoise)
            inputs.append(x_t)
            chunks.append(one_pass(generator, x_t, text, context, levels[-1]))
        clip = torch.cat(chunks, dim=2)
        ctx.generator, ctx.level = generator, levels[-1]
        ctx.save_for_backward(text, clip, *inputs)
        return clip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        text, clip, *inputs = ctx.saved_tensors
        sizes = [1, *(x_t.shape[2] for x_t in inputs)]
        context, chunks, gradients = Context(), clip.split(sizes, dim=2), gradient.split(sizes, dim=2)
        for finished, x_t, own in zip(chunks, inputs, gradients[1:], strict=False):
            context = ctx.generator.extend(context, finished, text)
            with torch.enable_grad():
                x0 = one_pass(ctx.generator, x_t, text, context, ctx.level)
            torch.autograd.backward(x0, own)
        return (None,) * 7
