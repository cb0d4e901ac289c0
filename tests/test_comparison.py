"""Several reports as one: names, joined tables, what is not the same, one table in Markdown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aad1.cli import main
from aad1.errors import UserError
from aad1.evaluation.comparison import compare, one_table, read_reports
from aad1.evaluation.intervals import Interval
from aad1.evaluation.report import ClipResult, Column, Curves, Report, Table, write_report

COLUMNS = (Column("rho", "rho", "1", "speed ratio"), Column("drift", "drift", "0", "std of Q"))


def report(student: float, **changes: object) -> Report:
    rows: dict[str, dict[str, Interval | None]] = {
        "truth": {"rho": Interval(1, 1, 1), "drift": Interval(0, 0, 0)},
        "student": {"rho": Interval(student, student - 0.1, student + 0.1), "drift": None},
    }
    base = Report(
        kind="world",
        title="one",
        protocol={"short": {"clips": 4}},
        columns=COLUMNS,
        tables=[Table("short", rows, {"truth": 4, "student": 4})],
        curves=[Curves("short, motion", "seconds", "rho", {"student": [(0.5, student)]})],
        clips=[ClipResult("student", "short", "a", "a disc", "videos/a.mkv", {"rho": student})],
        notes=["These are not VBench numbers."],
        made={"torch": "2", "command": "x"},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def together(tmp_path: Path, one: Report, two: Report) -> Report:
    places = {"before": tmp_path / "one", "after": tmp_path / "two"}
    for place, held in zip(places.values(), (one, two), strict=True):
        write_report(held, place)
    reports, lost = read_reports(places)
    return compare(reports, places, tmp_path / "out", lost)


def test_controls_become_one_and_students_are_told_apart(tmp_path: Path) -> None:
    both = together(tmp_path, report(1.2), report(0.9))
    (table,) = both.tables
    assert list(table.rows) == ["truth", "before: student", "after: student"]
    assert table.rows["after: student"]["rho"] == Interval(0.9, 0.8, 1.0)
    assert table.clips == {"truth": 4, "before: student": 4, "after: student": 4}
    assert both.curves[0].lines == {"before: student": [(0.5, 1.2)], "after: student": [(0.5, 0.9)]}
    assert [clip.video for clip in both.clips] == ["../one/videos/a.mkv", "../two/videos/a.mkv"]
    assert both.notes == ["These are not VBench numbers."]


def test_what_differs_is_named(tmp_path: Path) -> None:
    other = report(
        0.9,
        protocol={"short": {"clips": 5}},
        made={"torch": "3", "command": "y"},
        columns=(replace(COLUMNS[0], legend="another thing"), COLUMNS[1]),
        missing=["teacher, long: it makes 81 frames only"],
    )
    both = together(tmp_path, report(1.2), other)
    assert [note.split(" (")[0] for note in both.notes[1:]] == [
        "Not the same: protocol short",
        "Not the same: version of torch",
        "Not the same: definition of rho",
    ]
    assert both.missing == ["after: teacher, long: it makes 81 frames only"]


def test_reports_of_another_version_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("a", "b", "old", "gone", "nan")}
    for name in ("a", "b", "old", "nan"):
        write_report(report(1.0), places[name])
    spoilt = places["nan"] / "report.json"
    spoilt.write_text(spoilt.read_text().replace('"mean": 1.0', '"mean": NaN'))
    old = places["old"] / "report.json"
    old.write_text(old.read_text().replace('"format": 1', '"format": 99'))
    reports, lost = read_reports(places)
    assert list(reports) == ["a", "b"]
    assert [line.split(":")[0] for line in lost] == ["old", "gone", "nan"]
    assert "it holds NaN" in lost[2]
    assert "format 99" in lost[0]
    assert compare(reports, places, tmp_path, lost).missing[:3] == lost
    with pytest.raises(UserError, match=r"needs two reports.*format 99"):
        read_reports({"a": places["a"], "old": places["old"]})


def test_one_table_has_a_line_a_protocol_and_measure(tmp_path: Path) -> None:
    lines = one_table(together(tmp_path, report(1.2), report(0.9))).splitlines()
    assert "| protocol | measure | ideal | truth | before: student | after: student |" in lines
    assert "| short | rho | 1 | 1.00 [1.00, 1.00] | 1.20 [1.10, 1.30] | 0.90 [0.80, 1.00] |" in lines
    assert "| short | drift | 0 | 0.00 [0.00, 0.00] | N/A | N/A |" in lines


def test_the_command_writes_a_page_and_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, student in (("one", 1.2), ("two", 0.9)):
        write_report(report(student, clips=()), tmp_path / name)
    words = ["compare", f"before={tmp_path / 'one'}", str(tmp_path / "two"), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"index.html", "comparison.md", "report.json"}
    assert "before: student" in (tmp_path / "out" / "comparison.md").read_text()
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "one")]) == 2
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "two reports have the same name" in first
    assert "needs two reports" in second
    assert "no report at" in second
