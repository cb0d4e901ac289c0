"""Work in threads beside the event loop, always waited for to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: object, pool: ThreadPoolExecutor | None = None) -> T:
    """Wait for ``work(*arguments)`` in a thread of ``pool``, or of the event loop's own.

    A task that is cancelled waits, too, before it goes on with being cancelled: a thread cannot be stopped, and the
    encoder or file that it works on must not be closed under its hands.
    """
    future = asyncio.get_running_loop().run_in_executor(pool, partial(work, *arguments))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
