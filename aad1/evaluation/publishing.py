"""A report as people meet it: its file, its table in Markdown, its page."""

from __future__ import annotations

from pathlib import Path

from aad1.evaluation.report import Report, to_markdown, write_report
from aad1.evaluation.report_page import write_page
from aad1.files import write_atomic

TABLE = "report.md"
SHOWN = 12


def publish(report: Report, folder: Path, shown: int = SHOWN) -> Path:
    """Write report.json, report.md and index.html with the frames of ``shown`` clips in it; returns the page's path."""
    write_report(report, folder)
    write_atomic(folder / TABLE, to_markdown(report).encode())
    return write_page(report, folder, shown)
