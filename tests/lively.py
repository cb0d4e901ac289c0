"""Random Wan transformers whose attention matters, and what the tests of the core feed them.

At its usual initialisation a tiny transformer hardly attends: a wrong mask or a wrong position would
hide below any tolerance. Here every weight is drawn large enough that it shows.
"""

from __future__ import annotations

from typing import Any

import torch
from conftest import build_tiny_transformer
from torch import Tensor

from aad1.models.causal_wan import CausalWanTransformer3DModel

CHANNELS, SIZE, TEXT_LENGTH, TEXT_DIM = 4, 4, 3, 8
SMALL: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "freq_dim": 16,
}


def lively(cls: type = CausalWanTransformer3DModel, seed: int = 0, **config: Any) -> Any:
    """A small transformer of two layers with large random weights."""
    model = build_tiny_transformer(cls, seed, **{**SMALL, **config})
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=stream)
            if weight.ndim == 1:
                weight.copy_(0.3 * drawn + (1.5 if "norm" in name and name.endswith("weight") else 0))
            elif "scale_shift_table" in name:
                weight.copy_(drawn)
            else:
                weight.copy_(1.2 * drawn / weight[0].numel() ** 0.5)
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip_of(frames: int, batch: int = 1, seed: int = 1) -> Tensor:
    return normal(batch, CHANNELS, frames, SIZE, SIZE, seed=seed)


def text_of(batch: int = 1, seed: int = 2) -> Tensor:
    return normal(batch, TEXT_LENGTH, TEXT_DIM, seed=seed)
