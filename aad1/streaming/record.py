"""A session into a file, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aad1.data.media import HELD_IN_MEMORY, VideoWriter
from aad1.errors import UserError
from aad1.streaming.accounting import Account
from aad1.streaming.session import Session

MOST_FRAMES = 10**9  # two years at 16 fps
MOST_HELD = 4 * 2**30  # bytes of an animation's frames
LARGEST_SIDE = 16383  # px; what every format can hold (WebP's limit)
SMALL_SIDE = 384  # px; players blur what they enlarge, so smaller pictures are enlarged pixel by pixel


@dataclass(frozen=True)
class Recording:
    """A written video: its frames, its (height, width), and what making it took."""

    path: Path
    frames: int
    size: tuple[int, int]
    account: Account


def frame_count(seconds: float, fps: float) -> int:
    """How many frames last ``seconds`` at ``fps``, at least one; UserError for lengths that are none."""
    if not 0 < seconds * fps <= MOST_FRAMES:
        raise UserError(f"a video of {seconds:g} seconds; give a number above 0 and up to {MOST_FRAMES / fps:.0f}")
    return max(1, round(seconds * fps))


def enlargement(size: tuple[int, int]) -> int:
    """The whole factor by which a small picture is enlarged, so that players have no reason to blur it."""
    return max(1, SMALL_SIDE // max(size))


def video_metadata(session: Session, fps: float) -> dict[str, Any]:
    """What a file says of itself, so that its video can be made again."""
    first = {"first_passes": list(session.first_passes)} if session.first_passes != session.passes else {}
    return {
        "prompt": session.prompt,
        "seed": session.seed,
        "model": session.student.name,
        "fps": fps,
        "size": list(session.size),
        "passes": list(session.passes),
        **first,
        "aad1": version("aad1"),
    }


def check_recording(path: Path, total: int, size: tuple[int, int], *, fps: float, scale: int) -> None:
    """Raise UserError for ``total`` frames of this (height, width), times ``scale``, that a file at ``path`` cannot
    hold: an animation too long to be held in memory, or too large a picture.
    """
    held = total * 3 * size[0] * size[1] * scale**2
    if path.suffix.lower() in HELD_IN_MEMORY and held > MOST_HELD:
        raise UserError(
            f"{total} frames of {path} are {held / 2**30:.1f} GiB, held in memory until the last has come; "
            f"give fewer seconds (up to {MOST_HELD * total // held / fps:g}), a smaller scale, or write .mp4"
        )
    if max(size) * scale > LARGEST_SIDE:
        raise UserError(
            f"scale {scale} makes {size[0]}x{size[1]} (height x width) larger than {LARGEST_SIDE} px "
            f"a side; use at most {LARGEST_SIDE // max(size)}"
        )


def record(
    session: Session,
    total: int,
    path: str | Path,
    *,
    fps: float = 16.0,
    scale: int | None = None,
    advance: Callable[[int], object] = lambda frames: None,
) -> Recording:
    """Stream ``total`` frames into a file (.mp4, .mkv, .gif, .webp, or a folder of PNG frames), chunk by chunk.

    The file says of itself what ``video_metadata`` says. ``scale`` enlarges its pixels, by default those of small
    pictures only (``enlargement``). ``advance`` is told how many frames each chunk has added.

    Raises:
        UserError: as ``check_recording``, and when the output cannot be written; nothing is left of it then.
    """
    path, scale = Path(path), enlargement(session.size) if scale is None else scale
    check_recording(path, total, session.size, fps=fps, scale=scale)
    with VideoWriter(path, fps=fps, scale=scale, metadata=video_metadata(session, fps)) as video:
        written = 0
        for part in session.frames(total):
            video.write(part)
            written += len(part)
            advance(len(part))
    height, width = session.size
    return Recording(path, written, (height * scale, width * scale), session.account)
