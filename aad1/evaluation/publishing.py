"""A report as people meet it: its file, its table in Markdown, its page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from aad1.evaluation.report import Report, to_markdown, write_report
from aad1.evaluation.report_page import write_page
from aad1.files import write_atomic

TABLE = "report.md"
SHOWN = 12


def publish(report: Report, folder: Path, shown: int = SHOWN) -> Path:
    """Write report.json, report.md and index.html with the frames of ``shown`` clips in it; returns the page's path."""
    made = {"date": datetime.date.today().isoformat(), **report.made}
    report = replace(report, missing=[*report.missing, *_single(report)], made=made)
    write_report(report, folder)
    write_atomic(folder / TABLE, to_markdown(report).encode())
    return write_page(report, folder, shown)


def _single(report: Report) -> Iterator[str]:
    """Rows whose interval is no interval: a bootstrap over one clip draws that clip."""
    for table in report.tables:
        names = [name for name, clips in table.clips.items() if clips == 1]
        if names:
            yield f"{table.title}: {', '.join(names)}: one clip, so the brackets hold no interval; measure more"
