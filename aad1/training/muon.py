"""Muon for matrices and convolutions: momentum made orthogonal before each update.

A convolution's weight [out, in, ...] is a matrix [out, in x ...]. ``torch.optim.Muon`` takes matrices
only and orthogonalises in bfloat16, which takes several times the training step itself on a CPU; this
one works in the weights' own type. On the embedded autoencoder it learns in half the steps of AdamW
(docs/log.md). Reference: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # a x + b x^3 + c x^5 drives singular values to about 1 in five rounds
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay."""

    def __init__(
        self, weights: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(list(weights), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        average = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        average.lerp_(grad, 1 - group["momentum"])
        update = orthogonal(grad.lerp(average, group["momentum"]).flatten(1))
        rows, columns = update.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update.view_as(weight), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values of about 1, by a quintic Newton-Schulz iteration."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def is_matrix(weight: nn.Parameter) -> bool:
    """Whether a weight is a hidden matrix or convolution; vectors, tables and gains are not."""
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) > 1 and weight.shape[0] * weight[0].numel() > 64
