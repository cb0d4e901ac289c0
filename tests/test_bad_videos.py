"""Videos as users have them: each odd one is read as it is meant, or costs only itself and says why."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from aad1.data import decoding
from aad1.data.archives import Span
from aad1.data.clips import parts_of, read_clip, read_whole
from aad1.data.entries import ClipError, ClipFile
from aad1.data.motion import largest_jump, motion_energy, reduced
from aad1.data.selection import WHATEVER, Picked, Selection
from aad1.data.world import make_clip

SIDE = 32
MILLISECOND = Fraction(1, 1000)


def grey(levels: Iterable[int], height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def write(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    fps: int = 16,
    times: Iterable[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 8,
    faststart: bool = False,
    setting: Callable[[Any], object] = lambda stream: None,
    **options: str,
) -> Path:
    """A video of these frames; ``times`` in milliseconds makes its rate uneven."""
    flags = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=flags) as container:
        usual = {"crf": "1"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=1000 if times else fps, options={**usual, **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gop
        setting(stream)
        stamps = iter(times or ())
        if times:
            stream.codec_context.time_base = MILLISECOND
        for picture in frames:
            kind = "rgba" if picture.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format=kind)
            if times:
                frame.pts, frame.time_base = next(stamps), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def take(path: Path, fps: float = 16, frames: int = 5, selection: Selection = WHATEVER, **entry: Any) -> Picked:
    clip = ClipFile(path, "words", path.name, **entry)
    return read_clip(clip, sizes=[(SIDE, SIDE)], fps=fps, frames=frames, selection=selection)


def levels(picked: Picked) -> list[int]:
    return [round(v / 10) * 10 for v in picked.frames.mean(axis=(1, 2, 3))]


def problem(path: Path, **options: Any) -> str:
    with pytest.raises(ClipError) as caught:
        take(path, **options)
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 300
    return f"{caught.value.kind}: {caught.value.reason}"


# --- files that are broken --------------------------------------------------------------------


def empty(path: Path) -> Path:
    path.touch()
    return path


def sound_alone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def header_alone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return path


def unknown_codec(path: Path) -> Path:
    data = write(path, grey(range(0, 80, 10))).read_bytes()
    path.write_bytes(data.replace(b"avc1", b"zzzz"))
    return path


def without_its_end(path: Path) -> Path:
    """Its index is written last, and lost."""
    data = write(path, grey(range(0, 240, 10))).read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def cut_in_the_middle(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (48, SIDE, SIDE, 3), dtype=np.uint8)
    data = write(path, noise, faststart=True, bf="0", tune="zerolatency").read_bytes()
    path.write_bytes(data[: len(data) // 3])
    return path


def huge(path: Path) -> Path:
    """A GIF whose header claims pictures of 6000 x 6000 pixels."""
    picture = Image.new("L", (SIDE, SIDE))
    picture.save(path, "GIF", save_all=True, append_images=[Image.new("L", (SIDE, SIDE), 9)])
    data = path.read_bytes()
    path.write_bytes(data[:6] + struct.pack("<HH", 6000, 6000) + data[10:])
    return path


def text(path: Path) -> Path:
    path.write_text("this is no video")
    return path


def playlist(path: Path) -> Path:
    """It would have this FFmpeg open another file."""
    write(path.with_name("other.ts"), grey(range(0, 80, 10)))
    path.write_text("ffconcat version 1.0\nfile other.ts\n")
    with av.open(str(path)) as container:
        assert container.format.name == "concat"
    return path


BROKEN = [
    (playlist, "broken: it cannot be decoded"),
    (empty, "broken: it cannot be decoded (Invalid data"),
    (text, "broken: it cannot be decoded (Invalid data"),
    (sound_alone, "broken: it holds no video"),
    (header_alone, "broken: it "),
    (unknown_codec, "broken: its codec is unknown here; write it again as H.264"),
    (without_its_end, "broken: it cannot be decoded (Invalid data"),
    (huge, "broken: its pictures are too large: 6000x6000"),
    (lambda path: path, "broken: the file does not exist"),
    (lambda path: path.mkdir() or path, "broken: the file does not exist"),
]


@pytest.mark.parametrize(("make", "said"), BROKEN)
def test_a_broken_file_says_why(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    assert problem(make(tmp_path / "a.mp4")).startswith(said)


def test_a_file_that_is_cut_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = cut_in_the_middle(tmp_path / "a.mp4")
    assert take(path, frames=8).frames.shape[0] == 8
    assert problem(path, frames=40).startswith("broken: it is cut off: ")
    assert problem(path, frames=60).startswith("filtered: too short: ")  # it never promised so many


def test_a_damaged_frame_is_not_learnt_from(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    path = write(tmp_path / "a.mp4", noise, faststart=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[at : at + 4000] = b"\xff" * 4000  # more than a frame: also the length that one begins with is no length
    path.write_bytes(data)
    assert problem(path, frames=14).startswith("broken: it ")


# --- files that are odd, and read -------------------------------------------------------------


def test_uneven_times_are_followed_also_from_the_middle(tmp_path: Path) -> None:
    times = [0, 100, 500, 600, 900, 1000, 1700, 2000, 2100, 2500]
    path = write(tmp_path / "a.mkv", grey(range(0, 250, 25)), times=times, gop=3)
    whole, later = take(path, fps=5, frames=11), take(path, fps=5, frames=4, start=1.5)
    chosen = [[round(v / 25) for v in picked.frames.mean(axis=(1, 2, 3))] for picked in (whole, later)]
    assert chosen[0] == [0, 1, 2, 3, 4, 5, 5, 6, 6, 6, 7]  # 0 .2 .4 .6 .8 1.0 1.2 1.4 1.6 1.8 2.0 s
    assert chosen[1] == [6, 6, 7, 8]  # 1.5 1.7 1.9 2.1 s


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "yuv422p", "yuv444p10le"])
def test_deep_and_full_colour(pixels: str, tmp_path: Path) -> None:
    picked = take(write(tmp_path / "a.mp4", grey(range(0, 250, 50)), pixels=pixels))
    assert levels(picked) == [0, 50, 100, 150, 200]


def test_odd_sides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", grey(range(0, 250, 50), 31, 47), codec="ffv1", pixels="bgr0")
    assert take(path).facts["source_size"] == [31, 47]
    assert levels(take(path)) == [0, 50, 100, 150, 200]


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = write(tmp_path / "a.mp4", grey(range(0, 250, 50), 32, 32), setting=wide)
    clip = ClipFile(path, "words", "a")
    picked = read_clip(clip, sizes=[(32, 32), (32, 64)], fps=16, frames=5)
    assert (picked.frames.shape[1:3], picked.facts["source_size"]) == ((32, 64), [32, 64])


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_turned_phone(turn: int, tmp_path: Path) -> None:
    picture = np.zeros((1, 32, 64, 3), np.uint8)
    picture[:, :16, :32] = 250  # top left as stored
    path = write(tmp_path / "a.mp4", picture.repeat(5, axis=0), setting=lambda s: s.set_display_rotation(turn))
    clip = ClipFile(path, "words", "a")
    picked = read_clip(clip, sizes=[(32, 64), (64, 32)], fps=16, frames=5)
    tall = turn != 180
    assert picked.facts["source_size"] == ([64, 32] if tall else [32, 64])
    bright = np.rot90(picture[0, ..., 0], turn // 90)
    assert np.abs(picked.frames[0, ..., 0].astype(int) - bright).mean() < 4


def test_interlaced_fields_become_one_picture(tmp_path: Path) -> None:
    """A bar that moves between the two fields of a frame: combed as stored, whole as read."""
    frames = np.zeros((10, 64, 64, 3), np.uint8)
    for k in range(10):
        frames[k, 0::2, 4 * k : 4 * k + 8] = 220
        frames[k, 1::2, 4 * k + 4 : 4 * k + 12] = 220
    path = write(tmp_path / "a.mp4", frames, **{"x264-params": "interlaced=1:tff=1"})
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    clip = ClipFile(path, "words", "a")
    shown = read_clip(clip, sizes=[(64, 64)], fps=16, frames=10).frames[4].astype(int)
    comb = np.abs(np.diff(shown[:, :, 0], axis=0)).mean()
    assert comb < 0.5 * np.abs(np.diff(frames[4, :, :, 0].astype(int), axis=0)).mean()
    assert len(read_whole(path)[0]) == 10


@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.mkv", "ffv1", "bgra"), ("a.gif", "gif", "bgr8")])
def test_what_is_transparent_is_grey(name: str, codec: str, pixels: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if codec == "gif":
        pictures = [Image.fromarray(np.uint8([[[250, 0, 0, 0]] * 16 + [[250, 0, 0, 255]] * 16] * SIDE))] * 5
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=60, disposal=2)
    else:
        rgba = np.zeros((5, SIDE, SIDE, 4), np.uint8)
        rgba[..., 0], rgba[:, :, 16:, 3] = 250, 255
        write(path, rgba, codec=codec, pixels=pixels)
    frame = take(path, frames=1).frames[0].astype(int)
    assert np.abs(frame[:, 2:14] - 128).max() <= 2
    assert np.abs(frame[:, 18:30] - [250, 0, 0]).max() <= 6


def test_tags_in_another_encoding_cost_nothing(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["title"] = "XXXXXX"
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = SIDE
        for picture in grey(range(0, 250, 50)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    assert b"XXXXXX" in data
    (tmp_path / "a.mp4").write_bytes(data.replace(b"XXXXXX", b"B\xe4llen"))
    assert len(take(tmp_path / "a.mp4").frames) == 5


# --- several clips, and where they begin ------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds at 8 fps; the second is told by the brightness: 20 a second, and 2 a frame."""
    values = [20 * (k // 8) + 2 * (k % 8) for k in range(80)]
    return write(tmp_path_factory.mktemp("long") / "a.mp4", grey(values), fps=8, gop=16)


def begins(picked: Picked) -> float:
    value = picked.frames[0].mean()
    return float(value // 20 + round((value % 20) / 2) / 8)


def all_parts(path: Path, selection: Selection, frames: int = 16, **options: Any) -> list[Picked | str]:
    found: list[Picked | str] = []
    for clip in parts_of([ClipFile(path, "words", "a", **options)], selection):
        try:
            found.append(read_clip(clip, sizes=[(SIDE, SIDE)], fps=8, frames=frames, selection=selection))
        except ClipError as error:
            found.append(error.reason if error.kind == "filtered" else f"broken: {error.reason}")
    return found


def starts(found: list[Picked | str]) -> list[float | str]:
    told = [f if isinstance(f, str) else (f.facts["start"], begins(f)) for f in found]
    assert all(isinstance(t, str) or abs(t[0] - t[1]) < 0.14 for t in told), told
    return [t if isinstance(t, str) else t[0] for t in told]


def test_first_middle_and_several_clips(long: Path) -> None:
    assert starts(all_parts(long, Selection())) == [0]
    assert starts(all_parts(long, Selection(place="middle"))) == [4]
    assert starts(all_parts(long, Selection(clips_per_video=3))) == [0, 4, 8]
    assert starts(all_parts(long, Selection(clips_per_video=3), frames=32)) == [
        0, 6, "has room for 2 of the 3 clips wanted"
    ]  # fmt: skip
    assert starts(all_parts(long, Selection(clips_per_video=3, stride=3.5))) == [0, 3.5, 7]
    assert starts(all_parts(long, Selection(clips_per_video=4, stride=3.0)))[2:] == [
        6, "ends before its clip 4: it has 10.00 s"
    ]  # fmt: skip
    assert starts(all_parts(long, Selection(clips_per_video=2), start=2, end=8)) == [2, 6]
    assert starts(all_parts(long, Selection(place="middle"), start=2)) == [5]
    assert [c.name for c in parts_of([ClipFile(long, "x", "a")], Selection(clips_per_video=2))] == [
        "a clip 1", "a clip 2"
    ]  # fmt: skip


def test_seeking_does_not_decode_what_comes_before(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    frames = decoding._decoded

    def counted(*given: Any) -> Any:
        for frame in frames(*given):
            counts.append(frame.time)
            yield frame

    monkeypatch.setattr(decoding, "_decoded", counted)
    whole = take(long, fps=8, frames=72)
    assert len(counts) >= 72
    counts.clear()
    part = take(long, fps=8, frames=8, start=8.0)
    assert np.array_equal(part.frames, whole.frames[64:])
    assert len(counts) <= 18


def test_a_file_that_cannot_seek_is_decoded_from_its_beginning(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sought = take(long, fps=8, frames=8, start=5.0)
    monkeypatch.setattr(decoding.Video, "_seek", lambda *given: None)
    assert np.array_equal(take(long, fps=8, frames=8, start=5.0).frames, sought.frames)


def test_a_video_inside_of_a_file_seeks_there(long: Path, tmp_path: Path) -> None:
    data = long.read_bytes()
    (tmp_path / "all").write_bytes(b"before" + data + b"after")
    inside = Span(tmp_path / "all", 6, len(data))
    picked = take(tmp_path / "all", fps=8, frames=8, start=5.0, inside=inside)
    assert np.array_equal(picked.frames, take(long, fps=8, frames=8, start=5.0).frames)
    with inside.open() as file:
        file.seek(-4, io.SEEK_END)
        assert (file.tell(), file.read(), file.read()) == (len(data) - 4, data[-4:], b"")
        file.seek(2)
        file.seek(2, io.SEEK_CUR)
        assert file.read(4) == data[4:8] == b"ftyp"


def test_no_length_in_the_header_is_counted(tmp_path: Path) -> None:
    """A Matroska stream that was never finished says nothing of its length."""
    with (tmp_path / "a.mkv").open("wb") as file, av.open(Unseekable(file), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width = stream.height = SIDE
        for level in range(0, 240, 10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), level, np.uint8))))
        container.mux(stream.encode())
    picked = take(tmp_path / "a.mkv", fps=8, frames=8, selection=Selection(place="middle"))
    assert (picked.facts["seconds"], picked.facts["start"]) == (3.0, 1.0)
    assert levels(picked) == list(range(80, 160, 10))


class Unseekable:
    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return int(self.file.write(data))


# --- what is not wanted -----------------------------------------------------------------------


def moving(count: int = 32, still: int = 0, cut: int | None = None) -> NDArray[np.uint8]:
    """A bright square on grey that moves a pixel a frame from frame ``still`` on; at ``cut`` everything changes."""
    frames = grey([60] * count, 64, 64)
    for k in range(count):
        at = max(0, k - still) % 48
        frames[k, 20:36, at : at + 16] = 220
        if cut is not None and k >= cut:
            frames[k] = 255 - frames[k][:, ::-1]
    return frames


def test_stillness_motion_and_cuts_are_told_apart(tmp_path: Path) -> None:
    still = write(tmp_path / "still.mp4", moving(still=99))
    moves = write(tmp_path / "moves.mp4", moving())
    cut = write(tmp_path / "cut.mp4", moving(cut=13))
    chosen = Selection(min_motion=0.002, max_jump=6)
    facts = take(moves, frames=32, selection=chosen).facts
    assert 0.005 < facts["motion"] < 0.02
    assert facts["jump"] < 2
    assert problem(still, frames=32, selection=chosen).startswith("filtered: moves 0 of the 0.002 wanted")
    assert "filtered: jumps 0.81 s after its beginning" in problem(cut, frames=32, selection=chosen)
    assert "where 0.001 is the most wanted" in problem(moves, frames=32, selection=Selection(max_motion=0.001))
    take(cut, frames=32)
    take(still, frames=32)


def test_what_is_short_or_small_is_not_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(16))
    take(path, selection=Selection(min_seconds=1.0, min_side=64))
    assert problem(path, selection=Selection(min_seconds=1.5)) == "filtered: has 1.00 s of the 1.5 s wanted"
    assert problem(path, selection=Selection(min_side=65)).startswith("filtered: is 64x64 where a shorter side of 65")
    assert problem(path, frames=17) == "filtered: too short: 16 of the 17 frames needed at 16 fps"


def test_a_source_of_few_frames_has_no_cuts() -> None:
    """Four pictures a second read at sixteen repeat each: every change stands among still steps."""
    slow = np.repeat(motion_energy(moving(20)), 4) * np.array([1, 0, 0, 0] * 19)
    assert largest_jump(slow)[0] < 1.5
    jump, step = largest_jump(motion_energy(moving(20, cut=7)))
    assert step == 6
    assert jump > 6


def test_noise_is_no_motion() -> None:
    noise = np.random.default_rng(0).normal(128, 8, (8, 512, 512, 3)).clip(0, 255).astype(np.uint8)
    assert motion_energy(noise).mean() > 0.03
    assert motion_energy(reduced(noise)).mean() < 0.3 * motion_energy(noise).mean()
    assert np.array_equal(reduced(noise[:, :100, :100]), noise[:, :100, :100])


def test_every_clip_of_the_world_passes_what_the_guide_recommends() -> None:
    for index in range(12):
        energy = motion_energy(make_clip("train", index, 33).frames)
        assert energy.mean() > 0.001
        assert largest_jump(energy)[0] < 6


def test_facts_are_plain_values(long: Path) -> None:
    facts = take(long, fps=8).facts
    assert facts | {"motion": 0, "jump": 0, "jump_step": 0} == {
        "seconds": 10.0, "start": 0.0, "source_fps": 8.0, "source_size": [SIDE, SIDE], "motion": 0, "jump": 0,
        "jump_step": 0,
    }  # fmt: skip


def test_a_problem_of_the_list_is_told_when_the_clip_is_read(long: Path) -> None:
    clip = ClipFile(long, "", "a", "listed before", "filtered")
    with pytest.raises(ClipError) as caught:
        read_clip(clip, sizes=[(SIDE, SIDE)], fps=8, frames=2)
    assert (caught.value.kind, caught.value.reason) == ("filtered", "listed before")
    assert os.fspath(replace(clip, problem="").path) == os.fspath(long)
