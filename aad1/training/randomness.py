"""Random streams that derive from (seed, stage, step, turn), so that a resumed run equals an unbroken one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def generator_for(seed: int, stage: str, *position: int) -> torch.Generator:
    """A CPU generator for one place in a run, e.g. (step, turn, micro-batch).

    It lives on the CPU on every device, so that a GPU run draws the same noise.
    """
    # The length counts: numpy pads with zeros, and (1,) and (1, 0) would be one stream.
    entropy = [seed, zlib.crc32(stage.encode()), len(position), *position]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch, or of its samples from ``first`` on where others work on the rest.

    They are drawn for all ``size`` samples (None: for those that are asked for) and then cut, so that a sample's
    numbers are the same whoever works on it. They are drawn on the CPU, so that every device sees the same.
    """

    stream: torch.Generator
    size: int | None = None
    first: int = 0

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, shaped and placed like ``like`` [samples, ...]."""
        drawn = self._own(lambda shape: torch.randn(shape, generator=self.stream, dtype=torch.float32), like.shape)
        return drawn.to(like)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) of this shape [samples, ...], on the CPU."""
        return self._own(lambda shape: torch.rand(shape, generator=self.stream), shape)

    def below(self, limit: int, *shape: int) -> Tensor:
        """Whole numbers in [0, limit) of this shape [samples, ...], on the CPU."""
        return self._own(lambda shape: torch.randint(limit, shape, generator=self.stream), shape)

    def _own(self, draw: Callable[[tuple[int, ...]], Tensor], shape: Sequence[int]) -> Tensor:
        count, *rest = shape
        return draw((self.size or count, *rest))[self.first : self.first + count]
