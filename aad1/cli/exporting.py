"""The command that gives a student away: export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from aad1.cli.options import ModelName, StudentName, dtype_of, refuse, say
from aad1.errors import UserError
from aad1.exporting.source import open_source
from aad1.exporting.writing import FORMATS, export, writer_of
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
    """

    out: Annotated[Path | None, arg(aliases=["-o"], help="a new folder (required)")] = None
    model: ModelName = "tiny"
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
        source = open_source(
            self.model, self.student, dtype=dtype_of(self.dtype), report=self.report, base=self.base_model
        )
        out = export(source, self.format, self.out, overwrite=self.overwrite)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        say(f"wrote {out}: {size / 1e6:,.1f} MB; {out / 'README.md'} says how to load it")
