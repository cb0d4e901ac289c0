"""Which of a report's clips have their frames in its page, and those frames.

The worst clips of each model in turn, by a primary measure, until there are enough of each protocol; a clip brings
those of all models, so that any two can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

from aad1.data.clips import read_whole
from aad1.data.entries import ClipError
from aad1.evaluation.films import Coding, Film, Frames, fitting, make_film
from aad1.evaluation.report import ClipResult, Column, Report
from aad1.evaluation.world import CONTROLS
from aad1.progress import Progress

BUDGET = 25_000_000  # characters of frames in a page
SAMPLED = 3  # videos that the coding of all is chosen by
PRIMARY = ("rho", "motion", "dynamic_degree")  # whose worst clips are taken: the first that clips have
BOUNDS = (*CONTROLS, "truth_vae")  # rows to compare with: their worst clips are not looked for

Place = tuple[str, str]  # protocol and name of a clip


@dataclass(frozen=True)
class Reel:
    """films: with their clip's index in the report; reasons: why a clip has none; lost: files that are not what they
    should be, a line each; words: what a reader must know about the frames.
    """

    films: Mapping[int, Film]
    reasons: Mapping[int, str]
    lost: Sequence[str]
    words: str


def make_reel(report: Report, folder: Path, shown: int, budget: int = BUDGET) -> Reel:
    """Read and encode the frames of ``shown`` clips a protocol, as far as ``budget`` characters hold them."""
    queue = [index for group in _groups(report, shown) for index in group]
    sample = islice(_readable(report, folder, queue), SAMPLED)
    coding = fitting(((frames, fps) for _, frames, fps in sample), len(queue), budget)
    films, reasons, lost, room = dict[int, Film](), dict[int, str](), list[str](), float(budget)
    with Progress("frames for the page", len(queue), unit="video") as bar:
        for index in queue:
            bar.advance()
            found = _film(report.clips[index], folder, coding) if room > 0 else "the page is full"
            if isinstance(found, Film) and (room := room - found.weight) > 0:
                films[index] = found
            elif isinstance(found, str) and room > 0:
                reasons[index] = found
                lost.append(f"{report.clips[index].video}: {found}")
    for index, clip in enumerate(report.clips):
        if index not in films and index not in reasons:
            reasons[index] = _absent(clip, folder)
            if clip.video and not reasons[index].startswith("not embedded"):
                lost.append(f"{clip.video}: {reasons[index]}")
    return Reel(films, reasons, lost, _words(report, films, coding))


def primary(report: Report) -> Column | None:
    """The measure by which clips are worst first: of PRIMARY, else the first that any clip has."""
    known = {name for clip in report.clips for name, value in clip.values.items() if value is not None}
    columns = {column.name: column for column in report.columns if column.name in known}
    return next((columns[name] for name in (*PRIMARY, *columns) if name in columns), None)


def worst_first(clips: Sequence[ClipResult], indices: Sequence[int], column: Column | None) -> list[int]:
    """The clips of these indices by badness; those for which the measure is N/A come last, in their order."""
    if column is None:
        return list(indices)
    bad = {index: column.badness(clips[index].values.get(column.name)) for index in indices}
    return sorted(indices, key=lambda index: -float("inf") if (b := bad[index]) is None else b, reverse=True)


def is_bound(model: str) -> bool:
    """Whether a row is a control or the truth, also within a comparison (``report: frozen``)."""
    return model.rsplit(": ", 1)[-1] in BOUNDS


# --- choosing ---------------------------------------------------------------------------------


def by_row(clips: Sequence[ClipResult]) -> dict[tuple[str, str], list[int]]:
    """Indices of clips by (protocol, model)."""
    found: dict[tuple[str, str], list[int]] = {}
    for index, clip in enumerate(clips):
        found.setdefault((clip.protocol, clip.model), []).append(index)
    return found


def _groups(report: Report, shown: int) -> Iterator[list[int]]:
    """All models' clips of one place, the worst places first, the protocols taking turns."""
    at: dict[Place, list[int]] = {}
    for index, clip in enumerate(report.clips):
        if clip.video:
            at.setdefault((clip.protocol, clip.name), []).append(index)
    rows, column = by_row(report.clips), primary(report)
    chosen = []
    for protocol in dict.fromkeys(clip.protocol for clip in report.clips):
        models = {model: rows[p, model] for p, model in rows if p == protocol}
        judged = {m: i for m, i in models.items() if not is_bound(m)} or models
        turns = zip_longest(*(worst_first(report.clips, indices, column) for indices in judged.values()))
        places = dict.fromkeys((protocol, report.clips[i].name) for i in chain(*turns) if i is not None)
        chosen.append([at[place] for place in places if place in at][:shown])
    return (group for turn in zip_longest(*chosen) for group in turn if group)


# --- reading ----------------------------------------------------------------------------------


def _readable(report: Report, folder: Path, queue: Sequence[int]) -> Iterator[tuple[int, Frames, float]]:
    for index in queue:
        try:
            yield index, *read_whole(folder / report.clips[index].video)
        except (ClipError, OSError):  # named when its turn comes
            continue


def _film(clip: ClipResult, folder: Path, coding: Coding) -> Film | str:
    """The clip's film, or why there is none."""
    try:
        frames, fps = read_whole(folder / clip.video)
    except ClipError as error:
        return error.reason
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    return make_film(frames, fps, coding)


def _absent(clip: ClipResult, folder: Path) -> str:
    """Why a clip that was not asked for, or found no room, has no frames in the page."""
    if not clip.video:
        return "its video was not kept"
    try:
        there = (folder / clip.video).is_file()
    except OSError:
        there = False
    return f"not embedded: {clip.video}" if there else "the file does not exist"


def _words(report: Report, films: Mapping[int, Film], coding: Coding) -> str:
    """How many clips are shown and what was done to their frames."""
    if not films:
        return "No frames are in this page."
    kept = sum(1 for clip in report.clips if clip.video)
    column, held = primary(report), films.values()
    words = [f"The frames of {len(films)} of {kept} kept videos are in this page"]
    words += [f", the worst by {column.label} first." if column else "."]
    smaller, thinned = any(f.size != f.full for f in held), max(f.step for f in held)
    words += [" Every pixel is as it was measured." if coding.quality is None and not smaller else ""]
    words += [f" Large videos are made smaller, to at most {coding.side} px a side." if smaller else ""]
    words += [f" Long videos are thinned: one frame in {thinned} is shown." if thinned > 1 else ""]
    lossy = f" Frames are WebP of quality {coding.quality}: small differences may come from that."
    return "".join([*words, "" if coding.quality is None else lossy])
