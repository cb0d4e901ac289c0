"""What a run tells of its own speed: where the time goes, how much is done in it, and what memory it takes.

    clips/s, tokens/s: samples of all turns, and their latent tokens as one network sees them, counted once a turn
    operations/s: of the turns' losses and backwards, without what is computed again for memory's sake
    mfu (model FLOP utilisation) = operations/s / (processes x what a device can do at most)

All are of the time in which the run trains: without evaluations, saving and writing profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from aad1.parallel.crew import Crew
from aad1.stopwatch import COMMUNICATION, UNDIVIDED, Stopwatch
from aad1.training.memory import Playing, gradients_of, held, peak
from aad1.training.operations import Operations

TERA = 1e12
Kind = tuple[str, tuple[torch.Size, ...]]


@dataclass(frozen=True)
class Scale:
    """What a run's work is counted in. peak: operations a second that a process's device can do at most, None where
    that is not known; tokens: those of a batch.
    """

    peak: float | None = None
    tokens: Callable[[Any], int] | None = None


UNKNOWN = Scale()


class Done(NamedTuple):
    """What one process has done since it last said so; working: seconds, but for waiting; memory: bytes at its peak."""

    samples: int
    tokens: int
    operations: int
    working: float
    memory: int


@dataclass
class Speed:
    """Counts what one process of a ``crew`` does, as its ``watch`` runs."""

    stage: Playing
    crew: Crew
    watch: Stopwatch
    device: torch.device
    scale: Scale
    kinds: dict[Kind, int] = field(default_factory=dict)
    _gradients: dict[str, int] = field(default_factory=dict)
    _steps: int = 0
    _samples: int = 0
    _tokens: int = 0
    _operations: int = 0

    @contextmanager
    def micro_batch(self, player: str, batch: Any, samples: int) -> Iterator[None]:
        """Around a micro-batch's loss and backward: its operations are counted if it is the first of its shapes."""
        leaves = pytree.tree_leaves(vars(batch) if is_dataclass(batch) else batch)
        kind = (player, tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor)))
        if kind in self.kinds:
            yield
        else:
            # torch.compile gives up for good on what it first meets under a dispatch mode: it meets it next time.
            with torch.compiler.set_stance("force_eager"), Operations(self.watch) as operations:
                yield
            self.kinds[kind] = operations.count
        self._samples += samples
        self._tokens += self.scale.tokens(batch) if self.scale.tokens else 0
        self._operations += self.kinds[kind]

    def before_update(self, player: str) -> None:
        """Note what a player's gradients take, when they are there."""
        if player not in self._gradients:
            self._gradients[player] = gradients_of(self.stage.players[player])

    def stepped(self) -> None:
        """One more step is done."""
        self._steps += 1

    def row(self, with_memory: bool) -> dict[str, float]:
        """All of it since the last row, of all processes; times and memory by owner are this one's. A meeting."""
        seconds = self.watch.take()
        training = sum(spent for phase, spent in seconds.items() if phase not in UNDIVIDED)
        working = training - seconds.get(COMMUNICATION, 0.0)
        everyone = self.crew.gather(
            Done(self._samples, self._tokens, self._operations, working, peak(self.device) if with_memory else 0)
        )
        steps = self._steps
        self._steps = self._samples = self._tokens = self._operations = 0
        found = {"speed/step_seconds": sum(seconds.values()) / steps, **self._rates(everyone, training)}
        if self.crew.ranks > 1:
            slowest = max(range(self.crew.ranks), key=lambda rank: everyone[rank].working)
            found |= {
                "speed/slowest_rank": slowest,
                "speed/slowest_rank_seconds": everyone[slowest].working / steps,
            }
        found |= {f"time/{phase}": spent / steps for phase, spent in sorted(seconds.items())}
        if with_memory:
            found |= self.row_of_memory() | {"memory/peak": max(done.memory for done in everyone)}
        return found

    def row_of_memory(self) -> dict[str, float]:
        """Bytes by owner and what they are, of this process."""
        gradients = {f"{player}/gradients": size for player, size in self._gradients.items()}
        return {f"memory/{what}": size for what, size in sorted({**held(self.stage), **gradients}.items())}

    def _rates(self, everyone: list[Done], seconds: float) -> dict[str, float]:
        together = self.crew.ranks // self.crew.groups  # ranks that share each sample
        operations = sum(done.operations for done in everyone) / seconds
        rates = {"speed/clips_per_s": sum(done.samples for done in everyone) / together / seconds}
        if self.scale.tokens:
            rates["speed/tokens_per_s"] = sum(done.tokens for done in everyone) / together / seconds
        rates["speed/tflops_per_s"] = operations / TERA
        if self.scale.peak:
            rates["speed/mfu"] = operations / (self.scale.peak * self.crew.ranks)
        return rates


def shown(row: dict[str, float]) -> dict[str, object]:
    """The few words of a row that fit beside a bar."""
    used = {"MFU": f"{row['speed/mfu']:.0%}"} if "speed/mfu" in row else {}
    return {"clips/s": row["speed/clips_per_s"], **used}
