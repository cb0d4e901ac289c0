"""The plan of a recipe on a machine: memory of a rank, time and disk of every step of the way, and what would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from aad1.parallel.placement import ROLES, Role
from aad1.parallel.ulysses import check_context_parallel
from aad1.planning.bare import BareAssembly
from aad1.planning.costs import MAKING, NOWHERE, Manner, Pass, Precision, StageCost, evaluation_cost
from aad1.planning.depth import deep_stage_cost
from aad1.planning.machine import Machine
from aad1.planning.preparing import CAPTIONS, CLIPS, TRAJECTORIES, JobCost, preparing_costs
from aad1.planning.published import Configs
from aad1.planning.spread import Section, Spread, job_section, share_of
from aad1.recipe import Recipe
from aad1.training.share import can_share

MOST_GPUS = 1024  # no remedy is sought beyond
DEFAULT_HEADS, DEFAULT_PATCH = 40, (1, 2, 2)  # diffusers' own, for a config that does not say
Done = Callable[[], None]


@dataclass(frozen=True)
class Scenario:
    """What is planned: a recipe, its model's configs, a machine, and how stages compute on it."""

    recipe: Recipe
    configs: Configs
    machine: Machine

    @property
    def checkpointing(self) -> tuple[Role, ...]:
        """Roles whose blocks are computed again in the backward."""
        return self.recipe.compute.checkpointing

    @property
    def precision(self) -> Precision:
        """Of the passes."""
        return self.recipe.compute.precision

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The stages of the recipe's distillation."""
        return BareAssembly(self.recipe, NOWHERE, configs=self.configs).way

    @property
    def heads(self) -> int:
        """Attention heads of the transformer, which a context-parallel group divides."""
        return int(self.configs.transformer.get("num_attention_heads", DEFAULT_HEADS))

    @cached_property
    def tokens(self) -> int:
        """Tokens of a latent frame, which it divides too."""
        *_, height, width = BareAssembly(self.recipe, NOWHERE, configs=self.configs).latent_shape
        _, rows, columns = self.configs.transformer.get("patch_size", DEFAULT_PATCH)
        return (height // rows) * (width // columns)

    @property
    def clips(self) -> int:
        """Held-out clips that a group makes together at an evaluation."""
        shown = min(self.recipe.showing.clips, self.recipe.data.validation)
        return math.ceil(shown / self.machine.groups)

    def manner(self, stage: str) -> Manner:
        """How a stage computes here."""
        share = share_of(vars(self.recipe)[stage], self.machine)
        accumulating = share.batches > 1 or self.machine.gpus > 1 or self.precision != "float32"
        return Manner(share.samples, accumulating, self.checkpointing, self.precision)


@dataclass
class Costs:
    """Costs of one recipe's stages and jobs, each found once; ``done`` is called after each."""

    done: Done = lambda: None
    _found: dict[Any, Any] = field(default_factory=dict)

    def stage(self, scenario: Scenario, name: str) -> StageCost:
        """One micro-batch of a stage as the scenario computes it."""
        recipe, configs, manner = scenario.recipe, scenario.configs, scenario.manner(name)
        return self._once((name, manner), lambda: deep_stage_cost(recipe, configs, name, manner))

    def evaluation(self, scenario: Scenario) -> dict[str, Pass]:
        """A group's share of an evaluation."""
        recipe, configs, precision, clips = scenario.recipe, scenario.configs, scenario.precision, scenario.clips
        return self._once(("evaluation", precision, clips), lambda: evaluation_cost(recipe, configs, precision, clips))

    def jobs(self, scenario: Scenario) -> dict[str, JobCost]:
        """The jobs of preparing."""
        recipe = scenario.recipe
        key = (scenario.precision, recipe.data.batch, recipe.trajectories.batch)
        return self._once(key, lambda: preparing_costs(recipe, scenario.configs, scenario.precision))

    def _once(self, key: Any, find: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = find()
            self.done()
        return self._found[key]


@dataclass(frozen=True)
class Plan:
    """A scenario and its sections: jobs of preparing, then stages; others: with the other choice of checkpointing."""

    scenario: Scenario
    jobs: tuple[Section, ...]
    stages: tuple[Section, ...]
    others: tuple[Section, ...]

    @property
    def sections(self) -> tuple[Section, ...]:
        """Everything, in the order in which it is run."""
        return (*self.jobs, *self.stages)

    @property
    def worst(self) -> Section:
        """The section that needs most memory."""
        return max(self.sections, key=lambda section: section.peak.memory.total)

    @property
    def fits(self) -> bool:
        """Whether every rank can hold its part."""
        return self.worst.peak.memory.total <= self.scenario.machine.memory

    @property
    def seconds(self) -> float:
        """From the first clip to the student."""
        return sum(section.seconds for section in self.sections)

    @property
    def disk(self) -> float:
        """Bytes that stay or are there for a moment, of all sections."""
        return sum(section.disk for section in self.sections)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for programs; bytes, operations and seconds."""
        scenario, worst = self.scenario, self.worst
        return {
            "model": scenario.configs.source,
            "machine": asdict(scenario.machine),
            "checkpointing": scenario.checkpointing,
            "precision": scenario.precision,
            "fits": self.fits,
            "worst": {"section": worst.name, "work": worst.peak.name, "bytes": worst.peak.memory.total},
            "seconds": self.seconds,
            "disk": self.disk,
            "sections": [asdict(section) for section in self.sections],
            "with the other checkpointing": [asdict(section) for section in self.others],
        }


def parts_of(scenario: Scenario) -> int:
    """How many costs a plan asks for: of jobs, of an evaluation, of each stage with and without checkpointing."""
    return 2 + 2 * len(scenario.stages)


def make_plan(scenario: Scenario, costs: Costs) -> Plan:
    """Plan a scenario.

    Raises:
        UserError: when the model's heads do not divide over a context-parallel group, or recipe and configs do not fit.
    """
    check_context_parallel(scenario.heads, scenario.tokens, scenario.machine.context_parallel)
    jobs = costs.jobs(scenario)
    machine = scenario.machine
    precision: dict[str, Precision] = {TRAJECTORIES: scenario.precision}
    preparing = (job_section(name, job, machine, precision.get(name, "float32")) for name, job in jobs.items())
    other = _computing(scenario, checkpointing=() if scenario.checkpointing else ROLES)
    return Plan(scenario, tuple(preparing), _stages(scenario, costs), _stages(other, costs))


def _stages(scenario: Scenario, costs: Costs) -> tuple[Section, ...]:
    found = {name: costs.stage(scenario, name) for name in scenario.stages}
    return tuple(_spread(scenario, found, costs.evaluation(scenario)))


def _spread(scenario: Scenario, found: Mapping[str, StageCost], evaluation: Mapping[str, Pass]) -> Iterator[Section]:
    adapters = scenario.recipe.lora is not None
    for name, cost in found.items():
        config, manner = vars(scenario.recipe)[name], scenario.manner(name)
        yield Spread(cost, evaluation, config, scenario.machine, manner, scenario.clips, adapters).section(name)


@dataclass(frozen=True)
class Remedy:
    """Options that would be added, and the plan with them and with all remedies before."""

    words: str
    plan: Plan


def remedies(plan: Plan, costs: Costs) -> Iterator[Remedy]:
    """Change one thing after the other, the cheapest first, until everything fits or nothing is left to change."""
    while not plan.fits:
        found = next(_changes(plan, costs), None)
        if found is None:
            return
        words, scenario = found
        plan = make_plan(scenario, costs)
        yield Remedy(words, plan)


def _changes(plan: Plan, costs: Costs) -> Iterator[tuple[str, Scenario]]:
    """What would help the section that needs most, the cheapest first."""
    now, work = plan.scenario, plan.worst.peak.name
    if work == CLIPS and now.recipe.data.batch > 1:
        yield "--data.batch 1", _with(now, data=replace(now.recipe.data, batch=1))
    if work == TRAJECTORIES and now.recipe.trajectories.batch > 1:
        yield "--trajectories.batch 1", _with(now, trajectories=replace(now.recipe.trajectories, batch=1))
    if work == MAKING and now.clips > 1:
        shown = now.machine.groups
        yield f"--showing.clips {shown}", _with(now, showing=replace(now.recipe.showing, clips=shown))
    if plan.worst in plan.stages and work != MAKING and not now.checkpointing:
        yield f"--compute.checkpointing [{','.join(ROLES)}]", _computing(now, checkpointing=ROLES)
    if work != CAPTIONS and now.precision == "float32":
        yield "--compute.precision bfloat16", _computing(now, precision="bfloat16")
    if plan.worst in plan.stages:
        yield from _wider(now, costs)


def _with(scenario: Scenario, **sections: Any) -> Scenario:
    return replace(scenario, recipe=replace(scenario.recipe, **sections))


def _computing(scenario: Scenario, **values: Any) -> Scenario:
    return _with(scenario, compute=replace(scenario.recipe.compute, **values))


def _wider(now: Scenario, costs: Costs) -> Iterator[tuple[str, Scenario]]:
    """The fewest GPUs, and the fewest of them to a sample, with which the stages fit by arithmetic."""
    found, evaluation = {name: costs.stage(now, name) for name in now.stages}, costs.evaluation(now)
    gpus = now.machine.gpus
    while gpus <= MOST_GPUS:
        for parallel in range(1, min(gpus, now.heads) + 1):
            sections = (vars(now.recipe)[name] for name in now.stages)
            shared = all(can_share(s.batch, s.accumulate, gpus // parallel) for s in sections)
            if gpus % parallel or now.heads % parallel or now.tokens < parallel or not shared:
                continue
            machine = replace(now.machine, gpus=gpus, context_parallel=parallel, replicate=1)
            wider = replace(_computing(now, replicate=1, shard=0, context=parallel), machine=machine)
            peaks = (section.peak.memory.total for section in _spread(wider, found, evaluation))
            if wider.machine != now.machine and max(peaks) <= now.machine.memory:
                yield f"--gpus {gpus} --compute.context {parallel}", wider
        gpus *= 2
