"""A user's videos and captions -> frames.

A source is a folder (searched to any depth; the caption is in a .txt file of the same stem) or a
.csv or .jsonl list with the columns ``video`` (or ``path``) and ``caption`` (or ``text``), paths
relative to the list. What is wrong with one file is a ClipError, which the caller collects: one bad
file must not end a night's work.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aad1.data.media import EXACT, VideoWriter, fit_image
from aad1.data.selection import Picked, nearest_size
from aad1.data.world import FPS, SHORT_FRAMES, Track, make_clip
from aad1.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
VIDEO_COLUMNS = ("video", "path")
CAPTION_COLUMNS = ("caption", "text")
WHOLE, SPARE = 0.95, 3  # a file that holds less of what it promises, but for so many frames, is cut off
UNEVEN = 3.5  # a gap of so many usual ones: frames are lost, or the rate is not constant
WORLD_CRF = 12  # 64 px of saturated colour: compression must not be what a model learns


class ClipError(Exception):
    """One clip cannot be used: ``path`` says which, ``reason`` why, ``kind`` "broken" or "filtered"."""

    def __init__(self, path: Path, reason: str, kind: str = "broken") -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.kind = path, reason, kind


@dataclass(frozen=True)
class ClipFile:
    """A video with its caption; ``name`` is its path within the source.

    ``problem`` says why the caption or the entry is unusable ("" when all is well).
    """

    path: Path
    caption: str
    name: str
    problem: str = ""


# --- finding ----------------------------------------------------------------------------------


def find_clips(source: str | Path) -> list[ClipFile]:
    """List the clips of a folder, a .csv or a .jsonl, in a stable order.

    Raises UserError when the source itself cannot be used; what is wrong with single entries is noted in
    their ``problem``.
    """
    source = Path(source)
    if source.is_dir():
        clips = [_with_sidecar(path, source) for path in _videos(source)]
    elif not source.exists():
        raise UserError(f"{source} does not exist; give a folder of videos, or a .csv or .jsonl list of them")
    elif source.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{source} is no list of clips; give a folder of videos, or a .csv or .jsonl list of them")
    else:
        clips = _read_list(source)
    if not clips:
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise UserError(f"{source} holds no videos; a folder needs {kinds} files, a list one row a video")
    return clips


def _videos(folder: Path) -> list[Path]:
    """Every video below a folder, sorted; hidden files (such as macOS's ._ copies) are left out."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    shown = (p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(shown, key=lambda p: p.relative_to(folder).as_posix())


def _with_sidecar(path: Path, folder: Path) -> ClipFile:
    name, small, large = path.relative_to(folder).as_posix(), path.with_suffix(".txt"), path.with_suffix(".TXT")
    sidecar = large if large.exists() and not small.exists() else small
    try:
        return _clip(path, sidecar.read_text(encoding="utf-8-sig"), name)
    except FileNotFoundError:
        return ClipFile(path, "", name, f"no caption: {sidecar.name} is missing")
    except (OSError, UnicodeDecodeError):
        return ClipFile(path, "", name, f"no caption: {sidecar.name} is not readable UTF-8 text")


def _clip(path: Path, caption: str, name: str) -> ClipFile:
    caption = " ".join(caption.split())
    return ClipFile(path, caption, name, "" if caption else "the caption is empty")


def _read_list(source: Path) -> list[ClipFile]:
    """One clip a row of a .csv or .jsonl."""
    return [_from_row(source, number, row) for number, row in list_rows(source, partial(_check_header, source))]


def list_rows(
    source: Path, check_header: Callable[[tuple[str, ...]], None]
) -> list[tuple[int, Mapping[Any, object] | None]]:
    """Line number and row of everything a .jsonl or .csv file lists; None for what is no JSON object.

    check_header is given the columns of a .csv and raises UserError for wrong ones. Raises UserError for a file that
    cannot be read as text.
    """
    try:
        with source.open(encoding="utf-8-sig", newline="") as lines:
            return list(_jsonl_rows(lines) if source.suffix.lower() == ".jsonl" else _csv_rows(lines, check_header))
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; give a .jsonl or .csv list of videos") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source} cannot be read ({error}); save it as UTF-8 text") from None


def _jsonl_rows(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, object] | None]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield number, row if isinstance(row, dict) else None


def _csv_rows(
    lines: Iterable[str], check_header: Callable[[tuple[str, ...]], None]
) -> Iterator[tuple[int, Mapping[Any, object]]]:
    reader = csv.DictReader(lines)
    check_header(tuple(reader.fieldnames or ()))
    for row in reader:
        yield reader.line_num, row


def _check_header(source: Path, columns: tuple[str, ...]) -> None:
    for wanted in (VIDEO_COLUMNS, CAPTION_COLUMNS):
        if not set(wanted) & set(columns):
            names = " or ".join(repr(w) for w in wanted)
            raise UserError(f"{source} has the columns {', '.join(columns) or 'none'}; one must be named {names}")


def _from_row(source: Path, number: int, row: Mapping[str, object] | None) -> ClipFile:
    if row is None:
        return ClipFile(source, "", f"line {number}", f"line {number} is not a JSON object")
    video = next((row[c] for c in VIDEO_COLUMNS if row.get(c)), None)
    if not isinstance(video, str):
        return ClipFile(source, "", f"line {number}", f"line {number} names no video")
    caption = next((row[c] for c in CAPTION_COLUMNS if row.get(c) is not None), None)
    if not isinstance(caption, str):
        return ClipFile(source.parent / video, "", video, f"no caption in line {number} of {source.name}")
    return _clip(source.parent / video, caption, video)


# --- reading ----------------------------------------------------------------------------------


def read_clip(clip: ClipFile, *, sizes: Sequence[tuple[int, int]], fps: float, frames: int) -> Picked:
    """The first ``frames`` frames at ``fps``, cropped and resized to the nearest in shape of ``sizes`` (height, width).

    Raises ClipError for anything wrong with the file or its caption.
    """
    if clip.problem:
        raise ClipError(clip.path, clip.problem)
    size = sizes[0] if len(sizes) == 1 else nearest_size(*_picture_size(clip.path), sizes)
    return Picked(read_video(clip.path, size=size, fps=fps, frames=frames))


def _picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a video's first frame, upright and with square pixels."""
    with _opened(path) as container:
        aspect = Fraction(container.streams.video[0].sample_aspect_ratio or 1)
        shapes = [_upright(frame, aspect).shape for _, frame in islice(_timed(container), 1)]
    _refuse_empty(path, shapes)
    return shapes[0][0], shapes[0][1]


def read_video(path: Path, *, size: tuple[int, int], fps: float, frames: int) -> NDArray[np.uint8]:
    """As ``read_clip``, for a video without a caption."""
    with _opened(path) as container:
        found = list(_resampled(container, size, fps, frames))
    _refuse_empty(path, found)
    if len(found) < frames:
        raise ClipError(path, f"too short: {len(found)} of the {frames} frames needed at {fps:g} fps")
    return np.stack(found)


def read_whole(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Every frame of a video as it is, upright and with square pixels, and its frames per second.

    Returns uint8 [frames, height, width, 3]. Raises ClipError for anything wrong with the file.
    """
    with _opened(path) as container:
        aspect = Fraction(container.streams.video[0].sample_aspect_ratio or 1)
        timed = [(time, _upright(frame, aspect)) for time, frame in _timed(container)]
        said, promised = float(container.streams.video[0].average_rate or 0), _promised(container)
    _refuse_empty(path, timed)
    span = timed[-1][0] - timed[0][0]
    fps = said or ((len(timed) - 1) / span if span > 0 else 0.0)
    _refuse_holes(path, [time for time, _ in timed], fps, promised)
    if len({frame.shape for _, frame in timed}) > 1:
        raise ClipError(path, "its frames change size")
    return np.stack([frame for _, frame in timed]), fps


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """A file with a video stream; whatever decoding raises is a ClipError."""
    if not path.is_file():
        raise ClipError(path, "the file does not exist")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipError(path, "it holds no video")
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError(path, f"it cannot be decoded ({getattr(error, 'strerror', None) or error})") from error


def _promised(container: av.container.InputContainer) -> float:
    """Seconds of picture that the header speaks of, 0 where it does not: a cut Matroska file decodes as a short one.

    A container's own duration is its longest stream's, so it counts only for a file without sound; a GIF's last frame
    may be held as long as it likes.
    """
    stream = container.streams.video[0]
    if stream.codec_context.name == "gif":
        return 0.0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1
    return (container.duration or 0) / av.time_base if alone else 0.0


def _refuse_holes(path: Path, times: Sequence[float], fps: float, promised: float) -> None:
    """Frames that are lost at the end or on the way would pass for a shorter or a quicker clip."""
    gaps, span = np.diff(times), times[-1] - times[0]
    usual = float(np.median(gaps)) if len(gaps) else 1 / (fps or 1)
    if span + SPARE * usual < WHOLE * promised:
        raise ClipError(path, f"it is cut off: {span + usual:.1f} s of the {promised:.1f} s that its header promises")
    if len(gaps) > SPARE and gaps.max() > UNEVEN * usual:
        uneven = f"two frames are {gaps.max():.2f} s apart where {usual:.2f} s is usual"
        raise ClipError(path, f"{uneven}: it is damaged or of variable rate; write it again at a constant rate")


def _refuse_empty(path: Path, found: Sequence[object]) -> None:
    if not found:
        raise ClipError(path, "it cannot be decoded (no whole frame in it)")


def _resampled(
    container: av.container.InputContainer, size: tuple[int, int], fps: float, frames: int
) -> Iterator[NDArray[np.uint8]]:
    """For each time k / fps the decoded frame nearest to it, fitted; ends early when the video does."""
    aspect = Fraction(container.streams.video[0].sample_aspect_ratio or 1)
    wanted, previous, last_gap = 0, None, 0.0
    for time, frame in _timed(container):
        while wanted < frames and previous is not None and wanted / fps <= (previous[0] + time) / 2:
            yield _fitted(previous[1], size, aspect)
            wanted += 1
        if wanted == frames:
            return
        last_gap = time - previous[0] if previous else 0.0
        previous = (time, frame)
    # The last frame counts as long as half its own duration reaches.
    while previous is not None and wanted < frames and wanted / fps <= previous[0] + last_gap / 2 + 1e-6:
        yield _fitted(previous[1], size, aspect)
        wanted += 1


def _timed(container: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with seconds since the first; without timestamps, by the stream's frame rate."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    start: float | None = None
    for index, frame in enumerate(container.decode(stream)):
        time = index / rate if frame.time is None else float(frame.time)
        start = time if start is None else start
        yield time - start, frame


def _fitted(frame: av.VideoFrame, size: tuple[int, int], aspect: Fraction) -> NDArray[np.uint8]:
    """One frame as RGB, upright, cropped and resized."""
    return fit_image(_upright(frame, aspect), size)


def _upright(frame: av.VideoFrame, aspect: Fraction) -> NDArray[np.uint8]:
    """One frame as RGB: pixels of this aspect made square, turned as the camera meant it."""
    picture = frame.to_ndarray(format="rgb24", interpolation=EXACT)
    if aspect != 1:
        wide = (max(1, round(picture.shape[1] * aspect)), picture.shape[0])
        picture = np.asarray(Image.fromarray(picture).resize(wide, Image.Resampling.BICUBIC))
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns))


# --- the embedded world as a user's folder ----------------------------------------------------


def write_world_folder(
    folder: str | Path, split: str, count: int, frames: int = SHORT_FRAMES, track: Track | None = None
) -> list[Path]:
    """Write the first ``count`` world clips as mp4 files with .txt captions; returns the videos.

    Files that exist already are kept, so an interrupted call can be repeated. Raises UserError when they
    have another length.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write_world_clip(folder, split, index, frames, track) for index in range(count)]


def _write_world_clip(folder: Path, split: str, index: int, frames: int, track: Track | None) -> Path:
    actual: Track = track or ("determined" if index % 2 == 0 else "free")
    path = folder / f"{split}-{actual}-{index:05d}.mp4"
    if path.exists():  # it is written last and whole
        _check_length(path, frames)
        return path
    clip = make_clip(split, index, frames, actual)
    path.with_suffix(".txt").write_text(clip.caption + "\n", encoding="utf-8")
    with VideoWriter(path, fps=FPS, crf=WORLD_CRF) as writer:
        writer.write(clip.frames)
    return path


def _check_length(path: Path, frames: int) -> None:
    with av.open(str(path)) as container:
        held = container.streams.video[0].frames
    if held != frames:
        raise UserError(f"{path} holds {held} frames, {frames} were asked for; give a new folder")
