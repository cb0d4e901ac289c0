"""A user's folder of videos: what is found, how it is read, and what is said about bad files."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from aad1.data.clips import read_clip, read_whole, write_world_folder
from aad1.data.entries import ClipError, ClipFile
from aad1.data.media import VideoWriter
from aad1.data.sources import find_clips
from aad1.data.world import FPS, SIZE, make_clip
from aad1.errors import UserError

FRAMES = 13
UPRIGHT = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # an mp4's display matrix, in fixed point
CLOCKWISE = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world_folder(folder, "train", 3, FRAMES)
    return folder


def read(clip: ClipFile) -> NDArray[np.uint8]:
    return read_clip(clip, sizes=[(SIZE, SIZE)], fps=FPS, frames=FRAMES).frames


def read_video(path: Path, size: tuple[int, int], fps: float, frames: int) -> NDArray[np.uint8]:
    return read_clip(ClipFile(path, "words", path.name), sizes=[size], fps=fps, frames=frames).frames


def numbered(path: Path, levels: list[int], fps: float) -> Path:
    """A video whose frame k is grey of brightness levels[k]."""
    with VideoWriter(path, fps=fps, crf=1) as writer:
        writer.write(np.stack([np.full((32, 32, 3), v, np.uint8) for v in levels]))
    return path


def levels_of(video: NDArray[np.uint8]) -> list[int]:
    return [round(v / 10) * 10 for v in video.mean(axis=(1, 2, 3))]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# --- the world as a folder --------------------------------------------------------------------


def test_world_folder_round_trip(world: Path) -> None:
    clips = find_clips(world)
    assert [c.name for c in clips] == [
        "train-determined-00000.mp4", "train-determined-00002.mp4", "train-free-00001.mp4"
    ]  # fmt: skip
    for clip in clips:
        truth = make_clip("train", int(clip.path.stem[-5:]), FRAMES)
        assert clip.caption == truth.caption
        shown = read(clip)
        assert shown.shape == (FRAMES, SIZE, SIZE, 3)
        assert psnr(shown, truth.frames) > 31  # 4:2:0 blurs the edges of saturated colours
        assert abs((shown.astype(float) - truth.frames).mean()) < 0.5


def test_world_folder_is_resumed(tmp_path: Path) -> None:
    first, second = write_world_folder(tmp_path, "val", 2, 5, track="free")
    before = first.stat().st_mtime_ns
    second.unlink()
    assert write_world_folder(tmp_path, "val", 2, 5, track="free") == [first, second]
    assert second.exists()
    assert first.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds 5 frames, 9"):
        write_world_folder(tmp_path, "val", 2, 9, track="free")


# --- lists ------------------------------------------------------------------------------------


def test_csv_and_jsonl_name_clips_relative_to_themselves(world: Path, tmp_path: Path) -> None:
    video = find_clips(world)[0].path
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / "list.csv").write_text('\ufeffid,path,text\n1,sub/a.mp4,"a disc,\nmoves"\n', encoding="utf-8")
    row = {"video": "sub/a.mp4", "caption": " a disc, moves "}
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n\n")
    for name in ("list.csv", "list.jsonl"):
        (clip,) = find_clips(tmp_path / name)
        assert (clip.name, clip.caption) == ("sub/a.mp4", "a disc, moves")
        assert read(clip).shape == (FRAMES, SIZE, SIZE, 3)


def test_bad_rows_are_collected(tmp_path: Path) -> None:
    lines = ["{broken", '{"caption": "x"}', '{"video": "a.mp4"}', '{"video": "a.mp4", "text": " "}', "[1]"]
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, '{"path": "gone.mp4", "text": "x"}']))
    reasons = []
    for clip in find_clips(tmp_path / "list.jsonl"):
        with pytest.raises(ClipError) as caught:
            read(clip)
        reasons.append(caught.value.reason)
    expected = ["not a JSON object", "names no video", "no caption", "empty", "not a JSON object", "does not exist"]
    assert all(e in r for e, r in zip(expected, reasons, strict=True)), reasons


def test_unusable_sources_are_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("file,words\na.mp4,x\n")
    (tmp_path / "no_caption.csv").write_text("video\na.mp4\n")
    (tmp_path / "bytes.csv").write_bytes(b"video,text\n\xff\xfe\x00")
    (tmp_path / "list.json").touch()
    (tmp_path / "empty").mkdir()
    for name in ("bad.csv", "no_caption.csv", "bytes.csv", "list.json", "empty", "missing"):
        with pytest.raises(UserError, match=name):
            find_clips(tmp_path / name)


# --- folders ----------------------------------------------------------------------------------


def test_every_bad_file_says_why(world: Path, tmp_path: Path) -> None:
    good = find_clips(world)[0].path.read_bytes()
    for name in ("whole", "torn", "no_caption", "blank", "latin"):
        (tmp_path / f"{name}.mp4").write_bytes(good[:900] if name == "torn" else good)
        (tmp_path / f"{name}.txt").write_bytes({"blank": b" \n", "latin": b"d\xe9j\xe0"}.get(name, b"words"))
    (tmp_path / "no_caption.txt").unlink()
    (tmp_path / "text.mov").write_text("this is no video")
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "deep").mkdir()
    numbered(tmp_path / "deep" / "short.MP4", [10, 20], FPS)
    (tmp_path / "deep" / "short.txt").write_text("words")
    (tmp_path / "._whole.mp4").touch()
    clips = {clip.name: clip for clip in find_clips(tmp_path)}
    assert read(clips.pop("whole.mp4")).shape == (FRAMES, SIZE, SIZE, 3)
    reasons = {}
    for name, clip in clips.items():
        with pytest.raises(ClipError) as caught:
            read(clip)
        assert caught.value.path == clip.path
        reasons[name] = caught.value.reason
    expected = {
        "blank.mp4": "empty", "deep/short.MP4": "too short: 2 of the 13", "latin.mp4": "UTF-8",
        "no_caption.mp4": "no_caption.txt is missing", "text.mov": "cannot be decoded", "torn.mp4": "cannot be decoded",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="no video"):
        read_video(tmp_path / "a.mp4", size=(8, 8), fps=8, frames=1)


# --- decoding ---------------------------------------------------------------------------------


def test_frames_are_chosen_by_nearest_time(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mp4", [10 * k for k in range(24)], 24)
    fast = read_video(path, size=(32, 32), fps=24, frames=24)
    assert levels_of(fast) == [10 * k for k in range(24)]
    slow = read_video(path, size=(32, 32), fps=8, frames=8)
    assert levels_of(slow) == [30 * k for k in range(8)]
    uneven = read_video(path, size=(32, 32), fps=16, frames=16)
    assert [abs(v / 10 - 1.5 * k) <= 0.5 for k, v in enumerate(levels_of(uneven))] == [True] * 16
    with pytest.raises(ClipError, match="too short"):
        read_video(path, size=(32, 32), fps=24, frames=25)


def test_a_whole_video_is_read_as_it_is(tmp_path: Path) -> None:
    frames, fps = read_whole(numbered(tmp_path / "a.mp4", [10 * k for k in range(24)], 24))
    assert (frames.shape, fps) == ((24, 32, 32, 3), 24)
    assert levels_of(frames) == [10 * k for k in range(24)]
    with pytest.raises(ClipError, match="does not exist"):
        read_whole(tmp_path / "b.mp4")


def test_uneven_timestamps_are_followed(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, level in ((0, 0), (100, 50), (500, 100), (600, 150), (900, 200), (1000, 250)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = read_video(tmp_path / "a.mkv", size=(32, 32), fps=5, frames=6)  # 0 .2 .4 .6 .8 1.0 s
    assert levels_of(video) == [0, 50, 100, 150, 200, 250]


def test_aspect_is_cropped_and_odd_sizes_work(tmp_path: Path) -> None:
    picture = np.zeros((31, 93, 3), np.uint8)
    picture[:, 31:62] = 200
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        writer.write(picture[None].repeat(3, axis=0))
    video = read_video(tmp_path / "a.mp4", size=(15, 15), fps=8, frames=3)
    assert video.shape == (3, 15, 15, 3)
    assert video[:, :, 3:12].min() > 190


def test_phone_videos_are_turned_upright(tmp_path: Path) -> None:
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32] = 250  # top left as stored
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        writer.write(picture[None].repeat(2, axis=0))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    upright, turned = (struct.pack(">9i", *turn) for turn in (UPRIGHT, CLOCKWISE))
    at = data.index(upright, data.index(b"tkhd"))
    data[at : at + len(turned)] = turned
    (tmp_path / "b.mp4").write_bytes(data)
    shown = read_video(tmp_path / "b.mp4", size=(64, 32), fps=8, frames=2)[0, ..., 0]
    assert [int(v) > 200 for v in (shown[4, 4], shown[4, -4], shown[-4, 4], shown[-4, -4])] == [
        False,
        True,
        False,
        False,
    ]


def test_gifs_are_videos(tmp_path: Path) -> None:
    frames = [Image.new("L", (16, 16), v) for v in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert levels_of(read_video(tmp_path / "a.gif", size=(16, 16), fps=10, frames=3)) == [0, 100, 200]
