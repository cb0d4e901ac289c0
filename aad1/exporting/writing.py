"""Writing an export: whole or not at all, never over something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import distributions, version
from pathlib import Path

from safetensors import SafetensorError

from aad1.errors import UserError, nearest
from aad1.exporting.diffusers_folder import write_diffusers
from aad1.exporting.engines import write_fastvideo, write_self_forcing, write_sglang
from aad1.exporting.source import ExportSource
from aad1.files import write_errors
from aad1.models.checkpoint_io import whole_folder, write_json
from aad1.progress import Progress

FORMATS: dict[str, Callable[[ExportSource, Path], None]] = {
    "diffusers": write_diffusers,
    "sglang": write_sglang,
    "fastvideo": write_fastvideo,
    "self-forcing": write_self_forcing,
}
MARK = "export.json"  # tells an export, which may be replaced, from anything else
MIB = 2**20


def export(source: ExportSource, format: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write ``source`` as folder ``out`` in one of ``FORMATS``, with licence, and a mark that says who wrote it.

    Raises:
        UserError: for an unknown format, a place that is taken (unless ``overwrite`` and an export is there) or lies
            within the source, a disk that is or becomes full. ``out`` is as it was then.
    """
    write = writer_of(format)
    _refuse_place(source, out, overwrite)
    _refuse_full_disk(source, out)
    with Progress("exporting", source.bytes // MIB, unit="MiB") as bar, _errors(out), whole_folder(out) as fresh:
        write(replace(source, advance=_in_mebibytes(bar)), fresh)
        (fresh / "LICENSE").write_text(_licence(), encoding="utf-8")
        write_json(fresh / MARK, {"format": format, "aad1": version("aad1")})
    return out


def _licence() -> str:
    """As the package was installed with it; a checkout on the path has it beside the package."""
    installed = (found.read_text("licenses/LICENSE") for found in distributions(name="aad1"))
    return next(filter(None, installed), None) or (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")


def writer_of(format: str) -> Callable[[ExportSource, Path], None]:
    """What writes a format; UserError for an unknown one, with those there are."""
    if format not in FORMATS:
        raise UserError(f"there is no export format '{format}'{nearest(format, FORMATS)}")
    return FORMATS[format]


def _refuse_place(source: ExportSource, out: Path, overwrite: bool) -> None:
    here = out.resolve()
    for given in filter(None, (source.folder.path, source.student, source.report)):
        there = given.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise UserError(f"-o {out}: it would lie within {given} or around it; name a folder beside it")
    if out.exists() and not out.is_dir():
        raise UserError(f"-o {out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"-o {out} holds something that is no export (it has no {MARK}); name a new folder")
        if not overwrite:
            raise UserError(f"-o {out} is there already; name a new folder, or replace it with --overwrite")


def _refuse_full_disk(source: ExportSource, out: Path) -> None:
    growth = source.dtype.itemsize / source.stored_dtype.itemsize if source.dtype else 1
    needed, place = round(source.bytes * max(1, growth)), out.resolve()
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < needed:
        raise UserError(
            f"-o {out} needs {needed / MIB:,.0f} MiB and the disk has {free / MIB:,.0f} left; "
            "free some space or name a folder on another disk"
        )


@contextmanager
def _errors(out: Path) -> Iterator[None]:
    """As ``write_errors``, also for safetensors, which hides the system's error in one of its own."""
    try:
        with write_errors(out):
            yield
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot write {out}: {reason}; mend that and run the same command again") from error


def _in_mebibytes(bar: Progress) -> Callable[[int], None]:
    """Moves the bar by the whole MiB among the bytes it is told of."""
    copied = 0

    def advance(count: int) -> None:
        nonlocal copied
        before, copied = copied // MIB, copied + count
        bar.advance(copied // MIB - before)

    return advance
