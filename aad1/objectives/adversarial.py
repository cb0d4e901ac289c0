"""Stage III, adversarial refinement (Eq. 8 to 10): non-saturating logistic losses on logits.

Logits are [batch] (one a clip) or [batch, frames]; means are over all of them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Eq. 8: -E log D(x_tau) - E log(1 - D(xhat_tau)), with D = sigmoid(logit)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Eq. 9: -E log D(xhat_tau)."""
    return F.softplus(-fake).mean()


def consistency(logit: Tensor, perturbed: Tensor) -> Tensor:
    """One term of Eq. 10: E |D(x_tau) - D(x_tau + delta)|^2, delta ~ N(0, sigma^2) on the NOISED clip."""
    return (logit - perturbed).square().mean()
