"""Two or more reports as one: the same tables side by side, and what about them is not the same, said plainly."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from aad1.errors import UserError
from aad1.evaluation.report import Column, Curves, Report, Table, cell, read_report, versions

Value = TypeVar("Value")
TOOLS = ("command", "date")  # of what a report was made with: different each time


def read_reports(places: Mapping[str, Path]) -> tuple[dict[str, Report], list[str]]:
    """The reports that can be read, by name, and what is wrong with the others, a line each.

    Raises UserError when fewer than two can be.
    """
    found, lost = {}, []
    for name, place in places.items():
        try:
            found[name] = read_report(place)
        except UserError as error:
            lost.append(f"{name}: {error}")
    if len(found) < 2:
        raise UserError("; ".join(["a comparison needs two reports that can be read", *lost]))
    return found, lost


def compare(
    reports: Mapping[str, Report], places: Mapping[str, Path], folder: Path, lost: Sequence[str] = ()
) -> Report:
    """One report of all; videos are named as seen from ``folder``.

    Models of the same name and the same numbers, such as controls, are one; of the same name and other numbers, they
    are told apart by their reports' names.
    """
    models = _names(reports)
    renamed = {name: _renamed(report, models[name], places[name], folder) for name, report in reports.items()}
    return Report(
        kind="comparison",
        title=f"Comparison of {', '.join(reports)}",
        protocol={name: dict(report.protocol) for name, report in reports.items()},
        columns=_columns(renamed.values()),
        tables=_tables(renamed.values()),
        curves=_curves(renamed.values()),
        clips=_unique([clip for report in renamed.values() for clip in report.clips]),
        notes=[*_unique([note for report in reports.values() for note in report.notes]), *_differences(reports)],
        missing=[*lost, *(f"{name}: {line}" for name, report in reports.items() for line in report.missing)],
        made=versions(),
    )


def _names(reports: Mapping[str, Report]) -> dict[str, dict[str, str]]:
    """For each report, what its models are called here."""
    facts: dict[str, list[object]] = {}
    for report in reports.values():
        for model in report.models:
            facts.setdefault(model, []).append({t.title: t.rows[model] for t in report.tables if model in t.rows})
    same = {model for model, found in facts.items() if all(fact == found[0] for fact in found)}
    return {
        name: {model: model if model in same else f"{name}: {model}" for model in report.models}
        for name, report in reports.items()
    }


def _renamed(report: Report, names: Mapping[str, str], place: Path, folder: Path) -> Report:
    home = place if place.is_dir() else place.parent
    return replace(
        report,
        tables=[
            replace(
                table,
                rows={names[model]: row for model, row in table.rows.items()},
                clips={names[model]: count for model, count in table.clips.items()},
            )
            for table in report.tables
        ],
        curves=[replace(c, lines={names.get(m, m): line for m, line in c.lines.items()}) for c in report.curves],
        clips=[
            replace(
                clip,
                model=names.get(clip.model, clip.model),
                video=Path(os.path.relpath(home / clip.video, folder)).as_posix() if clip.video else "",
            )
            for clip in report.clips
        ],
    )


def _columns(reports: Iterable[Report]) -> list[Column]:
    found: dict[str, Column] = {}
    for report in reports:
        for column in report.columns:
            found.setdefault(column.name, column)
    return list(found.values())


def _tables(reports: Iterable[Report]) -> list[Table]:
    """Tables of one title joined; the order is that of their first appearance."""
    found: dict[str, Table] = {}
    for table in (table for report in reports for table in report.tables):
        before = found.get(table.title, replace(table, rows={}, clips={}))
        found[table.title] = replace(table, rows={**before.rows, **table.rows}, clips={**before.clips, **table.clips})
    return list(found.values())


def _curves(reports: Iterable[Report]) -> list[Curves]:
    found: dict[str, Curves] = {}
    for curves in (curves for report in reports for curves in report.curves):
        before = found.get(curves.title, replace(curves, lines={}))
        found[curves.title] = replace(curves, lines={**before.lines, **curves.lines})
    return list(found.values())


def _unique(values: Sequence[Value]) -> list[Value]:
    kept: list[Value] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _differences(reports: Mapping[str, Report]) -> Iterator[str]:
    """What makes numbers of different reports not quite comparable."""
    yield from _unlike("kind", {name: report.kind for name, report in reports.items()})
    protocols = sorted({key for report in reports.values() for key in report.protocol})
    for key in protocols:
        yield from _unlike(f"protocol {key}", {n: r.protocol[key] for n, r in reports.items() if key in r.protocol})
    tools = sorted({key for report in reports.values() for key in report.made} - set(TOOLS))
    for key in tools:
        yield from _unlike(f"version of {key}", {n: r.made.get(key, "unknown") for n, r in reports.items()})
    definitions: dict[str, dict[str, str]] = {}
    for name, report in reports.items():
        for column in report.columns:
            definitions.setdefault(column.name, {})[name] = column.legend
    for measure, legends in definitions.items():
        yield from _unlike(f"definition of {measure}", legends)


def _unlike(what: str, values: Mapping[str, object]) -> Iterator[str]:
    if any(value != next(iter(values.values())) for value in values.values()):
        told = "; ".join(f"{name}: {value}" for name, value in values.items())
        yield f"Not the same: {what} ({told})."


def one_table(report: Report) -> str:
    """Every table of the report in one of Markdown: a line a protocol and measure, a column a model."""
    models = report.models
    lines = [f"# {report.title}", "", "| protocol | measure | ideal | " + " | ".join(models) + " |"]
    lines.append("|" + "---|" * (3 + len(models)))
    for table in report.tables:
        for column in report.columns:
            values = [table.rows.get(model, {}).get(column.name) for model in models]
            if column.stands_in(table):
                cells = " | ".join(cell(column, value) for value in values)
                lines.append(f"| {table.title} | {column.label} | {column.ideal} | {cells} |")
    lines += ["", *report.notes, *(f"Missing: {line}" for line in report.missing)]
    return "\n".join(lines) + "\n"
