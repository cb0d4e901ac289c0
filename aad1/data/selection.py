"""Which clips of which videos are used: what a recipe asks for, and what a clip's reading gives.

Motion is the mean absolute change of a pixel from one frame of the clip to the next, in [0, 1]: 0.001 is a quarter of
a grey level, a picture at rest; a clip in which a tenth of the picture changes by a tenth of the range has 0.01. It is
measured on a reduced copy, in which noise averages out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from aad1.limits import Count, Natural, Positive, Share, Weight

Facts = Mapping[str, Any]  # plain values, as JSON holds them
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which clips are taken of a source's videos; as it stands, the beginning of every one.

    clips_per_video: spread evenly from a video's beginning to its end, or every ``stride`` seconds; place: where a
    single one is taken; min_seconds and min_side: of the video, its shorter side in pixels; min_motion and max_motion:
    of the clip (see above; a still clip teaches stillness); max_jump: how many times as much as its neighbours a single
    frame step may change (a cut from one scene to another has 10 and more, steady motion 1 to 2).
    """

    clips_per_video: Count = 1
    place: Literal["first", "middle"] = "first"
    stride: Positive | None = None
    min_seconds: Weight = 0.0
    min_side: Natural = 0
    min_motion: Share = 0.0
    max_motion: Share = 1.0
    max_jump: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None

    def __post_init__(self) -> None:
        if self.place != "first" and (self.clips_per_video > 1 or self.stride is not None):
            raise ValueError("place is for a single clip a video; leave it out beside clips_per_video and stride")
        if self.stride is not None and self.clips_per_video == 1:
            raise ValueError("stride is for several clips a video; set clips_per_video to the most there may be")
        if self.min_motion > self.max_motion:
            raise ValueError(f"min_motion {self.min_motion:g} is above max_motion {self.max_motion:g}")


WHATEVER = Selection()  # nothing is asked for


@dataclass(frozen=True)
class Picked:
    """A clip as it is used: frames uint8 [frames, height, width, 3], and facts for its row.

    Facts of a video's clip: seconds (of the video, or of the part of it that a list names), start (of the clip in
    the video, s), source_fps, source_size (height and width, upright, square pixels), motion, jump and jump_step (the
    largest jump, and the frame step that it is).
    """

    frames: NDArray[np.uint8]
    facts: Facts = field(default_factory=dict)


def nearest_size(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """Of ``sizes`` (height, width) the one nearest in aspect ratio: its log(width / height) differs least."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - aspect))
