"""A user's videos -> frames: whole ones, or clips of a given length, rate and size as a selection asks for them.

What is wrong with one clip is a ClipError, which the caller collects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from aad1.data.decoding import SPARE, WHOLE, Timed, Video, opened, refuse_holes, upright
from aad1.data.entries import ClipError, ClipFile
from aad1.data.media import VideoWriter, fit_image
from aad1.data.motion import largest_jump, motion_energy, reduced
from aad1.data.selection import WHATEVER, Facts, Picked, Selection, Size, nearest_size
from aad1.data.world import FPS, SHORT_FRAMES, Track, make_clip
from aad1.errors import UserError

WORLD_CRF = 12  # 64 px of saturated colour: compression must not be what a model learns
NEARLY = 1e-6  # of a frame: what is lost in rounding times


def read_whole(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Every frame of a video as it is, upright and with square pixels, and its frames per second.

    Returns uint8 [frames, height, width, 3]. Raises ClipError for anything wrong with the file.
    """
    with opened(path) as video:
        timed = [(time, upright(frame, video.aspect)) for time, frame in video.frames()]
        said, promised = video.fps, video.promised
    span = timed[-1][0] - timed[0][0]
    fps = said or ((len(timed) - 1) / span if span > 0 else 0.0)
    refuse_holes(path, [time for time, _ in timed], fps, promised)
    if len({frame.shape for _, frame in timed}) > 1:
        raise ClipError(path, "its frames change size")
    return np.stack([frame for _, frame in timed]), fps


# --- clips ------------------------------------------------------------------------------------


def parts_of(clips: Sequence[ClipFile], selection: Selection) -> list[ClipFile]:
    """Every clip as often as the selection takes one of it, the parts of a video one after the other."""
    if selection.clips_per_video == 1:
        return list(clips)
    parts = range(selection.clips_per_video)
    return [replace(clip, part=part, name=f"{clip.name} clip {part + 1}") for clip in clips for part in parts]


def read_clip(
    clip: ClipFile, *, sizes: Sequence[Size], fps: float, frames: int, selection: Selection = WHATEVER
) -> Picked:
    """``frames`` frames at ``fps`` of a clip, cropped and resized to the size (height, width) of nearest shape.

    For each time the decoded frame nearest to it is taken. Raises ClipError for anything wrong with the file or its
    caption ("broken"), and for what the selection does not want ("filtered").
    """
    facts: dict[str, Any] = {}
    try:
        picture = _picture(clip, sizes, fps, frames, selection, facts)
        facts |= _motion(picture)
        _refuse_motion(clip, facts, fps, selection)
    except ClipError as error:
        error.facts = facts
        raise
    return Picked(picture, facts)


def _picture(
    clip: ClipFile, sizes: Sequence[Size], fps: float, frames: int, selection: Selection, facts: dict[str, Any]
) -> NDArray[np.uint8]:
    """The clip's frames [frames, height, width, 3]; what is learnt on the way about their source goes into facts."""
    if clip.problem:
        raise ClipError(clip.path, clip.problem, clip.kind)
    with opened(clip.path, clip.inside) as video:
        facts |= {"source_fps": round(video.fps, 3), "source_size": list(video.size)}
        span = _span(clip, video)
        facts["seconds"] = round(span, 3)
        _refuse_video(clip, video, span, selection)
        start = clip.start + _place(clip, span, frames / fps, selection)
        facts["start"] = round(start, 3)
        size = nearest_size(*video.size, sizes)
        most = frames if clip.end is None else min(frames, int((clip.end - start) * fps + NEARLY))
        shown = _resampled(video.frames(start), start, fps, most)
        found = [fit_image(upright(frame, video.aspect), size) for frame in shown]
    if len(found) < frames:
        raise _too_short(clip, len(found), frames, fps, clip.start + span - start)
    return np.stack(found)


def _span(clip: ClipFile, video: Video) -> float:
    """Seconds of the video, or of the part of it that is listed."""
    end = video.seconds if clip.end is None else min(clip.end, video.seconds or clip.end)
    if end <= clip.start:
        raise ClipError(clip.path, f"its part begins after its end: at {clip.start:g} s of {end:.1f} s")
    return end - clip.start


def _refuse_video(clip: ClipFile, video: Video, span: float, selection: Selection) -> None:
    if span < selection.min_seconds:
        reason = f"has {span:.2f} s of the {selection.min_seconds:g} s wanted"
        raise ClipError(clip.path, reason, "filtered")
    if min(video.size) < selection.min_side:
        reason = f"is {video.size[1]}x{video.size[0]} where a shorter side of {selection.min_side} px is wanted"
        raise ClipError(clip.path, reason, "filtered")


def _place(clip: ClipFile, span: float, length: float, selection: Selection) -> float:
    """Seconds from the beginning to a clip of ``length`` seconds; raises ClipError where there is no room for it."""
    last = max(0.0, span - length)
    if selection.stride is not None:
        if clip.part and clip.part * selection.stride > last + NEARLY:
            raise ClipError(clip.path, f"ends before its clip {clip.part + 1}: it has {span:.2f} s", "filtered")
        return clip.part * selection.stride
    if selection.clips_per_video == 1:
        return last / 2 if selection.place == "middle" else 0.0
    room = min(selection.clips_per_video, max(1, int(span / length + NEARLY)))
    if clip.part >= room:
        reason = f"has room for {room} of the {selection.clips_per_video} clips wanted"
        raise ClipError(clip.path, reason, "filtered")
    return last * clip.part / max(1, room - 1)


def _too_short(clip: ClipFile, found: int, frames: int, fps: float, promised: float) -> ClipError:
    if promised * WHOLE * fps > frames + SPARE:
        reason = f"it is cut off: {found / fps:.1f} s of the {promised:.1f} s that its header promises"
        return ClipError(clip.path, reason)
    return ClipError(clip.path, f"too short: {found} of the {frames} frames needed at {fps:g} fps", "filtered")


def _motion(frames: NDArray[np.uint8]) -> dict[str, float | int]:
    """motion, the largest jump, and the frame step that it is; nothing of a single frame."""
    if len(frames) < 2:
        return {}
    energy = motion_energy(reduced(frames))
    jump, step = largest_jump(energy)
    return {"motion": round(float(energy.mean()), 5), "jump": round(jump, 2), "jump_step": step}


def _refuse_motion(clip: ClipFile, facts: Facts, fps: float, selection: Selection) -> None:
    motion, jump, step = (facts.get(name) for name in ("motion", "jump", "jump_step"))
    if motion is None or jump is None or step is None:
        return
    reason = ""
    if motion < selection.min_motion:
        reason = f"moves {motion:.3g} of the {selection.min_motion:g} wanted"
    elif motion > selection.max_motion:
        reason = f"moves {motion:.3g} where {selection.max_motion:g} is the most wanted"
    elif selection.max_jump is not None and jump > selection.max_jump:
        reason = f"jumps {(step + 1) / fps:.2f} s after its beginning, {jump:.1f} times as much as around it"
    if reason:
        raise ClipError(clip.path, reason, "filtered")


def _resampled(timed: Timed, start: float, fps: float, frames: int) -> Iterator[av.VideoFrame]:
    """For each time start + k / fps the frame nearest to it; ends early when the video does."""
    wanted, previous, last_gap = 0, None, 0.0
    for time, frame in timed:
        while wanted < frames and previous is not None and start + wanted / fps <= (previous[0] + time) / 2:
            yield previous[1]
            wanted += 1
        if wanted == frames:
            return
        last_gap = time - previous[0] if previous else 0.0
        previous = (time, frame)
    # The last frame counts as long as half its own duration reaches.
    while previous is not None and wanted < frames and start + wanted / fps <= previous[0] + last_gap / 2 + NEARLY:
        yield previous[1]
        wanted += 1


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
