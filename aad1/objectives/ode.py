"""Stage I, ODE initialisation (Eq. 3): the causal student regresses the end of the teacher's trajectory."""

from __future__ import annotations

from torch import Tensor


def ode_regression(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """E || x0_student(x_t, t) - x0_teacher ||^2 over the frames that carry loss.

    predicted, target: [batch, channels, frames, height, width]; weight: [batch, frames], 0 for the
    image frame and for frames that were given clean, else 1. The mean is over all frames, so that
    micro-batches with more clean frames do not weigh more than others.
    """
    error = (predicted - target).square().mean(dim=(1, 3, 4))
    return (error * weight).mean()
