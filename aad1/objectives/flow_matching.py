"""Ordinary flow matching, for the teacher and for the fake score (Eq. 5)."""

from __future__ import annotations

from torch import Tensor

from aad1.flow import velocity


def flow_matching(predicted_v: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """E || v(x_t, t) - (eps - x0) ||^2 over the noised frames.

    predicted_v, x0, eps: [batch, channels, frames, height, width]; t: [batch, frames]. A frame at t = 0 shows
    nothing of its noise and carries no loss; the mean is over all frames.
    """
    error = (predicted_v - velocity(x0, eps)).square().mean(dim=(1, 3, 4))
    return (error * (t > 0)).mean()
