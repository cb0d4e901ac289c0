"""Commands of VBench-I2V: evaluate vbench export | doctor | run | score."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from aad1.cli.options import (
    FINISHED,
    Device,
    DType,
    Group,
    ModelName,
    StudentName,
    command_line,
    dtype_of,
    keeping,
    refuse,
    say,
)
from aad1.errors import UserError
from aad1.evaluation.publishing import publish
from aad1.evaluation.report import to_markdown
from aad1.evaluation.vbench import doctor, export, names, score
from aad1.evaluation.vbench.dimensions import DEFAULT_RATIO, REPORTED, chosen
from aad1.evaluation.vbench.environment import Environment, check_clone, probe
from aad1.evaluation.vbench.run import Mode, Outcome, Request, run
from aad1.files import write_errors
from aad1.streaming import STUDENT, load_student
from aad1.streaming.batch import Batch, Item, Mistakes, read_items, weights_hash

Clone = Annotated[Path | None, arg(help="your clone of VBench (git HEAD); without it, the package in --python is used")]
Python = Annotated[str, arg(help="the Python of the environment that VBench is installed in")]
Videos = Annotated[Path | None, arg(help="the flat folder of {prompt}-{0..4}.mp4 (required)")]
OwnImages = Annotated[Path | None, arg(help="pictures named as the prompts, for the i2v dimensions of --mode custom")]
Ratio = Annotated[str, arg(help="of the official pictures: 1-1, 8-5, 7-4 or 16-9")]
ModeName = Annotated[
    Mode, arg(help="standard: the official suite; custom: any videos, every dimension over all of them")
]
Dimensions = Annotated[tuple[str, ...], arg(help="which (default: the eight that AAD-1 reports)")]


@dataclass(frozen=True)
class VBenchExport:
    """Write videos as VBench-I2V wants them: OUT/videos/{prompt}-{0..4}.mp4 and nothing else, pictures in OUT/images.

    From a student and pictures (--images, --batch, or the official suite of --clone), or from videos that are there
    (--existing). --segments cuts existing long rollouts into pieces for AAD-1's drift. The same command again makes
    only what is missing or has changed.

    For example:
      aad1 evaluate vbench export --images pictures/ -o runs/vbench
      aad1 evaluate vbench export --clone VBench --model my_wan_folder --seconds 5 -o runs/vbench
      aad1 evaluate vbench export --existing runs/long/videos --segments 2 -o runs/segments
    """

    images: Annotated[Path | None, arg(help="pictures; the prompt is in a .txt of the same name, or is the name")] = (
        None
    )
    batch: Annotated[Path | None, arg(help="a .jsonl or .csv list with image and prompt")] = None
    clone: Annotated[Path | None, arg(help="a clone of VBench with its pictures: the official suite")] = None
    ratio: Ratio = DEFAULT_RATIO
    existing: Annotated[Path | None, arg(help="a folder of videos, or a list with video and prompt")] = None
    segments: Annotated[float | None, arg(help="cut --existing into pieces of so many seconds (AAD-1: 2)")] = None
    any_samples: Annotated[bool, arg(help="allow other than five samples; that is not VBench-I2V's protocol")] = False
    model: ModelName = "tiny"
    student: StudentName = STUDENT
    seeds: Annotated[tuple[int, ...], arg(help="of the samples 0 to 4 of every picture")] = export.SEEDS
    seconds: Annotated[float, arg(help="length of a video")] = 5.0
    fps: Annotated[float, arg(help="frames a second")] = 16.0
    scale: Annotated[int, arg(help="enlarge pixels by this factor")] = 1
    size: Annotated[tuple[int, int] | None, arg(help="height and width (default: the student's)")] = None
    passes: Annotated[tuple[float, ...] | None, arg(help="noise levels of a chunk's passes (default: its own)")] = None
    device: Device = "auto"
    dtype: DType = None
    out: Annotated[Path, arg(aliases=["-o"], help="the folder")] = Path("runs/vbench")

    def run(self, extra: Sequence[str]) -> None:
        """Check, make or link, and say what to do next."""
        refuse(extra, type(self))
        given = [n for n in ("images", "batch", "clone", "existing") if getattr(self, n) is not None]
        if len(given) != 1:
            raise UserError(f"export takes one of --images, --batch, --clone and --existing, not {len(given)} of them")
        if self.segments is not None and self.existing is None:
            raise UserError("--segments cuts videos that are there; give --existing")
        with keeping(FINISHED):
            made = self._existing(self.existing) if self.existing else self._generated()
        say(f"{made.videos}: {made.count} videos, {made.there} of them were there already")
        if made.failed:
            rest = f" (and {len(made.failed) - 1} more)" if len(made.failed) > 1 else ""
            raise UserError(f"{len(made.failed)} videos are missing: {made.failed[0]}{rest}")

    def _existing(self, source: Path) -> export.Export:
        videos = export.given_videos(source, self.any_samples)
        return export.adopt(videos, self.out) if self.segments is None else export.cut(videos, self.out, self.segments)

    def _generated(self) -> export.Export:
        wanted = export.samples(self._items(), self.seeds, self.any_samples)
        student = load_student(self.model, student=self.student, device=self.device, dtype=dtype_of(self.dtype))
        hashed = weights_hash(self.model, self.student)
        work = self.out / "made"
        batch = Batch(student, work, names.SUFFIX, self.fps, self.scale, self.passes, weights=hashed)
        return export.generate(batch, wanted, self.out)

    def _items(self) -> list[Item]:
        usual = Item("", Path(), "", 0, self.seconds, self.size)
        if self.images is not None:
            return export.folder_items(self.images, usual)
        if self.clone is not None:
            return export.official_items(self.clone, self.ratio, usual)
        assert self.batch is not None
        mistakes = Mistakes(self.batch)
        items = read_items(self.batch, usual, mistakes)
        mistakes.refuse()
        return items


@dataclass(frozen=True)
class VBenchDoctor:
    """Say what your VBench environment has and lacks, dimension by dimension, and what to do; measures nothing.

    Exit code 0 when every wanted dimension can run, 2 otherwise.

    For example:
      aad1 evaluate vbench doctor --clone VBench --python vbench-env/bin/python --videos runs/vbench/videos
    """

    clone: Clone = None
    python: Python = "python"
    videos: Annotated[Path | None, arg(help="also look at the names and shapes of these")] = None
    images: OwnImages = None
    ratio: Ratio = DEFAULT_RATIO
    mode: ModeName = "custom"
    dimensions: Dimensions = REPORTED
    online: Annotated[bool, arg(help="VBench may download weights, so that missing ones do not count")] = False

    def run(self, extra: Sequence[str]) -> None:
        """Ask, and print."""
        refuse(extra, type(self))
        wanted = chosen(self.dimensions)
        environment = _environment(self.python, self.clone, Path.cwd())
        videos = names.look(self.videos) if self.videos else None
        if Path(shutil.which(self.python) or self.python).parent == Path(sys.executable).parent:
            say("this is aad1's own environment: make one for VBench, whose packages are older, and give its --python")
        for line in doctor.describe(environment, videos):
            say(line)
        folder = videos or names.Folder(Path(), (), (), ())
        request = Request(folder, Path(), environment, self.images, self.ratio, self.mode)
        findings = doctor.examine(request, wanted, self.online)
        for line in doctor.table(findings):
            say(line)
        if lost := [finding.dimension for finding in findings if not finding.ready]:
            raise UserError(f"{len(lost)} of {len(findings)} dimensions cannot run: {', '.join(lost)}")
        if videos and videos.broken:
            raise UserError(f"{len(videos.broken)} videos cannot be read; make them again")


@dataclass(frozen=True)
class VBenchRun:
    """Measure videos with VBench's own code in your own environment, one dimension a process.

    What is finished is kept while it is whole and over the same videos; a dimension that fails is named with the last
    lines of its log, and the others go on.

    For example:
      aad1 evaluate vbench run --videos runs/vbench/videos --mode standard --clone VBench --python PY
      aad1 evaluate vbench run --videos runs/segments/videos --dimensions imaging_quality --clone VBench --python PY
    """

    videos: Videos = None
    clone: Clone = None
    python: Python = "python"
    images: OwnImages = None
    ratio: Ratio = DEFAULT_RATIO
    mode: ModeName = "custom"
    dimensions: Dimensions = REPORTED
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the results and logs")] = Path("runs/vbench/results")

    def run(self, extra: Sequence[str]) -> None:
        """Check, measure, and say what came out."""
        refuse(extra, type(self))
        wanted = chosen(self.dimensions)
        if self.videos is None:
            raise UserError("run needs --videos, the flat folder that `aad1 evaluate vbench export` writes")
        videos = names.look(self.videos)
        work = self.out / "raw"
        with write_errors(self.out):
            work.mkdir(parents=True, exist_ok=True)
        environment = _environment(self.python, self.clone, work.resolve())
        say(f"VBench: {environment.source}, Python {environment.python_version}, {environment.device}")
        for line in videos.problems:
            say(f"warning: {line}")
        request = Request(videos, self.out, environment, self.images, self.ratio, self.mode)
        with keeping("finished dimensions are kept"):
            outcomes = run(request, wanted)
        self._tell(outcomes)

    def _tell(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            value = "failed" if outcome.mean is None else f"{100 * outcome.mean:.2f}"
            say(f"{outcome.dimension:24}{value:>8}  {outcome.state if outcome.mean is not None else ''}".rstrip())
        failed = [outcome for outcome in outcomes if outcome.state == "failed"]
        if failed:
            rest = f" (and {len(failed) - 1} more, above)" if len(failed) > 1 else ""
            raise UserError(f"{failed[0].dimension} failed: {failed[0].reason}{rest}; the same command tries again")


@dataclass(frozen=True)
class VBenchScore:
    """Quality, I2V and Total from VBench's result files, dynamic degree beside them, and AAD-1's drift.

    A missing dimension makes its scores N/A, and is named; NaN, empty sets, values out of range and results over
    different videos are refused. Intervals are 95 % bootstraps over images. Several folders make several columns.

    For example:
      aad1 evaluate vbench score runs/vbench/results --segments runs/segments/results -o runs/vbench/report
    """

    results: Positional[Annotated[tuple[Path, ...], arg(help="folders of result files, one a model")]]
    names: Annotated[tuple[str, ...], arg(help="the models' names (default: their folders)")] = ()
    segments: Annotated[tuple[Path, ...], arg(help="folders of imaging quality of segments, for drift")] = ()
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the report")] = Path("runs/vbench/report")

    def run(self, extra: Sequence[str]) -> None:
        """Read, doubt, add up, write."""
        refuse(extra, type(self))
        command = command_line()
        made = {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        models = self._models()
        report = score.report(models, self.out, made)
        page = publish(report, self.out)
        say(to_markdown(report))
        say(f"open {page.resolve()} in a browser")
        rows = report.tables[0].rows
        if lost := [model.name for model in models if rows.get(model.name, {}).get("total") is None]:
            raise UserError(
                f"no Total for {', '.join(lost)}: a dimension is missing, as said above; the rest is written"
            )

    def _models(self) -> list[score.Model]:
        if not self.results:
            raise UserError("score needs folders of result files, which `aad1 evaluate vbench run` writes")
        labels = self.names or tuple(_label(folder) for folder in self.results)
        if len(labels) != len(self.results) or len(set(labels)) != len(labels):
            raise UserError(
                f"{len(self.results)} folders of results, names {list(labels)}; give each its own (--names)"
            )
        if self.segments and len(self.segments) != len(self.results):
            raise UserError(
                f"{len(self.results)} folders of results, {len(self.segments)} of --segments; give one each"
            )
        parts: tuple[Path | None, ...] = self.segments or (None,) * len(self.results)
        return [score.Model(*each) for each in zip(labels, self.results, parts, strict=True)]


@dataclass(frozen=True)
class VBench(Group):
    """VBench-I2V through its official code, in an environment of your own: export, doctor, run, score."""

    command: Annotated[
        Annotated[VBenchExport, subcommand("export", prefix_name=False)]
        | Annotated[VBenchDoctor, subcommand("doctor", prefix_name=False)]
        | Annotated[VBenchRun, subcommand("run", prefix_name=False)]
        | Annotated[VBenchScore, subcommand("score", prefix_name=False)],
        arg(name=""),
    ]


def _label(folder: Path) -> str:
    """A folder's name, or its parent's where it is only called results."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == "results" else whole.name


def _environment(python: str, clone: Path | None, otherwise: Path) -> Environment:
    """What VBench would run in: the clone, or ``otherwise`` where the installed package is used."""
    where = check_clone(clone) if clone else None
    return probe(python, where, where or otherwise)
