"""Frames to fragmented MP4: bytes that a browser can play while the video is still being made.

The first piece carries the header (``ftyp`` + ``moov``), every piece whole fragments (``moof`` + ``mdat``), one a
frame; all of them one after the other are a whole MP4 file.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from aad1.data.media import say_colours, to_yuv
from aad1.errors import UserError

# Baseline profile and no delay, as MediaSource needs it; one thread, so that the same frames are the same bytes.
OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline", "crf": "14", "threads": "1"}
FLAGS = "empty_moov+default_base_moof+frag_every_frame"
LEVELS = ((30, 1620, 40500), (31, 3600, 108000), (40, 8192, 245760), (51, 36864, 983040), (52, 36864, 2073600))


def level_of(size: tuple[int, int], fps: float) -> int:
    """Ten times the least H.264 level for such a video: players turn away what is above theirs.

    LEVELS has each with its macroblocks (16 x 16 px) a picture and a second (ITU-T H.264, table A-1). Raises
    UserError when none is enough.
    """
    blocks = -(-size[0] // 16) * -(-size[1] // 16)
    for level, a_picture, a_second in LEVELS:
        if blocks <= a_picture and blocks * fps <= a_second:
            return level
    raise UserError(f"{size[1]}x{size[0]} at {fps:g} frames a second is more than an MP4 for browsers can hold")


class _Pipe:
    """What the muxer writes to: it cannot seek, so nothing that was sent is ever mended."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self.buffer.write(data)

    def take(self) -> bytes:
        data = self.buffer.getvalue()
        self.buffer = io.BytesIO()
        return data


class FragmentedMp4:
    """An encoder of one endless video of ``size`` (height, width), both even.

    ``mime`` is what a browser's MediaSource has to be told. A fragment is written when the next frame is known, so
    a piece ends one frame before its chunk does; ``close`` gives the last one.
    """

    def __init__(self, size: tuple[int, int], fps: float) -> None:
        level = level_of(size, fps)
        self.mime = f'video/mp4; codecs="avc1.42C0{level:02X}"'
        self._pipe, self._frames, self._open = _Pipe(), 0, True
        self._container = av.open(self._pipe, "w", format="mp4", options={"movflags": FLAGS, "flush_packets": "1"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={**OPTIONS, "level": str(level)})
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        say_colours(self._stream.codec_context)
        self._tick = 1 / rate

    def add(self, frames: NDArray[np.uint8]) -> bytes:
        """The next piece, of uint8 [frames, height, width, 3]; it begins with a key frame."""
        for number, frame in enumerate(frames):
            picture = to_yuv(frame, "yuv420p")
            picture.pts, picture.time_base = self._frames, self._tick
            if number == 0:
                picture.pict_type = PictureType.I
            self._container.mux(self._stream.encode(picture))
            self._frames += 1
        return self._pipe.take()

    def close(self) -> bytes:
        """The end of the video, and of the encoder; nothing when it was closed before."""
        if not self._open:
            return b""
        self._open = False
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._pipe.take()
