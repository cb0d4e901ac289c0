"""Stage II, distribution matching (Eq. 6): move generated clips along real score - fake score.

The fake score's own loss (Eq. 5) is flow matching on generated clips, in ``flow_matching.py``.
"""

from __future__ import annotations

from torch import Tensor

SMALLEST_NORM = 1e-6


def dmd_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Eq. 6: (x0_fake - x0_real) / mean|x - x0_real|, the mean taken per sample.

    All arguments [batch, channels, frames, height, width]: generated clips, and the clean estimates of
    the guided real score and of the fake score from the same noised clip.
    """
    scale = (x - x0_real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(SMALLEST_NORM)
    return (x0_fake - x0_real) / scale


def dmd_surrogate(x: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient with respect to ``x`` is ``gradient`` (per element, over the number of elements)."""
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().mean()
