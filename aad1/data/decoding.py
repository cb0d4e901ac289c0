"""Frames of one video by their times, upright, as whoever made it meant them to be seen.

Whatever is wrong with a file is a ClipError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aad1.data.entries import ClipError, Inside
from aad1.data.media import EXACT, NEUTRAL

# Formats that hold their frames: a playlist that calls itself a video would open whatever files and hosts it names.
FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegvideo,mpegts,gif,flv,asf,ogg"
MOST_PIXELS = 2**25  # of a frame: 8K has fewer, and one decoded takes 100 MB
WHOLE, SPARE = 0.95, 3  # a file that holds less of what it promises, but for so many frames, is cut off
UNEVEN = 3.5  # a gap of so many usual ones: frames are lost, or the rate is not constant
WORTH_SEEKING = 1.0  # seconds; before that, decoding from the beginning is as quick
QUARTER = 90  # degrees

Timed = Iterator[tuple[float, av.VideoFrame]]


class Video:
    """An open video. ``size`` is height and width of its pictures, upright and with square pixels; fps as its header
    says, 0 where it does not.
    """

    def __init__(self, path: Path, inside: Inside | None, container: av.container.InputContainer) -> None:
        self.path, self.inside, self.container = path, inside, container
        self.stream = _video_stream(path, container)
        self.aspect = Fraction(self.stream.sample_aspect_ratio or 1)
        self.fps = float(self.stream.average_rate or 0)
        self._rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self._frames = _decoded(path, container, self.stream)
        first = next(self._frames, None)
        if first is None:
            raise ClipError(path, "it cannot be decoded (no whole frame in it)")
        _refuse_pixels(path, first.width, first.height)
        self._first = first
        self._origin = None if first.time is None else float(first.time)
        size = (first.height, max(1, round(first.width * self.aspect)))
        self.size = size if _quarters(first) % 2 == 0 else (size[1], size[0])

    def frames(self, start: float = 0.0) -> Timed:
        """Decoded frames with seconds since the first, once; from ``start`` or somewhat before it.

        Without timestamps times are by the stream's frame rate.
        """
        if start >= WORTH_SEEKING and self._origin is not None:
            return self._sought(start, self._origin)
        return self._with_times(chain((self._first,), self._frames))

    def _with_times(self, frames: Iterator[av.VideoFrame]) -> Timed:
        for index, frame in enumerate(frames):
            known = frame.time is not None and self._origin is not None
            yield (float(frame.time) - (self._origin or 0.0) if known else index / self._rate), frame

    def _sought(self, start: float, origin: float) -> Timed:
        """From the last key frame before ``start``; where the file does not allow that, from its beginning."""
        head = self._seek(start, origin)
        if head is not None:
            yield from self._with_times(chain((head,), self._frames))
        else:
            with opened(self.path, self.inside) as again:
                yield from again.frames()

    def _seek(self, start: float, origin: float) -> av.VideoFrame | None:
        """The first frame after going to ``start``; None when it is later, or there is none."""
        try:
            self.container.seek(int((origin + start) / self.stream.time_base), stream=self.stream)
            self._frames = _decoded(self.path, self.container, self.stream)
            head = next(self._frames, None)
        except (av.FFmpegError, ClipError):
            return None
        late = head is None or head.time is None or float(head.time) - origin > start
        return None if late else head

    @property
    def promised(self) -> float:
        """Seconds of picture that the header speaks of, 0 where it does not.

        A cut Matroska file decodes as a short one. A container's own duration is its longest stream's, so it counts
        only for a file without sound; a GIF's last frame may be held as long as it likes.
        """
        if self.stream.codec_context.name == "gif":
            return 0.0
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        alone = len(self.container.streams) == 1
        return (self.container.duration or 0) / av.time_base if alone else 0.0

    @property
    def seconds(self) -> float:
        """Seconds of picture: as the header says, else by the times of all packets, which are not decoded."""
        return self.promised or _counted(self.path, self.inside, 1 / self._rate)


@contextmanager
def opened(path: Path, inside: Inside | None = None) -> Iterator[Video]:
    """A video, or one inside of another file; whatever opening and decoding raises is a ClipError."""
    if not path.is_file() and inside is None:
        raise ClipError(path, "the file does not exist")
    try:
        with _container(path, inside) as container:
            yield Video(path, inside, container)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ClipError(path, f"it cannot be decoded ({_reason(error)})") from error


@contextmanager
def _container(path: Path, inside: Inside | None) -> Iterator[av.container.InputContainer]:
    with (
        nullcontext(str(path)) if inside is None else inside.open() as file,
        # A tag in another encoding is no reason to lose the video.
        av.open(file, metadata_errors="replace", options={"format_whitelist": FORMATS}) as container,
    ):
        yield container


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def _video_stream(path: Path, container: av.container.InputContainer) -> Any:
    """The file's video; raises ClipError for none, a codec that is not known, and pictures that are too large."""
    if not container.streams.video:
        raise ClipError(path, "it holds no video")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ClipError(path, "its codec is unknown here; write it again as H.264")
    _refuse_pixels(path, stream.codec_context.width, stream.codec_context.height)
    stream.thread_type = "AUTO"
    return stream


def _refuse_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ClipError(path, f"its pictures are too large: {width}x{height}, at most {MOST_PIXELS} pixels are read")


def _counted(path: Path, inside: Inside | None, gap: float) -> float:
    with _container(path, inside) as container:
        stream = container.streams.video[0]
        times = [float(p.pts * stream.time_base) for p in container.demux(stream) if p.pts is not None]
    return max(times) - min(times) + gap if times else 0.0


# --- frames -----------------------------------------------------------------------------------


def _decoded(path: Path, container: av.container.InputContainer, stream: Any) -> Iterator[av.VideoFrame]:
    """Whole frames; interlaced ones with their two fields made one picture."""
    weave: _Deinterlacer | None = None
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ClipError(path, f"it is damaged: the frame at {float(frame.time or 0):.2f} s is not whole")
        weave = weave or (_Deinterlacer(stream) if frame.interlaced_frame else None)
        yield from weave.push(frame) if weave else (frame,)
    yield from weave.push(None) if weave else ()


class _Deinterlacer:
    """FFmpeg's bwdif: a frame for a frame, one later."""

    def __init__(self, stream: Any) -> None:
        self.graph = av.filter.Graph()
        self.graph.link_nodes(
            self.graph.add_buffer(template=stream),
            self.graph.add("bwdif", "mode=send_frame:deint=interlaced"),
            self.graph.add("buffersink"),
        ).configure()

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Take a frame, None at the end; gives those that are ready."""
        self.graph.push(frame)
        while True:
            try:
                yield self.graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return


def upright(frame: av.VideoFrame, aspect: Fraction) -> NDArray[np.uint8]:
    """One frame as RGB [height, width, 3]: pixels of this aspect made square, turned as the camera meant it.

    Grey shows through where it is transparent.
    """
    picture = _rgb(frame)
    if aspect != 1:
        wide = (max(1, round(picture.shape[1] * aspect)), picture.shape[0])
        picture = np.asarray(Image.fromarray(picture).resize(wide, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(np.rot90(picture, _quarters(frame)))


def _quarters(frame: av.VideoFrame) -> int:
    """Quarter turns to the left that make it upright."""
    return round(frame.rotation / QUARTER) % 4


def _rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24", interpolation=EXACT)
    rgba = frame.to_ndarray(format="rgba", interpolation=EXACT).astype(np.uint16)
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    return ((colour * alpha + np.array(NEUTRAL, np.uint16) * (255 - alpha) + 127) // 255).astype(np.uint8)


def refuse_holes(path: Path, times: Sequence[float], fps: float, promised: float) -> None:
    """Frames that are lost at the end or on the way would pass for a shorter or a quicker clip."""
    gaps, span = np.diff(times), times[-1] - times[0]
    usual = float(np.median(gaps)) if len(gaps) else 1 / (fps or 1)
    if span + SPARE * usual < WHOLE * promised:
        raise ClipError(path, f"it is cut off: {span + usual:.1f} s of the {promised:.1f} s that its header promises")
    if len(gaps) > SPARE and gaps.max() > UNEVEN * usual:
        uneven = f"two frames are {gaps.max():.2f} s apart where {usual:.2f} s is usual"
        raise ClipError(path, f"{uneven}: it is damaged or of variable rate; write it again at a constant rate")
