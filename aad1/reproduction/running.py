"""Runs what is missing, in several processes of one thread each; what is there already is not done again.

Ctrl-C lets every process finish its step and save; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from aad1.errors import UserError
from aad1.progress import Progress
from aad1.reproduction.experiments import Condition, Experiment
from aad1.reproduction.pieces import Piece, measure_piece, protocol_key, read_piece
from aad1.reproduction.tasks import Task, key_of, tasks_for
from aad1.runtime import keep_freed_memory
from aad1.training.loop import Interrupted

DONE = ".done"


@dataclass(frozen=True)
class Grid:
    """root: where stages are trained; results: where pieces lie; values: recipe values over those of every recipe;
    clips: fewer test clips than the protocols have, to try it out.
    """

    root: Path
    results: Path
    seeds: Sequence[int]
    workers: int
    values: Sequence[str] = ()
    clips: int | None = None

    def tasks(self, experiments: Iterable[Experiment]) -> list[Task]:
        """The measuring of every condition, seed by seed, so that one whole set of experiments comes first."""
        conditions = [c for experiment in experiments for c in experiment.conditions]
        found: dict[str, Task] = {}
        for seed in self.seeds:
            for condition in conditions:
                task = tasks_for(condition, seed, self.values)
                found.setdefault(task.name, task)
        return list(found.values())

    def key(self, task: Task) -> str:
        """What its piece must have been measured with."""
        assert task.condition is not None
        training = task.needs[0].name if task.needs else key_of("clips", task.load())
        return hashlib.sha256(json.dumps(protocol_key(training, task.condition, self.clips)).encode()).hexdigest()

    def path(self, task: Task) -> Path:
        """Where its piece lies."""
        return self.results / f"{task.name}.json"

    def piece(self, condition: Condition, seed: int) -> Piece | None:
        """The piece of a condition and seed, if it has been measured."""
        task = tasks_for(condition, seed, self.values)
        return read_piece(self.path(task), self.key(task))

    def pieces(self, experiment: Experiment) -> dict[str, list[Piece]]:
        """What has been measured of each condition, by its label: one piece a seed, or one where seeds do not count."""
        found: dict[str, list[Piece]] = {}
        for condition in experiment.conditions:
            own = [self.piece(condition, seed) for seed in (self.seeds if condition.trained else self.seeds[:1])]
            found[condition.label] = [piece for piece in own if piece is not None]
        return found

    def undone(self, experiments: Iterable[Experiment]) -> list[Task]:
        """The measurings that are not there."""
        return [task for task in self.tasks(experiments) if not self.is_done(task)]

    def lacks(self, task: Task) -> str:
        """Why there is no result of a measuring, a line."""
        path = self.path(task)
        if path.exists():
            return f"{path} is damaged or of other recipes, and does not count"
        return f"{path} is not measured yet"

    def is_done(self, task: Task) -> bool:
        """Whether nothing is left to do for it."""
        if task.condition is not None:
            return read_piece(self.path(task), self.key(task)) is not None
        return (self.root / task.name / DONE).exists()

    def run(self, experiments: Sequence[Experiment]) -> list[str]:
        """Do all that is missing; returns what failed, a line each.

        Raises Interrupted after Ctrl-C, when every process has saved.
        """
        wanted = self.tasks(experiments)
        missing = [task for task in wanted if not self.is_done(task)]
        steps = {t.name: t for task in missing for t in (*task.all_needs(), task) if not self.is_done(t)}
        pieces, unit = len(wanted) - len(missing), "step"
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        self.results.mkdir(parents=True, exist_ok=True)
        with Progress("experiments", len(steps), unit=unit, every=1) as bar:
            bar.print(f"{pieces} of {len(wanted)} results are there; {len(steps)} steps to do")
            return _Schedule(self, list(steps.values()), bar).run()


@dataclass
class _Schedule:
    """Steps that wait, run and have failed."""

    grid: Grid
    waiting: list[Task]
    bar: Progress
    running: dict[Future[None], Task] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[str]:
        context = multiprocessing.get_context("spawn")
        logs = self.grid.root / "logs"
        with ProcessPoolExecutor(self.grid.workers, context, _prepare_process, (logs,)) as pool:
            try:
                while self.waiting or self.running:
                    self._start(pool)
                    done, _ = wait(self.running, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._finish(future)
            except KeyboardInterrupt:
                pool.shutdown(wait=True, cancel_futures=True)
                raise Interrupted("interrupted; what was done is kept: the same command goes on") from None
        return [f"{name}: {reason}" for name, reason in self.failed.items()]

    def _start(self, pool: ProcessPoolExecutor) -> None:
        """Hand out what can begin, no more than there are processes: the order stays that of the experiments."""
        open_names = {task.name for task in (*self.waiting, *self.running.values())}
        for task in list(self.waiting):
            needed = {t.name for t in task.all_needs()}
            if lost := needed & self.failed.keys():
                self.waiting.remove(task)
                self.failed[task.name] = f"needs {', '.join(sorted(lost))}"
                self.bar.advance()
            elif not needed & open_names and len(self.running) < self.grid.workers:
                self.waiting.remove(task)
                self.running[pool.submit(_do, self.grid, task)] = task

    def _finish(self, future: Future[None]) -> None:
        task = self.running.pop(future)
        try:
            future.result()
        except Interrupted:
            raise KeyboardInterrupt from None
        except BrokenProcessPool:
            reason = f"a process was killed while {task.name} ran (out of memory?); the same command goes on from there"
            raise UserError(reason) from None
        except Exception as error:  # a step that fails for any reason takes no other with it
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.failed[task.name] = reason
            self.bar.print(f"{task.name} failed: {reason}")
        self.bar.advance(1, last=task.name)


def _prepare_process(logs: Path) -> None:
    """Everything a process prints goes to a file of its own; Ctrl-C is heard by the training loop alone."""
    handle = os.open(logs / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    signal.signal(signal.SIGINT, _interrupt)
    keep_freed_memory()


def _interrupt(*_: object) -> None:
    raise Interrupted("interrupted")


def _do(grid: Grid, task: Task) -> None:
    """One step, in a process of its own."""
    assembly = task.assembly(grid.root)
    if task.condition is not None:
        path, videos = grid.path(task), grid.root / "videos"
        return measure_piece(assembly, task.condition, task.seed, grid.key(task), path, videos, grid.clips)
    if task.step == "clips":
        assembly.prepare_clips()
    elif task.step == "trajectories":
        assembly.prepare_trajectories()
    else:
        assembly.train(task.step, resume=True)
    (grid.root / task.name / DONE).touch()
    return None
