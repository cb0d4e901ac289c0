"""The command that says what a recipe needs before anyone rents a machine for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from aad1.cli.options import RECIPE_HELP, recipe_of
from aad1.files import write_atomic
from aad1.planning import (
    CAPTIONS,
    GB,
    Costs,
    Memory,
    Plan,
    Remedy,
    Scenario,
    Section,
    configs_of,
    machine_of,
    make_plan,
    parts_of,
    remedies,
)
from aad1.progress import Progress
from aad1.training.gpus import GPUS

DOES_NOT_FIT = 3  # exit code
WIDEST = 100  # columns of the tables: a narrower terminal wraps lines rather than lose digits
ROLES = [field.name for field in fields(Memory)]
MB, TERA = 1e6, 1e12
PLAIN: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
HOUR, DAY = 3600, 86400


@dataclass(frozen=True)
class PlanCommand:
    """Say what a recipe needs, before anyone rents a machine: memory of a GPU, time and disk of every step.

    It needs neither the model's weights nor a GPU: the stages themselves run on tensors without contents, and what they
    keep and compute is counted. Spreading over GPUs is arithmetic on top. The recipe's section `compute` says which
    ranks share what, in which precision and what is computed twice; any of its values can be given, as in training.

    Exit codes: 0 it fits; 3 it does not, and the last lines say what to change; 2 a mistake in what was given.

    For example:
      aad1 plan tiny
      aad1 plan wan2.1-14b --gpus 64 --gpu h20
      aad1 plan wan2.1-1.3b --gpus 2 --compute.precision bfloat16 --compute.checkpointing [generator,critic]
      aad1 plan wan2.1-1.3b --gpus 8 --gpu h200 --model my_wan_folder --json plan.json
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help=RECIPE_HELP)]
    gpus: Annotated[int | None, arg(help="how many GPUs (default: as few as the recipe's compute allows)")] = None
    gpu: Annotated[str, arg(help=f"kind of GPU: {', '.join(GPUS)}")] = "h100"
    gpu_memory: Annotated[float | None, arg(help="GB of a GPU, instead of that kind's")] = None
    flops: Annotated[float | None, arg(help="operations a second of a GPU, instead of that kind's (989e12)")] = None
    efficiency: Annotated[float, arg(help="share of that rate that is reached")] = 0.4
    json: Annotated[Path | None, arg(help="also write the plan to this file, for programs")] = None

    def run(self, extra: Sequence[str]) -> int:
        """Plan, print, and give the exit code."""
        recipe = recipe_of(self.recipe, extra, type(self))
        machine = machine_of(self.gpu, self.gpus, recipe.compute, self.gpu_memory, self.flops, self.efficiency)
        configs = configs_of(recipe.model)
        scenario = Scenario(recipe, configs, machine)
        plan, cures = planned(scenario)
        if self.json is not None:
            more = {"remedies": [{"options": c.words, "fits": c.plan.fits} for c in cures]}
            write_atomic(self.json, json.dumps(plan.as_dict() | more, indent=1).encode())
        show(plan, cures, Console(width=max(WIDEST, Console().width)))
        return 0 if plan.fits else DOES_NOT_FIT


def planned(scenario: Scenario) -> tuple[Plan, list[Remedy]]:
    """The plan of a scenario and what would help it, while a bar shows how far that is."""
    with Progress("planning", parts_of(scenario), every=1, unit="part") as bar:
        costs = Costs(lambda: bar.advance(1))
        plan = make_plan(scenario, costs)
    if plan.fits:
        return plan, []
    with Progress("looking for what would help", None, every=1, unit="part") as search:
        costs.done = lambda: search.advance(1)
        return plan, list(remedies(plan, costs))


def show(plan: Plan, cures: Sequence[Remedy], console: Console) -> None:
    """Print a plan: what it is of, memory, time, disk, and the verdict."""
    for line in (*_head(plan), ""):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for table in (_memory(plan), _time(plan)):
        console.print(table)
    for line in _verdict(plan, cures):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _head(plan: Plan) -> Iterator[str]:
    scenario, machine = plan.scenario, plan.scenario.machine
    yield f"model: {scenario.configs.source}"
    parameters = {name: both for section in plan.stages for name, both in section.parameters.items()}
    parameters["text encoder"] = next(s.parameters[s.name] for s in plan.jobs if s.name == CAPTIONS)
    yield "parameters: " + ", ".join(f"{name} {_millions(*both)}" for name, both in parameters.items())
    groups = f", {machine.groups} clips at a time by {machine.context_parallel} GPUs each" if machine.gpus > 1 else ""
    rate = machine.rates[scenario.precision] / TERA
    yield (
        f"machine: {machine.gpus} x {machine.memory / GB:g} GB{groups}; {rate:g} TFLOP/s in {scenario.precision} at "
        f"{machine.efficiency:.0%}; checkpointed: {', '.join(scenario.checkpointing) or 'nothing'}"
    )
    if machine.gpus > 1:
        yield (
            "several GPUs are arithmetic: weights, gradients, optimizer, averages divided by "
            f"{'all' if machine.replicate == 1 else machine.shards}, activations and context by those that share a clip"
        )


def _millions(every: int, learning: int) -> str:
    return f"{every / 1e6:,.0f} M" + (f" ({learning / 1e6:,.0f} M learn)" if 0 < learning < every else "")


def _memory(plan: Plan) -> Table:
    """One column a section, one row a role."""
    unit, word = _unit(plan)
    table = Table(title=f"{word} of one GPU at each section's peak", **PLAIN)
    table.add_column("", no_wrap=True)
    peaks = [section.peak for section in plan.sections]
    for section in plan.sections:
        table.add_column(section.name, justify="right", no_wrap=True)
    names = ("" if work.name == s.name else work.name for s, work in zip(plan.sections, peaks, strict=True))
    table.add_row("when", *names)
    for role in ROLES:
        sizes = [float(asdict(work.memory)[role]) for work in peaks]
        if any(sizes):
            table.add_row(role, *(_number(size / unit) for size in sizes))
    table.add_row("in all", *(_total(plan, section, unit) for section in plan.sections), style="bold")
    others = {section.name: _number(section.peak.memory.total / unit) for section in plan.others}
    opposite = "all kept" if plan.scenario.checkpointing else "checkpointed"
    table.add_row(opposite, *(others.get(section.name, "") for section in plan.sections))
    return table


def _unit(plan: Plan) -> tuple[float, str]:
    return (GB, "GB") if plan.worst.peak.memory.total >= 10 * GB else (MB, "MB")


def _total(plan: Plan, section: Section, unit: float) -> Text:
    size = section.peak.memory.total
    return Text(_number(size / unit), style="red" if size > plan.scenario.machine.memory else "")


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _time(plan: Plan) -> Table:
    """One row a kind of work; operations are of one go on all GPUs together."""
    table = Table(title="Operations, time and disk", **PLAIN)
    for name in ("", "", "times", "TFLOP forth", "back", "time", "disk"):
        table.add_column(name, justify="right" if name else "left")
    for section in plan.sections:
        for index, work in enumerate(work for work in section.works if work.forward):  # an update has none to speak of
            name, disk = (section.name, _bytes(section.disk)) if index == 0 else ("", "")
            what = "" if work.name == section.name else work.name
            sizes = (_operations(x) for x in (work.forward, work.backward))
            table.add_row(name, what, f"{work.times:,.0f}", *sizes, _duration(work.seconds), disk)
    table.add_row("in all", "", "", "", "", _duration(plan.seconds), _bytes(plan.disk), style="bold")
    return table


def _operations(count: float) -> str:
    return (f"{count / TERA:,.3g}" if count < 1000 * TERA else f"{count / TERA:,.0f}") if count else ""


def _bytes(size: float) -> str:
    return f"{_number(size / GB)} GB" if size >= GB else f"{_number(size / MB)} MB"


def _duration(seconds: float) -> str:
    for unit, name in ((DAY, "d"), (HOUR, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.1f} s"


def _verdict(plan: Plan, cures: Sequence[Remedy]) -> Iterator[str]:
    memory, worst = plan.scenario.machine.memory, plan.worst
    needs = f"{_bytes(worst.peak.memory.total)} a GPU of {memory / GB:g} ({worst.name}: {worst.peak.name})"
    gpu_days = plan.seconds * plan.scenario.machine.gpus / DAY
    if plan.fits:
        yield f"fits: needs {needs}; {_duration(plan.seconds)} in all, {gpu_days:,.1f} GPU-days"
        return
    yield f"does not fit: needs {needs}; what would help, one after the other:"
    for cure in cures:
        now = cure.plan.worst
        state = "fits" if cure.plan.fits else "does not fit yet"
        peak = _bytes(now.peak.memory.total)
        yield f"  {cure.words}: {peak} ({now.name}: {now.peak.name}), {_duration(cure.plan.seconds)}; {state}"
    if not cures or not cures[-1].plan.fits:
        smaller = "" if plan.scenario.recipe.lora else ", adapters (a recipe with `lora`)"
        yield f"  and then: GPUs with more memory, fewer frames or a smaller --data.size{smaller}"
