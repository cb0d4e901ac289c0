"""How live pictures are coded: an encoder, its options, and the name by which a browser's MediaSource knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aad1.errors import UserError

Level = tuple[int, int, int]  # its number, and the most units a picture and a second of it have


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg's. levels: from the least on, in units of ``unit`` x ``unit`` pixels; an encoder that is
    ``told`` its level keeps to it, others find it out.
    """

    encoder: str
    options: Mapping[str, str]
    unit: int
    levels: tuple[Level, ...]
    name_of: Callable[[int], str]
    told: bool

    def level(self, size: tuple[int, int], fps: float) -> int:
        """The least level for such a video: players turn away what is above theirs. UserError when none is enough."""
        units = -(-size[0] // self.unit) * -(-size[1] // self.unit)
        for level, a_picture, a_second in self.levels:
            if units <= a_picture and units * fps <= a_second:
                return level
        raise UserError(f"{size[1]}x{size[0]} at {fps:g} frames a second is more than an MP4 for browsers can hold")

    def mime(self, size: tuple[int, int], fps: float) -> str:
        """What MediaSource is told."""
        return f'video/mp4; codecs="{self.name_of(self.level(size, fps))}"'


# Both without delay, as live video needs it, and with one thread, so that the same frames are the same bytes.
# Levels: ITU-T H.264, table A-1 (macroblocks); VP9 bitstream overview, annex A (luma samples).
CODECS = {
    "h264": Codec(
        encoder="libx264",
        options={"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline", "crf": "14", "threads": "1"},
        unit=16,
        levels=((30, 1620, 40500), (31, 3600, 108000), (40, 8192, 245760), (51, 36864, 983040), (52, 36864, 2073600)),
        name_of=lambda level: f"avc1.42C0{level:02X}",
        told=True,
    ),
    "vp9": Codec(
        encoder="libvpx-vp9",
        options={"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "20", "b": "0", "threads": "1"},
        unit=1,
        levels=(
            (21, 245760, 9216000),
            (31, 983040, 36864000),
            (41, 2228224, 160432128),
            (51, 8912896, 588251136),
        ),
        name_of=lambda level: f"vp09.00.{level}.08",
        told=False,
    ),
}
