"""The demo: its page from small made-up results, and the whole of it on random weights."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from aad1.cli import main
from aad1.data.media import VideoWriter
from aad1.data.world import make_clip
from aad1.demo import ROWS, SHOWN, Ledger
from aad1.evaluation.chart import Chart, Line, nice_ticks
from aad1.evaluation.intervals import Interval
from aad1.evaluation.page import NAMES, DemoPage, Panels, html_table, render
from aad1.evaluation.report import Report, Table, read_report
from aad1.evaluation.world import COLUMNS, NOTE
from aad1.measures.world import MEASURE

CAPTIONS = ['a <red> disc & "more"', "a blue square"]


def fake_page(folder: Path) -> DemoPage:
    rng = np.random.default_rng(0)
    clips = [make_clip("test", index, 17).frames for index in range(2)]
    grid = np.concatenate([np.concatenate([clip] * len(SHOWN), axis=2) for clip in clips], axis=1)
    with VideoWriter(folder / "grid.mp4", fps=16, scale=2) as video:
        video.write(grid)
    values: dict[str, dict[str, Interval | None]] = {
        row: {
            c.name: Interval(float(v), float(v) - 0.1, float(v) + 0.1)
            for c, v in zip(COLUMNS, rng.random(40), strict=False)
        }
        for row in ROWS
    }
    values["frozen"]["drift"] = None
    table = Table("short", values, dict.fromkeys(ROWS, 2))
    return DemoPage(
        panels=Panels((folder / "grid.mp4").read_bytes(), CAPTIONS, SHOWN, 128, 17, 16.0),
        report=Report("world", "demo", {}, COLUMNS, [table], notes=[NOTE]),
        metrics={
            "ode_init": [{"step": s, "generator/loss": 3 / s} for s in range(1, 60)] + [{"step": 60, "eval/rho": 1.2}],
            "dmd_warmup": [{"step": s, "fake_score/loss": 2.0, "eval/rho": 1.0, "eval/kappa": 0.9} for s in (1, 2)],
            "adversarial": [{"step": s, "critic/gap": s - 2.0, "eval/rho": 1.1} for s in (1, 2, 3)],
        },
        seconds={"clips": 12.0, "ode_init": 200.0},
        facts=[("seed", "0")],
        commands=[("Go on:", 'aad1 generate --prompt "a <red> disc"')],
    )


class Reader(HTMLParser):
    """Notes tags, links and text, and whether tags are nested as they should be."""

    VOID = frozenset({"meta", "link", "input", "br", "hr", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    text = render(fake_page(tmp_path))
    page = Reader(text)
    assert page.open == []
    assert "{{" not in text
    assert not [attrs for _, attrs in page.tags if attrs.keys() & {"src", "href"}]
    assert sum(tag == "canvas" for tag, _ in page.tags) == len(CAPTIONS) * len(SHOWN)
    for words in (*NAMES.values(), *CAPTIONS, "These are not VBench numbers", "aad1 generate", "N/A"):
        assert words in page.words, words


def test_a_table_shows_means_intervals_and_what_is_not_applicable() -> None:
    text = html_table(COLUMNS, Table("", {"truth": {"rho": Interval(1.0, 0.9, 1.1)}, "frozen": {"rho": None}}, {}))
    assert "<td>1.00<small>0.90 to 1.10</small></td>" in text
    assert '<td class="none">N/A</td>' in text
    assert text.count("<tr>") == 2  # measures that no row defines have no line


def test_charts_leave_out_what_is_not_finite_and_say_when_there_is_nothing() -> None:
    line = Line("loss", "first", [(1, 1.0), (2, float("nan")), (3, 2.0)])
    assert Chart("loss", [line], [(0, "0")]).svg().count("<circle") == 2
    assert "nothing was logged" in Chart("loss", [Line("loss", "first", [])], []).svg()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.003, 0.0171), (-5.2, 120.0), (1.0, 1.0), (0.0, 0.0)])
def test_ticks_are_few_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


def test_the_ledger_counts_interrupted_work_and_not_what_is_only_checked(tmp_path: Path) -> None:
    path = tmp_path / "phases.json"
    first = Ledger(path)
    with pytest.raises(KeyboardInterrupt), first.phase("clips"):
        raise KeyboardInterrupt
    again = Ledger(path)
    assert not again.phases["clips"].finished
    with again.phase("clips"):
        pass
    done = Ledger(path).phases["clips"]
    assert done.finished
    with again.phase("clips"):
        pass
    assert Ledger(path).phases["clips"] == done


# --- the whole --------------------------------------------------------------------------------

SMALLEST = {
    "data.clips": 2,
    "data.validation": 1,
    "data.frames": 17,
    "showing.clips": 1,
    "trajectories.count": 2,
    "trajectories.batch": 2,
    "ode_init.steps": 1,
    "ode_init.batch": 1,
    "dmd_warmup.steps": 1,
    "dmd_warmup.batch": 1,
    "dmd_warmup.fake_score_updates": 1,
    "adversarial.steps": 1,
    "adversarial.batch": 1,
    "adversarial.head_start": 0,
    "adversarial.critic.layers": "[0,1]",
}


def demo(model: Path, out: Path, *options: str) -> int:
    values = [word for key, value in SMALLEST.items() for word in (f"--{key}", str(value))]
    words = ["demo", "-o", str(out), "--model", str(model), "--clips", "2", "--shown", "1", "--threads", "1"]
    return main([*words, "--device", "cpu", *options, *values])


@pytest.mark.slow
def test_the_demo_writes_its_results_and_resumes(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert demo(tiny_folder, out) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    report = read_report(out / "evaluation")
    assert tuple(report.models) == ROWS
    assert all(set(row) == set(MEASURE) for table in report.tables for row in table.rows.values())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clips"] == {"train": 2, "validation": 1, "trajectories": 2, "test": 2}
    assert summary["peak_memory_bytes"] > 2**20
    assert {"torch", "python", "aad1"} <= set(summary["versions"])
    assert Reader((out / "index.html").read_text()).open == []
    _resumes(tiny_folder, out, capsys)


def _resumes(model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(model, out) == 2
    assert "--resume" in capsys.readouterr().err
    rows = {path: path.stat().st_mtime_ns for path in (out / "evaluation" / "measured").iterdir()}
    summary, report = (out / "summary.json").read_text(), read_report(out / "evaluation")
    (out / "evaluation" / "measured" / "frozen-short.json").write_text("{torn")
    assert demo(model, out, "--resume") == 0
    again = {path for path in rows if path.stat().st_mtime_ns != rows[path]}
    assert {path.stem for path in again} == {"frozen-short"}
    assert json.loads(summary)["seconds"] == json.loads((out / "summary.json").read_text())["seconds"]
    assert read_report(out / "evaluation") == report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shown", "3"], "3 of 2 clips"),
        (["--data.source", "videos"], "'world'"),
        (["--clips", "0"], "cannot be shown"),
    ],
)
def test_mistakes_are_one_line(
    tiny_folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(tiny_folder, tmp_path / "demo", *options) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "options", [["--data.fps=8"], ["--adversarial.critic.layers=[99]"], ["--model", "nowhere/at/all"]]
)
def test_a_demo_that_is_refused_leaves_nothing(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo"), *options]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_demo_does_not_take_the_place_of_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").write_text("mine")
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 2
    assert (tmp_path / "demo").read_text() == "mine"


@pytest.mark.parametrize("damage", ["", "{", '{"phases": 3}'])
def test_a_damaged_ledger_counts_anew(damage: str, tmp_path: Path) -> None:
    (tmp_path / "phases.json").write_text(damage)
    assert Ledger(tmp_path / "phases.json").phases == {}
