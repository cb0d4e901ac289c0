"""Muon for convolutions as well as matrices: momentum made orthogonal before each update.

``torch.optim.Muon`` takes matrices only; a convolution's weight [out, in, ...] is one as [out, in x ...].
On the embedded autoencoder it learns in half the steps of AdamW (docs/log.md). Reference: K. Jordan et
al., "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class FlatMuon(torch.optim.Muon):
    """``torch.optim.Muon`` over flattened views, which share the weights' memory."""

    def __init__(self, weights: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.weights = list(weights)
        views = [nn.Parameter(weight.data.flatten(1)) for weight in self.weights]
        super().__init__(views, lr=lr, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> Any:
        """Update the weights from their own gradients."""
        for weight, view in zip(self.weights, self.param_groups[0]["params"], strict=True):
            view.grad = None if weight.grad is None else weight.grad.flatten(1)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the weights' gradients and the views' of them."""
        super().zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None


def is_matrix(weight: nn.Parameter) -> bool:
    """Whether a weight is a hidden matrix or convolution; vectors, tables and gains are not."""
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) > 1 and weight.shape[0] * weight[0].numel() > 64
