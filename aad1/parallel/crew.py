"""The processes that train together: this one's place among them, and what they tell each other.

Every method is a meeting: all processes call it, in the same order. One process alone meets nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch.distributed as dist

from aad1.errors import UserError
from aad1.files import user_errors
from aad1.parallel.watch import Whereabouts
from aad1.stopwatch import COMMUNICATION, timed

Said = TypeVar("Said")


class SharedError(UserError):
    """A mistake that every process of a crew has learnt of: one of them says so, for all."""


class LostProcess(Exception):
    """Another process of the run has ended; ``first``: whether this one is to say so."""

    def __init__(self, first: bool, seen: str) -> None:
        super().__init__(
            "another process of this run has ended (where it says nothing it was killed, or its machine is gone); go "
            f"on with --resume (torchrun --max-restarts does that by itself); what was seen here: {seen}"
        )
        self.first = first


@dataclass(frozen=True)
class Crew:
    """``rank`` of ``ranks`` processes, of which ``groups`` groups work on samples of their own.

    Ranks of a group share every sample: they see the same data and draw the same noise. control: the process group
    (gloo, so between CPUs) that messages go through; None for one process alone. where: what this process is at, for
    those who wait for it.
    """

    rank: int = 0
    ranks: int = 1
    group: int = 0
    groups: int = 1
    control: dist.ProcessGroup | None = None
    where: Whereabouts = field(default_factory=Whereabouts, compare=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once, and shows the progress."""
        return self.rank == 0

    def gather(self, value: Said) -> list[Said]:
        """What every process says, by rank."""
        if self.control is None:
            return [value]
        heard: list[Any] = [None] * self.ranks
        with timed(COMMUNICATION):
            dist.all_gather_object(heard, value, group=self.control)
        return heard

    def collect(self, value: Said) -> list[Said]:
        """What every process says, by rank, for the leader; the others hear nothing."""
        if self.ranks == 1:
            return [value]
        heard: list[Any] | None = [None] * self.ranks if self.leads else None
        with timed(COMMUNICATION):
            dist.gather_object(value, heard, dst=0, group=self.control)
        return heard or []

    def tell(self, value: Said) -> Said:
        """What the leader says."""
        if self.control is None:
            return value
        said = [value]
        with timed(COMMUNICATION):
            dist.broadcast_object_list(said, src=0, group=self.control)
        return said[0]

    def meet(self) -> None:
        """Wait for all others."""
        if self.control is not None:
            with timed(COMMUNICATION):
                dist.barrier(group=self.control)

    def any(self, flag: bool) -> bool:
        """Whether it is so for any process."""
        return any(self.gather(flag))

    def agree(self, act: Callable[[], Said]) -> Said:
        """Do ``act`` on every process; where it is refused on one, it is refused on all.

        Raises:
            UserError: as SharedError where there are others, with what the first of those that refused says; a file
                that cannot be used is such a refusal too.
        """
        if self.control is None:
            return act()
        done, refusal = None, None
        try:
            with user_errors():
                done = act()
        except UserError as error:
            refusal = str(error)
        self.refuse(self.gather(refusal))
        return done  # type: ignore[return-value]

    def refuse(self, refusals: Sequence[str | None]) -> None:
        """Raise SharedError with the first of these refusals, by rank, if there is one.

        It names the ranks that refuse, but for all of them and for the leader alone, who looks for all. All processes
        must have the same list.
        """
        found = [rank for rank, refusal in enumerate(refusals) if refusal is not None]
        if found:
            everyones = len(found) == self.ranks or found == [0]
            who = "" if everyones else f"rank {', '.join(map(str, found))} of {self.ranks}: "
            raise SharedError(f"{who}{refusals[found[0]]}")


ALONE = Crew()
