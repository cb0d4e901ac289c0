"""Commands that measure: evaluate world; those beside it have modules of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from aad1.cli.options import (
    Device,
    ModelName,
    RecipeName,
    at_least,
    command_line,
    keeping,
    named_folders,
    recipe_of,
    refuse,
    say,
)
from aad1.errors import UserError
from aad1.evaluation import sources
from aad1.evaluation.comparison import compare, one_table, read_reports
from aad1.evaluation.distribution import CLIPS
from aad1.evaluation.diversity import SEEDS
from aad1.evaluation.protocols import PROTOCOLS, USUAL, chosen
from aad1.evaluation.publishing import SHOWN, TABLE, publish
from aad1.evaluation.report import FILE, Report
from aad1.evaluation.sets import IMAGES, SetEvaluation
from aad1.evaluation.sources import Source
from aad1.evaluation.world_report import WorldEvaluation
from aad1.files import write_atomic
from aad1.models.checkpoint_io import WanFolder, open_folder
from aad1.models.vae import geometry
from aad1.recipe import Recipe
from aad1.runtime import pick_device
from aad1.streaming import STUDENT, student_folder
from aad1.workspace import DISTILLATION, Workspace, model_path

ROWS = (*sources.BESIDE, STUDENT)
ONE_TABLE = "comparison.md"
FEW = 5  # lines of what is missing that are printed; the report has them all

Shown = Annotated[int, arg(help="clips a protocol whose frames are put into the page itself, the worst first")]
Named = Annotated[tuple[str, ...], arg(metavar="NAME=FOLDER ...")]


@dataclass(frozen=True)
class EvaluateWorld:
    """Measure models on held-out clips of the embedded world: motion, physics, identity, appearance, drift, seams.

    Every model stands beside the truth, the truth through the VAE, a frozen first frame, constant velocity and the
    teacher, with 95 % bootstrap intervals over clips. Rows that were measured before on the same weights are used
    again: an interrupted evaluation goes on, and new rows join the old ones. Measured frames are kept without loss.
    Writes report.json, report.md and index.html. These are not VBench numbers.

    For example:
      aad1 evaluate world -o runs/evaluation
      aad1 evaluate world --runs runs/tiny --protocols short long slow fast count pairs -o runs/evaluation
      aad1 evaluate world --rows truth --videos saved=runs/evaluation/videos/student -o runs/again
    """

    model: ModelName = "tiny"
    rows: Annotated[
        tuple[str, ...] | None,
        arg(help=f"of {', '.join(ROWS)} (default: all, but {STUDENT} only when no other model is given)"),
    ] = None
    runs: Annotated[tuple[Path, ...], arg(help="folders of distillations: a row for each stage's student")] = ()
    students: Annotated[Named, arg(help="students, by the folder of their weights")] = ()
    videos: Annotated[Named, arg(help="videos made before, named like test-determined-00000.mkv")] = ()
    protocols: Annotated[tuple[str, ...], arg(help=f"of {', '.join(PROTOCOLS)}")] = USUAL
    distribution: Annotated[
        int | None,
        arg(help=f"also compare whole sets of so many clips, on features of a state encoder ({CLIPS} are wanted)"),
    ] = None
    diversity: Annotated[
        int | None,
        arg(help=f"also animate so many free images with {SEEDS} seeds each (such as {IMAGES})"),
    ] = None
    clips: Annotated[int | None, arg(help="so many clips a protocol, in place of 100")] = None
    recipe: Annotated[RecipeName, arg(help="whose showing.teacher says how the teacher is sampled")] = "tiny"
    seed: Annotated[int, arg(help="of the noise: clip i has that of seed + i")] = 0
    device: Device = "auto"
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the report and the frames")] = Path("runs/evaluation")
    shown: Shown = SHOWN

    def run(self, extra: Sequence[str]) -> None:
        """Measure, write, and say where to look."""
        at_least(0, shown=self.shown, seed=self.seed)
        at_least(1, diversity=self.diversity, distribution=self.distribution)
        recipe = recipe_of(self.recipe, extra, type(self))
        protocols = chosen(self.protocols, self.clips)
        folder = open_folder(model_path(self.model), device=str(pick_device(self.device)))
        rows = list(self._sources(folder, recipe))
        chunk = recipe.student.num_frames_per_block * geometry(folder.vae()).temporal
        command = command_line()
        with keeping("finished rows are kept, the one at work begins again"):
            report = WorldEvaluation(self.out, protocols, chunk).run(rows, "Evaluation on the embedded world", command)
        if self.distribution is not None:
            report = SetEvaluation(self.out, clips=self.distribution).with_distribution(report, rows)
        if self.diversity is not None:
            report = SetEvaluation(self.out, images=self.diversity).with_diversity(report, rows)
        finish(report, self.out, self.shown)

    def _sources(self, folder: WanFolder, recipe: Recipe) -> Iterator[Source]:
        others = bool(self.runs or self.students or self.videos)
        for name in self.rows if self.rows is not None else sources.BESIDE if others else ROWS:
            yield self._row(name, folder, recipe)
        for run in self.runs:
            yield from self._stages(run, folder)
        for name, place in named_folders(self.students):
            yield sources.student(name, folder, place, self.seed)
        for name, place in named_folders(self.videos):
            yield sources.videos(name, place)

    def _row(self, name: str, folder: WanFolder, recipe: Recipe) -> Source:
        if name == STUDENT:
            return sources.student(STUDENT, folder, student_folder(folder), self.seed)
        return sources.beside(name, folder, recipe, self.seed, ROWS)

    def _stages(self, run: Path, folder: WanFolder) -> Iterator[Source]:
        """The students of a run's stages; several runs are told apart by their folders' names."""
        prefix = f"{run.name} " if len(self.runs) > 1 else ""
        found = [stage for stage in DISTILLATION if Workspace(run).student(stage).is_dir()]
        if not found:
            raise UserError(f"{run} has no finished stage; give the folder of `aad1 distill -o FOLDER`")
        for stage in found:
            yield sources.student(prefix + stage, folder, Workspace(run).student(stage), self.seed)


def finish(report: Report, folder: Path, shown: int) -> None:
    """Write a report with its table and page, and say where they are and what is missing."""
    page = publish(report, folder, shown)
    for line in report.missing[:FEW]:
        say(f"missing: {line}")
    if len(report.missing) > FEW:
        say(f"missing: {len(report.missing) - FEW} more, listed in {folder / TABLE}")
    say(f"wrote {folder / FILE} and {TABLE}\nopen {page.resolve()} in a browser")


@dataclass(frozen=True)
class Compare:
    """Put two or more reports on one page and into one Markdown table.

    Rows of one name and the same numbers, such as controls, become one; what differs between the reports, such as
    clips, versions or definitions, is named.

    For example:
      aad1 compare runs/one runs/two -o runs/comparison
      aad1 compare before=runs/one after=runs/two
    """

    reports: Positional[tuple[str, ...]]
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the page and the table")] = Path("runs/comparison")
    shown: Shown = SHOWN

    def run(self, extra: Sequence[str]) -> None:
        """Read, compare, write, and say where to look."""
        refuse(extra, type(self))
        at_least(0, shown=self.shown)
        pairs = list(named_folders(self.reports))
        places = dict(pairs)
        if len(places) < len(pairs):
            raise UserError("two reports have the same name; tell them apart: aad1 compare NAME=FOLDER NAME=FOLDER")
        reports, lost = read_reports(places)
        report = compare(reports, places, self.out, lost)
        write_atomic(self.out / ONE_TABLE, one_table(report).encode())
        finish(report, self.out, self.shown)
        say(f"the one table is in {self.out / ONE_TABLE}")
