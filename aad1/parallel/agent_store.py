"""The store of torchrun's agent, which outlives the processes that it starts and answers those that have not joined.

Other launchers keep none.
"""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

FOUND = "aad1/found"
ANSWERS = timedelta(seconds=5)


def agent_store() -> TCPStore | None:
    """A connection to it; None where there is none, or where it does not answer."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=ANSWERS)
    except RuntimeError:
        return None


def begun_by_it(what: str, found: bool, again: bool) -> bool | None:
    """Whether ``what`` (a name for it) was begun by this torchrun, and not there before it; None where nobody can tell.

    Every start asks first of all, and the first one notes whether it was ``found``. again: whether this is known to be
    no first start, though none has noted anything.
    """
    store, key = agent_store(), f"{FOUND}/{what}"
    if store is None:
        return None
    try:
        if store.check([key]):
            return bool(store.get(key) == b"no")
        store.set(key, "yes" if found and not again else "no")
    except RuntimeError:
        return None
    return again
