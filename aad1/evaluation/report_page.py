"""A report's page: one HTML file that opens from disk, with tables, curves, and clips of any two models side by side.

Clips are ordered by how bad they are. The frames of the worst ones are in the page itself (see ``reel.py``); of the
others the page says where they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aad1.evaluation.chart import Chart, Line, marks
from aad1.evaluation.films import described, sheets
from aad1.evaluation.markup import embedded, facts, figure, filled, listed, measures_table
from aad1.evaluation.reel import Reel, by_row, is_bound, make_reel, primary, worst_first
from aad1.evaluation.report import Column, Curves, Report, Table
from aad1.evaluation.report import shown as with_digits
from aad1.files import write_atomic

TEMPLATE = "report.html"
PAGE = "index.html"
COLOURS = 10
FIRST_LINES = 8  # of what is missing; the others are folded
KINDS = {
    "world": "An evaluation on the embedded world, where the truth is known.",
    "folder": "An evaluation of videos that have no truth to compare with.",
    "vbench": "VBench-I2V, by its official code.",
    "comparison": "Several reports side by side.",
}


def write_page(report: Report, folder: Path, shown: int = 12) -> Path:
    """Write ``index.html`` into the report's folder; returns its path.

    ``shown``: clips a protocol whose frames are in the page itself. Videos that are missing or cannot be read are
    named on the page. Raises UserError when the page cannot be written.
    """
    path = folder / PAGE
    write_atomic(path, render(report, make_reel(report, folder, shown)).encode())
    return path


def render(report: Report, reel: Reel) -> str:
    """The page's text."""
    styles = _styles(report.models)
    parts = {
        "title": escape(report.title),
        "kind": escape(KINDS[report.kind]),
        "missing": _missing([*report.missing, *reel.lost]),
        "tables": "".join(_table(report.columns, t, styles, t is _largest(report.tables)) for t in report.tables),
        "notes": listed(report.notes),
        "toggles": "".join(_toggle(number, name, styles[name]) for number, name in enumerate(report.models)),
        "charts": "".join(_chart(curves, styles) for curves in report.curves),
        "frames": escape(reel.words),
        "made": facts([*report.made.items(), *((f"asked for: {k}", _plain(v)) for k, v in report.protocol.items())]),
        "data": embedded(_data(report, reel, styles)),
        "films": "".join(sheets(number, film) for number, film in enumerate(reel.films.values())),
        "clips": "" if report.clips else "hidden",
        "curves": "" if report.curves else "hidden",
    }
    return filled(TEMPLATE, parts)


def _styles(models: Sequence[str]) -> dict[str, str]:
    """A CSS class of a colour for each model, and one of its own; beyond ten models lines are dashed."""
    found = {}
    others = iter(range(len(models)))
    for number, name in enumerate(models):
        colour = -1 if name == "truth" else next(others)
        dashed = " dashed" if colour >= COLOURS else ""
        found[name] = f"{'truth' if colour < 0 else f'm{colour % COLOURS}'}{dashed} k{number}"
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- tables and curves ------------------------------------------------------------------------


def _missing(lines: Sequence[str]) -> str:
    """What could not be measured or shown; beyond a few lines the rest is folded."""
    if not lines:
        return ""
    rest = f"<details><summary>{len(lines) - FIRST_LINES} more</summary>{listed(lines[FIRST_LINES:])}</details>"
    more = rest if len(lines) > FIRST_LINES else ""
    return f'<section class="card missing"><h3>Missing ({len(lines)})</h3>{listed(lines[:FIRST_LINES])}{more}</section>'


def _table(columns: Sequence[Column], table: Table, styles: Mapping[str, str], opened: bool) -> str:
    """One protocol's numbers, folded unless ``opened``; measures that no model has are named beneath."""
    none = [c.label for c in columns if all(row.get(c.name) is None for row in table.rows.values())]
    beneath = f'<p class="soft">N/A for every model: {escape(", ".join(none))}.</p>' if none else ""
    return (
        f"<details class='table'{' open' if opened else ''}><summary>{escape(table.title)}{_counts(table)}</summary>"
        f"{measures_table(columns, table, styles=styles)}{beneath}</details>"
    )


def _largest(tables: Sequence[Table]) -> Table:
    """The first of those with the most clips."""
    return max(tables, key=lambda table: max(table.clips.values(), default=0))


def _counts(table: Table) -> str:
    counts = set(table.clips.values())
    if len(counts) > 1:
        return escape(f" ({', '.join(f'{name}: {count}' for name, count in table.clips.items())} clips)")
    return f" ({counts.pop()} clips)" if counts else ""


def _toggle(number: int, name: str, style: str) -> str:
    return (
        f'<button type="button" class="toggle" data-model="{number}" aria-pressed="true">'
        f'<i class="key {style}"></i>{escape(name)}</button>'
    )


def _chart(curves: Curves, styles: Mapping[str, str]) -> str:
    lines = [
        Line(model, styles.get(model, "truth"), [(x, float("nan") if y is None else y) for x, y in points])
        for model, points in curves.lines.items()
    ]
    xs = [x for line in lines for x, _ in line.points] or [1.0]
    chart = Chart(curves.title, lines, marks(max(xs), curves.x, min(0.0, *xs)), ideal=curves.ideal)
    ideal = "" if curves.ideal is None else f"; the dashed line is ideal: {curves.ideal:g}"
    return figure(chart, f"{curves.y} over {curves.x}{ideal}", legend=False)


# --- clips ------------------------------------------------------------------------------------


def _data(report: Report, reel: Reel, styles: Mapping[str, str]) -> dict[str, Any]:
    """What the page's script needs of the clips: measures, where each clip stands by each, and its film."""
    columns = [c for c in report.columns if any(clip.values.get(c.name) is not None for clip in report.clips)]
    protocols = list(dict.fromkeys(clip.protocol for clip in report.clips))
    models = list(dict.fromkeys([*report.models, *(clip.model for clip in report.clips)]))
    ranks, numbers = _ranks(report, columns), {index: number for number, index in enumerate(reel.films)}
    first = primary(report)
    return {
        "models": [{"name": name, "style": styles.get(name, "truth"), "bound": is_bound(name)} for name in models],
        "protocols": protocols,
        "measures": [{"label": c.label, "ideal": c.ideal, "legend": c.legend} for c in columns],
        "primary": columns.index(first) if first else 0,
        "films": [described(film) for film in reel.films.values()],
        "clips": [
            {
                "model": models.index(clip.model),
                "protocol": protocols.index(clip.protocol),
                "name": clip.name,
                "caption": clip.caption,
                "link": quote(re.sub("^/+", "/", clip.video)),  # never another host
                "film": numbers.get(index),
                "reason": reel.reasons.get(index, ""),
                "values": [_value(column, clip.values.get(column.name)) for column in columns],
                "ranks": ranks[index],
            }
            for index, clip in enumerate(report.clips)
        ],
    }


def _value(column: Column, value: float | None) -> str | None:
    return None if value is None else with_digits(column, value)


def _ranks(report: Report, columns: Sequence[Column]) -> list[list[int]]:
    """For each clip and measure how many clips of its protocol and model are worse."""
    ranks = [[0] * len(columns) for _ in report.clips]
    for indices in by_row(report.clips).values():
        for number, column in enumerate(columns):
            for rank, index in enumerate(worst_first(report.clips, indices, column)):
                ranks[index][number] = rank
    return ranks
