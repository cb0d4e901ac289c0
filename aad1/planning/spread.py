"""A stage's cost on one device, spread over the ranks of a machine: bytes of a rank, operations, seconds.

This is arithmetic, not measurement: weights, gradients, optimizer and averages are divided by the ranks that split
them, as fully sharded data parallelism does (a backbone that roles with adapters share is whole on each); activations
and context by the ranks that share a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from aad1.planning.costs import DECODING, KEPT, MAKING, Manner, Pass, Precision, StageCost
from aad1.planning.machine import Machine
from aad1.planning.preparing import JobCost
from aad1.training.loop import LoopConfig
from aad1.training.memory import AVERAGE, OPTIMIZER, WEIGHTS
from aad1.training.share import pieces

MASTER = 4  # bytes of a float32 gradient
AT_ONCE = 3  # blocks of a sharded network: one that computes, one that is fetched meanwhile, the gradients of one
UPDATING = "update"


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by what they are."""

    weights: float = 0
    gathered: float = 0
    gradients: float = 0
    optimizer: float = 0
    average: float = 0
    kept: float = 0
    activations: float = 0
    context: float = 0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Work:
    """One kind of work: the memory of a rank at its peak, operations of all ranks in one go, how many goes, seconds."""

    name: str
    memory: Memory
    forward: float
    backward: float
    times: float
    seconds: float


@dataclass(frozen=True)
class Section:
    """A stage, or a job of preparing; parameters: of each network, all and learning ones; disk: bytes."""

    name: str
    parameters: Mapping[str, tuple[int, int]]
    works: tuple[Work, ...]
    disk: float

    @property
    def peak(self) -> Work:
        """The work that needs most memory."""
        return max(self.works, key=lambda work: work.memory.total)

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return sum(work.seconds for work in self.works)


@dataclass(frozen=True)
class Share:
    """What one group of ranks does of a turn: ``batches`` micro-batches of ``samples``."""

    samples: int
    batches: int


def share_of(config: LoopConfig, machine: Machine) -> Share:
    """A group's part of a recipe's batch x accumulate samples; raises UserError where they cannot be dealt."""
    own = pieces(config.batch, config.accumulate, 0, machine.groups)
    return Share(own[0].size, len(own))


@dataclass(frozen=True)
class Spread:
    """How one stage is spread: its cost for one micro-batch and an evaluation, the machine, how its passes compute.

    clips: held-out clips that a group makes at an evaluation; adapters: frozen weights stay whole on every rank.
    """

    cost: StageCost
    evaluation: Mapping[str, Pass]
    config: LoopConfig
    machine: Machine
    manner: Manner
    clips: int
    adapters: bool = False

    def section(self, name: str) -> Section:
        """The stage's works."""
        return Section(name, self.cost.parameters, tuple(self._works()), self._disk())

    def _works(self) -> Iterator[Work]:
        share, machine = share_of(self.config, self.machine), self.machine
        for turn, found in self.cost.turns.items():
            goes = self.cost.rounds[turn]
            groups = share.batches * machine.groups
            yield self._work(turn, found, goes, groups, gradients=self._gradients(turn, found))
        evaluations = math.ceil(self.config.steps / (self.config.evaluate_every or self.config.steps))
        copies = self.cost.held(AVERAGE) / machine.shards  # of the weights that averages stand in for
        yield self._work(MAKING, self.evaluation[MAKING], evaluations, machine.groups, copies=copies)
        yield self._decoding(self.evaluation[DECODING], evaluations, copies)
        yield self._update()

    def _work(self, name: str, found: Pass, goes: int, groups: int, gradients: float = 0, copies: float = 0) -> Work:
        """A pass as ``groups`` groups do it at the same time or one after the other, ``goes`` times."""
        alike = self.machine.context_parallel
        memory = self._held(gradients, found.transient / alike, found.context / alike, copies)
        forward, backward = found.forward * groups, found.backward * groups
        seconds = goes * self.machine.seconds(forward + backward, self.manner.precision, self.machine.gpus)
        return Work(name, memory, forward, backward, goes, seconds)

    def _decoding(self, found: Pass, goes: int, copies: float) -> Work:
        """One rank decodes all clips, one after the other, while the others wait."""
        memory = self._held(0, found.transient, found.context, copies)
        forward = found.forward * self.clips * self.machine.groups
        return Work(DECODING, memory, forward, 0, goes, goes * self.machine.seconds(forward, "float32", 1))

    def _update(self) -> Work:
        """The moment when the optimizer steps: its operations are nothing beside the passes'."""
        ranks = self.machine.shards
        needs = {player: size / ranks + self._gradients(player) for player, size in self.cost.update.items()}
        player = max(needs, key=lambda name: needs[name])
        memory = self._held(self._gradients(player), self.cost.update[player] / ranks, 0, 0)
        return Work(UPDATING, memory, 0, 0, sum(self.cost.rounds.values()), 0)

    def _gradients(self, player: str, found: Pass | None = None) -> float:
        """All of a player's, or those that are there at the peak where they come with the backward."""
        if found is not None and not self.manner.accumulating:
            return found.gradients
        return self.cost.parameters[player][1] * MASTER / self.machine.shards

    def _held(self, gradients: float, activations: float, context: float, copies: float) -> Memory:
        held, ranks = self.cost.held, self.machine.shards
        gathering = self.machine.gpus > 1 or self.manner.precision != "float32"
        learning = sum(learns for _, learns in self.cost.parameters.values()) * MASTER
        frozen = held(WEIGHTS) - learning
        return Memory(
            weights=learning / ranks + frozen / (1 if self.adapters else ranks),
            gathered=AT_ONCE * self.cost.block + self.cost.outside if gathering else 0,
            gradients=gradients,
            optimizer=held(OPTIMIZER) / ranks,
            average=held(AVERAGE) / ranks + copies,
            kept=held(KEPT) / ranks,
            activations=activations,
            context=context,
        )

    def _disk(self) -> float:
        """Checkpoints: the last ones, the best, and the one that is being written."""
        learning = sum(learns for _, learns in self.cost.parameters.values()) * MASTER
        return (self.config.keep + 2) * (learning + sum(map(self.cost.held, (OPTIMIZER, AVERAGE, KEPT))))


def job_section(name: str, cost: JobCost, machine: Machine, precision: Precision) -> Section:
    """A job of preparing: every rank has the whole network and works on items of its own."""
    batches = cost.count / cost.batch
    seconds = machine.seconds(batches * cost.operations, precision, machine.gpus)
    memory = Memory(weights=cost.weights, activations=cost.transient)
    work = Work(name, memory, cost.operations, 0, batches, seconds)
    return Section(name, {name: (cost.parameters, 0)}, (work,), cost.stored)
