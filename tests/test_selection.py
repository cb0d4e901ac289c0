"""Which clips are wanted: what a recipe may ask for, and the picture size a clip gets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from aad1.data.selection import Selection, nearest_size


def selection(**values: Any) -> Selection:
    return TypeAdapter(Selection).validate_python(values)


def test_nothing_is_asked_for_unless_said() -> None:
    assert selection() == Selection()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_motion": -0.1}, "min_motion"),
        ({"min_motion": 0.5, "max_motion": 0.1}, "above max_motion 0.1"),
        ({"max_jump": 0.5}, "max_jump"),
        ({"clips_per_video": 0}, "clips_per_video"),
        ({"stride": 2.0}, "clips_per_video"),
        ({"clips_per_video": 2, "place": "middle"}, "single clip"),
        ({"place": "end"}, "'first' or 'middle'"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        selection(**values)


def test_the_size_nearest_in_shape() -> None:
    sizes = [(480, 832), (832, 480), (624, 624)]
    assert nearest_size(1080, 1920, sizes) == (480, 832)
    assert nearest_size(1920, 1080, sizes) == (832, 480)
    assert nearest_size(100, 110, sizes) == (624, 624)
    wide, tall = [(1, 2), (1, 1)], [(2, 1), (1, 1)]  # 1.45 is nearer to 2 than to 1 as a ratio, not as a difference
    assert (nearest_size(100, 145, wide), nearest_size(145, 100, tall)) == ((1, 2), (2, 1))
