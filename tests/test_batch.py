"""Many videos in one call: lists and their mistakes, the manifest and going on from it, contact sheets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_transformer, with_student
from numpy.typing import NDArray
from PIL import Image, ImageFont

from aad1.cli import main
from aad1.data.media import VideoWriter, open_image, read_frames, read_metadata
from aad1.data.world import make_clip
from aad1.errors import UserError
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_transformer
from aad1.streaming import Student, enlargement
from aad1.streaming import batch as batches
from aad1.streaming import sheet as sheets
from aad1.streaming.batch import MANIFEST, Item, Mistakes, read_items
from aad1.streaming.sheet import GAP, SheetRow, label_height, shortened, write_sheet

DISC, SQUARE = "a red disc moves left slowly", "a blue square moves up fast"
USUAL = Item("", Path(), "", seed=3, seconds=0.5)
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_student(tiny_folder, tmp_path_factory.mktemp("batch") / "wan", size=(32, 32))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with two pictures."""
    for index, name in enumerate(("a.png", "b.png")):
        Image.fromarray(make_clip("test", index, 1).frames[0]).save(tmp_path / name)
    return tmp_path


Run = Callable[..., int]


@pytest.fixture
def run(model: Path, work: Path) -> Run:
    """``aad1 generate`` of half a second, with these options; returns the exit code."""

    def generate(*options: object) -> int:
        words = ["generate", "--model", str(model), "--device", "cpu", "--seconds", "0.5"]
        return main([*words, *(str(option) for option in options)])

    return generate


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of the sessions that are opened, as they are."""
    prompts: list[str] = []
    session = Student.session

    def watched(student: Student, image: Frames, prompt: str, **options: Any) -> Any:
        prompts.append(prompt)
        return session(student, image, prompt, **options)

    monkeypatch.setattr(Student, "session", watched)
    return prompts


def write_list(path: Path, *rows: object) -> Path:
    """A .jsonl list; text is written as it stands."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def two(work: Path) -> Path:
    first, second = {"image": "a.png", "prompt": DISC}, {"image": "b.png", "prompt": SQUARE, "name": "two", "seed": 5}
    return write_list(work / "list.jsonl", first, second)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def frames_of(folder: Path) -> Frames:
    return np.stack([open_image(path) for path in sorted(folder.glob("*.png"))])


# --- videos and their manifest ----------------------------------------------------------------


def test_a_list_becomes_a_folder_of_videos_and_a_manifest(
    run: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = work / "new" / "videos"
    assert run("--batch", two(work), "-o", out, "--seed", 7, "--first_passes", 1, 0.5) == 0
    first, second = manifest(out)
    assert files(out) == {"0001-a-red-disc-moves-left-slowly.mp4", "two.mp4", MANIFEST}
    assert (first["file"], first["prompt"], first["seed"]) == ("0001-a-red-disc-moves-left-slowly.mp4", DISC, 7)
    wanted: dict[str, Any] = {
        "name": "two",
        "image": str(work / "b.png"),
        "seed": 5,
        "seconds": 0.5,
        "frames": 8,
        "fps": 16.0,
    }
    wanted |= {"size": [32, 32], "passes": [1.0], "first_passes": [1.0, 0.5], "dtype": "float32"}
    assert {key: second[key] for key in wanted} == wanted
    assert second["first_frame_s"] > 0 < second["frames_per_s"]
    inside = read_metadata(out / "two.mp4")
    assert (inside["prompt"], inside["seed"], inside["size"]) == (SQUARE, 5, [32, 32])
    assert inside["first_passes"] == [1.0, 0.5]
    assert read_frames(out / "two.mp4", 99).shape == (8, 384, 384, 3)
    assert "2 videos, 0 of 2 were there already" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "suffix"), [(".gif", ".gif"), (".webp", ".webp"), ("frames", "")])
def test_every_format(run: Run, work: Path, kind: str, suffix: str) -> None:
    assert run("--batch", two(work), "-o", work / "out", "--format", kind, "--scale", 1) == 0
    path = work / "out" / f"two{suffix}"
    assert path.is_dir() == (kind == "frames")
    assert read_frames(path, 3).shape == (3, 32, 32, 3)
    assert read_metadata(path)["seed"] == 5


def test_a_csv_is_as_good_and_leaves_out_what_it_likes(run: Run, work: Path) -> None:
    (work / "sub").mkdir()
    source = work / "sub" / "list.csv"
    source.write_text(f'prompt,image,size,seconds,name\n"{DISC}",../a.png,,,\n{SQUARE},{work / "b.png"},48x32,1,s\n')
    assert run("--batch", source, "-o", work / "out") == 0
    first, second = manifest(work / "out")
    assert (first["name"], first["size"], first["frames"]) == ("0002-a-red-disc-moves-left-slowly", [32, 32], 8)
    assert (second["name"], second["size"], second["frames"]) == ("s", [48, 32], 16)


def test_seeds_are_the_single_videos_bit_for_bit(run: Run, work: Path) -> None:
    asked = ["--image", work / "a.png", "--prompt", DISC, "--scale", 1]
    assert run(*asked, "--seeds", 4, 0, "-o", work / "out", "--format", "frames") == 0
    assert files(work / "out") == {"seed-4", "seed-0", MANIFEST}
    for seed in (4, 0):
        assert run(*asked, "--seed", seed, "-o", work / f"one-{seed}") == 0
        np.testing.assert_array_equal(frames_of(work / "out" / f"seed-{seed}"), frames_of(work / f"one-{seed}"))
        assert read_metadata(work / "out" / f"seed-{seed}") == read_metadata(work / f"one-{seed}")
    assert (frames_of(work / "one-4") != frames_of(work / "one-0")).any()


# --- going on ---------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(
    run: Run, work: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = work / "out"
    command = ["--batch", two(work), "-o", out]
    assert run(*command) == 0
    before = (out / MANIFEST).read_bytes()
    made.clear()
    assert run(*command) == 0
    assert "2 of 2 were there already" in capsys.readouterr().out
    assert not made
    assert (out / MANIFEST).read_bytes() == before
    (out / "two.mp4").unlink()
    assert run(*command) == 0
    assert made == [SQUARE]
    assert (out / "two.mp4").exists()
    assert len(manifest(out)) == 2


@pytest.mark.parametrize("torn", [b'{"name": "two", "file": "tw', b'{"name": "two", "prompt": "\xc3', b"{}x"])
def test_a_torn_line_counts_as_not_there(run: Run, work: Path, made: list[str], torn: bytes) -> None:
    out = work / "out"
    assert run("--batch", two(work), "-o", out) == 0
    first, _ = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    (out / MANIFEST).write_bytes(first + torn)
    made.clear()
    assert run("--batch", two(work), "-o", out) == 0
    assert made == [SQUARE]
    assert [row["name"] for row in manifest(out)][1] == "two"


def test_a_changed_item_is_made_again_and_others_are_left_alone(run: Run, work: Path, made: list[str]) -> None:
    out, source = work / "out", two(work)
    assert run("--batch", source, "-o", out, "--format", "frames") == 0
    before = frames_of(out / "two")
    made.clear()
    write_list(source, {"image": "b.png", "prompt": SQUARE, "name": "two", "seed": 6})
    assert run("--batch", source, "-o", out, "--format", "frames") == 0
    assert made == [SQUARE]
    assert (frames_of(out / "two") != before).any()
    assert [(row["name"][:4], row["seed"]) for row in manifest(out)] == [("0001", 0), ("two", 6)]
    made.clear()
    shutil.copy(work / "a.png", work / "b.png")  # another picture of the same name
    assert run("--batch", source, "-o", out, "--format", "frames") == 0
    assert made == [SQUARE]


def test_another_student_of_the_same_name_counts_as_a_change(
    run: Run, model: Path, work: Path, tmp_path_factory: pytest.TempPathFactory, made: list[str]
) -> None:
    copy = tmp_path_factory.mktemp("retrained") / "wan"
    shutil.copytree(model, copy)
    for seed in (3, 4, 4):
        save_transformer(
            build_tiny_transformer(CausalWanTransformer3DModel, seed=seed, size=(32, 32)), copy / "student"
        )
        assert run("--batch", two(work), "-o", work / "out", "--model", copy) == 0
    assert len(made) == 4


def test_a_foreign_manifest_or_folder_is_not_touched(run: Run, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "out"
    (out / "two").mkdir(parents=True)
    (out / "two" / "notes.txt").write_text("mine")
    assert run("--batch", two(work), "-o", out, "--format", "frames") == 2
    assert "not an empty folder" in capsys.readouterr().err
    (out / MANIFEST).write_text("name,file\nx,y\n")
    assert run("--batch", two(work), "-o", out) == 2
    assert "manifest.jsonl, line 1 is no JSON object" in capsys.readouterr().err
    assert (out / MANIFEST).read_text() == "name,file\nx,y\n"
    assert files(out) == {"two", MANIFEST}


def test_one_that_fails_costs_only_itself(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, write = work / "out", VideoWriter.write

    def failing(writer: VideoWriter, frames: Frames) -> None:
        if writer.path.name.startswith("0001"):
            raise RuntimeError("no more memory")
        write(writer, frames)

    monkeypatch.setattr(VideoWriter, "write", failing)
    assert run("--batch", two(work), "-o", out) == 2
    said = capsys.readouterr().err
    assert "0001-a-red-disc-moves-left-slowly: RuntimeError: no more memory" in said
    assert "1 of 2 videos failed" in said
    assert files(out) == {"two.mp4", MANIFEST}
    assert [row.get("error") for row in manifest(out)] == ["RuntimeError: no more memory", None]
    monkeypatch.setattr(VideoWriter, "write", write)
    assert run("--batch", two(work), "-o", out) == 0
    assert [("error" in row, row["name"][:4]) for row in manifest(out)] == [(False, "two"), (False, "0001")]


def test_ctrl_c_keeps_what_is_finished(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = VideoWriter.write

    def interrupted(writer: VideoWriter, frames: Frames) -> None:
        if writer.path.name == "two.mp4":
            raise KeyboardInterrupt
        write(writer, frames)

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    assert run("--batch", two(work), "-o", work / "out") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(manifest(work / "out")) == 1
    assert files(work / "out") == {MANIFEST, "0001-a-red-disc-moves-left-slowly.mp4"}


# --- mistakes ---------------------------------------------------------------------------------


def test_all_mistakes_are_listed_with_their_lines_and_nothing_is_written(
    run: Run, work: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "broken.png").write_bytes(b"no picture")
    good = {"image": "a.png", "prompt": DISC}
    source = write_list(
        work / "list.jsonl",
        {**good, "name": "one"},
        {**good, "promt": "x"},
        {"prompt": DISC},
        "",
        "[1, 2]",
        {**good, "prompt": "a red elephant"},
        {**good, "image": "broken.png"},
        {**good, "image": "nowhere.png"},
        {**good, "seed": -1},
        {**good, "name": "ONE"},
        {**good, "size": [32, 33]},
    )
    assert run("--batch", source, "-o", work / "out") == 2
    head, *lines = capsys.readouterr().err.splitlines()
    wanted = {
        2: "unknown column 'promt'; did you mean 'prompt'?",
        3: "no image; every video needs image and prompt",
        5: "not a JSON object",
        6: "does not know: 'elephant'",
        7: "its bytes are no picture's",
        8: "does not exist",
        9: "seed -1 is negative",
        10: "name 'ONE' is that of line 1 too",
        11: "must be a multiple of 16",
    }
    assert head == "aad1: 9 mistakes; nothing was made"
    for line, (number, words) in zip(lines, wanted.items(), strict=True):
        assert line.startswith(f"  {source}, line {number}: ")
        assert words in line
    assert not made
    assert not (work / "out").exists()


def test_at_most_ten_mistakes_are_shown(run: Run, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_list(work / "list.jsonl", *[{"image": "a.png", "prompt": DISC, "seed": -1}] * 13)
    assert run("--batch", source, "-o", work / "out") == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head.startswith("aad1: 13 mistakes")
    assert [line.split(":")[0] for line in lines[:-1]] == [f"  {source}, line {n}" for n in range(1, 11)]
    assert lines[-1] == "  and 3 more"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1.5}, "seed 1.5; use a whole number"),
        ({"seed": True}, "seed True; use a whole number"),
        ({"seed": "x"}, "seed 'x'; use a whole number"),
        ({"seconds": "long"}, "seconds 'long'; use a number above 0"),
        ({"size": "64"}, "use HEIGHTxWIDTH"),
        ({"size": 64}, "use HEIGHTxWIDTH"),
        ({"size": [64.5, 64]}, "use HEIGHTxWIDTH"),
        ({"prompt": 7}, "prompt 7; use text"),
        ({"image": " "}, "image ' '; use text"),
        ({"name": "../x"}, "without slashes"),
        ({"name": "a/b"}, "without slashes"),
        ({"name": "a\\b"}, "without slashes"),
        ({"name": ".x"}, "a dot in front"),
        ({"name": "C:x"}, "colons"),
        ({"name": "a\nb"}, "name 'a\\nb'"),
        ({"name": "\ud800"}, "without slashes"),
        ({"name": "x" * 201}, "up to 200 bytes"),
        ({"name": 7}, "name 7; use text"),
    ],
)
def test_bad_values(tmp_path: Path, values: dict[str, object], message: str) -> None:
    mistakes = Mistakes(write_list(tmp_path / "list.jsonl", {"image": "a.png", "prompt": DISC, **values}))
    assert mistakes.source is not None
    read_items(mistakes.source, USUAL, mistakes)
    with pytest.raises(UserError, match=r"list\.jsonl, line 1: ") as error:
        mistakes.refuse()
    assert message in str(error.value)


def test_items_take_what_they_lack_from_the_command(tmp_path: Path) -> None:
    row = {"image": "a.png", "prompt": "Ein Ball,  der rollt &amp; rollt und niemals wieder aufhört", "seed": None}
    source, mistakes = (
        write_list(tmp_path / "l.jsonl", row, {**row, "seed": 0, "name": "v1.0", "size": "32x48"}),
        Mistakes(),
    )
    first, second = read_items(source, USUAL, mistakes)
    mistakes.refuse()
    assert first.name == "0001-ein-ball-der-rollt-rollt-und-niemals"
    assert (first.seed, first.seconds, first.image) == (3, 0.5, tmp_path / "a.png")
    assert (second.name, second.seed, second.size, second.line) == ("v1.0", 0, (32, 48), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,promt\na.png,x\n", "2 mistakes; nothing was made\n"),
        ("image\na.png\n", "line 1: no column prompt"),
        ("image,prompt,image\na.png,a red disc,b.png\n", "line 1: column image more than once"),
        ("image,prompt\n", "lists no videos"),
        ("", "line 1: no column image and no column prompt"),
    ],
)
def test_a_csv_needs_its_header(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_items(tmp_path / "list.csv", USUAL, Mistakes())
    assert message in str(error.value)


def test_a_comma_too_many_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,prompt\na.png,a red disc, moving\n")
    mistakes = Mistakes(tmp_path / "list.csv")
    read_items(tmp_path / "list.csv", USUAL, mistakes)
    with pytest.raises(UserError, match=r"line 2: more values than columns"):
        mistakes.refuse()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "list.jsonl", "--prompt", "x"], "leave out --image, --prompt and --seeds"),
        (["--batch", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--batch", "list.txt"], "no list of videos"),
        (["--batch", "list.jsonl", "-o", "x.mp4"], "need a folder"),
        (["--batch", "list.jsonl", "--fps", "0"], "fps 0"),
        (["--batch", "list.jsonl", "--scale", "0"], "scale 0"),
        (["--batch", "list.jsonl", "--passes", "0.5"], "begin at 1"),
        (["--batch", "list.jsonl", "--first_passes", "0.5"], "begin at 1"),
        (["--batch", "list.jsonl", "--seconds", "0"], "above 0"),
        (["--batch", "list.jsonl", "-o", "a.png"], "is a file"),
        (["--image", "a.png", "--prompt", DISC, "--seeds", "1", "1"], "each once"),
        (["--image", "a.png", "--prompt", DISC, "--seeds", "1", "--seed", "2"], "add it to --seeds"),
        (["--image", "a.png", "--prompt", "a red elephant", "--seeds", "1", "2"], "'elephant'"),
        (["--image", "nowhere.png", "--prompt", DISC, "--seeds", "1", "2"], "nowhere.png does not exist"),
        (["--prompt", DISC, "--seeds", "1"], "needs an --image"),
        (["--image", "a.png", "--prompt", DISC, "--format", ".gif"], "--format is for --batch and --seeds"),
        (["--image", "a.png", "--prompt", DISC, "--sheet_frames", "0"], "--sheet_frames 0"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    run: Run,
    work: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    write_list(work / "list.jsonl", {"image": "a.png", "prompt": DISC})
    assert run(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert files(work) == {"a.png", "b.png", "list.jsonl"}


def test_a_folder_of_frames_has_no_dot_in_its_name(run: Run, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_list(work / "list.jsonl", {"image": "a.png", "prompt": DISC, "name": "a.gif"})
    assert run("--batch", source, "-o", work / "out", "--format", "frames") == 2
    assert "name 'a.gif' has a dot" in capsys.readouterr().err


# --- contact sheets ---------------------------------------------------------------------------


def noise_video(path: Path, count: int, side: int = 16) -> Frames:
    frames = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    with VideoWriter(path, fps=16) as video:
        video.write(frames)
    return frames


def tile(sheet: Frames, top: int, column: int, side: int) -> Frames:
    left = GAP + column * (side + GAP)
    return sheet[top : top + side, left : left + side]


def enlarged(frame: Frames) -> Frames:
    scale = enlargement(frame.shape[:2])
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def test_a_sheet_has_a_row_a_video_and_evenly_spaced_frames(tmp_path: Path) -> None:
    long, short = noise_video(tmp_path / "long", 15), noise_video(tmp_path / "short", 2)
    rows = [SheetRow(tmp_path / name, name, DISC, 4) for name in ("long", "short")]
    assert write_sheet(tmp_path / "new" / "sheet.png", rows) == [tmp_path / "new" / "sheet.png"]
    sheet, side = open_image(tmp_path / "new" / "sheet.png"), 384
    label = label_height(side)
    assert sheet.shape == (3 * GAP + 2 * (label + side), 8 * (side + GAP) + GAP, 3)
    for column, index in enumerate(range(0, 15, 2)):
        np.testing.assert_array_equal(tile(sheet, GAP + label, column, side), enlarged(long[index]))
    second = 2 * GAP + 2 * label + side
    for column in range(2):
        np.testing.assert_array_equal(tile(sheet, second, column, side), enlarged(short[column]))
    assert (tile(sheet, second, 2, side) == 255).all()
    assert (sheet[GAP : GAP + label] < 100).any()  # the label is drawn


def test_a_label_is_cut_to_its_row(tmp_path: Path) -> None:
    font = ImageFont.load_default(24)
    long = "word " * 500
    cut = shortened(long, 384, font)
    assert cut.endswith("...")
    assert long.startswith(cut[:-3])
    assert 384 - font.getlength("wo") < font.getlength(cut) <= 384
    assert shortened("short", 384, font) == "short"
    noise_video(tmp_path / "v", 1)
    write_sheet(tmp_path / "sheet.png", [SheetRow(tmp_path / "v", "v", long, 4)])
    assert open_image(tmp_path / "sheet.png").shape[1] == 384 + 2 * GAP


def test_a_long_batch_fills_several_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_video(tmp_path / "v", 2)
    rows = [SheetRow(tmp_path / "v", str(index), DISC, index) for index in range(5)]
    write_sheet(tmp_path / "whole.png", rows[:2], columns=2)
    width, height = Image.open(tmp_path / "whole.png").size
    monkeypatch.setattr(sheets, "MOST_PIXELS", width * height)
    pages = write_sheet(tmp_path / "sheet.png", rows, columns=2)
    assert [page.name for page in pages] == ["sheet.png", "sheet-2.png", "sheet-3.png"]
    assert [Image.open(page).size[1] // 384 for page in pages] == [2, 2, 1]


@pytest.mark.parametrize("kind", [".mp4", ".mkv", ".gif", ".webp", "frames"])
def test_the_command_writes_the_sheet_of_its_files(run: Run, work: Path, kind: str) -> None:
    assert run("--batch", two(work), "-o", work / "out", "--format", kind, "--sheet_frames", 3) == 0
    sheet, label = open_image(work / "out" / "sheet.png"), label_height(384)
    assert sheet.shape[:2] == (3 * GAP + 2 * (label + 384), 3 * (384 + GAP) + GAP)
    suffix = "" if kind == "frames" else kind
    for row, name in enumerate(("0001-a-red-disc-moves-left-slowly", "two")):
        top = GAP + label + row * (384 + label + GAP)
        frames = read_frames(work / "out" / f"{name}{suffix}", 3)
        for column in range(3):
            np.testing.assert_array_equal(tile(sheet, top, column, 384), frames[column])


def test_a_single_video_has_its_sheet_beside_it(run: Run, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--image", work / "a.png", "--prompt", DISC, "-o", work / "clip", "--scale", 1, "--sheet"]
    assert run(*asked) == 0
    sheet, frames = open_image(work / "clip.sheet.png"), frames_of(work / "clip")
    for column in range(8):
        np.testing.assert_array_equal(tile(sheet, GAP + label_height(384), column, 384), enlarged(frames[column]))
    assert f"wrote {work / 'clip.sheet.png'}" in capsys.readouterr().out


def test_frames_are_read_back_in_order_from_every_format(tmp_path: Path) -> None:
    grey = np.repeat(np.linspace(20, 230, 9).astype(np.uint8), 16 * 16 * 3).reshape(9, 16, 16, 3)
    for name in ("v.mp4", "v.gif", "v.webp", "v"):
        with VideoWriter(tmp_path / name, fps=16) as video:
            video.write(grey)
        read = read_frames(tmp_path / name, 3)
        assert read.shape == (3, 16, 16, 3)
        assert np.abs(read.astype(int) - grey[[0, 4, 8]]).max() < 8
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read back"):
        read_frames(tmp_path / "v.mp4", 3)


# --- passed through ---------------------------------------------------------------------------


def test_type_and_compilation_are_the_loaders(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def loading(model: str, **options: Any) -> None:
        asked.update(options)
        raise UserError("enough")

    monkeypatch.setattr("aad1.cli.generating.load_student", loading)
    single = ["--image", work / "a.png", "--prompt", DISC, "-o", work / "x.mp4"]
    assert run(*single, "--dtype", "bfloat16", "--compile") == 2
    assert (asked["dtype"], asked["compiled"]) == (torch.bfloat16, True)
    assert run(*single) == 2
    assert (asked["dtype"], asked["compiled"]) == (None, False)


def test_first_passes_change_the_video_and_are_noted(run: Run, work: Path) -> None:
    single = ["--image", work / "a.png", "--prompt", DISC, "--scale", 1]
    assert run(*single, "-o", work / "plain") == 0
    assert run(*single, "-o", work / "more", "--first_passes", 1, 0.8333) == 0
    assert read_metadata(work / "more")["first_passes"] == [1.0, 0.8333]
    assert "first_passes" not in read_metadata(work / "plain")
    assert (frames_of(work / "plain") != frames_of(work / "more")).any()


def test_half_precision_makes_a_video_of_its_own(run: Run, work: Path) -> None:
    assert run("--batch", two(work), "-o", work / "out", "--dtype", "bfloat16") == 0
    assert {row["dtype"] for row in manifest(work / "out")} == {"bfloat16"}
    assert batches.MANIFEST in files(work / "out")
