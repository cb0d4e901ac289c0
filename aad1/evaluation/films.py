"""Videos as pictures that a page draws frame by frame.

Browsers play no lossless video and seek to no exact frame, so a film is WebP sheets: frames side by side in rows, each
of which a page cuts out and draws. Large videos are made smaller and long ones thinned evenly; how much is said.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHEET = 4096  # px along a side of a sheet: what every browser decodes
MOST_FRAMES = 200  # that are kept of a video
BASE64 = 4 / 3  # characters a byte

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Coding:
    """side: of a larger picture's longer side, px; quality: of WebP, None without loss."""

    side: int
    quality: int | None


CODINGS = (
    Coding(384, None),
    Coding(384, 95),
    Coding(384, 88),
    Coding(320, 80),
    Coding(256, 75),
    Coding(192, 65),
)


@dataclass(frozen=True)
class Film:
    """A video for a page. frames: of the video, of which every ``step``-th is kept; across, down: frames of a sheet;
    size: height and width in the sheets, ``full`` those of the video.
    """

    sheets: tuple[bytes, ...]
    size: tuple[int, int]
    full: tuple[int, int]
    across: int
    down: int
    frames: int
    step: int
    fps: float

    @property
    def weight(self) -> int:
        """Characters that it takes in a page."""
        return round(BASE64 * sum(map(len, self.sheets)))


def make_film(frames: Frames, fps: float, coding: Coding) -> Film:
    """Uint8 [frames, height, width, 3] as a film."""
    total, height, width, _ = frames.shape
    step = -(-total // MOST_FRAMES)
    scale = min(1.0, coding.side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    kept = [_resized(frame, size) for frame in frames[::step]]
    across, down = SHEET // size[1], SHEET // size[0]
    if len(kept) < across * down:
        across = min(across, -(-len(kept) // -(-len(kept) // across)))
        down = -(-len(kept) // across)
    drawn = tuple(_webp(sheet, coding) for sheet in _sheets(kept, across, down))
    return Film(drawn, size, (height, width), across, down, total, step, fps)


def described(film: Film) -> dict[str, Any]:
    """What a page's script needs to draw a film."""
    return {
        "height": film.size[0],
        "width": film.size[1],
        "full": f"{film.full[1]}x{film.full[0]}",
        "across": film.across,
        "down": film.down,
        "frames": film.frames,
        "step": film.step,
        "fps": film.fps,
        "sheets": len(film.sheets),
    }


def sheets(number: int, film: Film) -> str:
    """The sheets of a page's film ``number`` as elements that hold them."""
    return "".join(
        f'<script type="text/plain" id="film-{number}-{sheet}">{b64encode(data).decode()}</script>'
        for sheet, data in enumerate(film.sheets)
    )


def fitting(videos: Iterable[tuple[Frames, float]], count: int, budget: float) -> Coding:
    """The best coding with which ``count`` videos such as these take at most ``budget`` characters; else the least."""
    weights = [[make_film(frames, fps, coding).weight for coding in CODINGS] for frames, fps in videos]
    means = np.mean(weights, axis=0) if weights else np.zeros(len(CODINGS))
    return next((coding for coding, mean in zip(CODINGS, means, strict=True) if mean * count <= budget), CODINGS[-1])


def _resized(frame: Frames, size: tuple[int, int]) -> Frames:
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _sheets(frames: list[Frames], across: int, down: int) -> Iterator[Frames]:
    """Sheets of [down * height, across * width, 3], row by row; what is left of the last one is black."""
    height, width = frames[0].shape[:2]
    for first in range(0, len(frames), across * down):
        sheet = np.zeros((down * height, across * width, 3), np.uint8)
        for place, frame in enumerate(frames[first : first + across * down]):
            top, left = place // across * height, place % across * width
            sheet[top : top + height, left : left + width] = frame
        yield sheet


def _webp(sheet: Frames, coding: Coding) -> bytes:
    data = io.BytesIO()
    if coding.quality is None:
        Image.fromarray(sheet).save(data, "WEBP", lossless=True, method=0, exact=True)
    else:
        Image.fromarray(sheet).save(data, "WEBP", quality=coding.quality, method=2)
    return data.getvalue()
