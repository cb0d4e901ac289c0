"""An experiment's results as Markdown, put into a document between its marks, and all of them as one report.

In the document, ``<!-- experiment NAME -->`` and ``<!-- end of NAME -->`` enclose what is written here; what stands
outside them, such as how the numbers are read, is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aad1.data.world import FPS
from aad1.errors import UserError
from aad1.evaluation.intervals import Interval
from aad1.evaluation.report import Column, Curves, Report, Table, cell, shown, versions
from aad1.evaluation.world import COLUMNS, NOTE
from aad1.evaluation.world_report import EACH_CURVE
from aad1.files import write_atomic
from aad1.measures.motion import CHUNK_FRAMES
from aad1.measures.world import MEASURE
from aad1.reproduction.experiments import PROTOCOLS, Experiment
from aad1.reproduction.summary import Line

Lines = Mapping[str, Sequence[Line]]  # of each protocol
COLUMN = {column.name: column for column in COLUMNS}
LEGEND = (
    "Mean over seeds and clips [95 % interval: Student's t over seeds, a bootstrap over clips]; **bold**: the interval "
    "of the difference from the first line, taken on the same seeds and clips, leaves out 0. Each seed's own value "
    "stands in the second table."
)


def write_results(
    document: Path,
    experiments: Sequence[Experiment],
    results: Mapping[str, Lines],
    missing: Mapping[str, Sequence[str]],
    made: str,
) -> None:
    """Replace each experiment's part of the document; missing: names of what is not measured, by experiment.

    Raises UserError as ``read_document`` does.
    """
    text = read_document(document, experiments)
    for experiment in experiments:
        begin, end = _marks(experiment)
        before, rest = text.split(begin)
        _, after = rest.split(end)
        written = to_markdown(experiment, results[experiment.name], missing[experiment.name], made)
        text = f"{before}{begin}\n{written}{end}{after}"
    write_atomic(document, text.encode())


def read_document(document: Path, experiments: Sequence[Experiment]) -> str:
    """Its text; raises UserError when it cannot be read or has no place for one of the experiments."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {document} ({error}); give a Markdown file") from None
    for experiment in experiments:
        begin, end = _marks(experiment)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(f"{document} has no place for '{experiment.name}': put {begin} and {end} where it belongs")
    return text


def _marks(experiment: Experiment) -> tuple[str, str]:
    return f"<!-- experiment {experiment.name} -->", f"<!-- end of {experiment.name} -->"


def to_markdown(experiment: Experiment, lines: Lines, missing: Sequence[str], made: str) -> str:
    """The experiment's tables; missing: what is not measured, by name; made: where its numbers come from."""
    parts = [f"The paper: {experiment.claim}.", ""]
    if not any(lines.values()):
        return "\n".join(
            [*parts, f"Not measured yet: `aad1 reproduce --experiments {experiment.name}` does it.", "", ""]
        )
    for protocol, own in lines.items():
        frames, _ = PROTOCOLS[protocol]
        measures = [COLUMN[name] for name in experiment.measures[protocol]]
        seeds = sorted({seed for line in own for seed in line.seeds if line.condition.trained})
        clips = ", ".join(sorted({str(line.clips) for line in own}))
        given = f", seeds {', '.join(map(str, seeds))}" if seeds else ""
        parts += [f"{protocol.capitalize()}: {frames} frames, {clips} clips{given}.", ""]
        parts += [*_pooled(own, measures), "", *_by_seed(own, measures, seeds), ""]
    lacking = [f"**Not measured yet: {', '.join(missing)}.**", ""] if missing else []
    return "\n".join([*parts, *lacking, made, "", ""])


def _pooled(lines: Sequence[Line], columns: Sequence[Column]) -> Iterator[str]:
    yield "| | " + " | ".join(f"{column.label} ({column.ideal})" for column in columns) + " |"
    yield "|" + "---|" * (len(columns) + 1)
    for line in lines:
        cells = [_cell(line, column) for column in columns]
        yield f"| {line.condition.label} | " + " | ".join(cells) + " |"


def _cell(line: Line, column: Column) -> str:
    text = cell(column, line.values[column.name])
    return f"**{text}**" if line.differs(column.name) else text


def _by_seed(lines: Sequence[Line], columns: Sequence[Column], seeds: Sequence[int]) -> Iterator[str]:
    """A value a seed, in the order of ``seeds``; a line that lacks some says which it has."""
    yield "| seed by seed | " + " | ".join(column.label for column in columns) + " |"
    yield "|" + "---|" * (len(columns) + 1)
    for line in lines:
        if line.condition.trained:
            each = [", ".join(_number(column, v) for v in line.by_seed[column.name]) for column in columns]
            lacking = "" if list(line.seeds) == list(seeds) else f" (seeds {', '.join(map(str, line.seeds))})"
            yield f"| {line.condition.label}{lacking} | " + " | ".join(each) + " |"


def _number(column: Column, value: float | None) -> str:
    return "N/A" if value is None else shown(column, value)


def as_report(
    experiments: Sequence[Experiment], results: Mapping[str, Lines], missing: Sequence[str], command: str
) -> Report:
    """Every experiment's tables and curves over time as one report."""
    tables, curves = [], []
    for experiment in experiments:
        for protocol, lines in results[experiment.name].items():
            rows: dict[str, Mapping[str, Interval | None]] = {line.condition.label: line.values for line in lines}
            title = f"{experiment.title}; {protocol}, {PROTOCOLS[protocol][0]} frames"
            tables.append(Table(title, rows, {line.condition.label: line.clips for line in lines}))
            curves += [_curves(name, title, lines) for name in EACH_CURVE]
    names = {name for experiment in experiments for own in experiment.measures.values() for name in own}
    return Report(
        kind="world",
        title="The paper's experiments on the embedded world",
        protocol={name: {"frames": frames, "clips": clips} for name, (frames, clips) in PROTOCOLS.items()},
        columns=[column for column in COLUMNS if column.name in names],
        tables=tables,
        curves=curves,
        notes=[LEGEND, NOTE, *(f"{e.title}: the paper says that {e.claim}." for e in experiments)],
        missing=missing,
        made={**versions(), "command": command},
    )


def _curves(measure: str, title: str, lines: Sequence[Line]) -> Curves:
    seconds = CHUNK_FRAMES / FPS
    drawn = {
        line.condition.label: [((i + 0.5) * seconds, value) for i, value in enumerate(line.curves[measure])]
        for line in lines
    }
    return Curves(f"{title}: {EACH_CURVE[measure]}", "seconds", measure, drawn, float(MEASURE[measure].ideal))
