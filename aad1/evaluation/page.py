"""The demo's page: one HTML file that opens from disk, with its videos, curves and table inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from aad1.evaluation.chart import Chart, Line
from aad1.evaluation.markup import embedded, facts, figure, filled, measures_table
from aad1.evaluation.report import Column, Report, Table
from aad1.workspace import DISTILLATION

TEMPLATE = "demo.html"
NAMES = {
    "truth": "truth",
    "truth_vae": "truth through the VAE",
    "frozen": "first frame, frozen",
    "teacher": "teacher",
    "ode_init": "student after I",
    "dmd_warmup": "student after II",
    "adversarial": "student after III",
}
MAIN = ("rho", "kappa", "freeze", "presence", "id_ok", "law_residual", "quality", "drift")
NUMERALS = dict(zip(DISTILLATION, ("I", "II", "III"), strict=True))

Metrics = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Panels:
    """Clips side by side in one video: a scene a row, a model a column; every cell ``cell`` pixels square."""

    mp4: bytes
    captions: Sequence[str]
    columns: Sequence[str]
    cell: int
    frames: int
    fps: float


@dataclass(frozen=True)
class DemoPage:
    """What the page shows.

    report: of the evaluation, whose last table is shown; metrics: each stage's ``metrics.jsonl``; seconds: of each
    phase; facts: (name, value) of the run; commands: (what it does, command line) to go on with.
    """

    panels: Panels
    report: Report
    metrics: Mapping[str, Metrics]
    seconds: Mapping[str, float]
    facts: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]


def render(page: DemoPage) -> str:
    """Fill the template."""
    panels, columns, table = page.panels, page.report.columns, page.report.tables[-1]
    geometry = {
        "columns": len(panels.columns),
        "rows": len(panels.captions),
        "cell": panels.cell,
        "frames": panels.frames,
        "fps": panels.fps,
    }
    parts = {
        "minutes": _minutes(sum(page.seconds.values())),
        "clips": ", ".join(str(count) for count in sorted(set(table.clips.values()))),
        "video": b64encode(panels.mp4).decode(),
        "geometry": embedded(geometry),
        "scenes": "".join(_scene(panels, row) for row in range(len(panels.captions))),
        "last": str(panels.frames - 1),
        "charts": "".join(charts(page.metrics)),
        "table": html_table([column for column in columns if column.name in MAIN], table),
        "full_table": html_table(columns, table),
        "note": escape(" ".join([*page.report.notes, *page.report.missing])),
        "phases": _phases(page.seconds),
        "facts": facts(page.facts),
        "commands": "".join(f"<p>{escape(why)}</p><pre>{escape(line)}</pre>" for why, line in page.commands),
    }
    return filled(TEMPLATE, parts)


def _scene(panels: Panels, row: int) -> str:
    cells = "".join(
        f'<figure><canvas data-row="{row}" data-column="{column}" width="{panels.cell}" height="{panels.cell}" '
        f'role="img" aria-label="{escape(NAMES.get(name, name))}"></canvas>'
        f'<figcaption><i class="key {name}"></i>{escape(NAMES.get(name, name))}</figcaption></figure>'
        for column, name in enumerate(panels.columns)
    )
    caption = escape(panels.captions[row])
    return f'<section class="scene"><p class="caption">“{caption}”</p><div class="cells">{cells}</div></section>'


# --- curves -----------------------------------------------------------------------------------


def charts(metrics: Mapping[str, Metrics]) -> list[str]:
    """What held-out clips look like over all stages, then each stage's own curves, as figures."""
    return [
        figure(
            _held_out("Motion: rho and kappa", metrics, ("rho", "kappa"), ideal=1.0),
            "Motion of held-out rollouts while training: rho is their speed over the truth's, kappa what is left "
            "of it at the end of a clip. Both should reach 1.",
        ),
        figure(
            _held_out("Brightness and colour", metrics, ("luma_slope", "saturation_slope"), ideal=0.0),
            "How brightness (first line) and saturation (second) change along a rollout, per 100 frames, beyond the "
            "real clips'. Away from 0 the picture drifts.",
        ),
        figure(
            _held_out("Grid of tokens", metrics, ("grid",), ideal=1.0),
            "Edges at the period of a token over those of the real clips. Far above 1 a grid can be seen.",
        ),
        figure(
            _stage("Stage I: regression loss", metrics, "ode_init", {"generator/loss": "loss"}),
            "Distance of the student's one-pass estimate from the end of the teacher's path.",
        ),
        figure(
            _stage("Stage II: fake score's loss", metrics, "dmd_warmup", {"fake_score/loss": "fake score"}),
            "How well the second score model knows the student's own clips; the student's gradient is its "
            "difference from the teacher.",
        ),
        figure(
            _stage("Stage III: critic's gap", metrics, "adversarial", {"critic/gap": "gap"}, ideal=0.0),
            "The critic's mean logit of real clips minus that of generated ones. At 0 it cannot tell them apart; "
            "far above, it has won and teaches little.",
        ),
    ]


def _stage(
    title: str, metrics: Mapping[str, Metrics], stage: str, keys: Mapping[str, str], ideal: float | None = None
) -> Chart:
    rows = metrics.get(stage, ())
    lines = [Line(label, stage, [(r["step"], r[key]) for r in rows if key in r]) for key, label in keys.items()]
    last = max((row["step"] for row in rows), default=1)
    return Chart(title, lines, [(0, "0"), (last, f"{last:g} steps")], ideal=ideal)


def _held_out(title: str, metrics: Mapping[str, Metrics], keys: Sequence[str], ideal: float) -> Chart:
    """Held-out measures over the three stages, each stage a third of the width whatever its number of steps."""
    lines = []
    for key, style in zip(keys, ("first", "second"), strict=False):
        points = []
        for place, stage in enumerate(DISTILLATION):
            rows = metrics.get(stage, ())
            last = max((row["step"] for row in rows), default=1)
            points += [(place + row["step"] / last, row[f"eval/{key}"]) for row in rows if f"eval/{key}" in row]
        lines.append(Line(key, style, points))
    marks = [
        (0, ""),
        *((i + 0.5, f"stage {NUMERALS[stage]}") for i, stage in enumerate(DISTILLATION)),
        (len(DISTILLATION), ""),
    ]
    return Chart(title, lines, marks, walls=range(1, len(DISTILLATION)), ideal=ideal)


# --- table ------------------------------------------------------------------------------------


def html_table(columns: Sequence[Column], table: Table) -> str:
    """A line a measure, a column a model, by the names that the demo gives them."""
    return measures_table(columns, table, NAMES)


# --- the run ----------------------------------------------------------------------------------


def _phases(seconds: Mapping[str, float]) -> str:
    longest = max(seconds.values(), default=1.0) or 1.0
    return "".join(
        f'<li><span>{escape(name)}</span><span class="bar"><i style="width:{100 * value / longest:.1f}%"></i></span>'
        f"<span>{_minutes(value)}</span></li>"
        for name, value in seconds.items()
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
