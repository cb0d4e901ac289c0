"""The motion guard: watches the motion of rollouts and ends a stage before it freezes them.

Prolonged distribution matching makes a one-step student stand still (the paper's motion collapse).
rho is the rollouts' speed over the real clips'; kappa is what is left of it at the end of a clip.
``merit`` is by what the best of a run's evaluations is told from the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from aad1.limits import Count, Weight


@dataclass(frozen=True)
class GuardConfig:
    """Stop when rho or kappa stays below its limit for ``patience`` evaluations; 0 limits never stop.

    Eight of a hundred clips read rho .15 off and kappa .34 (standard deviations), so that a student that is right (1
    and 1) reads below .85 one time in six, below .75 one time in twenty. A trained teacher's own are .85 to .9 and .65
    to .83. There is no upper limit: students of the embedded world begin stage II too fast and calm down in it.
    """

    min_rho: Weight = 0.0
    min_kappa: Weight = 0.0
    patience: Count = 1


@dataclass
class MotionGuard:
    """Remembers what each evaluation measured, and says when to stop."""

    config: GuardConfig
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def observe(self, step: int, measured: Mapping[str, float]) -> None:
        """Take note of an evaluation; ``measured`` has rho and kappa (absent ones and nan count as fallen)."""
        found = {name: float(measured.get(name, 0.0)) for name in ("rho", "kappa")}
        kept = {name: 0.0 if math.isnan(value) else value for name, value in found.items()}
        self.history.append((step, kept))

    @property
    def holds(self) -> bool:
        """Whether the motion of the last evaluation was above both limits."""
        _, last = self.history[-1]
        return last["rho"] >= self.config.min_rho and last["kappa"] >= self.config.min_kappa

    def stop_reason(self) -> str | None:
        """Which measure has fallen, or None while both hold."""
        recent = [measured for _, measured in self.history[-self.config.patience :]]
        if len(recent) < self.config.patience:
            return None
        for name, limit in (("rho", self.config.min_rho), ("kappa", self.config.min_kappa)):
            if all(measured[name] < limit for measured in recent):
                return f"{name} of held-out rollouts is {recent[-1][name]:.2f}, below {limit:.2f}: motion is dying"
        return None


def merit(measured: Mapping[str, float]) -> float | None:
    """How good a student's rollouts are in one number, in [0, 1]: min(rho, 1 / rho) min(kappa, 1) x pictures.

    pictures: presence x quality / 100 where clips have a truth, else 1 over the excess of a grid of tokens (1 without
    one). Too fast counts as much as too slow. None unless both measures of motion are there.
    """
    rho, kappa = measured.get("rho", math.nan), measured.get("kappa", math.nan)
    if math.isnan(rho) or math.isnan(kappa):
        return None
    motion = min(rho, 1 / rho) * min(kappa, 1.0) if rho > 0 else 0.0
    if "quality" in measured:
        return motion * min(measured.get("presence", 1.0), 1.0) * measured["quality"] / 100
    return motion / max(measured.get("grid", 1.0), 1.0)
