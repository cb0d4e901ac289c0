"""Which process of a run says why it ends: one for all, where all end for the same reason.

Who wants to speak first is kept in the run's own store by those that have joined, and before that in torchrun's.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from aad1.data.team import Team
from aad1.parallel.agent_store import agent_store
from aad1.parallel.meeting import Store

RUN: ContextVar[Store | None] = ContextVar("RUN", default=None)  # the store of the run that this process has joined
SAID, LOST = "said", "lost"  # counts of those that wanted to say why the run ends, and that another one is lost
PAUSE = 0.1  # seconds between looks


def first_to_say(store: Store, what: str, otherwise: bool) -> bool:
    """Whether this process is the first of its run that wants to say ``what``; ``otherwise``: when none can tell."""
    try:
        return store.add(what, 1) == 1
    except RuntimeError:
        return otherwise


def take_word(team: Team) -> bool | None:
    """Whether this process is the first of ``team`` that wants to say why it ends; None where nobody can tell."""
    store, key = _place(team)
    try:
        return None if store is None else store.add(key, 1) == 1
    except RuntimeError:
        return None


def word_taken(team: Team, within: float) -> bool:
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
    """Where the word is kept, and its key there."""
    run = RUN.get()
    return (agent_store(), f"aad1/{SAID}/{team.run}") if run is None else (run, SAID)
