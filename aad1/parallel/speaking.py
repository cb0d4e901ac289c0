"""Which process of a run says why it ends: what several would say, one says.

What was said is kept in the run's own store by those that have joined, and before that in torchrun's.
"""

from __future__ import annotations

import hashlib
import time
from contextvars import ContextVar

from aad1.data.team import Team
from aad1.parallel.agent_store import agent_store
from aad1.parallel.meeting import Store

RUN: ContextVar[Store | None] = ContextVar("RUN", default=None)  # the store of the run that this process has joined
SAID = "said"
PAUSE = 0.1  # seconds between looks


def first_of_all(store: Store, key: str, otherwise: bool) -> bool:
    """Whether this process is the first to ask for ``key``; ``otherwise``: when the store does not answer."""
    try:
        return store.add(key, 1) == 1
    except RuntimeError:
        return otherwise


def first_to_say(line: str, team: Team) -> bool | None:
    """Whether no other process of ``team`` has wanted to say this; None where nobody can tell."""
    store, key = _place(team)
    if store is None:
        return None
    try:
        store.set(key, "")
        return store.add(f"{key}/{hashlib.sha256(line.encode()).hexdigest()}", 1) == 1
    except RuntimeError:
        return None


def something_said(team: Team, within: float) -> bool:
    """Whether a process of ``team`` says why it ends, looked at for so many seconds."""
    until, (store, key) = time.monotonic() + within, _place(team)
    try:
        while store is not None and time.monotonic() < until:
            if store.check([key]):
                return True
            time.sleep(PAUSE)
    except RuntimeError:
        pass
    return False


def _place(team: Team) -> tuple[Store | None, str]:
    """Where it is kept that something was said, and the key there."""
    run = RUN.get()
    return (agent_store(), f"aad1/{SAID}/{team.run}") if run is None else (run, SAID)
