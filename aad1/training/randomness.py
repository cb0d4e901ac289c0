"""Random streams that derive from (seed, stage, rank, step), so that a resumed run equals an unbroken one."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator_for(seed: int, stage: str, *position: int) -> torch.Generator:
    """A CPU generator for one place in a run, e.g. (rank, step, turn, micro-batch).

    It lives on the CPU on every device, so that a GPU run draws the same noise.
    """
    # The length counts: numpy pads with zeros, and (1,) and (1, 0) would be one stream.
    entropy = [seed, zlib.crc32(stage.encode()), len(position), *position]
    state = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
