"""VBench's result files, {dimension: [mean, [{video_path, video_results}, ...]]}: read and doubted.

A mean that is not that of its videos, a NaN, an empty set or a value out of range is a mistake somewhere, so none of
them gets into a score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from aad1.errors import UserError
from aad1.evaluation.vbench.dimensions import CAMERA, DIMENSIONS, Dimension
from aad1.evaluation.vbench.names import parse

AGREEMENT = 1e-4  # of a mean with that of its videos, both in [0, 1]; VBench adds in float32
SLACK = 1e-4  # beyond 0 and 1: cosines of rounded vectors
ALIKE = "every dimension over the same videos"
SPLIT = "subject dimensions over pictures with a subject, background dimensions over the others, as VBench-I2V does"


@dataclass(frozen=True)
class Result:
    """One dimension's mean and each video's own value by the video's stem, all in [0, 1].

    videos: None where the file has the mean alone. paths: where VBench found each video.
    """

    dimension: Dimension
    mean: float
    videos: Mapping[str, float] | None
    paths: Mapping[str, str]


def read_file(path: Path) -> dict[str, Any]:
    """A result file as it stands; raises UserError where it is missing, damaged or of another shape."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run the dimension again") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged (no JSON: {error}); run the dimension again") from None
    if not isinstance(held, dict) or not held:
        raise UserError(f"{path} is no result file of VBench; it must be {{dimension: [mean, [videos]]}}")
    return held


def check(name: str, value: Any) -> Result:
    """One dimension's entry of a result file.

    Raises UserError for what VBench cannot have meant: another shape, NaN, no videos, values out of range, a mean that
    is not the videos'.
    """
    if name not in DIMENSIONS:
        raise UserError(f"{name} is no dimension of VBench-I2V")
    dimension = DIMENSIONS[name]
    if not isinstance(value, list) or not value:
        raise UserError(f"{name} is not [mean, [videos]]; take VBench's own result file")
    mean = _number(f"{name}'s mean", value[0], 1.0)
    listed = value[-1] if len(value) > 1 else None
    if listed is None:
        return Result(dimension, mean, None, {})
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise UserError(f"{name} is not [mean, [{{video_path, video_results}}, ...]]; take VBench's own result file")
    if not listed:
        raise UserError(f"{name} is over no videos; look at the folder's names and run it again")
    values, paths = _videos(dimension, listed)
    _check_mean(dimension, mean, values, listed)
    return Result(dimension, mean, values, paths)


def _number(what: str, value: Any, top: float) -> float:
    """In [0, top] -> [0, 1]."""
    if isinstance(value, bool):
        return float(value)
    if value is None or (isinstance(value, float) and not isfinite(value)):
        raise UserError(f"{what} is {value}: VBench found nothing to measure, or its code failed; look at its log")
    if not isinstance(value, int | float):
        raise UserError(f"{what} is {value!r}, no number; take VBench's own result file")
    if not -SLACK * top <= value <= (1 + SLACK) * top:
        raise UserError(f"{what} is {value:g}, outside 0 to {top:g}; take VBench's own result file, unscaled")
    return float(value) / top


def _videos(dimension: Dimension, listed: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, str]]:
    values, paths = dict[str, float](), dict[str, str]()
    for row in listed:
        path = row.get("video_path")
        if not isinstance(path, str):
            raise UserError(f"{dimension.name} has a value without a video_path; take VBench's own result file")
        stem = Path(path).stem
        if stem in values:
            raise UserError(f"{dimension.name} has '{stem}' twice; measure one folder at a time")
        values[stem] = _number(f"{dimension.name} of '{stem}'", row.get("video_results"), dimension.per_video)
        paths[stem] = path
    return values, paths


def _check_mean(
    dimension: Dimension, mean: float, values: Mapping[str, float], listed: Sequence[Mapping[str, Any]]
) -> None:
    weights = [float(row.get("cnt_per_video", 1)) for row in listed]
    if sum(weights) <= 0:
        raise UserError(f"{dimension.name} counts no frame of its videos; measure it again")
    own = sum(w * v for w, v in zip(weights, values.values(), strict=True)) / sum(weights)
    if abs(own - mean) > AGREEMENT:
        scale = " (VBench divides its mean by 100, not its videos)" if dimension.per_video != 1 else ""
        frames = "; it is taken over frames, so videos of one length are needed" if dimension.over_frames else ""
        raise UserError(
            f"{dimension.name}'s mean {mean:.5f} is not that of its {len(values)} videos, {own:.5f}{scale}{frames}"
        )


# --- a folder of them -------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """What a folder of result files holds. problems: what could not be used, a line each."""

    folder: Path
    dimensions: Mapping[str, Result]
    problems: tuple[str, ...]


def read_results(folder: Path) -> Results:
    """Every result file of a folder: ours (DIMENSION.json) and VBench's (*_eval_results.json).

    Raises UserError when there is none, or two files hold the same dimension.
    """
    files = [p for p in sorted(folder.glob("*.json")) if p.stem in DIMENSIONS or p.stem.endswith("_eval_results")]
    if not files:
        raise UserError(f"{folder} holds no VBench results; `aad1 evaluate vbench run` writes them")
    found, source, problems = dict[str, Result](), dict[str, str](), list[str]()
    for file in files:
        try:
            entries = read_file(file)
        except UserError as error:
            problems.append(str(error))
            continue
        for name, value in entries.items():
            if name in source:
                raise UserError(f"{folder}: {source[name]} and {file.name} both hold {name}; keep one of them")
            source[name] = file.name
            try:
                found[name] = check(name, value)
            except UserError as error:
                problems.append(f"{file.name}: {error}")
    return Results(folder, found, tuple(problems))


def check_sets(results: Mapping[str, Result]) -> str:
    """How the dimensions' videos belong together, in words.

    Either every dimension goes over the same videos, or, as in the official suite, some over those with a subject,
    some over those with a background, aesthetic and imaging quality over both; camera motion has prompts of its own.
    Raises UserError for anything else.
    """
    own = {name: r.videos for name, r in results.items() if r.videos is not None and name != CAMERA}
    listed = {name: frozenset(videos) for name, videos in own.items()}
    if len(set(listed.values())) <= 1:
        return ALIKE
    parts = {part: {n: v for n, v in listed.items() if DIMENSIONS[n].images == part} for part in _PARTS}
    for part in _PARTS:
        _refuse_difference(parts[part])
    subject, background, both = (next(iter(parts[part].values()), frozenset[str]()) for part in _PARTS)
    if subject & background or (both and subject and background and both != subject | background):
        _refuse_difference(listed)
    if both and not (subject | background) <= both:
        _refuse_difference(listed)
    others = {n: v for n, v in listed.items() if DIMENSIONS[n].images == "none"}
    if others and both:
        _refuse_difference({**others, **parts["both"]})
    return SPLIT


_PARTS = ("subject", "background", "both")


def _refuse_difference(listed: Mapping[str, frozenset[str]]) -> None:
    """Raise UserError naming two dimensions and videos that only one of them has."""
    pairs = list(listed.items())
    for name, videos in pairs[1:]:
        if lone := sorted(videos ^ pairs[0][1]):
            shown = ", ".join(f"'{stem}'" for stem in lone[:3])
            raise UserError(
                f"{pairs[0][0]} ({len(pairs[0][1])} videos) and {name} ({len(videos)}) are over different videos: "
                f"{len(lone)} are in one alone ({shown}); run both over the same folder"
            )


def prompts(stems: Sequence[str]) -> list[str]:
    """The prompt of each video, which is also its picture's name."""
    return [parse(stem).prompt for stem in stems]
