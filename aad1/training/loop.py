"""The one training loop: runs turns, accumulates, checks finiteness, logs, evaluates, saves, resumes, stops.

A stage says who plays, in which order and what each one's loss is; the loop holds no equation. A
*step* is one generator update, however many turns the other players take in it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from aad1.data.order import Sampler
from aad1.errors import UserError
from aad1.files import sole_holder, write_errors
from aad1.limits import Count, Natural
from aad1.parallel.crew import ALONE, Crew
from aad1.parallel.watch import Doing
from aad1.progress import Progress
from aad1.stopwatch import BACKWARD, DATA, EVALUATION, SAVING, UPDATE, Stopwatch, clock_of, running, timed
from aad1.training.checkpoint import Checkpoints, Found, complete, step_of
from aad1.training.metrics import SPEED, MetricsLog
from aad1.training.player import Player
from aad1.training.profiling import Profiling, Window
from aad1.training.randomness import Draws, generator_for
from aad1.training.share import pieces
from aad1.training.speed import UNKNOWN, Scale, Speed, shown
from aad1.training.tensor_files import write_tensors

CHECKPOINTS, LOCK = "checkpoints", ".lock"
PATIENCE = 10.0  # seconds that the processes of a start before this one have to end
PREEMPTION = (signal.SIGTERM, signal.SIGUSR1)  # how schedulers ask a job to leave
TURNS = 0  # of a stage's random streams, the one that its turns draw from
LIVE = frozenset({"loss", "gap", "rho", "kappa", "presence", "psnr", "all"})  # shown beside the bar


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a stage runs and how often it reports; every stage's config extends it.

    batch: samples of a micro-batch; accumulate: micro-batches of a turn, of all processes together; log_every,
    evaluate_every and save_every are in steps (0 = only at the end); keep: how many checkpoints stay, besides the one
    with the best evaluation.
    """

    steps: Count
    batch: Count
    accumulate: Count = 1
    log_every: Natural = 10
    evaluate_every: Natural = 0
    save_every: Natural = 200
    keep: Count = 2


class Turn(NamedTuple):
    """One player's update: who, and where in the run it stands."""

    player: str
    step: int


class Loss(NamedTuple):
    """What a stage returns for one micro-batch: a scalar to descend, and numbers to log."""

    value: Tensor
    metrics: dict[str, float]


class Dataset(Protocol):
    """Anything that can be asked for the samples at these indices."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Any:
        """The samples at ``indices``, collated."""
        ...


@runtime_checkable
class Bucketed(Protocol):
    """A dataset whose samples have several shapes: a batch holds one."""

    @property
    def buckets(self) -> Sequence[int]:
        """For every sample, which shape it has."""
        ...


class Stage(Protocol):
    """One training stage."""

    name: str
    players: Mapping[str, Player]

    @property
    def dataset(self) -> Dataset:
        """What its batches come from."""
        ...

    def turns(self, step: int) -> Sequence[str]:
        """Which players move in this step, in order."""
        ...

    def loss(self, turn: Turn, batch: Any, noise: Draws) -> Loss:
        """The loss of the player whose turn it is, on one micro-batch: the mean of its samples'."""
        ...

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Measure the averaged weights, and leave pictures in ``samples``."""
        ...

    def merit(self, measured: Mapping[str, float]) -> float | None:
        """How good an evaluation is, higher is better; None where that is not to be said."""
        ...

    def stop_reason(self) -> str | None:
        """Why the stage should end before its last step, if it should."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the stage itself remembers between steps: tensors, which are loaded in place, and what JSON holds."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        ...

    def export(self, folder: Path) -> Path:
        """Write what the stage made where others will load it; returns where that is."""
        ...


class Interrupted(Exception):
    """The run was stopped by the user after saving; it says how to go on."""


class Preempted(Interrupted):
    """The run was asked by the system to leave its place, and has saved: nothing is wrong."""


@dataclass
class Run:
    """One stage's training in one folder, by one process or by each of a ``crew``.

    ``resume`` goes on from the last readable checkpoint, or begins where there is none yet; ``profile``: steps to look
    into. Raises UserError when ``folder`` holds an earlier run and ``resume`` is not asked for, when none of its
    checkpoints is readable, when the crew cannot share a turn's samples, or when a loss stops being finite (the batch
    is saved first); Interrupted after Ctrl-C, Preempted after SIGTERM or SIGUSR1.
    """

    stage: Stage
    config: LoopConfig
    folder: Path
    seed: int
    resume: bool = False
    crew: Crew = ALONE
    scale: Scale = UNKNOWN
    profile: Window | None = None

    def __post_init__(self) -> None:
        self.pieces = pieces(self.config.batch, self.config.accumulate, self.crew.group, self.crew.groups)
        self.sampler = Sampler(len(self.stage.dataset), seed=self.seed, buckets=self._buckets())
        self.step = 0
        self.finished = False
        self._saved: int | None = None

    def _buckets(self) -> Sequence[int] | None:
        return self.stage.dataset.buckets if isinstance(self.stage.dataset, Bucketed) else None

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Where it is saved."""
        return Checkpoints(self.folder / CHECKPOINTS, self.config.keep, self.crew)

    def train(self) -> Path:
        """Run to the last step (or the stage's own stop) and export; returns what was exported."""
        try:
            self._train()
            return self.crew.agree(self._export)
        finally:
            self.crew.where.note("prepare")

    def _train(self) -> None:
        with ExitStack() as stack:
            self.crew.agree(partial(self._take_folder, stack))  # first: it is given back when nothing writes any more
            stack.callback(self.checkpoints.close)
            self.crew.agree(self._start)
            device = next(p.device for player in self.stage.players.values() for p in player.parameters.values())
            watch = stack.enter_context(running(Stopwatch(clock_of(device))))
            self.speed = Speed(self.stage, self.crew, watch, device, self.scale)
            log = stack.enter_context(MetricsLog(self.folder, self.step) if self.crew.leads else nullcontext())
            pace = stack.enter_context(self._speed_log() if self.crew.leads else nullcontext())
            bar = stack.enter_context(
                Progress(self.stage.name, self.config.steps, done=self.step, unit="step", shown=self.crew.leads)
            )
            looking = self.profile if self.crew.leads else None
            profiling = Profiling(looking, self.step, self.folder / "profile", self.crew.rank, watch, bar.print)
            stack.callback(lambda: profiling.finish(self.step))
            stopping = stack.enter_context(_stop_signals(self.crew.leads))
            first = self.step + 1
            while self.step < self.config.steps and not self.finished:
                profiling.begins(self.step + 1)
                self._one_step(log, bar)
                profiling.ended(self.step)
                self._tell_speed(pace, bar, begun=self.step == first)
                self.checkpoints.poll()
                self._stop_if_asked(stopping)
            self._note("save")
            self.checkpoints.wait()
            self._stop_if_asked(stopping)

    def _stop_if_asked(self, heard: Sequence[int]) -> None:
        """Save and leave when any process has heard a signal to do so."""
        if everyones := {number for seen in self.crew.gather(heard) for number in seen}:
            self.save()
            self.checkpoints.wait()
            kind = Interrupted if signal.SIGINT in everyones else Preempted
            raise kind(f"saved at step {self.step} in {self.folder}; go on with --resume")

    def _export(self) -> Path:
        """All processes give what they hold, the leader writes; what goes wrong there is said by all."""
        with write_errors(self.folder / "final"):
            return self.stage.export(self.folder / "final")

    def _speed_log(self) -> MetricsLog:
        # A folder of events of its own: TensorBoard follows one file of each.
        return MetricsLog(self.folder, self.step, SPEED, "tensorboard/speed")

    def _take_folder(self, stack: ExitStack) -> None:
        """Have the folder for this run alone until ``stack`` is closed: the leader looks, for all."""
        if self.crew.leads:
            busy = f"another run is working in {self.folder}; wait for it or stop it, or choose another -o"
            stack.enter_context(sole_holder(self.folder / LOCK, PATIENCE, busy))

    def _start(self) -> None:
        begun = self.crew.tell(has_run(self.folder))  # file systems may show others something older
        if begun and not self.resume:
            refuse_run(self.folder)
        elif begun:
            last = self.checkpoints.last()
            if last is None:
                raise UserError(f"no readable checkpoint in {self.folder}; start again into another folder")
            self._load(last)

    def _load(self, last: Found) -> None:
        if set(last.values["players"]) != set(self.stage.players):
            raise UserError(f"{self.folder} holds another stage's run; choose another folder")
        state = last.into(self._state())
        self.step, self.finished, self._saved = last.step, state["finished"], last.step
        self.sampler = Sampler.restore(state["sampler"], len(self.stage.dataset), buckets=self._buckets())
        for name, player in self.stage.players.items():
            player.load_state_dict(state["players"][name])
        self.stage.load_state_dict(state["stage"])

    def _state(self) -> dict[str, Any]:
        return {
            "players": {name: player.state_dict() for name, player in self.stage.players.items()},
            "stage": self.stage.state_dict(),
            "sampler": self.sampler.state(),
            "finished": self.finished,
        }

    def save(self) -> None:
        """Begin to write a checkpoint of this moment, unless there is one; ``checkpoints.wait`` waits for it."""
        if self._saved != self.step:
            self._note("save")
            with timed(SAVING):
                self.checkpoints.save(self.step, self._state())
            self._saved = self.step

    def _one_step(self, log: MetricsLog | None, bar: Progress) -> None:
        found: dict[str, list[float]] = {}
        for index, name in enumerate(self.stage.turns(self.step)):
            _collect(found, {f"{name}/{key}": value for key, value in self._turn(index, name).items()})
            bar.advance(0, **_live(_means(found)))  # over all turns of a player
        metrics = _means(_together(self.crew.gather(found)))
        self.step += 1
        last = self.step == self.config.steps
        if _due(self.step, self.config.evaluate_every) or last:
            metrics |= {f"eval/{key}": value for key, value in self._evaluate().items()}
        reason = self.stage.stop_reason()
        self.finished = reason is not None
        ended = last or self.finished
        bar.advance(1, **_live(metrics))
        if reason is not None:
            bar.print(f"{self.stage.name} stops at step {self.step}: {reason}")
        logged = _due(self.step, self.config.log_every) or ended or any(k.startswith("eval/") for k in metrics)
        if log is not None and logged:
            log.write(self.step, metrics)
        if _due(self.step, self.config.save_every) or ended or self.checkpoints.is_best(self.step):
            self.save()

    def _tell_speed(self, log: MetricsLog | None, bar: Progress, begun: bool) -> None:
        """Log how fast it goes where metrics are logged, and after the first step; what it holds, less often."""
        self.speed.stepped()
        last = self.finished or self.step == self.config.steps
        holds = begun or last or _due(self.step, self.config.evaluate_every)
        if not (holds or _due(self.step, self.config.log_every)):
            return
        row = self.speed.row(with_memory=holds)
        bar.advance(0, **shown(row))
        if log is not None:
            log.write(self.step, row)

    def _turn(self, index: int, name: str) -> dict[str, float]:
        """One player's update over this process's part of ``accumulate`` micro-batches; their metrics are averaged."""
        everyones = [self.sampler.next(self.config.batch) for _ in range(self.config.accumulate)]
        drawn = [everyones[p.micro][p.first : p.first + p.size] for p in self.pieces]
        found: dict[str, list[float]] = {}
        trouble: str | None = None
        for piece, indices in zip(self.pieces, drawn, strict=True):
            stream = generator_for(self.seed, self.stage.name, TURNS, self.step, index, piece.micro)
            noise = Draws(stream, self.config.batch, piece.first)
            self._note("data", name)
            with timed(DATA):
                batch = self.stage.dataset.read(indices)
            self._note("loss", name)
            with self.speed.micro_batch(name, batch, piece.size):
                loss = self.stage.loss(Turn(name, self.step), batch, noise)
                if trouble is None and not torch.isfinite(loss.value):
                    trouble = self._diverged(name, [indices], f"loss is {float(loss.value.detach())}")
                with timed(BACKWARD):
                    (loss.value / len(self.pieces)).backward()
            _collect(found, {"loss": float(loss.value.detach()), **loss.metrics})
        self._note("update", name)
        self.crew.refuse(self.crew.gather(trouble))
        try:
            self.speed.before_update(name)
            with timed(UPDATE):
                norms = self.stage.players[name].step(self.step / self.config.steps)
        except FloatingPointError as error:  # the norm is that of all processes' gradients: each of them is here
            self.crew.refuse(self.crew.gather(self._diverged(name, drawn, str(error))))
            raise
        return _means(found) | norms

    def _note(self, doing: Doing, player: str = "") -> None:
        """Say where this process is, to those who wait for it."""
        self.crew.where.note(doing, self.stage.name, self.step, player)

    def _evaluate(self) -> dict[str, float]:
        self._note("evaluate")
        with ExitStack() as stack:
            stack.enter_context(timed(EVALUATION))
            stack.enter_context(torch.no_grad())
            for player in self.stage.players.values():
                stack.enter_context(player.averaged())
            measured = self.stage.evaluate(self.step, self.folder / "samples")
        self.checkpoints.consider(self.step, self.stage.merit(measured), measured)
        return measured

    def _diverged(self, name: str, drawn: Sequence[Sequence[int]], what: str) -> str:
        """Save the micro-batches that broke the run; returns what to say. The last checkpoint is still good."""
        who = f"-rank-{self.crew.rank}" if self.crew.ranks > 1 else ""
        path = self.folder / f"diverged-step-{self.step:08d}{who}.pt"
        try:
            write_tensors(path, [_plain(self.stage.dataset.read(indices)) for indices in drawn])
            where = f"the batch is in {path}"
        except OSError as error:
            where = f"the batch could not be saved ({error.strerror or error})"
        return (
            f"{self.stage.name} diverged at step {self.step} ({name}: {what}); {where}; "
            "lower the learning rate and --resume from the last checkpoint"
        )


def has_run(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint, readable or not."""
    return bool(complete(folder / CHECKPOINTS))


def refuse_run(folder: Path) -> None:
    """Raise UserError when ``folder`` holds a run: to begin another one there would delete it."""
    if kept := complete(folder / CHECKPOINTS):
        raise UserError(f"{folder} holds a run at step {step_of(kept[-1])}; add --resume, or choose another folder")


def _plain(batch: Any) -> Any:
    """A batch without our own types, so that ``torch.load`` reads it with weights_only."""
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        return batch._asdict()
    return dict(vars(batch)) if is_dataclass(batch) else batch


def _together(found: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Every process's values, under their keys."""
    all_found: dict[str, list[float]] = {}
    for one in found:
        for key, values in one.items():
            all_found.setdefault(key, []).extend(values)
    return all_found


def _collect(found: dict[str, list[float]], values: Mapping[str, float]) -> None:
    """Add to each key's list; not every micro-batch has every key."""
    for key, value in values.items():
        found.setdefault(key, []).append(value)


def _means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {key: sum(values) / len(values) for key, values in found.items()}


def _live(metrics: Mapping[str, float]) -> dict[str, float]:
    """The few numbers that fit beside a bar."""
    return {key: value for key, value in metrics.items() if key.rpartition("/")[2] in LIVE}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _stop_signals(says: bool) -> Iterator[list[int]]:
    """A list that becomes non-empty on Ctrl-C, SIGTERM or SIGUSR1, so that the loop can finish its step and save.

    A second Ctrl-C stops at once: a step of a large model is long, and the last checkpoint stands.
    """
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise Interrupted("stopped at once; --resume goes on from the last checkpoint")
        if not seen and says:
            again = " (again to stop at once)" if number == signal.SIGINT else ""
            print(f"aad1: finishing this step, then saving{again}", file=sys.stderr, flush=True)
        seen.append(number)

    heard = (signal.SIGINT, *PREEMPTION) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.signal(s, note) for s in heard}  # only a program's main thread may listen
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
