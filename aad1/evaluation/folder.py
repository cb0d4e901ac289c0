"""Any videos, measured without a truth: folders of them, a row each, as one report.

    measured/MODEL.json                what was measured of each clip, and what that depends on
    report.json, report.md, index.html

Clips of unequal length, size or rate are not averaged together: each kind has a table of its own, and one table for
all kinds holds only measures that mean the same for each. What cannot be measured is named and left out.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from aad1.data.clips import read_whole
from aad1.data.entries import CAPTION_SUFFIXES, VIDEO_SUFFIXES, ClipError, ClipFile
from aad1.data.media import read_metadata
from aad1.data.sources import folder_clips
from aad1.errors import UserError
from aad1.evaluation.intervals import Interval, draws, interval
from aad1.evaluation.report import FILE, ClipResult, Column, Curves, Report, Table, versions
from aad1.files import write_atomic
from aad1.measures.appearance import GRID_PERIOD
from aad1.measures.motion import has_opencv
from aad1.measures.video import CURVES, MEASURES, OF_ANY_KIND, VideoMeasures, measure_video
from aad1.progress import Progress

FORMAT = 1  # of what is kept in measured/; a change of a measure's meaning is a new one
MOST_KINDS = 6  # that have a table and curves
MOST_HELD = 4 * 2**30  # bytes of one clip's frames
LARGE = 2**30  # bytes of frames above which clips are measured one at a time
SAVED_EVERY = 20.0  # seconds
OURS = (FILE, "report.md", "index.html", "manifest.jsonl", "sheet.png")  # beside videos, and no videos
NAMED = 3  # files of a kind that a line names

COLUMNS = tuple(Column(m.name, m.column, m.ideal, m.legend, m.digits) for m in MEASURES)
LABEL = {column.name: column.label for column in COLUMNS}
CURVE_IDEALS = {"retention": 1.0, "sharpness": 1.0}
NOTE = (
    "Mean or ratio of sums [95 % bootstrap interval over clips]; N/A where a measure does not apply. No truth is known "
    "here: compare with real clips of the same kind, and read similarity, flicker and drift beside motion. "
    "These are not VBench numbers."
)


class Kind(NamedTuple):
    """What clips must share to be averaged."""

    frames: int
    height: int
    width: int
    fps: float

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.frames} frames of {self.width}x{self.height} at {self.fps:g} a second"


class Measured(NamedTuple):
    """One clip that was measured."""

    clip: ClipFile
    kind: Kind
    found: VideoMeasures


@dataclass(frozen=True)
class Videos:
    """A row: a model's videos. lost: what of them is known to be missing; chunk_frames, period: as measure_video's."""

    name: str
    clips: Sequence[ClipFile]
    lost: Sequence[str] = ()
    chunk_frames: int | None = None
    period: int = GRID_PERIOD


# --- finding ----------------------------------------------------------------------------------


def find_videos(name: str, folder: Path) -> Videos:
    """Every video below a folder, and its other files by name; a folder without videos is a row without clips.

    Raises UserError for what is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one of videos ({', '.join(VIDEO_SUFFIXES)})")
    clips = list(folder_clips(folder))
    if not clips:
        return Videos(name, (), [*_others(name, folder, ()), f"{name}: {folder} holds no videos"])
    names = Counter(_stem(clip) for clip in clips)
    clear = [ClipFile(c.path, c.caption, c.name if names[_stem(c)] > 1 else _stem(c)) for c in clips]
    return Videos(name, clear, list(_others(name, folder, clips)))


def _stem(clip: ClipFile) -> str:
    """The same for a.mp4 of one model and a.mkv of another, which a page shows side by side."""
    return clip.name.removesuffix(clip.path.suffix)


def _others(name: str, folder: Path, clips: Iterable[ClipFile]) -> Iterator[str]:
    """One line on files that are neither videos nor their captions."""
    captions = {clip.path.with_suffix(suffix) for clip in clips for suffix in CAPTION_SUFFIXES}
    files = (
        p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() not in VIDEO_SUFFIXES and p not in captions
    )
    shown = sorted(p.relative_to(folder).as_posix() for p in files)
    strange = [n for n in shown if n not in OURS and not any(part.startswith(".") for part in n.split("/"))]
    if strange:
        more = ", ..." if len(strange) > NAMED else ""
        yield f"{name}: {len(strange)} files in {folder} are no videos: {', '.join(strange[:NAMED])}{more}"


# --- measuring --------------------------------------------------------------------------------


@dataclass
class FolderEvaluation:
    """Evaluates into ``folder``. workers: clips that are measured at the same time; seed: of the intervals."""

    folder: Path
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    seed: int = 0
    _large: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def run(self, models: Sequence[Videos], title: str, command: str = "") -> Report:
        """Measure what is not measured yet, and make the report of it.

        Raises UserError for two models of one name, and when nothing at all could be measured.
        """
        names = [model.name for model in models]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two folders are named {', '.join(doubled)}; give each a name of its own (NAME=FOLDER)")
        found, lost = dict[str, list[Measured]](), list[str]()
        with Progress("measuring", sum(len(model.clips) for model in models), unit="clip") as bar:
            for model in models:
                found[model.name], missing = self._measure(model, bar)
                lost += [*model.lost, *missing]
        if not any(found.values()):
            raise UserError("; ".join(["nothing could be measured", *lost[:NAMED]]))
        return _report(self.folder, found, lost, title, command, self.seed)

    def _measure(self, model: Videos, bar: Progress) -> tuple[list[Measured], list[str]]:
        """Of each clip: as it was measured before on the same file, else now; and what could not be, a line each."""
        store, lost = Store(self.folder / "measured" / f"{model.name}.json"), dict[str, str]()
        jobs = {clip.name: (clip, _key(clip.path, model)) for clip in model.clips}
        kept = {name: found for name, (clip, key) in jobs.items() if (found := store.get(clip, key))}
        bar.advance(len(kept))
        pool = ThreadPoolExecutor(self.workers)
        try:
            running = {pool.submit(self._clip, jobs[name][0], model): name for name in jobs if name not in kept}
            for future in as_completed(running):
                name = running[future]
                try:
                    kept[name] = future.result()
                    store.put(kept[name], jobs[name][1])
                except Exception as error:  # whatever it was: the other clips must not be lost with this one
                    reason = str(error) if isinstance(error, ClipError) else f"{jobs[name][0].path}: {error!r}"
                    lost[name] = f"{model.name}: {reason}"
                bar.advance(clip=name)
        finally:
            pool.shutdown(cancel_futures=True)
            store.save()
        return [kept[name] for name in jobs if name in kept], [lost[name] for name in jobs if name in lost]

    def _clip(self, clip: ClipFile, model: Videos) -> Measured:
        """Read and measure one file; raises ClipError."""
        held = _held(clip.path)
        if held > MOST_HELD:
            limit = f"at most {MOST_HELD / 2**30:g} can be measured: give a shorter or smaller copy"
            raise ClipError(clip.path, f"its frames take {held / 2**30:.1f} GiB; {limit}")
        with self._large if held > LARGE else nullcontext():
            frames, fps = read_whole(clip.path)
            if len(frames) < 2:
                raise ClipError(clip.path, "it has one frame only; motion needs two or more")
            if not fps > 0:
                raise ClipError(clip.path, "its frame rate is unknown")
            count, height, width, _ = frames.shape
            period = model.period * _enlarged(clip.path, height)
            found = measure_video(frames, fps, model.chunk_frames, period)
        return Measured(clip, Kind(count, height, width, round(fps, 2)), found)


def _held(path: Path) -> int:
    """About how many bytes a video's frames take, as its header says; 0 where it does not."""
    with suppress(av.FFmpegError, OSError, ValueError), av.open(str(path)) as container:
        stream = container.streams.video[0] if container.streams.video else None
        if stream is not None:
            seconds = Fraction(container.duration or 0, av.time_base)
            frames = stream.frames or int(seconds * (stream.average_rate or 0))
            return frames * stream.height * stream.width * 3
    return 0


def _enlarged(path: Path, height: int) -> int:
    """The whole factor by which `aad1 generate` enlarged a video's pixels, 1 for all others."""
    try:
        note = read_metadata(path)
        return max(1, height // int(note["size"][0])) if "aad1" in note else 1
    except (av.FFmpegError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return 1


# --- what was measured before -----------------------------------------------------------------


def _key(path: Path, model: Videos) -> list[Any]:
    """What a clip's numbers depend on."""
    try:
        about = path.stat()
        file = [about.st_size, about.st_mtime_ns]
    except OSError:  # it has gone; reading it will say so
        file = []
    return [str(path.absolute()), *file, model.chunk_frames, model.period, has_opencv(), [m.name for m in MEASURES]]


class Store:
    """A file of measured clips, by name, that is written now and then and at the end; damaged, it is begun anew."""

    def __init__(self, path: Path) -> None:
        self.path, self._saved = path, time.monotonic()
        self._held, self._new = self._read(), False

    def _read(self) -> dict[str, Any]:
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            return dict(held["clips"]) if held["format"] == FORMAT else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def get(self, clip: ClipFile, key: list[Any]) -> Measured | None:
        """The clip as it was measured under the same key."""
        try:
            held = self._held[clip.name]
            if held["key"] != key:
                return None
            sums = {m.name: _pair(held["sums"][m.name]) for m in MEASURES}
            curves = {name: [_pair(pair) for pair in held["curves"][name]] for name in CURVES}
            return Measured(
                clip, Kind(*held["kind"]), VideoMeasures(sums, curves, int(held["part"]), dict(held["gaps"]))
            )
        except (LookupError, ValueError, TypeError):
            return None

    def put(self, measured: Measured, key: list[Any]) -> None:
        """Keep a clip."""
        clip, kind, found = measured
        self._held[clip.name], self._new = {"key": key, "kind": kind, **asdict(found)}, True
        if time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is new."""
        if self._new:
            write_atomic(self.path, json.dumps({"format": FORMAT, "clips": self._held}).encode())
            self._saved, self._new = time.monotonic(), False


def _pair(held: Sequence[float]) -> tuple[float, float]:
    over, under = held
    return float(over), float(under)


# --- the report -------------------------------------------------------------------------------

Models = Mapping[str, Sequence[Measured]]


def _report(folder: Path, models: Models, lost: Sequence[str], title: str, command: str, seed: int) -> Report:
    """Tables, curves and clips of everything that was measured."""
    sizes = Counter(m.kind for clips in models.values() for m in clips)
    kinds = sorted(sizes, key=lambda kind: (-sizes[kind], kind))
    of_kind = {kind: {name: [m for m in clips if m.kind == kind] for name, clips in models.items()} for kind in kinds}
    everything = [_table("all kinds of clips together", models, OF_ANY_KIND, seed)] if len(kinds) > 1 else []
    shown = kinds[:MOST_KINDS]
    names = [m.name for m in MEASURES]
    return Report(
        kind="folder",
        title=title,
        protocol={
            "kinds": [kind.label for kind in kinds],
            "clips": {name: len(clips) for name, clips in models.items()},
        },
        columns=COLUMNS,
        tables=[*everything, *(_table(kind.label, of_kind[kind], names, seed) for kind in shown)],
        curves=[curve for kind in shown for curve in _curves(kind, of_kind[kind])],
        clips=[_clip_result(folder, name, m) for name, clips in models.items() for m in clips],
        notes=[NOTE, *_remarks(models, len(kinds))],
        missing=[*lost, *_gaps(models), *_untold(kinds[MOST_KINDS:], sizes)],
        made={**versions(), **({"command": command} if command else {})},
    )


def _table(title: str, models: Models, measures: Sequence[str], seed: int) -> Table:
    held = {name: [m.found for m in clips] for name, clips in models.items() if clips}
    rows = {name: pooled(clips, measures, seed) for name, clips in held.items()}
    return Table(title, rows, {name: len(clips) for name, clips in held.items()})


def pooled(clips: Sequence[VideoMeasures], measures: Sequence[str], seed: int = 0) -> dict[str, Interval | None]:
    """Sum over sum of each measure with its interval; None where no clip defines it."""
    weights, found = draws(len(clips), seed=seed), dict[str, Interval | None]()
    for measure in measures:
        over, under = (weights @ np.array([clip.sums[measure] for clip in clips])).T
        with np.errstate(invalid="ignore", divide="ignore"):
            found[measure] = interval(over / under)
    return found


def _curves(kind: Kind, models: Models) -> Iterator[Curves]:
    for name, label in CURVES.items():
        lines = {model: _line(kind, name, clips) for model, clips in models.items() if clips}
        if any(y is not None for line in lines.values() for _, y in line):
            yield Curves(f"{kind.label}: {label}", "seconds", label, lines, CURVE_IDEALS.get(name))


def _line(kind: Kind, name: str, clips: Sequence[Measured]) -> list[tuple[float, float | None]]:
    """A curve over the clips of a model; its parts divide the clip's steps as the first part's length says."""
    total = np.sum([m.found.curves[name] for m in clips], axis=0)
    seconds = clips[0].found.part / kind.fps
    return [((i + 0.5) * seconds, float(over / under) if under > 0 else None) for i, (over, under) in enumerate(total)]


def _clip_result(folder: Path, model: str, measured: Measured) -> ClipResult:
    clip, kind, found = measured
    values = {m.name: found.value(m.name) for m in MEASURES}
    try:
        video = Path(os.path.relpath(clip.path, folder)).as_posix()
    except ValueError:  # on another drive
        video = clip.path.absolute().as_posix()
    return ClipResult(model, kind.label, clip.name, clip.caption, video, values)


def _remarks(models: Models, kinds: int) -> Iterator[str]:
    if kinds > 1:
        yield (
            f"The clips are of {kinds} kinds (frames, size, frames a second). They are not averaged together, but for "
            f"{', '.join(LABEL[name] for name in OF_ANY_KIND)}, which mean the same for each."
        )
    folders = [clips for clips in models.values() if clips]
    names = Counter(m.clip.name for clips in folders for m in clips)
    if alone := sum(count < len(folders) for count in names.values()):
        yield f"{alone} clips are not in every folder under the same name, so nothing can be shown beside them."


def _gaps(models: Models) -> Iterator[str]:
    """A line for each model and reason why measures are N/A."""
    for model, clips in models.items():
        reasons = dict.fromkeys(reason for m in clips for reason in m.found.gaps.values())
        for reason in reasons:
            missing = [name for name in LABEL if any(m.found.gaps.get(name) == reason for m in clips)]
            count = sum(reason in m.found.gaps.values() for m in clips)
            labels = ", ".join(LABEL[name] for name in missing)
            yield f"{model}: {labels}: N/A for {count} of {len(clips)} clips: {reason}"


def _untold(kinds: Sequence[Kind], sizes: Mapping[Kind, int]) -> Iterator[str]:
    if kinds:
        clips = sum(sizes[kind] for kind in kinds)
        named = "; ".join(kind.label for kind in kinds[:NAMED]) + ("; ..." if len(kinds) > NAMED else "")
        without = f"no table of their own; {FILE} has each clip's numbers"
        yield f"{len(kinds)} more kinds ({clips} clips: {named}) have {without}"
