"""What a recipe's numbers may be, as types: pydantic refuses others, naming the key, the value and the limit."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Level = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


def _falling(levels: tuple[float, ...]) -> tuple[float, ...]:
    if not levels or any(after >= before for before, after in pairwise(levels)):
        raise ValueError(f"levels must fall, each at most once, not {list(levels)}")
    return levels


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"an interval must not fall, as {list(interval)} does")
    return interval


FallingLevels = Annotated[tuple[Level, ...], AfterValidator(_falling)]
LevelInterval = Annotated[tuple[Share, Share], AfterValidator(_rising)]
Sides = tuple[Count, Count]
