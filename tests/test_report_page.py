"""A report's page: what it says, what it keeps out, and what people do with it in a real browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visitor, opened_file
from PIL import Image

from aad1.data.clips import read_whole
from aad1.data.media import VideoWriter
from aad1.data.world import make_clip
from aad1.evaluation.chart import Chart, Line, marks
from aad1.evaluation.films import CODINGS, MOST_FRAMES, SHEET, fitting, make_film
from aad1.evaluation.intervals import Interval
from aad1.evaluation.markup import embedded, filled
from aad1.evaluation.reel import make_reel, primary, worst_first
from aad1.evaluation.report import ClipResult, Column, Curves, Report, Table, write_report
from aad1.evaluation.report_page import write_page
from aad1.evaluation.world import CONTROLS

FRAMES, CLIPS, SIZE = 9, 3, 64
MODELS = ("truth", "frozen", "student <b>")
SPEEDS = {"truth": (1.0, 1.0, 1.0), "frozen": (0.0, 0.0, 0.0), "student <b>": (0.95, 0.2, 0.7)}
DRIFT = {"truth": (0.0, 0.0, 0.0), "frozen": (None, None, None), "student <b>": (3.0, 1.0, 2.0)}
ATTACK = '</script><script>document.title = "taken"</script><img src=x onerror="document.title = 1">{{data}}'
COLUMNS = (
    Column("rho", "rho", "1", "speed ratio"),
    Column("drift", "drift", "0", "std of Q"),
    Column("sharpness", "sharp", "higher", "gradient energy"),
)
BUTTONS = "[...document.querySelectorAll('#worst button')]"


def write(path: Path, frames: np.ndarray) -> None:
    with VideoWriter(path, fps=16) as video:
        video.write(frames)


def half_speed(clip: Any) -> np.ndarray:
    return np.asarray(clip.frames[np.arange(len(clip.frames)) // 2])


def clip_results(folder: Path) -> list[ClipResult]:
    makers = {**{name: CONTROLS[name] for name in ("truth", "frozen")}, "student <b>": half_speed}
    found = []
    for index in range(CLIPS):
        clip = make_clip("test", index, FRAMES)
        for model, make in makers.items():
            video = f"videos/{model.split()[0]}/{index}.mkv"
            write(folder / video, make(clip))
            caption = ATTACK if index == 0 else clip.caption
            values = {"rho": SPEEDS[model][index], "drift": DRIFT[model][index], "sharpness": None}
            found.append(ClipResult(model, "short", f"clip-{index}", caption, video, values))
    return found


def small_report(clips: Sequence[ClipResult]) -> Report:
    def mean(values: Sequence[float | None]) -> Interval | None:
        known = [value for value in values if value is not None]
        return Interval(float(np.mean(known)), min(known), max(known)) if known else None

    rows = {m: {"rho": mean(SPEEDS[m]), "drift": mean(DRIFT[m]), "sharpness": None} for m in MODELS}
    lines = {m: [(0.25, SPEEDS[m][0]), (0.5, None), (0.75, SPEEDS[m][2]), (1.0, 0.5)] for m in MODELS}
    return Report(
        "world",
        "A <report>",
        {"short": {"clips": CLIPS}},
        COLUMNS,
        [Table("short: all", rows, dict.fromkeys(MODELS, CLIPS))],
        [Curves("motion", "seconds", "rho", lines, 1.0)],
        clips,
        notes=["These are not VBench numbers."],
        missing=["frozen, long: it makes 9 frames only"],
        made={"aad1": "0.1.0", "command": "aad1 evaluate world -o <out>"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report = small_report(clip_results(folder))
    write_report(report, folder)
    write_page(report, folder)
    return folder


# --- frames -----------------------------------------------------------------------------------


def decoded(film: Any) -> np.ndarray:
    """What a browser cuts out of the sheets."""
    height, width = film.size
    cells = []
    for data in film.sheets:
        sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert max(sheet.shape) <= SHEET
        rows = sheet.reshape(film.down, height, film.across, width, 3).swapaxes(1, 2)
        cells.append(rows.reshape(-1, height, width, 3))
    return np.concatenate(cells)[: -(-film.frames // film.step)]


@pytest.mark.parametrize("shape", [(9, 64, 64), (1, 64, 64), (3, 5, 300), (30, 384, 384), (131, 384, 384)])
def test_a_film_without_loss_is_the_video(shape: tuple[int, int, int]) -> None:
    count, height, width = shape
    lines = np.random.default_rng(0).integers(0, 256, (count, height, 1, 3), np.uint8)
    frames = np.broadcast_to(lines, (count, height, width, 3))
    assert np.array_equal(decoded(make_film(frames, 16, CODINGS[0])), frames)


def test_long_videos_are_thinned_evenly_and_large_ones_made_smaller() -> None:
    counted = np.broadcast_to(np.arange(321)[:, None, None, None] // 2, (321, 6, 8, 3)).astype(np.uint8)
    film = make_film(counted, 16, CODINGS[0])
    assert film.step == 2
    assert len(decoded(film)) == 161 <= MOST_FRAMES
    assert np.array_equal(decoded(film)[:, 0, 0, 0], np.arange(161))
    wide = make_film(np.zeros((2, 480, 832, 3), np.uint8), 16, CODINGS[0])
    assert (wide.size, wide.full) == ((222, 384), (480, 832))


def test_the_coding_is_the_best_that_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    assert fitting([(noise, 16.0)], 10, 1e9) == CODINGS[0]
    assert fitting([(noise, 16.0)], 10, 3e5) in CODINGS[1:-1]
    assert fitting([(noise, 16.0)], 10, 1) == CODINGS[-1]
    assert fitting([], 0, 1) == CODINGS[0]


# --- which clips ------------------------------------------------------------------------------


def test_worst_first_puts_what_is_not_applicable_last(folder: Path) -> None:
    clips = [ClipResult("m", "p", str(i), "", "", {"rho": v}) for i, v in enumerate((0.9, None, 0.0, 1.6))]
    assert worst_first(clips, [0, 1, 2, 3], COLUMNS[0]) == [2, 3, 0, 1]
    sharp = [ClipResult("m", "p", str(i), "", "", {"sharpness": v}) for i, v in enumerate((2.0, 1.0))]
    assert worst_first(sharp, [0, 1], COLUMNS[2]) == [1, 0]


def test_the_worst_clips_of_models_are_embedded_for_all_models_and_controls_do_not_choose(folder: Path) -> None:
    report = small_report(clip_results(folder))
    reel = make_reel(report, folder, 1)
    assert {report.clips[i].name for i in reel.films} == {"clip-1"}  # the student's worst, by rho
    assert {report.clips[i].model for i in reel.films} == set(MODELS)
    assert reel.reasons[0] == "not embedded: videos/truth/0.mkv"
    assert reel.lost == []
    column = primary(report)
    assert column
    assert column.name == "rho"


def test_a_full_page_leaves_the_rest_out_and_says_so(folder: Path) -> None:
    report = small_report(clip_results(folder))
    reel = make_reel(report, folder, 3, budget=4000)
    assert 0 < len(reel.films) < len(report.clips)
    assert set(reel.films) | set(reel.reasons) == set(range(len(report.clips)))
    assert "of 9 kept videos" in reel.words


def test_missing_damaged_and_unkept_videos_are_named_and_the_rest_goes_on(folder: Path, tmp_path: Path) -> None:
    report = small_report(clip_results(tmp_path))
    (tmp_path / "videos/truth/1.mkv").unlink()
    (tmp_path / "videos/frozen/1.mkv").write_bytes(b"no video")
    clips = [
        replace(clip, video="" if clip.video.startswith("videos/student") else clip.video) for clip in report.clips
    ]
    clips[0] = replace(clips[0], video="v" * 300)
    reel = make_reel(replace(report, clips=clips), tmp_path, 12)
    assert len(reel.films) == 3
    assert len(reel.lost) == 3
    text = write_page(replace(report, clips=clips), tmp_path).read_text()
    assert "videos/truth/1.mkv: the file does not exist" in text
    assert "videos/frozen/1.mkv: it cannot be decoded" in text
    assert "its video was not kept" in text


# --- text -------------------------------------------------------------------------------------


def test_embedded_json_ends_no_script_and_parts_are_not_filled_twice() -> None:
    assert "<" not in embedded([ATTACK])
    assert json.loads(embedded([ATTACK, "\u2028"])) == [ATTACK, "\u2028"]
    parts = dict.fromkeys(
        ("title", "kind", "missing", "tables", "notes", "toggles", "charts", "frames", "made"), "{{data}}"
    )
    text = filled("report.html", {**parts, "data": "DATA", "films": "", "clips": "", "curves": ""})
    assert text.count("DATA") == 1


def test_lines_break_where_nothing_is_known() -> None:
    line = Line("a", "m0", [(0, 1.0), (1, float("nan")), (2, 1.0), (3, 2.0)])
    svg = Chart("t", [line], marks(3, "s")).svg()
    assert svg.count("<polyline") == 2
    assert svg.count("<circle") == 3
    assert marks(10, "s")[-1] == (10, "10 s")


def test_a_report_without_clips_and_curves_has_a_page(tmp_path: Path) -> None:
    bare = Report("vbench", "bare", {}, COLUMNS, [Table("t", {"m": {"rho": None}}, {})])
    text = write_page(bare, tmp_path).read_text()
    assert "N/A for every model: rho, drift, sharp." in text


# --- in a browser -----------------------------------------------------------------------------

opened = partial(opened_file, viewport={"width": 1300, "height": 900})


def ready(visitor: Visitor) -> Visitor:
    visitor.until("document.body.dataset.loaded > 0")
    return visitor


def choose(visitor: Visitor, select: str, label: str) -> None:
    loaded = visitor.page.evaluate("document.body.dataset.loaded")
    visitor.page.select_option(f"#{select}", label=label)
    if select in ("clip", "a", "b"):
        visitor.until(f"document.body.dataset.loaded > {loaded}")


def shown_frames(visitor: Visitor) -> list[str]:
    ids = ["canvas-a", "canvas-b", "difference"]
    return [visitor.page.evaluate(f"document.getElementById('{name}').dataset.frame") for name in ids]


def pixels(visitor: Visitor, canvas: str) -> np.ndarray:
    script = f"""(() => {{ const c = document.getElementById("{canvas}");
        return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data); }})()"""
    return np.array(visitor.page.evaluate(script)).reshape(SIZE, SIZE, 4)[..., :3]


def test_it_opens_offline_asks_nothing_and_runs_nothing_of_the_users(browser: Any, folder: Path) -> None:
    with opened(browser, folder / "index.html") as visitor:
        ready(visitor)
        assert visitor.page.title() == "A <report>"
        choose(visitor, "clip", "clip-0")
        assert visitor.text("#caption") == f"“{ATTACK}”"
        assert ATTACK in visitor.text("#worst")
        assert visitor.page.title() == "A <report>"
        assert not visitor.page.query_selector("main img, main script, main b b, #a b")
        assert [url for url in visitor.requests if not url.startswith(("file:", "blob:"))] == []
        assert sum(url.startswith("file:") for url in visitor.requests) == 1
        assert visitor.complaints == []
        body = visitor.text("main")
    for words in (
        "Missing (1)",
        "it makes 9 frames only",
        "These are not VBench numbers.",
        "aad1 evaluate world -o <out>",
    ):
        assert words in body


def test_the_table_is_the_report(browser: Any, folder: Path) -> None:
    with opened(browser, folder / "index.html") as visitor:
        rows = visitor.page.eval_on_selector_all(
            ".table tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText.replaceAll('\\n', ' ').trim()))"
        )
        heading = visitor.text(".table summary")
    assert heading == "short: all (3 clips)"
    assert rows == [
        ["measure", "ideal", *MODELS],
        ["rho speed ratio", "1", "1.00 1.00 to 1.00", "0.00 0.00 to 0.00", "0.62 0.20 to 0.95"],
        ["drift std of Q", "0", "0.00 0.00 to 0.00", "N/A", "2.00 1.00 to 3.00"],
    ]


def test_players_are_in_step_and_show_the_frames_that_were_measured(browser: Any, folder: Path) -> None:
    with opened(browser, folder / "index.html") as visitor:
        page = ready(visitor).page
        for name, label in (("clip", "clip-2"), ("a", "truth"), ("b", "student <b>")):
            choose(visitor, name, label)
        page.fill("#scrub", "5")
        assert shown_frames(visitor) == ["5", "5", "5"]
        truth, student = (read_whole(folder / f"videos/{m}/2.mkv")[0][5] for m in ("truth", "student"))
        assert np.array_equal(pixels(visitor, "canvas-a"), truth)
        assert np.array_equal(pixels(visitor, "canvas-b"), student)
        apart = np.abs(truth.astype(int) - student)
        assert np.array_equal(pixels(visitor, "difference"), np.minimum(4 * apart, 255))
        page.fill("#gain", "0")
        assert np.array_equal(pixels(visitor, "difference"), apart)
        assert f"mean {apart.mean():.2f}, most {apart.max()} of 255" == visitor.text("#apart")
        choose(visitor, "b", "truth")
        assert pixels(visitor, "difference").max() == 0
        assert visitor.text("#apart") == "every pixel is the same"


def test_keys_step_and_play(browser: Any, folder: Path) -> None:
    with opened(browser, folder / "index.html") as visitor:
        page = ready(visitor).page
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            page.keyboard.press(key)
        assert shown_frames(visitor) == ["1", "1", "1"]
        page.keyboard.press("End")
        assert visitor.text("#where").startswith("frame 8 of 9, 0.50 s")
        page.keyboard.press("Shift+ArrowLeft")
        assert shown_frames(visitor)[0] == "0"
        page.select_option("#speed", "2")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press(" ")
        visitor.until("document.getElementById('canvas-a').dataset.frame > 2")
        for _ in range(5):
            script = "['canvas-a', 'canvas-b', 'difference'].map((id) => document.getElementById(id).dataset.frame)"
            assert len(set(page.evaluate(script))) == 1
            page.wait_for_timeout(40)
        page.keyboard.press(" ")
        assert visitor.text("#play") == "Play"


def test_the_worst_come_first_and_a_click_shows_them(browser: Any, folder: Path) -> None:
    names = f"{BUTTONS}.map((b) => b.querySelector('span').innerText + ' ' + b.querySelector('b').innerText)"
    with opened(browser, folder / "index.html") as visitor:
        page = ready(visitor).page
        assert page.evaluate(names) == ["clip-1 0.20", "clip-2 0.70", "clip-0 0.95"]  # the student, by rho
        assert visitor.text("#name-a") == "A student <b>"
        assert visitor.text("#name-b") == "B truth"
        choose(visitor, "measure", "drift")
        assert page.evaluate(names) == ["clip-0 3.00", "clip-2 2.00", "clip-1 1.00"]
        page.click("#worst li:nth-child(2) button")
        visitor.until("document.getElementById('clip').value === 'clip-2'")
        visitor.until("/drift/.test(document.getElementById('values').innerText)")
        row = "[...document.querySelectorAll('#values tr')].find((r) => /^drift/.test(r.innerText)).innerText"
        assert re.sub(r"\s+", " ", page.evaluate(row)) == "drift std of Q 0 2.00 0.00"
        choose(visitor, "model", "frozen")
        assert "drift is N/A for every clip of this row" in visitor.text("#worst")


def test_curves_have_an_ideal_and_models_can_be_hidden(browser: Any, folder: Path) -> None:
    with opened(browser, folder / "index.html", color_scheme="dark") as visitor:
        page = visitor.page
        lines = "[...document.querySelectorAll('.charts polyline')].filter((l) => l.checkVisibility()).length"
        assert page.evaluate(lines) == 6  # three models, each broken once; a lone point is a dot
        assert page.query_selector(".charts line.ideal")
        page.click(".toggle[data-model='2']")
        assert page.evaluate(lines) == 4
        assert page.get_attribute(".toggle[data-model='2']", "aria-pressed") == "false"
        stroke = "getComputedStyle(document.querySelector('.charts polyline.m0')).stroke"
        assert page.evaluate(stroke) == "rgb(91, 157, 240)"


def test_clips_without_frames_say_why(browser: Any, tmp_path: Path) -> None:
    clips = clip_results(tmp_path)
    clips[2] = replace(clips[2], video="")
    (tmp_path / clips[0].video).unlink()
    page = write_page(small_report(clips), tmp_path, shown=3)
    with opened(browser, page) as visitor:
        ready(visitor)
        choose(visitor, "clip", "clip-0")
        assert visitor.text("#why-a") == "its video was not kept"
        assert visitor.text("#why-b").startswith("the file does not exist")
        assert visitor.text("#why-difference") == "it needs the frames of both"
        assert "videos/truth/0.mkv: the file does not exist" in visitor.text(".missing")
        assert visitor.complaints == []


def test_films_of_other_lengths_and_sizes_are_compared_as_far_as_they_go(browser: Any, tmp_path: Path) -> None:
    clips = clip_results(tmp_path)
    write(tmp_path / clips[0].video, np.zeros((4, 32, 48, 3), np.uint8))
    page = write_page(small_report(clips), tmp_path)
    with opened(browser, page, viewport={"width": 375, "height": 700}) as visitor:
        ready(visitor)
        choose(visitor, "clip", "clip-0")
        assert "A has 9 frames, B 4" in visitor.text("#note-b")
        assert "B is resized" in visitor.text("#note-b")
        visitor.page.keyboard.press("End")
        assert visitor.text("#why-difference") == "one of them has ended"
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == 375
        assert visitor.complaints == []
