"""Ulysses context parallelism: a group of ranks shares a sample, each with a part of every frame's tokens.

Around attention the ranks exchange: before it own tokens of all heads for all tokens of own heads, after it back. All
else is of a token alone. (Jacobs et al. 2023, "DeepSpeed Ulysses".) Tokens are dealt as evenly as they go.

Gradients. All ranks of a group compute the one loss of their sample, and training takes the MEAN of the ranks'
gradients. So where a tensor is whole, its gradient is the loss's, the same on each rank; where it is of own tokens or
heads, its gradient is the loss's times the size of the group. A weight that acts on parts then has the size times its
part of the gradient on each rank, one that acts on wholes has all of it, and the mean is right for both, also for one
that acts on both and for what reaches parts without being split (a frame's modulation, the text). ``_Join`` and
``_Split`` are where the factor comes and goes; the exchange carries it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aad1.errors import UserError
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.layout import Layout
from aad1.stopwatch import COMMUNICATION, timed

FRAME_TOKENS, HEADS = -3, -2  # axes of [.., tokens, heads, head_dim]


class Deal(NamedTuple):
    """How an axis is dealt out: the size of each rank's part."""

    axis: int
    sizes: Sequence[int]


@dataclass(frozen=True)
class Ulysses(Layout):
    """A sequence that is spread over the ranks of ``group``; every method is a meeting of them."""

    group: dist.ProcessGroup

    @torch.compiler.disable
    def split(self, x: Tensor) -> Tensor:
        """Own part along axis 2."""
        return _Split.apply(x, self.group)

    @torch.compiler.disable
    def join(self, x: Tensor, whole: int) -> Tensor:
        """All parts along axis 2, ``whole`` long together."""
        return _Join.apply(x, whole, self.group)

    @torch.compiler.disable
    def to_heads(self, *parts: Tensor, tokens: int) -> tuple[Tensor, ...]:
        """[batch, frames, own tokens, heads, head_dim] -> [batch, frames, tokens, own heads, head_dim], each."""
        given, taken = self._heads(parts[0].shape[HEADS]), self._tokens(tokens)
        return _Exchange.apply(given, taken, self.group, *parts)

    @torch.compiler.disable
    def to_tokens(self, x: Tensor) -> Tensor:
        """[batch, frames, tokens, own heads, head_dim] -> [batch, frames, own tokens, heads, head_dim]."""
        given, taken = self._tokens(x.shape[FRAME_TOKENS]), self._heads(x.shape[HEADS] * self.group.size())
        return _Exchange.apply(given, taken, self.group, x)[0]

    def _tokens(self, count: int) -> Deal:
        return Deal(FRAME_TOKENS, dealt(count, self.group.size()))

    def _heads(self, count: int) -> Deal:
        return Deal(HEADS, dealt(count, self.group.size()))


def spread_sequences(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Spread the sequences of every transformer in ``module`` over the ranks of ``group``."""
    for part in module.modules():
        if isinstance(part, CausalWanTransformer3DModel):
            part.layout = Ulysses(group)


def check_context_parallel(heads: int, tokens: int, ranks: int) -> None:
    """Raise UserError unless a model's heads and a latent frame's tokens can be spread over so many ranks."""
    wrong = ""
    if heads % ranks:
        wrong = f"does not divide the model's {heads} heads"
    elif tokens < ranks:
        wrong = f"is more than the {tokens} tokens of a latent frame"
    if wrong:
        allowed = [n for n in range(1, min(heads, tokens) + 1) if heads % n == 0]
        raise UserError(f"context parallelism over {ranks} ranks {wrong}; allowed: {', '.join(map(str, allowed))}")


def dealt(count: int, ranks: int) -> list[int]:
    """``count`` dealt to the ranks as evenly as it goes, the first having one more where it does not."""
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


# --- with gradients --------------------------------------------------------------------------


class _Split(torch.autograd.Function):
    """A whole -> own part of it along axis 2. Backward: the parts' gradients, joined, / size of the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.whole, ctx.group = x.shape[2], group
        return _own(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.whole, ctx.group) / ctx.group.size(), None


class _Join(torch.autograd.Function):
    """Parts -> the whole along axis 2. Backward: own part of its gradient, x size of the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: int, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, whole, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _own(gradient, ctx.group) * ctx.group.size(), None, None


class _Exchange(torch.autograd.Function):
    """Parts along one axis for parts along another. Backward: the exchange undone."""

    @staticmethod
    def forward(ctx: Any, given: Deal, taken: Deal, group: dist.ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.undo = taken, given, group
        return _exchanged(given, taken, group, *tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *_exchanged(*ctx.undo, *gradients)


# --- collectives -----------------------------------------------------------------------------


def _own(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Own part of ``x`` along axis 2."""
    return x.split(dealt(x.shape[2], group.size()), dim=2)[group.rank()]


def _gathered(x: Tensor, whole: int, group: dist.ProcessGroup) -> Tensor:
    """All ranks' parts along axis 2. Parts are sent as long as the longest: the collective wants them alike."""
    sizes = dealt(whole, group.size())
    sent = x.new_zeros(max(sizes), *x.shape[:2], *x.shape[3:])
    sent[: x.shape[2]] = x.movedim(2, 0)
    received = [torch.empty_like(sent) for _ in sizes]
    with timed(COMMUNICATION):
        dist.all_gather(received, sent, group=group)
    return torch.cat([part[:size].movedim(0, 2) for part, size in zip(received, sizes, strict=True)], dim=2)


def _exchanged(given: Deal, taken: Deal, group: dist.ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Give each rank its part along one axis, take every rank's of own part, and put these in a row along another.

    Tensors of one shape travel together and arrive apart: a view of them all would keep all of them for a backward.
    """
    pieces = zip(*(x.split(given.sizes, dim=given.axis) for x in tensors), strict=True)
    sent = torch.cat([piece.flatten() for of_one in pieces for piece in of_one])
    shape = list(tensors[0].shape)
    sent_lengths = [sent.numel() // shape[given.axis] * size for size in given.sizes]
    shape[given.axis] = given.sizes[group.rank()]
    shapes = [[len(tensors), *shape[: taken.axis], size, *shape[taken.axis :][1:]] for size in taken.sizes]
    lengths = [torch.Size(s).numel() for s in shapes]
    received = sent.new_empty(sum(lengths))
    with timed(COMMUNICATION):
        dist.all_to_all_single(received, sent, lengths, sent_lengths, group=group)
    parts = [part.view(s) for part, s in zip(received.split(lengths), shapes, strict=True)]
    return tuple(torch.cat(one, dim=taken.axis) for one in zip(*parts, strict=True))
