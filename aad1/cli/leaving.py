"""Leaving when a scheduler asks to, wherever a command is at: a training's steps save first, all else ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aad1.data.team import torchrun_team
from aad1.parallel.crew import LostProcess
from aad1.training.loop import PREEMPTION

AGAIN = 0.2  # seconds


class AskedToLeave(BaseException):
    """SIGTERM or SIGUSR1 has come. No Exception: what collects a clip's errors must not take it for one."""

    def __init__(self) -> None:
        several = torchrun_team().ranks > 1
        by_whom = " (by who started it, or because another process has ended)" if several else ""
        kept = "what was finished is kept: the same command goes on, with --resume where it has it"
        super().__init__(f"asked to leave{by_whom}; {kept}")


@contextmanager
def leaving(listens: bool) -> Iterator[None]:
    """Raise AskedToLeave within, where the main thread is when the signal comes, if the command ``listens``.

    An error that is being handled goes first: either it is what will be said, or the signal comes again after it. But
    the loss of another process is what such a signal to all looks like to one that waits for that one.
    """
    over, senders = threading.Event(), list[threading.Thread]()

    def leave(number: int, frame: FrameType | None) -> None:
        if sys.exc_info()[0] is None:
            raise AskedToLeave
        senders.append(threading.Thread(target=again, args=(number,), daemon=True))
        senders[-1].start()

    def again(number: int) -> None:
        if not over.wait(AGAIN):
            os.kill(os.getpid(), number)

    heard = PREEMPTION if listens and threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    except LostProcess:
        if senders:
            raise AskedToLeave from None
        raise
    finally:
        over.set()
        for sender in senders:
            sender.join()
        for number, handler in previous.items():
            signal.signal(number, handler)
