"""What a clip's reading gives: its frames, and facts about where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Facts = Mapping[str, float | int | str | list[float]]


@dataclass(frozen=True)
class Picked:
    """A clip as it is used: frames uint8 [frames, height, width, 3], and facts for its row."""

    frames: NDArray[np.uint8]
    facts: Facts = field(default_factory=dict)


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of ``sizes`` (height, width) the one nearest in aspect ratio: its log(width / height) differs least."""
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - aspect))
