"""Blind preference studies: pairs, a page that gives nothing away, answers and what they say."""

from __future__ import annotations

import csv
import io
import json
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Visitor, opened_file

from aad1.cli.preference import PreferenceMake, PreferenceScore, asked
from aad1.data.clips import read_whole
from aad1.data.media import VideoWriter
from aad1.errors import UserError
from aad1.evaluation.contestants import contestants, from_folder
from aad1.evaluation.preference import GAP, QUESTIONS, Key, Pair, Plan, make_study, read_key
from aad1.evaluation.report import ClipResult, Column, Report, Table, write_report
from aad1.evaluation.votes import COLUMNS, Score, score, to_markdown, wilson, write_score

BRIGHT, DARK = 200, 40  # of every frame, by which a test knows whose video it is
ATTACK = '</script><img src=x onerror="document.title = 1"> & co'


def write(path: Path, level: int = 0, frames: int = 5, size: tuple[int, int] = (16, 24), fps: float = 16) -> None:
    with VideoWriter(path, fps=fps) as video:
        video.write(np.full((frames, *size, 3), level, np.uint8))


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Four clips of two models, a bright and a dark one."""
    for name, level in (("zebra", BRIGHT), ("walrus", DARK)):
        for index in range(4):
            write(tmp_path / name / f"secret-{index}.mkv", level)
            (tmp_path / name / f"secret-{index}.txt").write_text(ATTACK if index == 0 else f"caption {index}")
    return tmp_path / "zebra", tmp_path / "walrus"


def study(places: tuple[Path, Path], folder: Path, plan: Plan | None = None) -> Key:
    one, other = (from_folder(place.name, place) for place in places)
    return make_study(one, other, folder, plan or Plan())


# --- pairs ------------------------------------------------------------------------------------


def page_videos(page: Path, folder: Path) -> list[np.ndarray]:
    found = []
    for number, part in enumerate(page.read_text().split('<script type="text/plain" id="video-')[1:]):
        path = folder / f"{number}.mp4"
        path.write_bytes(b64decode(part.partition(">")[2].partition("<")[0]))
        found.append(read_whole(path)[0])
    return found


def test_the_key_says_which_side_is_whose_and_each_model_is_left_half_the_time(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    key = study(places, tmp_path / "study")
    videos = page_videos(tmp_path / "study/index.html", tmp_path)
    for pair, video in zip(key.pairs.values(), videos, strict=True):
        width = (video.shape[2] - GAP) // 2
        left, right = video[..., :width, :].mean(), video[..., width + GAP :, :].mean()
        assert pair.left == ("zebra" if left > right else "walrus")
        assert {round(left, -1), round(right, -1)} == {BRIGHT, DARK}
    assert sorted(pair.left for pair in key.pairs.values()) == ["walrus", "walrus", "zebra", "zebra"]
    assert sorted(pair.clip for pair in key.pairs.values()) == [f"secret-{index}" for index in range(4)]
    assert read_key(tmp_path / "study") == key


def test_the_page_gives_nothing_away(places: tuple[Path, Path], tmp_path: Path) -> None:
    key = study(places, tmp_path / "study")
    text = (tmp_path / "study/index.html").read_text()
    found = [b64decode(part.partition(">")[2].partition("<")[0]) for part in text.split('id="video-')[1:]]
    for secret in ("zebra", "walrus", "secret", str(tmp_path), "key.json"):
        assert secret not in text.lower()
        assert all(secret.encode() not in video for video in found)
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert {name for pair in data["pairs"] for name in pair} == {"id", "caption"}
    assert [pair["id"] for pair in data["pairs"]] == list(key.pairs)


def test_the_seed_decides_sides_and_order(places: tuple[Path, Path], tmp_path: Path) -> None:
    again = [study(places, tmp_path / name, Plan(seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert again[0] == again[1]
    assert (tmp_path / "a/index.html").read_bytes() == (tmp_path / "b/index.html").read_bytes()
    assert again[0].pairs != again[2].pairs
    assert again[0].study != again[2].study
    few = study(places, tmp_path / "d", Plan(pairs=2))
    assert len(few.pairs) == 2
    with pytest.raises(UserError, match="holds the key of study"):
        study(places, tmp_path / "a", Plan(seed=1))


def test_what_does_not_pair_is_named_and_the_rest_goes_on(places: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = places
    write(one / "alone.mp4")
    (other / "secret-0.mkv").write_bytes(b"no video")
    write(other / "secret-1.mkv", DARK, frames=4)
    write(other / "secret-2.mp4", DARK)
    key = study(places, tmp_path / "study")
    assert [pair.clip for pair in key.pairs.values()] == ["secret-3"]
    lines = "\n".join(key.missing)
    assert "alone: only zebra has it" in lines
    assert "secret-0.mkv: it cannot be decoded" in lines
    assert "4 frames of 24x16 at 16 a second" in lines
    assert "walrus has 2 videos of this name (secret-2.mkv, secret-2.mp4)" in lines


def test_videos_that_differ_can_be_cut_and_resized(tmp_path: Path) -> None:
    write(tmp_path / "one/clip.mkv", BRIGHT, frames=6, fps=16)
    write(tmp_path / "two/clip.mkv", DARK, frames=4, size=(32, 48), fps=8)
    with pytest.raises(UserError, match=r"no pair can be shown.*--fit"):
        study((tmp_path / "one", tmp_path / "two"), tmp_path / "study")
    study((tmp_path / "one", tmp_path / "two"), tmp_path / "study", Plan(fit=True))
    (video,) = page_videos(tmp_path / "study/index.html", tmp_path)
    assert len(video) == 6
    assert (video.shape[2] - GAP) // 2 % 24 == 0


def kept_report(folder: Path, models: dict[str, int]) -> Path:
    clips = []
    for model, level in models.items():
        write(folder / f"videos/{model}.mkv", level)
        clips += [ClipResult(model, "short", "clip", "a caption", f"videos/{model}.mkv", {})]
        clips += [ClipResult(model, "short", "lost", "a caption", "", {})]
    table = Table("short", {model: {} for model in models}, {})
    write_report(Report("world", "r", {}, [Column("rho", "rho", "1", "")], [table], clips=clips), folder)
    return folder


def test_rows_of_reports_are_contestants(tmp_path: Path) -> None:
    one = kept_report(tmp_path / "one", {"truth": 9, "student": BRIGHT, "teacher": DARK})
    two = kept_report(tmp_path / "two", {"frozen": 9, "student": DARK})
    with pytest.raises(UserError, match="not 3; --models of: truth, student, teacher"):
        contestants([("one", one)])
    inside = contestants([("one", one)], ("student", "teacher"))
    assert [side.name for side in inside] == ["student", "teacher"]
    assert list(inside[0].takes) == ["clip"]
    assert inside[0].lost == ["lost: student's video was not kept"]
    across = contestants([("one", one), ("two", two)], ("teacher", "student"))
    assert [(side.name, side.takes["clip"].path) for side in across] == [
        ("one", one / "videos/teacher.mkv"),
        ("two", two / "videos/student.mkv"),
    ]
    with pytest.raises(UserError, match="has several models"):
        contestants([("one", one), ("two", two)])
    mixed = contestants([("folder", two / "videos"), ("two", two)])
    assert set(mixed[0].takes) == {"frozen", "student"}
    for wrong in ([("two", two / "videos")], [("a", one)] * 3):
        with pytest.raises(UserError, match="report"):
            contestants(wrong)
    with pytest.raises(UserError, match="no model 'teachr'; did you mean 'teacher'"):
        contestants([("one", one)], ("student", "teachr"))


def test_questions_are_chosen_or_written() -> None:
    assert asked(("motion", "mine=Which is yours?")) == {"motion": QUESTIONS["motion"], "mine": "Which is yours?"}
    for wrong in ((), ("moton",), ("=x",), ("a=",), ("a,b=x",)):
        with pytest.raises(UserError):
            asked(wrong)


# --- answers ----------------------------------------------------------------------------------

KEY = Key(
    "s1",
    ("ours", "theirs"),
    {"overall": "Which?", "motion": "Whose?"},
    {f"p{i}": Pair(f"clip-{i}", *(("ours", "theirs") if i % 2 else ("theirs", "ours"))) for i in range(4)},
)


def answers(path: Path, rows: Sequence[tuple[str, str, str, str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([(*COLUMNS, "seconds"), *((*row, 1) for row in rows)])
    return path


def by_hand(folder: Path) -> Score:
    """Ann prefers ours in p0, p1, p2 and theirs in p3; bob ours in p0, a tie in p1."""
    ann = [("p0", "right"), ("p1", "left"), ("p2", "right"), ("p3", "right")]
    bob = [("p0", "right"), ("p1", "tie")]
    one = answers(folder / "ann.csv", [("s1", "ann", pair, "overall", word) for pair, word in ann])
    two = answers(folder / "bob.csv", [("s1", "bob", pair, "overall", word) for pair, word in bob])
    return score([one, two], KEY)


def test_win_rates_are_those_counted_by_hand(tmp_path: Path) -> None:
    overall, motion = by_hand(tmp_path).results
    assert overall.wins == {"ours": 4, "theirs": 1}
    assert (overall.ties, overall.raters, overall.pairs) == (1, 2, 4)
    rate, other = overall.rate["ours"], overall.rate["theirs"]
    assert rate
    assert other
    assert [rate.mean, other.mean] == pytest.approx([0.8, 0.2])
    assert [rate.low, rate.high] == pytest.approx([0.3755, 0.9638], abs=1e-4)
    assert [other.low, other.high] == pytest.approx([1 - rate.high, 1 - rate.low])
    over = overall.over_pairs["ours"]
    assert over
    assert over.mean == pytest.approx(0.8)
    assert over.low < 0.8 < over.high == 1
    assert overall.left
    assert overall.left.mean == pytest.approx(0.2)
    assert motion.rate == {"ours": None, "theirs": None}


def test_wilson_is_the_textbooks() -> None:
    found = wilson(8, 10)
    assert found
    assert [found.low, found.high] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert wilson(0, 0) is None
    none, all_of_them = wilson(0, 10), wilson(10, 10)
    assert none
    assert all_of_them
    assert (none.low, all_of_them.high) == (0, 1)
    assert none.high == pytest.approx(1 - all_of_them.low) == pytest.approx(0.2775, abs=1e-4)


def test_one_rater_has_no_interval_over_pairs(tmp_path: Path) -> None:
    found = score([answers(tmp_path / "a.csv", [("s1", "ann", "p0", "overall", "tie")])], KEY)
    assert found.results[0].rate == found.results[0].over_pairs == {"ours": None, "theirs": None}
    assert "| overall | ours | 0 | N/A | N/A | 1 | 1 | 1 | N/A |" in to_markdown(found, KEY.questions)


def test_answers_that_do_not_count_are_named(tmp_path: Path) -> None:
    good = ("s1", "ann", "p0", "overall", "right")
    bad = [
        ("s2", "ann", "p1", "overall", "left"),
        ("s1", "ann", "p9", "overall", "left"),
        ("s1", "ann", "p1", "looks", "left"),
        ("s1", "ann", "p1", "overall", "both"),
        ("s1", "", "p1", "overall", "left"),
        ("s1", "ann", "p0", "overall", "left"),
    ]
    found = score([answers(tmp_path / "a.csv", [good, *bad])], KEY)
    assert found.results[0].wins == {"ours": 1, "theirs": 0}
    reasons = ["study 's2'", "no pair 'p9'", "no question 'looks'", "'both' is no answer", "no rater", "already"]
    assert len(found.missing) == len(reasons)
    for line, reason in zip(found.missing, reasons, strict=True):
        assert reason in line
        assert "a.csv, line" in line
    (tmp_path / "short.csv").write_text("study,rater\ns1,ann\n")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name, words in (("short.csv", "no column pair"), ("bytes.csv", "cannot be read"), ("no.csv", "No such file")):
        with pytest.raises(UserError, match=words):
            score([tmp_path / name], KEY)
        assert score([tmp_path / name, tmp_path / "a.csv"], KEY).results[0].wins["ours"] == 1  # the rest goes on
    twice = score([tmp_path / "a.csv", tmp_path / "a.csv"], KEY)
    assert twice.results[0].wins == {"ours": 1, "theirs": 0}
    assert sum("already" in line for line in twice.missing) == 3
    with pytest.raises(UserError, match=r"no answer counts.*no pair"):
        score([answers(tmp_path / "b.csv", [bad[1]])], KEY)


def test_who_always_answers_left_is_flagged(tmp_path: Path) -> None:
    pairs = {f"p{i}": Pair(str(i), *(("a", "b") if i % 2 else ("b", "a"))) for i in range(20)}
    key = Key("s", ("a", "b"), {"q": "?"}, pairs)
    rows = [("s", "lefty", pair, "q", "left") for pair in pairs]
    rows += [("s", "fair", pair, "q", "left" if i % 2 else "right") for i, pair in enumerate(pairs)]
    found = score([answers(tmp_path / "a.csv", rows)], key)
    flags = [note for note in found.notes if note.startswith("Side bias")]
    assert flags[0].startswith("Side bias: 'q' was answered left in 75 %")
    assert flags[1:] == ["Side bias: lefty answered left in 20 of 20 answers."]


def test_a_key_that_is_none_is_one_line(tmp_path: Path) -> None:
    for text, words in (
        ("{torn", "is no key"),
        ("[]", "is no key"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1, "study": "s"}', "is damaged"),
    ):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_key(tmp_path)
    with pytest.raises(UserError, match="no key at"):
        read_key(tmp_path / "nowhere.json")


def test_the_commands_make_and_score(
    places: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    PreferenceMake((str(places[0]), f"other={places[1]}"), questions=("motion",), out=out).run([])
    said = capsys.readouterr().out
    assert "4 pairs of zebra and other, 1 questions each" in said
    key = read_key(out)
    rows = [
        (key.study, "ann", name, "motion", "left" if p.left == "zebra" else "right") for name, p in key.pairs.items()
    ]
    PreferenceScore((answers(tmp_path / "a.csv", rows),), key=out).run([])
    assert "| motion | zebra | 4 | 100 % [51, 100] |" in capsys.readouterr().out
    held = json.loads((out / "preference.json").read_text())
    assert held["results"][0]["wins"] == {"zebra": 4, "other": 0}
    with pytest.raises(UserError, match="'--sed' is not an option"):
        PreferenceScore((), key=out).run(["--sed"])
    with pytest.raises(UserError, match="no answers are given"):
        PreferenceScore((), key=out).run([])


def test_what_is_written_is_json(tmp_path: Path) -> None:
    assert json.loads(write_score(by_hand(tmp_path), tmp_path).read_text())["models"] == ["ours", "theirs"]


# --- in a browser -----------------------------------------------------------------------------


def shows(visitor: Visitor, side: str) -> float:
    """Mean level of a side's canvas, once it shows something."""
    script = f"""(() => {{ const c = document.getElementById("{side}");
        if (!c.dataset.time) return 0;
        const pen = document.createElement("canvas").getContext("2d", {{ willReadFrequently: true }});
        pen.drawImage(c, 0, 0);
        return pen.getImageData(9, 9, 1, 1).data[0]; }})()"""
    return float(visitor.until(script))


def press(visitor: Visitor, *keys: str) -> None:
    for key in keys:
        visitor.page.keyboard.press(key)


def test_both_sides_are_of_one_moment_and_on_the_side_that_the_key_says(
    browser: Any, places: tuple[Path, Path], tmp_path: Path
) -> None:
    key = study(places, tmp_path / "study", Plan({"overall": "Which?"}))
    with opened_file(browser, tmp_path / "study/index.html") as visitor:
        for number, pair in enumerate(key.pairs.values()):
            visitor.until(f"document.body.dataset.answered === '{number}'")
            visitor.until("document.querySelector('video').readyState > 1")
            visitor.page.wait_for_timeout(150)
            assert (shows(visitor, "left") > shows(visitor, "right")) == (pair.left == "zebra")
            times = "['left', 'right'].map((id) => document.getElementById(id).dataset.time)"
            assert len(set(visitor.page.evaluate(times))) == 1
            press(visitor, "ArrowDown")
        assert visitor.complaints == []
        assert sum(not url.startswith("blob:") for url in visitor.requests) == 1
        assert visitor.page.title() == "Which video is better?"


def test_answers_by_keyboard_survive_a_reload_and_score_as_counted(
    browser: Any, places: tuple[Path, Path], tmp_path: Path
) -> None:
    key = study(places, tmp_path / "study", Plan({"overall": "Which?", "motion": "Whose?"}))
    pairs = list(key.pairs.values())

    def towards(model: str, pair: Pair) -> str:
        return "ArrowLeft" if pair.left == model else "ArrowRight"

    with opened_file(browser, tmp_path / "study/index.html") as visitor:
        assert visitor.text("#progress") == "1 of 4"
        assert visitor.text("#part") == "question 1 of 2"
        press(visitor, towards("walrus", pairs[0]), "z", towards("zebra", pairs[0]), "ArrowDown")
        assert visitor.text("#progress") == "2 of 4"
        early = visitor.download().decode()
        assert len(early.splitlines()) == 3
        visitor.page.reload()
        assert visitor.text("#progress") == "2 of 4"
        visitor.page.fill("#name", "=Ann, “x”")
        visitor.page.press("#name", "ArrowLeft")  # moves the cursor, answers nothing
        visitor.page.evaluate("document.activeElement.blur()")
        press(visitor, towards("zebra", pairs[1]), towards("walrus", pairs[1]), "ArrowDown", "ArrowDown")
        press(visitor, towards("walrus", pairs[3]), towards("zebra", pairs[3]), "ArrowLeft")
        assert visitor.page.is_visible("#finished")
        assert not visitor.page.is_visible("#asking")
        assert visitor.complaints == []
        rows = list(csv.DictReader(io.StringIO(visitor.download().decode())))
        visitor.page.on("dialog", lambda dialog: dialog.accept())
        visitor.page.click("#again")
        assert visitor.text("#progress") == "1 of 4"
    assert len(rows) == 8
    assert {row["rater"].split()[0] for row in rows} == {"Ann"}
    (tmp_path / "answers.csv").write_text("")
    with (tmp_path / "answers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = score([tmp_path / "answers.csv"], key)
    assert found.missing == []
    assert [(r.wins["zebra"], r.wins["walrus"], r.ties) for r in found.results] == [(2, 1, 1), (1, 1, 2)]
    rate = found.results[0].rate["zebra"]
    assert rate
    assert rate.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_captions_are_text(
    browser: Any, places: tuple[Path, Path], tmp_path: Path, scheme: str
) -> None:
    key = study(places, tmp_path / "study", Plan({"overall": "Which?"}))
    before = [pair.clip for pair in key.pairs.values()].index("secret-0")
    options = {"viewport": {"width": 375, "height": 700}, "color_scheme": scheme}
    with opened_file(browser, tmp_path / "study/index.html", **options) as visitor:
        press(visitor, *["ArrowDown"] * before)
        assert visitor.text("#caption") == f"“{ATTACK}”"
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == 375
        assert not visitor.page.query_selector("img")
        assert visitor.complaints == []
