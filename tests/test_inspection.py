"""Looking at data before training on it: the numbers are those of the clips, and the page shows them safely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import opened_file

from aad1.cli import main
from aad1.data import blocks
from aad1.data.clips import read_clip, write_world_folder
from aad1.data.media import VideoWriter, video_to_tensor
from aad1.data.motion import motion_energy
from aad1.data.sources import find_clips
from aad1.data.store import Manifest, Skip
from aad1.data.world import Track, make_clip
from aad1.errors import UserError
from aad1.evaluation.films import make_film
from aad1.inspection.findings import Clip, Findings, general, reasons, spread, summary
from aad1.inspection.histogram import BINS, Histogram
from aad1.inspection.page import render
from aad1.inspection.writing import page_path
from aad1.models.checkpoint_io import open_folder
from aad1.models.vae import encode_video

FRAMES, CLIPS = 9, 6
TRACKS: tuple[Track, Track] = ("determined", "free")  # of a world folder's clips
OPTIONS = [f"--data.frames={FRAMES}", "--sample=50", "--clips=3", "--device=cpu"]
ATTACK = '</script><script>document.title = "taken"</script><img src=x onerror="document.title = 1">{{data}}'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good clips, one that stands still, one too short, two without a usable caption and one that is torn."""
    folder = tmp_path_factory.mktemp("videos")
    good = write_world_folder(folder, "train", CLIPS, FRAMES)[0]
    for name in ("torn", "no_caption", "latin"):
        (folder / f"{name}.mp4").write_bytes(good.read_bytes()[: 900 if name == "torn" else None])
    (folder / "torn.txt").write_text("words")
    (folder / "latin.txt").write_bytes(b"b\xe4ll")
    for name, count in (("still", FRAMES), ("short", 3)):
        with VideoWriter(folder / f"{name}.mp4", fps=16) as writer:
            writer.write(make_clip("train", 0, 1).frames.repeat(count, axis=0))
        (folder / f"{name}.txt").write_text(ATTACK)
    return folder


def inspect(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", "inspect", words[0], *OPTIONS, *words[1:]]) == 0
    return capfd.readouterr().out


def numbers(page: Path) -> dict[str, Any]:
    return dict(json.loads(page.with_suffix(".json").read_text()))


# --- a source ---------------------------------------------------------------------------------


def test_a_source_is_told_in_numbers(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    said = inspect(capfd, str(source), "-o", str(page), "--data.selection.min_motion=0.001")
    found = numbers(page)
    assert {name: found[name] for name in ("listed", "looked_at", "used")} == {
        "listed": CLIPS + 5, "looked_at": CLIPS + 5, "used": CLIPS
    }  # fmt: skip
    left_out = {(r["kind"], r["reason"]): r["count"] for r in found["left_out"]}
    torn = next(reason for _, reason in left_out if "decoded" in reason)
    assert left_out == {
        ("broken", "no caption"): 2, ("filtered", "moves … of the … wanted"): 1, ("filtered", "too short"): 1,
        ("broken", torn): 1,
    }  # fmt: skip
    good = [clip for clip in find_clips(source) if clip.name.startswith("train")]
    read = [read_clip(clip, sizes=[(64, 64)], fps=16, frames=FRAMES).frames for clip in good]
    motion = [motion_energy(frames).mean() for frames in read]
    assert found["measures"]["motion"]["count"] == CLIPS + 1  # the still one too, though it is left out
    assert found["measures"]["motion"]["min"] == 0
    assert found["measures"]["motion"]["max"] == pytest.approx(max(motion), abs=1e-5)
    assert found["measures"]["seconds"]["median"] == pytest.approx(FRAMES / 16, abs=1e-3)
    assert found["sizes"] == {"64x64": CLIPS + 2}
    assert found["asked"]["data.selection.min_motion"] == "0.001"
    assert f"{CLIPS} can be used" in said
    assert "2 broken: no caption (as " in said
    assert str(source) not in page.read_text()


def test_a_sample_is_drawn_by_its_seed(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        inspect(capfd, str(source), "-o", str(tmp_path / name), f"--seed={seed}", "--sample=4")
        found[name] = (tmp_path / name / "index.html").read_text()
    assert found["a"] == found["b"] != found["c"]
    assert numbers(tmp_path / "a" / "index.html")["looked_at"] == 4


def test_films_have_the_shape_of_their_bucket(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with VideoWriter(tmp_path / "wide.mp4", fps=16) as writer:
        writer.write(make_clip("train", 0, FRAMES).frames.repeat(2, axis=2))
    (tmp_path / "wide.txt").write_text("words")
    inspect(capfd, str(tmp_path), "-o", str(tmp_path / "page"), "--data.buckets", "[[64, 64], [64, 128]]")
    assert 'width="128" height="64"' in (tmp_path / "page" / "index.html").read_text()


def test_clips_of_every_kind_of_source(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"video": str(c.path), "caption": "x"}) for c in find_clips(source) if "train" in c.name]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    inspect(capfd, str(tmp_path / "list.jsonl"), "-o", str(tmp_path), "--data.selection.clips_per_video=2")
    found = numbers(tmp_path / "index.html")
    assert (found["source"], found["listed"], found["used"]) == ("list.jsonl", 2 * CLIPS, CLIPS)
    assert found["left_out"][0]["reason"] == "has room for … of the … clips wanted"


# --- a store ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A workspace with three clips and two that were skipped."""
    root = tmp_path_factory.mktemp("run")
    vae = open_folder(tiny_folder).vae()
    manifest, items = Manifest("latents", "hash", 16, (64, 64), FRAMES), list[blocks.Clip | Skip]()
    for index in range(3):
        clip = make_clip("train", index, FRAMES)
        latents = encode_video(vae, video_to_tensor(clip.frames[None]))[0]
        name = f"train-{TRACKS[index % 2]}-{index:05d}.mp4"
        items.append(
            blocks.Clip({"latents": latents}, {"source": name, "caption": clip.caption, "motion": 0.01 * index})
        )
    for position, (name, seconds) in enumerate((("a.mp4", 3), ("b.mp4", 5)), start=3):
        reason = f"too short: {seconds} of the 9 frames needed at 16 fps"
        items.append(Skip(position, name, reason, "filtered"))
    sources = [item.source if isinstance(item, Skip) else str(item.row["source"]) for item in items]
    with blocks.StoreWriter(root / "clips", manifest, sources, block=len(items)) as writer:
        blocks.write_block(root / "clips", manifest, 0, items)
        writer.look()
        writer.complete()
    return root


def test_a_store_is_told_by_its_rows(
    store: Path, source: Path, tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = {"listed": 5, "looked_at": 5, "used": 3}
    ways = {"decoded": ["--model", str(tiny_folder)], "again": ["--data.source", str(source)], "bare": []}
    for name, words in ways.items():
        said = inspect(capfd, str(store if name == "bare" else store / "clips"), "-o", str(tmp_path / name), *words)
        found = numbers(tmp_path / name / "index.html")
        assert {key: found[key] for key in wanted} == wanted
        assert found["measures"]["motion"] == spread([0.0, 0.01, 0.02])
        assert [(r["kind"], r["count"]) for r in found["left_out"]] == [("filtered", 2)]
        page = (tmp_path / name / "index.html").read_text()
        assert page.count("<canvas") == (0 if name == "bare" else 3)
        assert page.count("no frames at hand") == (3 if name == "bare" else 0)
        assert ("films need --model" in said) == (name == "bare")


# --- what it is made of -----------------------------------------------------------------------


def test_a_histogram_counts_every_value() -> None:
    rng = np.random.default_rng(0)
    values = [*rng.normal(5, 1, 997).tolist(), 400.0, 500.0, 600.0]
    bars = Histogram("Length", "s", values, walls=[2.0]).bars()
    assert len(bars) == BINS
    assert sum(count for *_, count in bars) == 1000
    assert bars[-1][1] < 20  # three far ones do not flatten the rest
    for same in ([3.0], [0.0, 0.0], [1, 1, 1]):
        assert sum(count for *_, count in Histogram("x", "", same).bars()) == len(same)
    assert "not known" in Histogram("x", "", []).svg()


def test_reasons_are_counted_whatever_their_numbers() -> None:
    assert general("moves 0.0012 of the 0.01 wanted") == general("moves 5e-05 of the 0.01 wanted")
    clips = [Clip(f"{k}.mp4", "", {}, "filtered", f"has {k}.5 s of the 9 s wanted") for k in range(7)]
    clips += [Clip("x.mp4", "", {}, "broken", "it holds no video"), Clip("y.mp4", "words", {})]
    first, second = reasons(clips)
    assert (first.count, first.reason, len(first.examples)) == (7, "has … s of the … s wanted", 5)
    assert (second.kind, second.examples) == ("broken", [("x.mp4", "it holds no video")])


def test_where_the_page_goes(tmp_path: Path) -> None:
    assert page_path(tmp_path / "a.html") == tmp_path / "a.html"
    assert page_path(tmp_path / "new") == tmp_path / "new" / "index.html"
    with pytest.raises(UserError, match=r"ends in \.html"):
        page_path(tmp_path / "a.txt")


def test_mistakes_are_one_line(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = {
        "does not exist": [str(tmp_path / "missing")],
        "--model decodes the clips of a prepared store": [str(source), "--model=tiny"],
        "use 1 or more": [str(source), "--sample=0"],
        "min_motion": [str(source), "--data.selection.min_motion=2"],
        "did you mean 'max_motion'": [str(source), "--data.selection.max_moton=2"],
    }
    for said, words in cases.items():
        assert main(["data", "inspect", *words, "-o", str(tmp_path / "out")]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert not (tmp_path / "out").exists()


# --- the page ---------------------------------------------------------------------------------


def findings() -> Findings:
    from aad1.evaluation.films import CODINGS
    from aad1.inspection.findings import Shown

    clips = [
        Clip(f"{k}{ATTACK}", ATTACK, {"seconds": k, "motion": 0.01 * k, "source_size": [480, 832]}) for k in range(4)
    ]
    shown = [Shown(c, make_film(make_clip("train", k, FRAMES).frames, 16, CODINGS[0])) for k, c in enumerate(clips[:2])]
    clips.append(Clip(ATTACK, ATTACK, {}, "broken", ATTACK))
    return Findings(ATTACK, 5, clips, [*shown, Shown(clips[2], None)], {ATTACK: ATTACK}, {"motion": [0.015]})


def test_what_users_wrote_stays_text() -> None:
    page = render(findings())
    assert "<script>document" not in page
    assert "<img" not in page
    assert json.loads(json.dumps(summary(findings())))["left_out"][0]["kind"] == "broken"


def test_films_play_in_a_browser(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render(findings()))
    with opened_file(browser, tmp_path / "page.html") as visitor:
        frame = "document.querySelector('canvas').dataset.frame"
        visitor.until(f"+{frame} > 0")
        visitor.page.click("#play")
        stopped = visitor.page.evaluate(frame)
        visitor.page.wait_for_timeout(300)
        assert visitor.page.evaluate(frame) == stopped
        assert visitor.page.title() == ATTACK
        assert visitor.page.evaluate("document.querySelectorAll('rect.bar').length") > 4
        assert visitor.page.evaluate("document.querySelectorAll('line.asked').length") == 1
        assert (visitor.complaints, visitor.hosts) == ([], {""})
