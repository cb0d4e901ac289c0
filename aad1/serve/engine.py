"""The one model on the device, and the turns on it.

Everything that computes goes through one thread, in the order in which it was asked for. A session asks for
its next chunk only when the last one was sent, so sessions and jobs take turns chunk by chunk and none can
starve another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aad1.data.media import enlarge, even_sides
from aad1.errors import UserError
from aad1.serve.metrics import Metrics
from aad1.serve.threads import in_thread
from aad1.streaming import Session, Student, enlargement

T = TypeVar("T")
log = logging.getLogger(__name__)
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Request:
    """What a video is to be made of; ``image`` is uint8 [height, width, 3], the rest as for ``Session``."""

    image: Frames
    prompt: str
    seed: int = 0
    size: tuple[int, int] | None = None
    passes: tuple[float, ...] | None = None
    first_passes: tuple[float, ...] | None = None


class Failed(Exception):
    """Work that the machine could not do, such as for want of memory: this request's luck, not the server's end."""


class Engine:
    """Runs a student's work in a thread of its own, first come first served."""

    def __init__(self, student: Student, metrics: Metrics) -> None:
        self.student, self.metrics = student, metrics
        self._thread = ThreadPoolExecutor(1, "engine")
        self._aside = ThreadPoolExecutor(1, "pictures")

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Wait for a turn, and for the work; Failed when the machine could not do it."""
        return await in_thread(attempt, work, *arguments, pool=self._thread)

    async def aside(self, work: Callable[..., T], *arguments: object) -> T:
        """Work that does not need the device: one at a time, for a large picture takes memory while it is read."""
        return await in_thread(attempt, work, *arguments, pool=self._aside)

    async def open(self, request: Request) -> Session:
        """A session for this request; errors as for ``Session``."""
        return await self.run(partial(self.student.session, **vars(request)))

    async def chunk(self, session: Session, chunks: Iterator[Frames]) -> Frames | None:
        """The next of a session's chunks, or None after its last."""
        frames = await self.run(next, chunks, None)
        if frames is not None:
            account = session.account
            self.metrics.chunk(account.recent[-1], account.first_frame if account.chunks == 1 else None)
        return frames

    def close(self) -> None:
        """Finish the turn that is taken and take no more."""
        for pool in (self._aside, self._thread):
            pool.shutdown(wait=True, cancel_futures=True)


def attempt(work: Callable[..., T], *arguments: object) -> T:
    """The work; whatever it raises that is not its user's mistake is written down and becomes Failed."""
    try:
        return work(*arguments)
    except UserError:
        raise
    except Exception as error:
        log.exception("the model failed")
        raise Failed(f"the model failed ({error})") from error


def enlarged(frames: Frames) -> Frames:
    """Small pictures by a whole factor, so that players have no reason to blur them; with even sides, for 4:2:0."""
    return even_sides(enlarge(frames, enlargement((frames.shape[1], frames.shape[2]))))


def enlarged_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that ``enlarged`` makes of pictures of this size."""
    height, width = (side * enlargement(size) for side in size)
    return height + height % 2, width + width % 2
