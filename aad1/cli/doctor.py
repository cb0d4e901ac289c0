"""The command that reads a run's logs and says what is going wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from tyro.conf import Positional, arg

from aad1.cli.options import refuse, say
from aad1.evaluation.diagnosis.examine import Diagnosis, StageDiagnosis, diagnose
from aad1.evaluation.diagnosis.findings import Finding, Severity
from aad1.evaluation.diagnosis.log import Point

TROUBLE = 3  # exit code of a run with a problem
COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.PROBLEM: "bold red"}
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 32  # of a curve, in characters


@dataclass(frozen=True)
class Doctor:
    """Say in words what is going wrong in a training, from its logs, and what to try; changes nothing.

    RUN is the folder of a distillation, or of one of its stages (that holds metrics.jsonl); it may be running. Every
    finding says what it saw, how sure it is, and which value of the recipe to try. Rates, steps and intervals can
    be changed with --resume; other values need another -o.

    Exit codes: 0 healthy, or remarks and warnings only; 3 a problem; 2 a folder without a log.

    For example:
      aad1 doctor runs/tiny
      aad1 doctor runs/tiny/adversarial --json
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    json: Annotated[bool, arg(help="print one JSON object for programs")] = False

    def run(self, extra: Sequence[str]) -> int:
        """Read, print, and give the exit code."""
        refuse(extra, type(self))
        found = diagnose(self.folder)
        if self.json:
            say(json.dumps(found.as_dict(), indent=1))
        else:
            show(found, Console())
        return TROUBLE if found.worst is Severity.PROBLEM else 0


def show(found: Diagnosis, console: Console) -> None:
    """Print a diagnosis, stage by stage."""
    for stage in found.stages:
        log = stage.log
        of = f" of {log.planned}" if log.planned else ""
        console.print(Text(f"{log.name}, step {log.step}{of}, {log.folder}", style="bold"))
        for finding in stage.findings:
            _print(finding, console)
        for line in curves(stage):
            console.print(Padding(Text(line, style="dim", no_wrap=True, overflow="crop"), (0, 0, 0, 2), expand=False))
        console.print()
    for finding in found.findings:
        _print(finding, console)


def _print(finding: Finding, console: Console) -> None:
    name = finding.severity.name.lower()
    doubt = "" if finding.sure == "sure" else f" ({finding.sure})"
    words = Text.assemble((name, COLOURS[finding.severity]), f"{doubt} {finding.name}: {finding.saw}")
    console.print(Padding(words, (0, 0, 0, 2), expand=False))
    if finding.words:
        console.print(Padding(Text(f"try: {finding.words}"), (0, 0, 0, 6), expand=False))


def curves(stage: StageDiagnosis) -> Iterator[str]:
    """A line for each curve of a stage: its name, its shape, its first and last value."""
    width = max((len(name) for name in stage.curves), default=0)
    for name, points in stage.curves.items():
        yield f"{name:<{width}}  {sparkline(points):<{WIDTH}}  {points[0][1]:.3g} to {points[-1][1]:.3g}"


def sparkline(points: Sequence[Point], width: int = WIDTH) -> str:
    """The values' course as blocks, lowest to highest; more of them than ``width`` are averaged in groups."""
    values = [float(part.mean()) for part in np.array_split([v for _, v in points], min(width, len(points)))]
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)
