"""Ordinary flow matching, for the teacher and for the fake score (Eq. 5)."""

from __future__ import annotations

from torch import Tensor


def flow_matching(predicted_v: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """E || v(x_t, t) - (eps - x0) ||^2; all arguments [batch, channels, frames, height, width]."""
    return (predicted_v - (eps - x0)).square().mean()
