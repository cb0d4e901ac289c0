"""VBench-I2V's Quality, I2V and Total from its result files, and AAD-1's drift; our own arithmetic, nothing assumed.

    Quality = (subject + background + smoothness + aesthetic + imaging + dynamic / 2) / 5.5
    I2V     = (i2v subject + i2v background [+ camera / 10]) / 2 [2.1]
    Total   = (Quality + I2V) / 2

of the normalised means. Camera motion counts where it was measured; AAD-1 reports eight dimensions without it. A
missing dimension makes its score N/A: VBench's own script would count it 0. Drift is the standard deviation of
imaging quality over the 2 s segments of a 20 s rollout, mean over videos. All on VBench's scale of 0 to 100.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aad1.errors import UserError
from aad1.evaluation.intervals import Interval, draws, interval
from aad1.evaluation.report import ClipResult, Column, Curves, Report, Table, versions
from aad1.evaluation.vbench.dimensions import ALL, CAMERA, DIMENSIONS, OFFICIAL_IMAGES, REPORTED, SAMPLES, Score
from aad1.evaluation.vbench.names import parse
from aad1.evaluation.vbench.records import read_environment, read_problems
from aad1.evaluation.vbench.results import SPLIT, Result, Results, check_sets, read_results

SCALE = 100.0
SEGMENT_SECONDS = 2.0
WHY = (
    "Dynamic degree stands beside Total because Total rewards collapse: a frozen copy of the image, with AAD-1's "
    "picture quality, scores 89.3, above Wan 2.1 (88.7) and AAD-1 (88.3). Never rank by Total alone."
)
NOISE = "Differences under .3 points are noise between versions of torch (VBench issue 131)."
SCORES = (
    Column("total", "Total", "higher", "(Quality + I2V) / 2; it rewards a frozen picture", always=True),
    Column("quality", "Quality", "higher", "weighted mean of six normalised dimensions, dynamic degree at half weight"),
    Column("i2v", "I2V", "higher", "mean of i2v subject and i2v background, normalised (camera motion at a tenth)"),
)
DRIFT = Column("drift", "drift", "0", "std of imaging quality over 2 s segments of a 20 s rollout, mean over videos")

Draws = NDArray[np.float64]


def _column(name: str) -> Column:
    d = DIMENSIONS[name]
    weight = f"; normalised from [{d.low:g}, {d.high:g}], weight {d.weight:g}" if d.score != "none" else ""
    return Column(name, d.label, "higher", d.legend + weight, always=name == "dynamic_degree")


COLUMNS = (
    SCORES[0],
    _column("dynamic_degree"),
    *SCORES[1:],
    *(_column(d.name) for d in ALL if d.name != "dynamic_degree"),
    DRIFT,
)


@dataclass(frozen=True)
class Scored:
    """One model's numbers on the scale of 0 to 100; missing: what has no number, and why, a line each."""

    measures: Mapping[str, Interval | None]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    videos: int
    images: int


def combine(means: Mapping[str, float]) -> dict[str, float | None]:
    """Quality, I2V and Total from the dimensions' means in [0, 1]; None where a dimension is missing."""
    made = combined({name: np.array([mean]) for name, mean in means.items()})
    return {name: None if value is None else float(value[0]) for name, value in made.items()}


def combined(means: Mapping[str, Draws]) -> dict[str, Draws | None]:
    """As ``combine``, of any number of resamples at once."""
    quality, i2v = _score("quality", means), _score("i2v", means)
    total = None if quality is None or i2v is None else (quality + i2v) / 2
    return {"total": total, "quality": quality, "i2v": i2v}


def _score(score: Score, means: Mapping[str, Draws]) -> Draws | None:
    parts = [d for d in ALL if d.score == score and (d.name in REPORTED or d.name in means)]
    if any(d.name not in means for d in parts):
        return None
    total = sum((d.weight * (means[d.name] - d.low) / (d.high - d.low) for d in parts), np.zeros(1))
    return total / sum(d.weight for d in parts)


def lacking(means: Mapping[str, object]) -> dict[str, list[str]]:
    """The dimensions that each of the scores lacks."""
    lost = {s: [n for n in REPORTED if DIMENSIONS[n].score == s and n not in means] for s in ("quality", "i2v")}
    return {"total": lost["quality"] + lost["i2v"], **lost}


# --- resampling images ------------------------------------------------------------------------


def resampled(results: Mapping[str, Result]) -> dict[str, Draws]:
    """Each dimension's mean, [1 + resamples]: first VBench's own, then over resampled images (all samples of each).

    Without its videos' values a dimension is its mean throughout.
    """
    by_image = {name: _by_image(r.videos) for name, r in results.items() if r.videos is not None}
    images = sorted({image for values in by_image.values() for image in values})
    weights = draws(max(1, len(images)))
    made = {name: np.full(len(weights), r.mean) for name, r in results.items()}
    for name, values in by_image.items():
        sums = np.array([sum(values.get(image, ())) for image in images])
        counts = np.array([float(len(values.get(image, ()))) for image in images])
        with np.errstate(invalid="ignore", divide="ignore"):
            made[name][1:] = ((weights @ sums) / (weights @ counts))[1:]
    return made


def _by_image(values: Mapping[str, float]) -> dict[str, list[float]]:
    found = defaultdict[str, list[float]](list)
    for stem, value in values.items():
        found[parse(stem).prompt].append(value)
    return found


def score(results: Results) -> Scored:
    """One model's dimensions, Quality, I2V and Total with 95 % bootstrap intervals over images.

    Raises UserError when the dimensions are over different videos, or no dimension can be used.
    """
    if not results.dimensions:
        raise UserError(f"{results.folder} has no usable result: {'; '.join(results.problems)}")
    sets = check_sets(results.dimensions)
    means = resampled(results.dimensions)
    made = combined(means)
    values = {name: None if v is None else interval(v * SCALE) for name, v in (made | means).items()}
    values.setdefault("dynamic_degree", None)  # its line stands beside Total's, whatever was measured
    lost = lacking(results.dimensions)
    missing = list(results.problems)
    for column in SCORES:
        if lost[column.name]:
            missing.append(f"{column.label} is N/A without {', '.join(lost[column.name])}")
    stems = {stem for name, r in results.dimensions.items() if name != CAMERA for stem in r.videos or ()}
    images = {parse(stem).prompt for stem in stems}
    return Scored(
        values, tuple(missing), tuple(_notes(results, sets, len(stems), len(images))), len(stems), len(images)
    )


def _notes(results: Results, sets: str, videos: int, images: int) -> list[str]:
    notes = [f"{sets[0].upper()}{sets[1:]}."]
    if alone := [name for name, r in results.dimensions.items() if r.videos is None]:
        notes.append(f"No interval, for the files hold no value of each video: {', '.join(alone)}.")
    official = OFFICIAL_IMAGES * SAMPLES
    if (videos, images, sets) != (official, OFFICIAL_IMAGES, SPLIT):
        notes.append(
            f"{videos} videos of {images} images; the official suite has {official} of {OFFICIAL_IMAGES}, "
            f"{SPLIT}. So these numbers cannot stand beside published ones."
        )
    if images == 1:
        notes.append("All videos are of one image, so the intervals say nothing.")
    if CAMERA in results.dimensions:
        notes.append("I2V includes camera motion; AAD-1's published rows do not.")
    return notes


# --- drift ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """AAD-1's drift on the scale of 0 to 100, each video's own, and the mean quality of each segment."""

    mean: Interval
    videos: Mapping[str, float]
    curve: tuple[tuple[float, float | None], ...]


def drift(result: Result, seconds: float = SEGMENT_SECONDS) -> Drift:
    """From imaging quality of segments named by ``export``: std (over n) within a video, mean over videos.

    Raises UserError for videos that are no segments, with one segment alone, with holes, or with different numbers.
    """
    videos = _segments(result)
    counts = {len(values) for values in videos.values()}
    if len(counts) > 1:
        raise UserError(f"videos of {min(counts)} to {max(counts)} segments; measure rollouts of one length")
    if counts == {1}:
        raise UserError("one segment a video has no drift; cut rollouts of at least two segments")
    own = {video: float(np.std(values)) for video, values in videos.items()}
    by_image = _by_image(own)
    weights = draws(len(by_image))
    sums, sizes = ([f(values) for values in by_image.values()] for f in (sum, len))
    mean = interval((weights @ np.array(sums)) / (weights @ np.array(sizes, np.float64)))
    assert mean is not None
    levels = np.mean(list(videos.values()), axis=0)
    return Drift(mean, own, tuple(((i + 0.5) * seconds, float(level)) for i, level in enumerate(levels)))


def _segments(result: Result) -> dict[str, list[float]]:
    """Imaging quality of each video's segments in their order, 0 to 100."""
    if result.videos is None:
        raise UserError("imaging_quality holds no value of each segment; take VBench's own result file")
    found = defaultdict[str, dict[int, float]](dict)
    for stem, value in result.videos.items():
        parsed = parse(stem)
        if parsed.segment is None:
            raise UserError(f"'{stem}' is no segment; cut rollouts with `aad1 evaluate vbench export --segments`")
        found[stem.rpartition(".seg")[0]][parsed.segment] = value * SCALE
    for video, parts in found.items():
        if lost := sorted(set(range(max(parts) + 1)) - parts.keys()):
            raise UserError(f"'{video}' lacks segments {lost}; measure all of them")
    return {video: [parts[i] for i in sorted(parts)] for video, parts in found.items()}


# --- the report -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A name, its folder of results, and that of its segments' imaging quality (None: no drift)."""

    name: str
    results: Path
    segments: Path | None = None


def report(models: Sequence[Model], out: Path, made: Mapping[str, str] | None = None) -> Report:
    """Everything that the result folders say, as one report; ``out`` is where it will be written.

    What cannot be used is named in the report, a whole model too; raises UserError when that is all of them.
    """
    scored, drifts, curves = dict[str, Scored](), dict[str, Drift](), dict[str, list[tuple[float, float | None]]]()
    missing, notes, clips = list[str](), [WHY, NOISE], list[ClipResult]()
    for model in models:
        try:
            results = read_results(model.results)
            scored[model.name] = score(results)
        except UserError as error:
            missing.append(f"{model.name}: {error}")
            continue
        clips += _clips(model.name, results, out)
        missing += [f"{model.name}: {line}" for line in (*scored[model.name].missing, *read_problems(model.results))]
        notes += [f"{model.name}: {line}" for line in scored[model.name].notes]
        try:
            drifts[model.name] = _drift_of(model)
            curves[model.name] = list(drifts[model.name].curve)
        except UserError as error:
            missing.append(f"{model.name}: drift: {error}")
    if not scored:
        raise UserError("; ".join(missing))
    rows = {name: {**s.measures, "drift": drifts[name].mean if name in drifts else None} for name, s in scored.items()}
    tables = [Table("VBench-I2V", rows, {name: s.videos for name, s in scored.items()})]
    lines = [Curves("Imaging quality of long rollouts", "s", "imaging quality", curves)] if curves else []
    environments = {model.name: read_environment(model.results) for model in models if model.name in scored}
    if len(environments) > 1 and len({tuple(sorted(e.items())) for e in environments.values()}) > 1:
        notes.append("The models were measured in different environments; `made` has the versions.")
    protocol = {"dimensions": list(REPORTED), "images": {name: s.images for name, s in scored.items()}}
    everything = {**versions(), **_merged(environments), **(made or {})}
    return Report("vbench", "VBench-I2V", protocol, COLUMNS, tables, lines, clips, notes, missing, everything)


def _drift_of(model: Model) -> Drift:
    if model.segments is None:
        raise UserError("no results of segments were given (--segments)")
    results = read_results(model.segments)
    if "imaging_quality" not in results.dimensions:
        reason = "; ".join(results.problems) or "imaging_quality was not measured"
        raise UserError(f"{model.segments}: {reason}")
    return drift(results.dimensions["imaging_quality"])


def _clips(model: str, results: Results, out: Path) -> list[ClipResult]:
    """Each video with its own values; the video itself where it is still there."""
    values, paths = defaultdict[str, dict[str, float | None]](dict), dict[str, str]()
    for name, result in results.dimensions.items():
        for stem, value in (result.videos or {}).items():
            values[stem][name] = value * SCALE
            paths[stem] = result.paths[stem]
    return [
        ClipResult(model, "vbench", stem, parse(stem).prompt, _shown(Path(paths[stem]), out), values[stem])
        for stem in sorted(values)
    ]


def _shown(video: Path, out: Path) -> str:
    return Path(relpath(video, out)).as_posix() if video.is_absolute() and video.is_file() else ""


def _merged(environments: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """One line where the models agree, one for each model where they do not."""
    made = dict[str, str]()
    for key in dict.fromkeys(key for environment in environments.values() for key in environment):
        found = {model: environment.get(key, "unknown") for model, environment in environments.items()}
        same = len(set(found.values())) == 1
        made |= {key: next(iter(found.values()))} if same else {f"{key} ({m})": v for m, v in found.items()}
    return made
