"""A whole evaluation on the embedded world: rows, resuming, saved videos, what is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aad1.cli import main
from aad1.data.media import VideoWriter
from aad1.data.world import FPS
from aad1.errors import UserError
from aad1.evaluation import sources
from aad1.evaluation.protocols import PROTOCOLS, Protocol, chosen
from aad1.evaluation.report import Report, read_report, to_markdown, write_report
from aad1.evaluation.sources import Source
from aad1.evaluation.world_report import WorldEvaluation
from aad1.measures.world import MEASURE
from aad1.models.checkpoint_io import open_folder

SHORT = Protocol("short", "a few frames", frames=33, clips=4)
SLOW = Protocol("slow", "half speed", "test_slow", frames=33, clips=2)


def controls() -> list[Source]:
    return [sources.control(name) for name in ("truth", "frozen")]


def evaluate(folder: Path, rows: list[Source], *protocols: Protocol) -> Report:
    write_report(WorldEvaluation(folder, protocols or (SHORT,)).run(rows, "test"), folder)
    return read_report(folder)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(folder, controls(), SHORT, SLOW)
    return folder


def test_a_report_has_every_protocol_track_curve_and_clip(once: Path) -> None:
    report = read_report(once)
    assert [table.title.partition(":")[0] for table in report.tables] == ["short"] * 3 + ["slow"] * 3
    assert [table.clips["truth"] for table in report.tables] == [2, 2, 4, 1, 1, 2]
    assert len(report.curves) == 2 * 3
    assert report.curves[0].lines["truth"] == [(0.5, pytest.approx(1, abs=0.02)), (1.5, pytest.approx(1, abs=0.02))]
    assert len(report.clips) == 2 * (4 + 2)
    assert all((once / clip.video).is_file() for clip in report.clips)
    frozen = [clip for clip in report.clips if clip.model == "frozen"]
    assert all(clip.values["rho"] == 0 and clip.values["drift"] is None for clip in frozen)
    assert "not VBench numbers" in to_markdown(report)
    assert not report.missing


def test_the_same_evaluation_gives_the_same_numbers(once: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path, controls(), SHORT, SLOW) == read_report(once)


def test_saved_videos_and_a_live_model_give_the_same_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    folder = open_folder(tiny_folder)
    live = evaluate(tmp_path / "live", [sources.through_vae(folder)])
    saved = evaluate(tmp_path / "saved", [sources.videos("saved", tmp_path / "live" / "videos" / "truth_vae")])
    assert saved.tables[-1].rows["saved"] == live.tables[-1].rows["truth_vae"]
    assert [clip.values for clip in saved.clips] == [clip.values for clip in live.clips]


def test_what_is_measured_is_used_again_only_while_it_depends_on_the_same(once: Path, tmp_path: Path) -> None:
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)

    def never(*_: object) -> list[sources.Sample]:
        pytest.fail("it was measured again")

    kept = replace(sources.control("truth"), samples=never)
    assert "truth" in evaluate(tmp_path, [kept]).models
    (tmp_path / "videos" / "frozen" / "short" / "test-free-00001.mkv").unlink()
    (tmp_path / "measured" / "truth-short.json").write_text("{torn")
    for name in ("frozen", "truth"):  # a video is gone, a file is torn
        with pytest.raises(pytest.fail.Exception):
            evaluate(tmp_path, [replace(sources.control(name), samples=never)])
    with pytest.raises(pytest.fail.Exception):
        evaluate(tmp_path, [replace(kept, key={"control": "another"})])


def test_clips_that_cannot_be_read_are_named_and_the_rest_goes_on(once: Path, tmp_path: Path) -> None:
    shutil.copytree(once / "videos" / "truth", tmp_path / "mine")
    mine = tmp_path / "mine" / "short"
    (mine / "test-determined-00000.mkv").write_bytes(b"no video")
    (mine / "test-free-00001.mkv").unlink()
    with VideoWriter(mine / "test-determined-00002.mkv", fps=FPS) as video:
        video.write(np.zeros((33, 32, 64, 3), np.uint8))
    report = evaluate(tmp_path / "out", [sources.control("truth"), sources.videos("mine", tmp_path / "mine")])
    assert report.tables[-1].clips == {"truth": 4, "mine": 1}
    assert [line.partition(": ")[0] for line in report.missing] == ["mine, short"] * 3
    for words in ("00000.mkv: it cannot be decoded", "test-free-00001 is not in", "64x32 at 16 a second"):
        assert sum(words in line for line in report.missing) == 1, report.missing
    again = evaluate(tmp_path / "out", [sources.control("truth"), sources.videos("mine", tmp_path / "mine")])
    assert again == report


def test_a_length_that_a_model_cannot_make_is_said(tmp_path: Path) -> None:
    report = evaluate(tmp_path, [sources.control("truth"), replace(sources.control("frozen"), frames=17)])
    assert report.models == ["truth"]
    assert report.missing == ["frozen, short: it makes 17 frames only"]


def test_nothing_measured_and_doubled_names_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing could be measured; frozen, short: it makes 17"):
        evaluate(tmp_path, [replace(sources.control("frozen"), frames=17)])
    with pytest.raises(UserError, match="two rows are named frozen, truth"):
        evaluate(tmp_path, [*controls(), *controls()])
    with pytest.raises(UserError, match="is no folder"):
        sources.videos("mine", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        sources.videos("mine", tmp_path / "empty")


def test_protocols_are_chosen_by_name() -> None:
    assert [p.clips for p in chosen(("short", "long", "short"), 50)] == [50, 50]
    assert {p.split for p in PROTOCOLS.values()} == {"test", "test_slow", "test_fast", "test_count", "test_pairs"}
    with pytest.raises(UserError, match="did you mean 'short'"):
        chosen(("shrt",))
    with pytest.raises(UserError, match="0 clips"):
        chosen(("short",), 0)


def test_no_measure_is_left_out_of_the_files(once: Path) -> None:
    held = json.loads((once / "measured" / "truth-short.json").read_text())
    assert held["key"]["measures"]["names"] == list(MEASURE)


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_report_table_and_page(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_folder), "--rows", "truth", "frozen", "--clips", "2", "--protocols", "slow"]
    assert main(["evaluate", "world", *words, "-o", str(tmp_path), "--device", "cpu"]) == 0
    assert f"open {tmp_path / 'index.html'}" in capsys.readouterr().out
    report = read_report(tmp_path)
    assert report.models == ["truth", "frozen"]
    assert report.made["command"].startswith("aad1 ")
    assert "| rho | 1 | 1.00" in (tmp_path / "report.md").read_text()
    assert "</html>" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "truht"], "there is no row 'truht'; did you mean 'truth'"),
        (["--rows", "nobody"], "constant_velocity, frozen, student, teacher, truth, truth_vae"),
        (["--shown", "-1"], "--shown -1: use 0 or more"),
        (["--diversity", "0"], "--diversity 0: use 1 or more"),
        (["--protocols", "sort"], "did you mean 'short'"),
        (["--clips", "0"], "0 clips"),
        (["--runs", "."], "has no finished stage"),
        (["--students", "mine=."], "holds no student"),
        (["--videos", "a/b=."], "is no name for a row"),
        (["--videos", "mine=nowhere"], "nowhere is no folder"),
        (["--showing.teacher.step", "3"], "did you mean 'steps'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "world", "--model", str(tiny_folder), "-o", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
