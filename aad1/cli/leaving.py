"""Leaving when a scheduler asks to, wherever a command is at: a training's steps save first, all else ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aad1.training.loop import PREEMPTION


class AskedToLeave(BaseException):
    """SIGTERM or SIGUSR1 has come. No Exception: what collects a clip's errors must not take it for one."""

    def __init__(self) -> None:
        super().__init__(
            "asked to leave; what was finished is kept: the same command goes on, with --resume where it has it"
        )


@contextmanager
def leaving(listens: bool) -> Iterator[None]:
    """Raise AskedToLeave within, where the main thread is when the signal comes, if the command ``listens``."""

    def leave(number: int, frame: FrameType | None) -> None:
        if sys.exc_info()[0] is None:  # what has gone wrong already is what is to be said
            raise AskedToLeave

    heard = PREEMPTION if listens and threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
