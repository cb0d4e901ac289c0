"""Work in threads beside the event loop, always waited for to its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
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
    finally:
        del future  # with an exception in it, it would hold this frame and what the work was about


@asynccontextmanager
async def entered_in_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """A context manager that is entered and left in a thread, such as a file that takes its time to be closed."""
    inside = await in_thread(manager.__enter__)
    try:
        yield inside
    except BaseException:
        if not await in_thread(manager.__exit__, *sys.exc_info()):
            raise
    else:
        await in_thread(manager.__exit__, None, None, None)
