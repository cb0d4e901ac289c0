"""Noticing that a run hangs: every process notes where it is, and a thread of each looks whether all move.

A process that waits for another inside a collective cannot speak. So the notes are read by threads, out of a store that
no main thread uses, and a thread ends the process: whoever started it starts it anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Literal, NamedTuple

from aad1.parallel.meeting import Store
from aad1.parallel.speaking import SAID, first_of_all

PACKAGE = str(Path(__file__).parents[1])
Doing = Literal["prepare", "load", "data", "loss", "update", "evaluate", "save"]
LONG = 4.0
# How many timeouts each may last: to load, an evaluation and a save are longer than a turn, and one process may do them
# for all; clips and trajectories are prepared, and captions embedded, for days while the others wait.
PATIENCE: Mapping[Doing, float] = {
    "data": 1,
    "loss": 1,
    "update": 1,
    "load": LONG,
    "evaluate": LONG,
    "save": LONG,
    "prepare": inf,
}
LATER = LONG + 1  # timeouts after which the process group gives up by itself
BEAT = 5.0  # seconds between a thread's notes, at most
BEATS, LOOKS = 20, 10  # notes, and looks at those of the others, in a timeout, at least
LAST_WORD = 5.0  # seconds that a process leaves the one who is to speak
ENDS, LEAVES = "ends", "leaves"  # keys of the store: a thread ends its process; a process leaves, as it was asked to
SURELY = 1.0  # seconds in which a thread that lives surely beats


class Moment(NamedTuple):
    """Where a process is: what it does since its ``moves``-th move. All of a crew make the same moves."""

    moves: int = 0
    doing: Doing = "prepare"
    stage: str = ""
    step: int = 0
    player: str = ""

    def __str__(self) -> str:
        if not self.stage:
            return "preparing"
        turn = f", {self.player}'s turn" if self.player else ""
        return f"{self.stage}, step {self.step}{turn} ({self.doing})"


class Whereabouts:
    """Where this process's main thread is, as it notes itself; reading it needs no lock."""

    def __init__(self) -> None:
        self.moment = Moment()

    def note(self, doing: Doing, stage: str = "", step: int = 0, player: str = "") -> None:
        """Note a move, in a microsecond."""
        self.moment = Moment(self.moment.moves + 1, doing, stage, step, player)


@dataclass(frozen=True)
class Note:
    """What a process's thread tells the others.

    beats: of the thread, as long as it lives; idle: seconds since the last move; overdue: whether that is too long;
    line: of this package, where the main thread is then; left: whether it has ended its part of the run.
    """

    beats: int
    moment: Moment
    idle: float
    overdue: bool = False
    line: str = ""
    left: bool = False

    @classmethod
    def read(cls, text: bytes) -> Note:
        """A note from the store."""
        values = json.loads(text)
        return cls(**(values | {"moment": Moment(*values["moment"])}))


@contextmanager
def watched(
    here: Whereabouts, rank: int, ranks: int, store: Store, timeout: float, launcher: int | None = None
) -> Iterator[None]:
    """Watch over a run for as long as the block lasts; every process of it does.

    When this process has not moved for as long as it may, or another does not answer for ``timeout`` seconds, one
    process says on one line which the others wait for and where they are, and all end with exit code 1. When a signal
    ends one's block (what it raises is no Exception), the others are sent SIGTERM. ``store`` is a connection of the
    watch's own, with keys that the processes of this run share and nobody else uses.

    launcher: a parent process without which this one has no place in the run; when that dies this one ends too, so that
    a run that is begun anew is alone in its folder.
    """
    watch = _Watch(here, rank, ranks, store, timeout, launcher)
    thread = threading.Thread(target=watch.run, name="watch", daemon=True)
    thread.start()
    try:
        yield
        watch.well = True
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal that one has heard is meant for all
            with suppress(RuntimeError):
                store.set(LEAVES, "")
        raise
    finally:
        watch.over.set()
        thread.join()


@dataclass
class _Watch:
    """A process's thread. Its clock stands while the process itself is stopped: a suspended job has not hung."""

    here: Whereabouts
    rank: int
    ranks: int
    store: Store
    timeout: float
    launcher: int | None
    over: threading.Event = field(default_factory=threading.Event)
    well: bool = False  # whether the block has come to its end
    told: bool = False  # whether this process was told that another leaves
    beats: int = 0
    clock: float = 0.0
    moved: tuple[int, float] = (0, 0.0)  # the last move, and when
    looked: float = 0.0
    heard: dict[int, tuple[int, float]] = field(default_factory=dict)  # of every rank: its last beat, and when

    @property
    def beat(self) -> float:
        return min(BEAT, self.timeout / BEATS)

    def run(self) -> None:
        """Note, look, and end the process when it must be; until ``over``."""
        self._publish()
        before = time.monotonic()
        while not self.over.wait(self.beat):
            now = time.monotonic()
            self.clock += min(now - before, 2 * self.beat)
            before = now
            self._publish()
            self._leave_with_others()
            if self.launcher not in (None, os.getppid()):
                self._end_without_launcher()
            if self._overdue() or self._silent():
                self._end_unless_it_moves()
        if self.well:
            self._publish(left=True)  # one that ends by an error falls silent, also to those that wait for it for days

    def _leave_with_others(self) -> None:
        """Give this process the signal that another has had, once: they are not in a step, which all end together."""
        with suppress(RuntimeError):
            if not self.told and self.store.check([LEAVES]):
                self.told = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _idle(self) -> float:
        if self.moved[0] != self.here.moment.moves:
            self.moved = self.here.moment.moves, self.clock
        return self.clock - self.moved[1]

    def _overdue(self) -> bool:
        return self._idle() > PATIENCE[self.here.moment.doing] * self.timeout

    def _note(self, left: bool = False) -> Note:
        overdue = self._overdue()
        return Note(self.beats, self.here.moment, self._idle(), overdue, _line() if overdue else "", left)

    def _publish(self, left: bool = False) -> None:
        self.beats += 1
        with suppress(RuntimeError):  # a store that does not answer now may later; this process is looked after anyhow
            self.store.set(str(self.rank), json.dumps(asdict(self._note(left))))

    def _beat_on(self, seconds: float) -> None:
        """Wait, and go on beating: the others look too."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.over.wait(self.beat):
            self._publish()

    def _notes(self) -> dict[int, Note]:
        """Everyone's note, this process's alone where the store does not answer."""
        mine = {self.rank: self._note()}
        try:
            keys = {rank: str(rank) for rank in range(self.ranks) if rank != self.rank}
            found = {rank: Note.read(self.store.get(key)) for rank, key in keys.items() if self.store.check([key])}
        except RuntimeError:
            return mine
        return dict(sorted((found | mine).items()))

    def _silent(self) -> bool:
        """Whether a process that has not left has been silent for longer than ``timeout``; looked at now and then."""
        if self.clock < self.looked + self.timeout / LOOKS:
            return False
        self.looked = self.clock
        for rank, note in self._notes().items():
            if rank not in self.heard or self.heard[rank][0] != note.beats or note.left:
                self.heard[rank] = note.beats, self.clock
        return any(self.clock - when > self.timeout for _, when in self.heard.values())

    def _end_unless_it_moves(self) -> None:
        """Look at all twice, a few beats apart, and end the process unless all was well in between."""
        before = self._notes()
        self._beat_on(max(3 * self.beat, SURELY))
        notes = self._notes()
        silent = [rank for rank, note in notes.items() if rank != self.rank and note == before.get(rank)]
        silent = [rank for rank in silent if not notes[rank].left]
        if self.over.is_set() or not (silent or self._overdue()):
            return
        noticing = [rank for rank, note in notes.items() if note.overdue and rank not in silent]
        if noticing and noticing[0] != self.rank:
            self._beat_on(LAST_WORD)
        _end(verdict(notes, silent, self.ranks) if self._first_to_end(otherwise=True) else None)

    def _first_to_end(self, otherwise: bool) -> bool:
        """Whether this thread is the first that ends its process; ``otherwise``: when none can tell."""
        with suppress(RuntimeError):
            self.store.set(SAID, "")  # who sees no more than a loss need not speak
        return first_of_all(self.store, ENDS, otherwise)

    def _end_without_launcher(self) -> None:
        first = self._first_to_end(otherwise=self.rank == 0)  # the store was the launcher's
        _end("what started this run has ended, so the run ends too; go on with --resume" if first else None)


def _end(line: str | None) -> None:
    """End this process from its thread, with a last line."""
    if line is not None:
        print(f"aad1: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # the main thread may never return from where it waits


def verdict(notes: Mapping[int, Note], silent: Sequence[int], ranks: int) -> str:
    """Who holds up a run, on one line; ``silent``: those whose threads do not beat any more."""
    furthest = max(note.moment.moves for note in notes.values())
    behind = [rank for rank, note in notes.items() if note.moment.moves < furthest or note.left]
    idle = round(max(note.idle for note in notes.values()))
    if len(notes) == 1:
        (rank, note), *_ = notes.items()
        found = f"{_named([rank])} of {ranks} has not moved for {idle} s: {note.moment}; the others cannot be asked"
    elif silent:
        does = "does" if len(silent) == 1 else "do"
        where = _where(notes, silent)
        found = f"{_named(silent)} of {ranks} {does} not answer (ended, stopped, or a machine is gone) since {where}"
    elif behind:
        has = "has" if len(behind) == 1 else "have"
        found = f"{_named(behind)} of {ranks} {has} not moved for {idle} s: {_where(notes, behind)}"
    else:
        found = f"no rank of {ranks} has moved for {idle} s: {_where(notes, list(notes))}"
    if (held := silent or behind) and (others := [rank for rank in notes if rank not in held]):
        wait = "waits" if len(others) == 1 else "wait"
        found += f"; {_named(others)} {wait}: {_where(notes, others)}"
    return f"{found}; stopped, go on with --resume"


def _where(notes: Mapping[int, Note], ranks: Sequence[int]) -> str:
    """Where these ranks are, those that are at the same place together."""
    places: dict[str, list[int]] = {}
    for rank in ranks:
        note = notes[rank]
        place = f"{'left after ' if note.left else ''}{note.moment}{f' at {note.line}' if note.line else ''}"
        places.setdefault(place, []).append(rank)
    if len(places) == 1:
        return next(iter(places))
    return ", ".join(f"{_named(members)} in {place}" for place, members in places.items())


def _named(ranks: Sequence[int]) -> str:
    """``rank 3``, ``ranks 0-2, 4-7``."""
    runs = [[rank for _, rank in group] for _, group in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    shown = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _line() -> str:
    """The innermost line of this package that the main thread is in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{os.path.relpath(frame.f_code.co_filename, PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
