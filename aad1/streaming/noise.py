"""The noise of a stream: from a seed and a position alone, so that any video can be made again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from aad1.errors import UserError
from aad1.training.randomness import generator_for


class StreamNoise:
    """Noise of every chunk and pass from (seed, chunk, pass) alone: one seed for each video of a batch.

    Iterating gives chunks [batch, channels, frames, height, width] without end; ``again`` gives the fresh
    noise between the passes of the chunk given last. Drawn on the CPU, so every device gets the same.
    Raises UserError for a negative seed.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor, chunk_frames: int) -> None:
        check_seed(min(seeds))
        self.seeds, self.like = tuple(seeds), like
        self.shape = (like.shape[1], chunk_frames, *like.shape[3:])
        self._chunk, self._pass = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        for self._chunk in count():
            self._pass = 0
            yield self._draw()

    def again(self, like: Tensor) -> Tensor:
        """Fresh noise for the next pass of this chunk."""
        self._pass += 1
        return self._draw()

    def _draw(self) -> Tensor:
        streams = [generator_for(seed, "stream", self._chunk, self._pass) for seed in self.seeds]
        return torch.stack([torch.randn(self.shape, generator=stream) for stream in streams]).to(self.like)


def check_seed(seed: int) -> int:
    """Return a seed that can be used; UserError for a negative one."""
    if seed < 0:
        raise UserError(f"seed {seed} is negative; use 0 or a larger whole number")
    return seed
