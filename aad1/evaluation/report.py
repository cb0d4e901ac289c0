"""A report: what an evaluation found, in one JSON file that pages, tables and comparisons are made from.

The file says for itself what its measures mean, so that whoever shows it needs to know neither the world nor
VBench. A folder with a report holds ``report.json`` and, where frames were kept, videos that the report names
relative to itself.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import TypeAdapter, ValidationError

from aad1.errors import UserError
from aad1.evaluation.intervals import Interval
from aad1.files import write_atomic

FILE = "report.json"
FORMAT = 1
PACKAGES = ("aad1", "torch", "diffusers", "transformers", "numpy", "av", "opencv-python-headless")

Kind = Literal["world", "folder", "vbench", "comparison"]


@dataclass(frozen=True)
class Column:
    """A measure as a reader needs it: its short label, what is ideal and what it means.

    ideal: a number as text where there is one ("1", "0"), else words ("truth", "higher"); always: a table that has the
    measure shows it even where it is N/A for every model.
    """

    name: str
    label: str
    ideal: str
    legend: str
    digits: int = 2
    always: bool = False

    def stands_in(self, table: Table) -> bool:
        """Whether the table has a line for it."""
        values = [row[self.name] for row in table.rows.values() if self.name in row]
        return bool(values) and (self.always or any(value is not None for value in values))

    def badness(self, value: float | None) -> float | None:
        """How far a value is from the ideal, None where it is N/A; where that is a word but "higher", more is worse."""
        if value is None:
            return None
        try:
            return abs(value - float(self.ideal))
        except ValueError:
            return -value if self.ideal == "higher" else value


@dataclass(frozen=True)
class Table:
    """One protocol's numbers: rows[model][measure], None is N/A; clips: how many each model's are over."""

    title: str
    rows: Mapping[str, Mapping[str, Interval | None]]
    clips: Mapping[str, int]


@dataclass(frozen=True)
class Curves:
    """Lines over time: lines[model] is a list of (x, y); y None where nothing is known there."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float | None]]]
    ideal: float | None = None


@dataclass(frozen=True)
class ClipResult:
    """One clip of one model. video: relative to the report, "" if it was not kept; values: None is N/A."""

    model: str
    protocol: str
    name: str
    caption: str
    video: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Report:
    """Everything an evaluation found.

    protocol: what was asked for, as plain values; missing: what could not be measured, and why, one line each;
    notes: what a reader must know beside the numbers; made: versions, date and command.
    """

    kind: Kind
    title: str
    protocol: Mapping[str, Any]
    columns: Sequence[Column]
    tables: Sequence[Table]
    curves: Sequence[Curves] = ()
    clips: Sequence[ClipResult] = ()
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Every model that a table has, in the order of the tables."""
        return list(dict.fromkeys(name for table in self.tables for name in table.rows))


def versions() -> dict[str, str]:
    """Of Python and the packages whose arithmetic the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.json`` whole or not at all; nan and infinity are refused, N/A is None."""
    text = json.dumps({"format": FORMAT, **asdict(report)}, indent=1, allow_nan=False, ensure_ascii=False)
    path = folder / FILE
    write_atomic(path, text.encode())
    return path


def _refuse_constant(name: str) -> NoReturn:
    """NaN and infinity, which Python's reader of JSON would let in."""
    raise ValueError(f"it holds {name}")


def read_report(path: Path) -> Report:
    """The report in a file, or in a folder's ``report.json``.

    Raises UserError for what is missing, damaged, no report, or of another format.
    """
    file = path / FILE if path.is_dir() else path
    try:
        held = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"no report at {file}: {error.strerror}; give a folder that `aad1 evaluate` wrote") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged (no JSON: {error}); evaluate again") from error
    if not isinstance(held, dict) or "format" not in held:
        raise UserError(f"{file} is no report of aad1; give a folder that `aad1 evaluate` wrote")
    if (given := held.pop("format")) != FORMAT:
        raise UserError(f"{file} is a report of format {given}, this version reads format {FORMAT}; evaluate again")
    try:
        return TypeAdapter(Report).validate_python(held)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file} is damaged ({where}: {first['msg']}); evaluate again") from error


# --- Markdown ----------------------------------------------------------------------------------


def cell(column: Column, value: Interval | None, interval: bool = True) -> str:
    """ "0.98 [0.96, 1.00]", or "N/A"."""
    if value is None:
        return "N/A"
    mean, low, high = (shown(column, v) for v in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]" if interval else mean


def shown(column: Column, value: float) -> str:
    """A number with the column's digits, without a minus zero."""
    return f"{round(value, column.digits) + 0.0:.{column.digits}f}"


def to_markdown(report: Report, interval: bool = True) -> str:
    """Every table, a line a measure and a column a model, then the legend, the notes and what is missing."""
    lines = [f"# {report.title}", ""]
    for table in report.tables:
        lines += [*_table(report.columns, table, interval), ""]
    defined = {name for table in report.tables for row in table.rows.values() for name, v in row.items() if v}
    lines += [f"- **{c.label}** (ideal {c.ideal}): {c.legend}" for c in report.columns if c.name in defined]
    lines += ["", *report.notes, *(f"Missing: {line}" for line in report.missing)]
    return "\n".join(lines).rstrip() + "\n"


def _table(columns: Sequence[Column], table: Table, interval: bool) -> list[str]:
    counts = sorted(set(table.clips.values()))
    over = f" ({', '.join(map(str, counts))} clips)" if counts else ""
    lines = [f"## {table.title}{over}", "", "| measure | ideal | " + " | ".join(table.rows) + " |"]
    lines.append("|" + "---|" * (2 + len(table.rows)))
    for column in columns:
        values = [row.get(column.name) for row in table.rows.values()]
        if column.stands_in(table):
            cells = " | ".join(cell(column, value, interval) for value in values)
            lines.append(f"| {column.label} | {column.ideal} | {cells} |")
    return lines
