"""One progress display for every long job: a bar with the time left, or plain lines in a log.

On a terminal it is a live bar; elsewhere a line is printed now and then, so that a log file stays
readable. Free-form fields (losses, speeds) can be shown beside it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

LINES_PER_JOB = 20  # how many plain lines a job of known length prints by default
LINES_FOR_RATE = 5  # over how many of them the rate is taken: a batch's items may all come at its end


class Progress:
    """Context manager that shows how far a job is.

    ``total`` None means that the end is unknown; ``done`` items were finished by an earlier run and do
    not count towards the rate. ``every`` is the number of items between plain lines where there is no
    terminal: None gives about twenty lines a job, 0 silence; ``shown`` False is silence everywhere. Rate and time
    left are those of the last few lines, so that one slow item (a critic's head start) does not spoil them for long.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "it",
        every: int | None = None,
        shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self.description, self.total, self.done, self.unit = description, total, done, unit
        self.every = max(1, (total or 1000) // LINES_PER_JOB) if every is None else every
        self.every = self.every if shown else 0
        self.fields: dict[str, object] = {}
        self._console = console or Console(file=sys.stderr)
        self._printed, self._start = done, time.monotonic()
        self._marks: deque[tuple[int, float]] = deque([(done, self._start)], maxlen=LINES_FOR_RATE)
        self._bar = self._make_bar() if shown and self._console.is_terminal else None
        self._task = self._bar.add_task(description, total=total, completed=done, info="") if self._bar else None

    def _make_bar(self) -> RichProgress:
        return _TwoLines(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(self.unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._marks[0] = self.done, self._start
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif self.every and self.done != self._printed:
            self._print_line()

    def advance(self, count: int = 1, **fields: object) -> None:
        """Move on by ``count`` items and replace the given fields (floats are shown to 4 digits)."""
        self.done += count
        self.fields |= fields
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, info=self._info())
        elif self.every and self.done - self._printed >= self.every:
            self._print_line()

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _print_line(self) -> None:
        self.print(self.line())
        self._printed = self.done
        self._marks.append((self.done, time.monotonic()))

    @property
    def rate(self) -> float:
        """Items a second over the last few lines, at first since the job (re)started."""
        done, since = self._marks[0]
        return (self.done - done) / max(time.monotonic() - since, 1e-9)

    def line(self) -> str:
        """The whole state on one line."""
        count = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        parts = [f"{self.description} {count}", _rate_text(self.rate, self.unit)]
        parts.append(f"{_clock(time.monotonic() - self._start)} elapsed")
        if self.total is not None and self.rate > 0:
            parts.append(f"{_clock((self.total - self.done) / self.rate)} left")
        return ", ".join(parts) + ("  " + self._info() if self.fields else "")

    def _info(self) -> str:
        return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.fields.items())


class _TwoLines(RichProgress):
    """The bar, and the fields below it: beside it they would squeeze it out of a narrow terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn at every refresh."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["info"]:
                yield Text(task.fields["info"], style="dim")


class _Rate(ProgressColumn):
    """Items a second, or seconds an item when slow."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """The recent rate."""
        return Text(_rate_text(task.finished_speed or task.speed or 0.0, self.unit))


def _rate_text(rate: float, unit: str) -> str:
    return f"{rate:.3g} {unit}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.3g} s/{unit}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
