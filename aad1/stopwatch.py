"""Where the time of a step goes: phases, one inside another, every moment counted to the innermost.

Who does a thing says so with ``timed`` (or ``enter`` and ``leave`` where it is a hook); while no stopwatch runs in
this process, that is nothing. All phases together are the whole time, however they are nested.

On a GPU the time is the device's: events are put between its work and read when they have long passed, so nothing
waits for them, and a phase lasts as long as the device was at it or waited for it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

DATA, UPDATE, COMMUNICATION, OTHER = "data", "update", "communication", "other"
ROLLOUT, SCORE, CRITIC, BACKWARD = "rollout", "score", "critic", "backward"
EVALUATION, SAVING, PROFILING = "evaluation", "saving", "profiling"
PASSES = frozenset({ROLLOUT, SCORE, CRITIC})  # of networks
UNDIVIDED = frozenset({EVALUATION, SAVING, PROFILING})  # whatever happens inside, counts to them
UNREAD = 4096  # intervals that wait to be read, before those that have passed are


class Clock(Protocol):
    """Moments, and the seconds between them."""

    def now(self) -> Any:
        """This moment."""
        ...

    def passed(self, moment: Any) -> bool:
        """Whether it can be read without waiting."""
        ...

    def between(self, before: Any, after: Any) -> float:
        """Seconds; waits for ``after`` where it is still to come."""
        ...


class HostClock:
    """The time of the process."""

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def passed(self, moment: float) -> bool:
        """Always."""
        return True

    def between(self, before: float, after: float) -> float:
        """Their difference."""
        return after - before


class DeviceClock:
    """The time of a GPU: an event a moment, in the stream that computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> torch.cuda.Event:
        """An event behind all that the stream has to do so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def passed(self, moment: torch.cuda.Event) -> bool:
        """Whether the stream has come so far."""
        return moment.query()

    def between(self, before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        """What the device itself has noted."""
        after.synchronize()
        return before.elapsed_time(after) / 1000


class Stopwatch:
    """Seconds by phase since they were last taken. ``labels``: phases are also named for torch's profiler."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.labels = False
        self._phases: list[tuple[str, Any]] = [(OTHER, None)]
        self._unread: list[tuple[str, Any, Any]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = clock.now()

    @property
    def repeats(self) -> bool:
        """Whether a network computes again, for a backward, what it has computed before."""
        names = [name for name, _ in self._phases]
        return names[-1] in PASSES and BACKWARD in names

    def enter(self, phase: str) -> None:
        """A phase begins, inside the one that is on."""
        outer, _ = self._phases[-1]
        phase = outer if outer in UNDIVIDED else phase
        if phase != outer:
            self._read_off(outer)
        label = torch.profiler.record_function(phase) if self.labels else None
        if label is not None:
            label.__enter__()
        self._phases.append((phase, label))

    def leave(self) -> None:
        """The innermost phase ends."""
        phase, label = self._phases.pop()
        if label is not None:
            label.__exit__(None, None, None)
        if phase != self._phases[-1][0]:
            self._read_off(phase)

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last taking; they add up to the time that has passed."""
        self._read_off(self._phases[-1][0])
        self._settle(wait=True)
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def _read_off(self, phase: str) -> None:
        now = self.clock.now()
        self._unread.append((phase, self._since, now))
        self._since = now
        if len(self._unread) > UNREAD:
            self._settle(wait=False)

    def _settle(self, wait: bool) -> None:
        done = 0
        for phase, before, after in self._unread:
            if not (wait or self.clock.passed(after)):
                break
            self._seconds[phase] += self.clock.between(before, after)
            done += 1
        del self._unread[:done]


class _Thread(threading.local):
    watched = True


_running: list[Stopwatch] = []
_thread = _Thread()


@contextmanager
def running(watch: Stopwatch) -> Iterator[Stopwatch]:
    """Within, this stopwatch is told what this process does."""
    _running.append(watch)
    try:
        yield watch
    finally:
        _running.remove(watch)


def clock_of(device: torch.device) -> Clock:
    """What tells the time of work on this device."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()


def unwatched() -> None:
    """What this thread does is beside the run: no stopwatch is told. (A backward's threads are not beside it.)"""
    _thread.watched = False


def enter(phase: str) -> None:
    """A phase begins; whoever says so, says when it ends."""
    if _running and _thread.watched:
        _running[-1].enter(phase)


def leave() -> None:
    """The phase that was entered last ends."""
    if _running and _thread.watched:
        _running[-1].leave()


@contextmanager
def timed(phase: str) -> Iterator[None]:
    """What is done within counts to ``phase``, but for what counts to a phase inside it."""
    enter(phase)
    try:
        yield
    finally:
        leave()
