"""Two models' videos, to be shown against each other: from folders, or from reports that kept their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aad1.data.sources import find_files
from aad1.errors import UserError, nearest
from aad1.evaluation.reel import is_bound
from aad1.evaluation.report import FILE, Report, read_report


@dataclass(frozen=True)
class Take:
    """A model's video of a clip."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Contestant:
    """A model's takes by the clip's name; lost: what it has that cannot be used, a line each."""

    name: str
    takes: Mapping[str, Take]
    lost: Sequence[str] = ()


def contestants(places: Sequence[tuple[str, Path]], models: Sequence[str] = ()) -> tuple[Contestant, Contestant]:
    """The two models of one report, or of two named places; a place is a report or a folder or list of videos.

    models: which rows of the reports. Raises UserError for anything but two models, with what there is to choose from.
    """
    if len(places) == 1:
        place = places[0][1]
        if not is_report(place):
            raise UserError(f"{place} is no report, so it has one model's videos only; give a second folder")
        report = read_report(place)
        chosen = models or report.models
        if len(chosen) != 2:
            raise UserError(f"two models are compared, not {len(chosen)}; --models of: {', '.join(report.models)}")
        return from_report(report, place, chosen[0]), from_report(report, place, chosen[1])
    if len(places) != 2:
        raise UserError(f"two models are compared, not {len(places)}; give one report, or two reports or folders")
    if models and (len(models) != 2 or not all(is_report(place) for _, place in places)):
        raise UserError("--models takes the row of each of two reports, in their order")
    one, other = (
        _of_place(name, place, models[number] if models else None) for number, (name, place) in enumerate(places)
    )
    return one, other


def is_report(place: Path) -> bool:
    """Whether this is a report or a folder that holds one."""
    return (place / FILE).is_file() or (place.is_file() and place.suffix == ".json")


def _of_place(name: str, place: Path, model: str | None) -> Contestant:
    if not is_report(place):
        return from_folder(name, place)
    report = read_report(place)
    candidates = [model] if model else [m for m in report.models if not is_bound(m)] or report.models
    if len(candidates) != 1:
        raise UserError(f"{place} has several models; --models of: {', '.join(report.models)} (one for each report)")
    found = from_report(report, place, candidates[0])
    return Contestant(name, found.takes, found.lost)


def from_folder(name: str, place: Path) -> Contestant:
    """A folder's videos by their path without its suffix, or those of a .csv or .jsonl list.

    Raises UserError when there are none.
    """
    found: dict[str, list[Take]] = {}
    for clip in find_files(place):
        stem = PurePosixPath(clip.name).with_suffix("").as_posix()
        found.setdefault(stem, []).append(Take(clip.path, clip.caption))
    lost = [
        f"{stem}: {name} has {len(takes)} videos of this name ({', '.join(take.path.name for take in takes)})"
        for stem, takes in found.items()
        if len(takes) > 1
    ]
    return Contestant(name, {stem: takes[0] for stem, takes in found.items() if len(takes) == 1}, lost)


def from_report(report: Report, place: Path, model: str) -> Contestant:
    """A report's row by the names of its clips, with their protocol where there are several.

    Raises UserError for a model that the report does not have.
    """
    if model not in report.models:
        raise UserError(f"{place} has no model '{model}'{nearest(model, report.models)}")
    home = place if place.is_dir() else place.parent
    several = len({clip.protocol for clip in report.clips}) > 1
    named = {
        f"{clip.protocol}/{clip.name}" if several else clip.name: clip for clip in report.clips if clip.model == model
    }
    takes = {name: Take(home / clip.video, clip.caption) for name, clip in named.items() if clip.video}
    return Contestant(model, takes, [f"{name}: {model}'s video was not kept" for name in named if name not in takes])
