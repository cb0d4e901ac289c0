"""What was found in a source or a store, and its numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aad1.data.entries import Kind
from aad1.evaluation.films import Film

EXAMPLES = 5  # of what was left out for one reason
MOST_SIZES = 8  # picture sizes that are counted by themselves
NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
PERCENTILES = {"p05": 5, "median": 50, "p95": 95}


@dataclass(frozen=True)
class Clip:
    """A clip that is used, or is left out: then ``reason`` says why."""

    name: str
    caption: str
    facts: Mapping[str, Any]
    kind: Kind | None = None
    reason: str = ""


@dataclass(frozen=True)
class Shown:
    """A clip for the page, with its film; None where there is nothing to make one of."""

    clip: Clip
    film: Film | None


@dataclass(frozen=True)
class Measure:
    """A fact of which the page has a histogram."""

    name: str
    title: str
    unit: str
    words: str


MEASURES = (
    Measure("seconds", "Length", "s", "Seconds of the video, or of the part of it that is listed"),
    Measure("motion", "Motion", "", "Mean change of a pixel from frame to frame, in [0, 1]: 0.001 is at rest"),
    Measure("jump", "Largest jump", "x", "How many times as much as around it one frame step changes: cuts are over 8"),
    Measure("source_fps", "Frame rate", "fps", "Frames a second of the file"),
    Measure("short_side", "Shorter side", "px", "Of the file's pictures: smaller ones are enlarged"),
    Measure("aspect", "Aspect", "", "Width over height of the file's pictures"),
    Measure("caption_words", "Caption", "words", "Words of the caption"),
)


@dataclass(frozen=True)
class Findings:
    """All that the page and its JSON say.

    source: what was looked at, as a name; listed: clips that there are; clips: those that were looked at; shown: a few
    of them; asked: what was asked for, by name; walls: values that a measure was asked to keep, by its name.
    """

    source: str
    listed: int
    clips: Sequence[Clip]
    shown: Sequence[Shown]
    asked: Mapping[str, str]
    walls: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def used(self) -> list[Clip]:
        """The clips that are not left out."""
        return [clip for clip in self.clips if clip.kind is None]

    def values(self, measure: str) -> list[float]:
        """A measure's values of all clips of which it is known, also of those that are left out."""
        return [value for clip in self.clips if (value := value_of(clip, measure)) is not None]


def value_of(clip: Clip, measure: str) -> float | None:
    """A clip's value of a measure, None where it is not known."""
    size = clip.facts.get("source_size")
    if measure == "short_side":
        return None if size is None else float(min(size))
    if measure == "aspect":
        return None if size is None else size[1] / size[0]
    if measure == "caption_words":
        return float(len(clip.caption.split())) if clip.caption else None
    value = clip.facts.get(measure)
    return None if value is None else float(value)


@dataclass(frozen=True)
class Reason:
    """Clips that are left out for reasons that differ in numbers and names alone."""

    kind: Kind
    reason: str
    count: int
    examples: Sequence[tuple[str, str]]  # name and full reason


def reasons(clips: Iterable[Clip]) -> list[Reason]:
    """Why clips are left out, the most frequent reason first."""
    groups: dict[tuple[Kind, str], list[Clip]] = {}
    for clip in clips:
        if clip.kind is not None:
            groups.setdefault((clip.kind, general(clip.reason)), []).append(clip)
    found = [
        Reason(kind, reason, len(held), [(clip.name, clip.reason) for clip in held[:EXAMPLES]])
        for (kind, reason), held in groups.items()
    ]
    return sorted(found, key=lambda reason: -reason.count)


def general(reason: str) -> str:
    """A reason without what differs from clip to clip: its details, and its numbers."""
    return NUMBER.sub("…", reason.split(": ")[0])


def sizes(clips: Sequence[Clip]) -> list[tuple[str, int]]:
    """Picture sizes, width x height, with how many clips have them, the most frequent first; the rest together."""
    known = [clip.facts["source_size"] for clip in clips if "source_size" in clip.facts]
    counted = Counter(f"{width}x{height}" for height, width in known).most_common()
    rest = sum(count for _, count in counted[MOST_SIZES:])
    return [*counted[:MOST_SIZES], *([(f"{len(counted) - MOST_SIZES} other sizes", rest)] if rest else [])]


def summary(findings: Findings) -> dict[str, Any]:
    """The findings in numbers, as JSON holds them."""
    return {
        "source": findings.source,
        "asked": dict(findings.asked),
        "listed": findings.listed,
        "looked_at": len(findings.clips),
        "used": len(findings.used),
        "left_out": [
            {"kind": r.kind, "reason": r.reason, "count": r.count, "examples": [list(e) for e in r.examples]}
            for r in reasons(findings.clips)
        ],
        "measures": {m.name: spread(values) for m in MEASURES if (values := findings.values(m.name))},
        "sizes": dict(sizes(findings.clips)),
    }


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Count, mean, ends and percentiles of a measure."""
    percentiles = {name: float(np.percentile(values, q)) for name, q in PERCENTILES.items()}
    return {"count": len(values), "mean": float(np.mean(values)), "min": min(values), **percentiles, "max": max(values)}
