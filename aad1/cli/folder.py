"""Measure any videos, or what a student makes of a folder of pictures, without a truth: evaluate folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from aad1.cli.evaluating import Shown, finish
from aad1.cli.options import (
    FINISHED,
    Device,
    DType,
    StudentName,
    at_least,
    command_line,
    dtype_of,
    keeping,
    named_folders,
    refuse,
    row_name,
)
from aad1.errors import UserError
from aad1.evaluation.folder import FolderEvaluation, Videos, find_videos
from aad1.evaluation.pictures import SUFFIX, make_videos, whole_chunks
from aad1.evaluation.publishing import SHOWN
from aad1.measures.appearance import GRID_PERIOD
from aad1.streaming import STUDENT, check_passes, load_student
from aad1.streaming.batch import Batch, Item, weights_hash

TITLE = "Videos, without a truth"


@dataclass(frozen=True)
class EvaluateFolder:
    """Measure any videos without a truth: is there motion, does it die, do colours, sharpness and content hold?

    Each folder of videos is a row, named as the folder is or as you say (NAME=FOLDER). With --model and --images a
    student animates pictures first (each with its prompt in a .txt file beside it, or a .jsonl or .csv list as
    `aad1 generate --batch` reads it), into OUT/videos, without loss; the same command again makes and measures only
    what is missing. Clips that stand still have no drift, flicker or similarity, and clips of unequal length, size or
    rate are not averaged together. Writes report.json, report.md and index.html. These are not VBench numbers.

    For example:
      aad1 evaluate folder mine/ theirs=others/videos -o runs/comparison
      aad1 evaluate folder --model tiny --images pictures/ --seconds 20 -o runs/tiny-pictures
    """

    videos: Positional[Annotated[tuple[str, ...], arg(metavar="[NAME=]FOLDER ...")]] = ()
    model: Annotated[str | None, arg(help="a Wan folder, or the name of a bundled one, whose student makes videos")] = (
        None
    )
    student: StudentName = STUDENT
    images: Annotated[Path | None, arg(help="what the student animates: a folder of pictures, or a list")] = None
    prompt: Annotated[str | None, arg(help="for pictures that have none of their own")] = None
    seconds: Annotated[float, arg(help="length of what the student makes, to the nearest whole chunk")] = 5.0
    fps: Annotated[float, arg(help="its frames a second")] = 16.0
    seed: Annotated[int, arg(help="of its noise")] = 0
    size: Annotated[tuple[int, int] | None, arg(help="its height and width (default: as the student was trained)")] = (
        None
    )
    passes: Annotated[tuple[float, ...] | None, arg(help="noise levels of a chunk's passes (default: its own)")] = None
    name: Annotated[str | None, arg(help="of the student's row (default: the model's name)")] = None
    chunk_frames: Annotated[
        int | None,
        arg(
            help="frames a chunk in the folders' videos, after one first frame: for the seams (default: the student's)"
        ),
    ] = None
    grid_period: Annotated[
        int | None,
        arg(help=f"pixels a token in the folders' videos, for the grid (default: the student's, {GRID_PERIOD})"),
    ] = None
    device: Device = "auto"
    dtype: DType = None
    out: Annotated[Path, arg(aliases=["-o"], help="folder for the report, and for what the student makes")] = Path(
        "runs/folder"
    )
    shown: Shown = SHOWN

    def run(self, extra: Sequence[str]) -> None:
        """Make what is to be made, measure, write, and say where to look."""
        refuse(extra, type(self))
        at_least(0, shown=self.shown, seed=self.seed)
        self._refuse_contradictions()
        folders = [find_videos(name, folder) for name, folder in named_folders(self.videos)]
        with keeping(FINISHED):
            made = [self._made(self.model, self.images)] if self.model and self.images else []
            chunk = self.chunk_frames or (made[0].chunk_frames if made else None)
            period = self.grid_period or (made[0].period if made else GRID_PERIOD)
            models = [*(replace(videos, chunk_frames=chunk, period=period) for videos in folders), *made]
            report = FolderEvaluation(self.out).run(models, TITLE, command_line())
        finish(report, self.out, self.shown)

    def _refuse_contradictions(self) -> None:
        if not self.videos and self.model is None:
            raise UserError("nothing to evaluate; give folders of videos, or --model and --images")
        if (self.model is None) != (self.images is None):
            lacking = "--images" if self.images is None else "--model"
            raise UserError(f"a student needs both --model and --images to make videos; {lacking} is missing")
        if self.model is None and (self.prompt is not None or self.passes is not None or self.name is not None):
            raise UserError("--prompt, --passes and --name are for what a student makes; give --model and --images too")
        if self.chunk_frames is not None and self.chunk_frames < 2:
            raise UserError(f"--chunk_frames {self.chunk_frames}; use 2 or a larger whole number")
        if self.grid_period is not None and self.grid_period < 3:
            raise UserError(f"--grid_period {self.grid_period}; use 3 or a larger whole number")

    def _made(self, model: str, images: Path) -> Videos:
        name = row_name(self.name or Path(model).resolve().name, "--name")
        passes = self.passes if self.passes is None else check_passes(self.passes)
        student = load_student(model, student=self.student, device=self.device, dtype=dtype_of(self.dtype))
        hashed = weights_hash(model, self.student)
        batch = Batch(student, self.out / "videos" / name, SUFFIX, self.fps, 1, passes, None, hashed)
        seconds = whole_chunks(student, self.seconds, self.fps)
        return make_videos(name, batch, images, Item("", Path(), self.prompt or "", self.seed, seconds, self.size))
