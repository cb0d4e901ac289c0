"""A look into a few steps by torch's profiler: a trace of every operation, and a table of the costliest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from aad1.errors import UserError
from aad1.files import write_errors
from aad1.stopwatch import PROFILING, Stopwatch, timed

ROWS = 40  # of the table


class Window(NamedTuple):
    """Steps ``first`` to ``last``, counted from 1 as the progress counts them."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def require_within(self, stage: str, steps: int) -> None:
        """Raise UserError when a stage ends before the window does."""
        if self.last > steps:
            raise UserError(f"--profile {self}: {stage} has {steps} steps; give steps up to {steps}")


def window_of(text: str) -> Window:
    """The window that FIRST:LAST names; raises UserError when it names none."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    window = Window(*map(int, found.groups())) if found else Window(0, 0)
    if not 1 <= window.first <= window.last:
        raise UserError(f"--profile {text}: give FIRST:LAST, two steps counted from 1, for example 20:22")
    return window


@dataclass
class Profiling:
    """Profiles the steps of a ``window`` in this process and writes what was seen into ``folder``.

    done: steps that the run has behind it. A run that stops inside the window leaves what there is of it.
    """

    window: Window | None
    done: int
    folder: Path
    rank: int
    watch: Stopwatch
    say: Callable[[str], None]
    _profiler: profile | None = None
    _first: int = 0

    def __post_init__(self) -> None:
        if self.window is not None and self.window.last <= self.done:
            self.say(f"--profile {self.window}: no effect, the run is at step {self.done}")

    def begins(self, step: int) -> None:
        """Step ``step`` is about to begin."""
        if self.window is not None and self._profiler is None and self.window.first <= step <= self.window.last:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler, self._first = profile(activities=[ProfilerActivity.CPU, *gpu]), step
            self._profiler.start()
            self.watch.labels = True

    def ended(self, step: int) -> None:
        """Step ``step`` has ended."""
        if self.window is not None and step == self.window.last:
            self.finish(step)

    def finish(self, step: int) -> None:
        """Write what was seen, of steps up to ``step``; does nothing where nothing is being looked at."""
        if self._profiler is None:
            return
        profiler, self._profiler, self.watch.labels = self._profiler, None, False
        profiler.stop()
        step = max(step, self._first)  # of a run that stops in the first of them
        name = f"step-{self._first}-{step}.rank-{self.rank}"
        trace, table = self.folder / f"{name}.json.gz", self.folder / f"{name}.txt"
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        with timed(PROFILING), write_errors(trace):
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(trace))
            table.write_text(profiler.key_averages().table(sort_by=order, row_limit=ROWS), encoding="utf-8")
        self.say(f"profile of steps {self._first} to {step}: {trace}; the costliest operations: {table}")
