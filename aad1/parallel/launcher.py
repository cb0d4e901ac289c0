"""What torchrun keeps for as long as it starts the processes of a run anew: who has spoken, what was there before.

Its store outlives the processes and answers those that have not joined, too. Other launchers keep none.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from aad1.data.team import Team

SAID, FOUND = "aad1/said", "aad1/found"
ANSWERS = timedelta(seconds=5)
PAUSE = 0.1  # seconds between looks


def take_word(team: Team) -> bool | None:
    """Whether this process is the first of ``team`` that wants to say why it ends; None where nobody can tell."""
    store = _store()
    try:
        return None if store is None else store.add(f"{SAID}/{team.run}", 1) == 1
    except RuntimeError:
        return None


def word_taken(team: Team, within: float) -> bool:
    """Whether a process of ``team`` says why it ends, looked at for so many seconds."""
    until, store = time.monotonic() + within, _store()
    try:
        while store is not None and time.monotonic() < until:
            if store.check([f"{SAID}/{team.run}"]):
                return True
            time.sleep(PAUSE)
    except RuntimeError:
        pass
    return False


def begun_by_it(folder: Path, again: bool, found: bool) -> bool:
    """Whether what is ``found`` in ``folder`` was begun by this torchrun, which has started its processes ``again``.

    The leader asks at every start, the first one too: that is when what is there was there before.
    """
    store = _store()
    if store is None:
        return again
    try:
        before = store.compare_set(f"{FOUND}/{folder.resolve()}", "", "yes" if found and not again else "no")
    except RuntimeError:
        return again
    return again and before == b"no"


def _store() -> TCPStore | None:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=ANSWERS)
    except RuntimeError:
        return None
