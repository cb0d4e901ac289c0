"""An inspection's files, and its short table for a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from aad1.errors import UserError
from aad1.files import write_atomic
from aad1.inspection.findings import MEASURES, Findings, reasons, spread, summary
from aad1.inspection.page import counts, lead, render

PAGE, SUFFIXES = "index.html", (".html", ".htm")
MOST_REASONS = 6  # lines of the terminal's table


def page_path(out: Path) -> Path:
    """Where the page goes: the file that is given, or one in the folder that is. Raises UserError for another file."""
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        return out
    if out.is_file() or (out.suffix and not out.is_dir()):
        raise UserError(f"{out} is no page; give a name that ends in .html, or a folder")
    return out / PAGE


def write(findings: Findings, path: Path) -> Path:
    """Write the page, and its numbers as JSON beside it; returns the JSON's path. Raises UserError when it cannot."""
    numbers = path.with_suffix(".json")
    write_atomic(numbers, (json.dumps(summary(findings), indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(path, render(findings).encode())
    return numbers


def table(findings: Findings) -> str:
    """The numbers in a few lines."""
    lines = [f"{findings.source}: {lead(findings)}", "  ".join(f"{n} {words}" for n, words in counts(findings))]
    for measure in MEASURES:
        if values := findings.values(measure.name):
            known = spread(values)
            span = f"{known['p05']:.3g} to {known['p95']:.3g} {measure.unit}".rstrip()
            lines.append(f"  {measure.title.lower():14} median {known['median']:<8.3g} 5 to 95 %: {span}")
    found = reasons(findings.clips)
    lines += [f"  {r.count:6} {r.kind}: {r.reason} (as {r.examples[0][0]})" for r in found[:MOST_REASONS]]
    rest = sum(r.count for r in found[MOST_REASONS:])
    return "\n".join([*lines, *([f"  {rest:6} for other reasons; the page has them all"] if rest else [])])
