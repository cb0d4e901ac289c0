"""What a chunk may look at: the visibility of frames, and the context a stream carries forward.

The generator's attention is full inside a chunk and causal between chunks, limited to a *sink* (the
first latent frames, always kept) and a *window* of the latest latent frames, own chunk included.
Positions are counted inside what is attended to, so no index grows with the video. The same rule
serves the training pass over a whole clip (``block_causal_views``) and the stream (``Context``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Visibility = Literal["full", "block_causal"]


class View(NamedTuple):
    """These query frames attend to these key frames; the queries are the last of the keys, or all of them."""

    queries: slice
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """How far the generator sees, in latent frames: chunk size, sink, window (-1 = unlimited)."""

    chunk: int
    sink: int
    window: int

    def kept(self, frames: int) -> tuple[int, ...]:
        """Which of ``frames`` past frames the next chunk sees."""
        past = self.window - self.chunk
        if self.window < 0 or frames <= self.sink + past:
            return tuple(range(frames))
        return (*range(self.sink), *range(frames - past, frames))

    @property
    def settling(self) -> int | None:
        """How many chunks of a stream see a context of another length each; None where it always grows."""
        if self.window < 0:
            return None
        full = self.sink + self.window - self.chunk
        return 2 + -(-(full - 1) // self.chunk)


def chunk_slices(frames: int, chunk: int) -> list[slice]:
    """The image frame alone, then chunks of ``chunk`` latent frames; the last may be shorter."""
    starts = [0, *range(1, frames, chunk)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], frames], strict=True)]


def full_view(frames: int) -> list[View]:
    """Every frame sees every frame (teacher, fake score, the paper's critic)."""
    return [View(slice(0, frames), tuple(range(frames)))]


def block_causal_views(frames: int, span: Span) -> list[View]:
    """One view a chunk: the kept past, then the chunk itself (generator; causal critics of the ablation)."""
    return [
        View(own, span.kept(own.start) + tuple(range(own.start, own.stop))) for own in chunk_slices(frames, span.chunk)
    ]


def next_chunk_view(past: int, frames: int) -> list[View]:
    """The next chunk of a stream: its frames see the ``past`` frames of the context and each other."""
    return [View(slice(0, frames), tuple(range(past + frames)))]


def advance_views(past: int, finished: int, frames: int, span: Span) -> list[View]:
    """Two chunks of a stream in one pass: the finished one as it enters the context, then the next one over it."""
    seen = past + finished
    own = tuple(range(seen, seen + frames))
    return [*next_chunk_view(past, finished), View(slice(finished, finished + frames), span.kept(seen) + own)]


def select(x: Tensor, frames: Sequence[int]) -> Tensor:
    """These frames, in rising order, of ``x`` [batch, frames, ...]: slices, for which a GPU need not wait."""
    starts = [i for i, frame in enumerate(frames) if i == 0 or frame != frames[i - 1] + 1]
    parts = [x[:, frames[i] : frames[j - 1] + 1] for i, j in pairwise([*starts, len(frames)])]
    return parts[0] if len(parts) == 1 else torch.cat(parts or [x[:, :0]], dim=1)


@dataclass(frozen=True)
class Context:
    """Un-rotated keys and values of the frames a stream still sees, one pair a layer.

    Each is [batch, frames, tokens, heads, head_dim]. It is never changed in place: extending it gives
    a new one, so a graded forward can hold the old one safely.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()

    @property
    def frames(self) -> int:
        """How many latent frames are held."""
        return self.keys[0].shape[1] if self.keys else 0

    def layer(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of one layer, or None while the context is empty."""
        return (self.keys[index], self.values[index]) if self.keys else None

    def extended(self, keys: list[Tensor], values: list[Tensor], span: Span) -> Context:
        """This context and the new frames, less what the next chunk no longer sees."""
        kept = span.kept(self.frames + keys[0].shape[1])

        def join(old: tuple[Tensor, ...], new: list[Tensor]) -> tuple[Tensor, ...]:
            pairs = zip(old, new, strict=True) if old else ((n[:, :0], n) for n in new)
            return tuple(select(torch.cat(pair, dim=1), kept) for pair in pairs)

        return Context(join(self.keys, keys), join(self.values, values))
