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
from aad1.serve.codecs import CODECS

FLAGS = "empty_moov+default_base_moof+frag_every_frame"


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
    """An encoder of one endless video of ``size`` (height, width), both even. UserError for more than a level holds.

    ``codec`` is one of CODECS; ``mime`` is what a browser's MediaSource has to be told. A fragment is written when
    the next frame is known, so a piece ends one frame before its chunk does; ``close`` gives the last one.
    """

    def __init__(self, size: tuple[int, int], fps: float, codec: str = "h264") -> None:
        how = CODECS[codec]
        self.mime = how.mime(size, fps)
        level = {"level": str(how.level(size, fps))} if how.told else {}
        self._pipe, self._frames, self._open = _Pipe(), 0, True
        self._container = av.open(self._pipe, "w", format="mp4", options={"movflags": FLAGS, "flush_packets": "1"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream(how.encoder, rate=rate, options={**how.options, **level})
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
