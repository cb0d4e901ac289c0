"""The processes of one start of a run find each other in a store that earlier starts have used too.

torchrun keeps one store through its restarts, with the addresses of processes that are no more in it, and what it
counts as a restart differs between machines. So the leader makes up a name for each start, and tells it to who asks.
"""

from __future__ import annotations

import time
import uuid
from typing import Protocol

from aad1.errors import UserError

AT = "aad1/meeting"
PAUSE = 0.05  # seconds between looks


class Store(Protocol):
    """What is used of torch.distributed's stores."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether these are there."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a counter; returns what it is then."""
        ...


def meet(store: Store, rank: int, ranks: int, patience: float) -> str:
    """A name for this start of the run, the same on all of its processes and unlike those of earlier starts.

    Each asks under a name of its own, which only the living leader answers, and says that it has heard; what was asked
    by processes of an earlier start is answered too, and nobody hears it.

    Raises:
        UserError: when one has not come within ``patience`` seconds.
    """
    me, until = uuid.uuid4().hex, time.monotonic() + patience
    if rank == 0:
        _answer_all(store, me, ranks, until, patience)
        return me
    store.set(f"{AT}/{rank}", me)
    while not store.check([answer := f"{AT}/to/{me}"]):
        _wait(until, f"rank 0 of {ranks} has not come within {patience:g} s")
    start = store.get(answer).decode()
    store.set(f"{AT}/{start}/{rank}", "")
    return start


def _answer_all(store: Store, start: str, ranks: int, until: float, patience: float) -> None:
    """Tell every process that asks the name of this start, until all have heard it."""
    missing = set(range(1, ranks))
    while missing:
        for rank in sorted(missing):
            if store.check([asked := f"{AT}/{rank}"]):
                store.set(f"{AT}/to/{store.get(asked).decode()}", start)
            if store.check([f"{AT}/{start}/{rank}"]):
                missing.discard(rank)
        if missing:
            _wait(until, f"rank {', '.join(map(str, sorted(missing)))} of {ranks} has not come within {patience:g} s")


def _wait(until: float, otherwise: str) -> None:
    if time.monotonic() > until:
        raise UserError(f"{otherwise}; look at its own messages, or give it longer with compute.timeout")
    time.sleep(PAUSE)
