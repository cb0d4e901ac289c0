"""Looking at clips: a sample of a source is read as preparing it would, a store's rows are taken as they stand."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aad1.data.clips import parts_of, read_clip
from aad1.data.entries import ClipError, ClipFile
from aad1.data.latents import LatentStore
from aad1.data.selection import Picked, Selection, Size
from aad1.evaluation.films import Coding, fitting, make_film
from aad1.inspection.findings import Clip, Findings, Shown
from aad1.progress import Progress

BUDGET = 16_000_000  # characters of films in a page
SAMPLED = 3  # clips that the coding of all films is chosen by
READERS = min(4, os.cpu_count() or 1)  # clips that are read at the same time
WORDS = ("caption", "source")  # of a store's row; the rest of it are facts

Frames = NDArray[np.uint8]
FramesOf = Callable[[int], Frames | None]  # of a store's clip, by its index


@dataclass(frozen=True, kw_only=True)
class Look:
    """How clips are read, how many of them (``sample``), and how many of those have films (``shown``); by ``seed``."""

    sizes: Sequence[Size]
    fps: float
    frames: int
    selection: Selection
    sample: int
    shown: int
    seed: int

    @property
    def walls(self) -> dict[str, list[float]]:
        """What the selection asks of measures, for their histograms."""
        asked = self.selection
        ends = {
            "seconds": [asked.min_seconds],
            "motion": [asked.min_motion, asked.max_motion if asked.max_motion < 1 else 0.0],
            "jump": [asked.max_jump or 0.0],
            "short_side": [float(asked.min_side)],
        }
        return {name: [value for value in values if value > 0] for name, values in ends.items()}


@dataclass
class _Reel:
    """Makes films of the first ``count`` clips it is given; their coding is that which suits the first few."""

    count: int
    fps: float
    shown: list[Shown] = field(default_factory=list)
    _waiting: list[tuple[Clip, Frames]] = field(default_factory=list)
    _coding: Coding | None = None

    @property
    def full(self) -> bool:
        return len(self.shown) + len(self._waiting) >= self.count

    def add(self, clip: Clip, frames: Frames) -> None:
        if self.full:
            return
        self._waiting.append((clip, frames))
        if self._coding or len(self._waiting) == SAMPLED:
            self.finish()

    def finish(self) -> None:
        """Make the films of all clips that wait."""
        self._coding = self._coding or fitting(((f, self.fps) for _, f in self._waiting), self.count, BUDGET)
        self.shown += [Shown(clip, make_film(frames, self.fps, self._coding)) for clip, frames in self._waiting]
        self._waiting = []


# --- a source ---------------------------------------------------------------------------------


def look_at_source(name: str, files: Sequence[ClipFile], look: Look, asked: Mapping[str, str]) -> Findings:
    """Read a random sample of a source's clips, in a random order that the seed fixes."""
    listed = parts_of(files, look.selection)
    chosen = [listed[i] for i in np.random.default_rng(look.seed).permutation(len(listed))[: look.sample]]
    read = partial(read_clip, sizes=look.sizes, fps=look.fps, frames=look.frames, selection=look.selection)
    clips, reel = list[Clip](), _Reel(look.shown, look.fps)
    with Progress("reading clips", len(chosen), unit="clip") as bar:
        for file, outcome in zip(chosen, _ahead(read, chosen), strict=True):
            clips.append(_clip(file, outcome))
            if isinstance(outcome, Picked):
                reel.add(clips[-1], outcome.frames)
            bar.advance(left_out=sum(clip.kind is not None for clip in clips))
    reel.finish()
    return Findings(name, len(listed), clips, reel.shown, asked, look.walls)


def _ahead(read: Callable[[ClipFile], Picked], files: Sequence[ClipFile]) -> Iterator[Picked | ClipError]:
    """What was read of each file, in order, while the next few are being read."""

    def outcome(file: ClipFile) -> Picked | ClipError:
        try:
            return read(file)
        except ClipError as error:
            return error

    left, ahead = iter(files), deque[Future[Picked | ClipError]]()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            while True:
                ahead += [pool.submit(outcome, file) for file in islice(left, 2 * READERS - len(ahead))]
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _clip(file: ClipFile, outcome: Picked | ClipError) -> Clip:
    if isinstance(outcome, Picked):
        return Clip(file.name, file.caption, outcome.facts)
    return Clip(file.name, file.caption, outcome.facts, outcome.kind, outcome.reason)


# --- a store ----------------------------------------------------------------------------------


def look_at_store(store: LatentStore, frames_of: FramesOf, look: Look, asked: Mapping[str, str]) -> Findings:
    """Take all rows of a store and what it left out; ``frames_of`` makes the frames of the few that are shown."""
    rows = store.rows()
    clips = [Clip(row["source"], row["caption"], _facts(row)) for row in rows]
    chosen = np.random.default_rng(look.seed).permutation(len(rows))[: look.shown]
    reel, bare = _Reel(look.shown, look.fps), list[Shown]()
    with Progress("films", len(chosen), unit="clip") as bar:
        for index in chosen.tolist():
            frames = frames_of(index)
            if frames is None:
                bare.append(Shown(clips[index], None))
            else:
                reel.add(clips[index], frames)
            bar.advance()
    reel.finish()
    left_out = [Clip(skip.source, "", {}, skip.kind, skip.reason) for skip in store.skipped()]
    listed = len(clips) + len(left_out)
    return Findings(store.folder.name, listed, [*clips, *left_out], [*reel.shown, *bare], asked, look.walls)


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in WORDS}
