"""The command that runs the paper's experiments on the embedded world."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from aad1.cli.options import at_least, command_line, say
from aad1.errors import UserError, nearest
from aad1.evaluation.publishing import publish
from aad1.evaluation.report import versions
from aad1.recipe import RECIPES
from aad1.reproduction.experiments import EXPERIMENTS, Experiment
from aad1.reproduction.running import Grid
from aad1.reproduction.summary import summarise
from aad1.reproduction.writing import Lines, as_report, read_document, write_results

NAMES = [experiment.name for experiment in EXPERIMENTS]
USUAL = [experiment.name for experiment in EXPERIMENTS if not experiment.named_only]
MORE = [name for name in NAMES if name not in USUAL]


@dataclass(frozen=True)
class Reproduce:
    """Run the paper's experiments on the embedded world, and write their tables.

    Every condition is a recipe (aad1/recipes/ablations), trained from one teacher with several seeds and measured on
    the same clips. A stage is trained once for all conditions that agree on it. All of it takes hours on two cores and
    goes on where it was interrupted; results that are there already, of the same recipes, are not made again. Values
    of the recipes, such as --data.clips 64, hold for all conditions.

    For example:
      aad1 reproduce --experiments critic --seeds 0
      aad1 reproduce --results docs/evidence --write docs/results.md
    """

    experiments: Annotated[
        tuple[str, ...], arg(help=f"of {', '.join(NAMES)} (default: all but {' and '.join(MORE)})")
    ] = ()
    seeds: Annotated[tuple[int, ...], arg(help="of the trainings; the clips and the teacher stay the same")] = (0, 1, 2)
    workers: Annotated[int | None, arg(help="processes of one thread each (default: one a core)")] = None
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the trained stages and the page")] = Path("runs/evidence")
    results: Annotated[Path | None, arg(help="folder for the measured results (default: results in -o)")] = None
    write: Annotated[Path | None, arg(help="Markdown file whose marked tables are rewritten")] = None
    clips: Annotated[int | None, arg(help="fewer test clips than 100 and 32, to try it out")] = None
    measured_only: Annotated[bool, arg(help="train nothing: tables of the results that are there")] = False

    def run(self, extra: Sequence[str]) -> None:
        """Train and measure what is missing; write tables and page."""
        experiments = _named(self.experiments)
        at_least(1, clips=self.clips)
        if self.write is not None:
            read_document(self.write, experiments)  # what is wrong with it shows before hours of work
        grid = Grid(self.out, self.results or self.out / "results", self.seeds, self._workers(), extra, self.clips)
        failed = [] if self.measured_only else grid.run(experiments)
        undone = {experiment.name: grid.undone([experiment]) for experiment in experiments}
        missing = [*failed, *dict.fromkeys(grid.lacks(task) for tasks in undone.values() for task in tasks)]
        found = {experiment.name: _lines(grid, experiment) for experiment in experiments}
        command = command_line()
        page = publish(as_report(experiments, found, missing, command), self.out)
        if self.write is not None:
            lacking = {name: [task.name for task in tasks] for name, tasks in undone.items()}
            write_results(self.write, experiments, found, lacking, _made(command))
            say(f"wrote the tables of {', '.join(e.name for e in experiments)} into {self.write}")
        for line in missing:
            say(f"missing: {line}")
        say(f"open {page.resolve()} in a browser")
        if failed:
            raise UserError(f"{len(failed)} steps failed, named above; mend them and run the same command again")

    def _workers(self) -> int:
        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        if workers < 1 or not self.seeds:
            raise UserError(f"{workers} workers and {len(self.seeds)} seeds; use at least one of each")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))} names one twice; a seed counts once")
        return workers


def _named(names: Sequence[str]) -> list[Experiment]:
    for name in names:
        if name not in NAMES:
            raise UserError(f"there is no experiment '{name}'{nearest(name, NAMES)}")
    return [experiment for experiment in EXPERIMENTS if experiment.name in (names or USUAL)]


def _lines(grid: Grid, experiment: Experiment) -> Lines:
    pieces = grid.pieces(experiment)
    return {protocol: summarise(experiment, protocol, pieces) for protocol in experiment.measures}


def _made(command: str) -> str:
    """When, with what and from which state of the code, where that is known."""
    folder = RECIPES.parent
    git = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    commit = f", commit {git.stdout.strip()}" if git.returncode == 0 else ""
    return f"Written by `{command}` on {datetime.date.today().isoformat()}{commit}, torch {versions()['torch']}."
