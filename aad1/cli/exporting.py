"""The command that gives a student away: export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from aad1.cli.options import StudentName, dtype_of, refuse, say
from aad1.errors import UserError
from aad1.exporting.source import open_source
from aad1.exporting.trained import which_of, write_trained
from aad1.exporting.writing import FORMATS, export, writer_of
from aad1.files import write_errors
from aad1.recipe import load_recipe
from aad1.record import RECIPE
from aad1.streaming import STUDENT


@dataclass(frozen=True)
class Export:
    """Write a student as a folder that others load, with model card, licence, example and evaluation table.

    `diffusers` loads with DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True), streams without aad1
    installed, and makes the frames of `aad1 generate`; `aad1 generate --model OUT` takes it too. Weights are copied
    file by file. The folder is written whole or not at all.

    For example:
      aad1 export --model tiny -o published/
      aad1 export --model my_wan --dtype bfloat16 --report runs/x/evaluation/report.json -o published/
      aad1 export runs/x/adversarial --checkpoint best -o published/
    """

    trained: Annotated[
        Positional[Path | None],
        arg(metavar="RUN", help="a stage's run, to give away the student in one of its checkpoints"),
    ] = None
    checkpoint: Annotated[str | None, arg(help="of RUN: last, best (its evaluation's) or a step (default: last)")] = (
        None
    )
    out: Annotated[Path | None, arg(aliases=["-o"], help="a new folder (required)")] = None
    model: Annotated[
        str | None,
        arg(help="a Wan folder, the name of a bundled one, or OWNER/NAME on the hub (default: tiny, or RUN's own)"),
    ] = None
    student: StudentName = STUDENT
    format: Annotated[str, arg(help=f"one of {', '.join(FORMATS)}")] = "diffusers"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        arg(help="of the weights of transformer and text encoder (default: as they are)"),
    ] = None
    report: Annotated[Path | None, arg(help="a report of `aad1 evaluate`, for the table in the card")] = None
    base_model: Annotated[str | None, arg(help="hub id of the model it was distilled from, for the card")] = None
    overwrite: Annotated[bool, arg(help="replace an export that is there")] = False

    def run(self, extra: Sequence[str]) -> None:
        """Check everything first, then write."""
        refuse(extra, type(self))
        writer_of(self.format)
        if self.out is None:
            raise UserError("export needs -o, a new folder to write")
        with self._student() as (model, student):
            source = open_source(model, student, dtype=dtype_of(self.dtype), report=self.report, base=self.base_model)
            out = export(source, self.format, self.out, overwrite=self.overwrite)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        say(f"wrote {out}: {size / 1e6:,.1f} MB; {out / 'README.md'} says how to load it")

    @contextmanager
    def _student(self) -> Iterator[tuple[str, str]]:
        """The Wan folder and the student that are meant; one out of a checkpoint lies beside -o as long as it takes."""
        if self.trained is None:
            if self.checkpoint is not None:
                raise UserError("--checkpoint is of a run: name its folder, as in aad1 export runs/x/adversarial")
            yield self.model or "tiny", self.student
            return
        if self.student != STUDENT:
            raise UserError("a run and --student are two students; give one of them")
        assert self.out is not None
        with write_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            place = TemporaryDirectory(prefix=".student-", dir=self.out.parent)
        with place as beside:
            which = which_of(self.checkpoint or "last")
            student = write_trained(self.trained, which, Path(beside) / STUDENT, model=self.model)
            yield self.model or load_recipe(str(self.trained / RECIPE)).model, str(student)
