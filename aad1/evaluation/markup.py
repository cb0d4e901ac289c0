"""What every page is made with: templates, the shared style sheet, tables and figures, text made safe.

A page is one file that opens from disk and asks no network. What users wrote (captions, names, titles) is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aad1.evaluation.chart import Chart
from aad1.evaluation.intervals import Interval
from aad1.evaluation.report import Column, Table, shown

STATIC = Path(__file__).parent / "static"
MARK = re.compile(r"\{\{([\w.]+)\}\}")
UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A file of ``static/`` with ``{{name}}`` replaced by a part, and ``{{style.css}}`` by the file of that name.

    Every mark is replaced once: one inside of a part stays what it is.
    """

    def part(mark: re.Match[str]) -> str:
        name = mark[1]
        return (STATIC / name).read_text(encoding="utf-8") if "." in name else parts[name]

    return MARK.sub(part, (STATIC / template).read_text(encoding="utf-8"))


def embedded(value: Any) -> str:
    """JSON that can stand inside of a script element, whatever text it holds."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(UNSAFE)


def listed(lines: Sequence[str]) -> str:
    """Lines of text as a list; nothing for none."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, for a <dl>."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)


def figure(chart: Chart, words: str, legend: bool = True) -> str:
    """A chart with its title, its legend where there are several lines, and words beneath."""
    labels = "".join(f'<span><i class="key {line.style}"></i>{escape(line.label)}</span>' for line in chart.lines)
    legends = f'<div class="legend">{labels}</div>' if legend and len(chart.lines) > 1 else ""
    return (
        f'<figure class="chart"><h3>{escape(chart.title)}</h3>{legends}{chart.svg()}'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def measures_table(
    columns: Sequence[Column], table: Table, names: Mapping[str, str] = {}, styles: Mapping[str, str] = {}
) -> str:
    """A line a measure, a column a model; means with their intervals beneath. Measures that no model has are left out.

    names: what models are called here; styles: the CSS class of each model's colour, by default its own name.
    """
    rows = table.rows
    heads = "".join(_head(names.get(name, name), styles.get(name, name)) for name in rows)
    lines = "".join(
        f'<tr><th scope="row" title="{escape(c.legend)}">{escape(c.label)}<small>{escape(c.legend)}</small></th>'
        f'<td class="ideal">{escape(c.ideal)}</td>{"".join(_cell(c, row.get(c.name)) for row in rows.values())}</tr>'
        for c in columns
        if c.stands_in(table)
    )
    head = f'<tr><th scope="col">measure</th><th scope="col">ideal</th>{heads}</tr>'
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{lines}</tbody></table></div>'


def _head(name: str, style: str) -> str:
    return f'<th scope="col"><i class="key {escape(style)}"></i>{escape(name)}</th>'


def _cell(column: Column, value: Interval | None) -> str:
    if value is None:
        return '<td class="none">N/A</td>'
    mean, low, high = (shown(column, v) for v in (value.mean, value.low, value.high))
    return f"<td>{mean}<small>{low} to {high}</small></td>"
