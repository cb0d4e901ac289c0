"""A whole evaluation on the embedded world: every source on every protocol, kept clip by clip, as one report.

    measured/SOURCE-PROTOCOL.json      every clip's numerators and denominators, and what they depend on
    videos/SOURCE/PROTOCOL/CLIP.mkv    the frames that were measured, lossless
    report.json, report.md, index.html

What is measured already is used again while it depends on the same, so an interrupted evaluation goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from aad1.data.media import VideoWriter
from aad1.data.world import FPS, WORLD_VERSION
from aad1.errors import UserError
from aad1.evaluation.protocols import Protocol
from aad1.evaluation.report import ClipResult, Curves, Report, Table, versions
from aad1.evaluation.sources import Lost, Named, Source
from aad1.evaluation.world import COLUMNS, NO_OPENCV, NOTE, TRACKS, Measured, Row, Sample, measured, pooled_row
from aad1.files import write_atomic
from aad1.measures.motion import CHUNK_FRAMES, has_opencv
from aad1.measures.world import CURVES, MEASURE, ClipMeasures
from aad1.progress import Progress

FORMAT = 1
SUFFIX = ".mkv"
EACH_CURVE = {"rho": "motion: rho", "id_ok": "identity: id", "quality": "picture quality: Q"}


@dataclass(frozen=True)
class Outcome:
    """What was found in the clips of a protocol, by their names; lost: what could not be measured, a line each."""

    clips: Mapping[str, Measured]
    lost: Sequence[str] = ()


@dataclass
class WorldEvaluation:
    """Evaluates into ``folder``. chunk_frames: pixel frames a chunk, where seams are; seed: of the intervals."""

    folder: Path
    protocols: Sequence[Protocol]
    chunk_frames: int = CHUNK_FRAMES
    seed: int = 0
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict, init=False)
    _clips: dict[str, Named] = field(default_factory=dict, init=False)

    def run(self, sources: Sequence[Source], title: str, command: str = "") -> Report:
        """Measure what is not measured yet, and write the report.

        Raises UserError for two sources of one name, and when nothing at all could be measured.
        """
        names = [source.name for source in sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"two rows are named {', '.join(doubled)}; give each a name of its own (NAME=...)")
        skipped = []
        for protocol in self.protocols:
            for source in sources:
                if source.frames in (None, protocol.frames):
                    self.outcomes[source.name, protocol.name] = self.outcome(source, protocol)
                else:
                    skipped.append(f"{source.name}, {protocol.name}: it makes {source.frames} frames only")
        return self._report(title, command, skipped)

    # --- measuring ----------------------------------------------------------------------------

    def outcome(self, source: Source, protocol: Protocol) -> Outcome:
        """Of one source and protocol: as it was measured before on the same, else measured now."""
        path, key = self.folder / "measured" / f"{source.name}-{protocol.name}.json", self._key(source, protocol)
        found = _read_outcome(path, key)
        if found is None or not all(self.video(source.name, protocol, name).is_file() for name in found.clips):
            found = self._measure(source, protocol)
            write_atomic(path, _as_json(found, key).encode())
        return found

    def video(self, source: str, protocol: Protocol, clip: str) -> Path:
        """Where a clip's frames are kept."""
        return self.folder / "videos" / source / protocol.name / f"{clip}{SUFFIX}"

    def _key(self, source: Source, protocol: Protocol) -> Any:
        measures = {"names": list(MEASURE), "flow": has_opencv(), "chunk_frames": self.chunk_frames}
        world = {"version": WORLD_VERSION, "protocol": asdict(protocol)}
        return json.loads(json.dumps({"source": source.key, "world": world, "measures": measures}))

    def _measure(self, source: Source, protocol: Protocol) -> Outcome:
        """The frames are kept as they are measured, so that they can be looked at and measured again."""
        clips, lost, kept = self._named(protocol), list[str](), list[str]()
        shutil.rmtree(self.video(source.name, protocol, "").parent, ignore_errors=True)
        with Progress(f"{source.name}, {protocol.name}", len(clips), unit="clip") as bar:

            def samples() -> Iterator[Sample]:
                for (name, _), sample in zip(clips, source.samples(protocol, clips), strict=True):
                    bar.advance()
                    if isinstance(sample, Lost):
                        lost.append(f"{source.name}, {protocol.name}: {sample.reason}")
                        continue
                    with VideoWriter(self.video(source.name, protocol, name), fps=FPS) as video:
                        video.write(sample.frames)
                    kept.append(name)
                    yield sample

            found = list(measured(samples(), self.chunk_frames))
        return Outcome(dict(zip(kept, found, strict=True)), lost)

    def _named(self, protocol: Protocol) -> Named:
        if protocol.name not in self._clips:
            self._clips = {protocol.name: list(protocol.load())}  # one protocol's at a time
        return self._clips[protocol.name]

    # --- the report ---------------------------------------------------------------------------

    def _report(self, title: str, command: str, skipped: Sequence[str]) -> Report:
        lost = [line for outcome in self.outcomes.values() for line in outcome.lost]
        if not any(outcome.clips for outcome in self.outcomes.values()):
            raise UserError("; ".join(["nothing could be measured", *[*skipped, *lost][:3]]))
        rows = {p.name: self._rows(p) for p in self.protocols}
        return Report(
            kind="world",
            title=title,
            protocol={p.name: asdict(p) for p in self.protocols} | {"chunk_frames": self.chunk_frames},
            columns=COLUMNS,
            tables=[_table(p, track, rows[p.name]) for p in self.protocols for track in TRACKS if rows[p.name]],
            curves=[self._curves(p, name, rows[p.name]) for p in self.protocols for name in CURVES if rows[p.name]],
            clips=[clip for p in self.protocols for clip in self._clip_results(p)],
            notes=[NOTE],
            missing=[*skipped, *lost, *([] if has_opencv() else [NO_OPENCV])],
            made={**versions(), **({"command": command} if command else {})},
        )

    def _rows(self, protocol: Protocol) -> list[Row]:
        held = {source: o for (source, name), o in self.outcomes.items() if name == protocol.name and o.clips}
        return [pooled_row(source, outcome.clips.values(), self.seed) for source, outcome in held.items()]

    def _curves(self, protocol: Protocol, measure: str, rows: Sequence[Row]) -> Curves:
        seconds = self.chunk_frames / FPS
        lines = {
            row.name: [((i + 0.5) * seconds, value) for i, value in enumerate(row.curves["all"][measure])]
            for row in rows
        }
        title = f"{protocol.name}, {EACH_CURVE[measure]}"
        return Curves(title, "seconds", MEASURE[measure].column, lines, float(MEASURE[measure].ideal))

    def _clip_results(self, protocol: Protocol) -> Iterator[ClipResult]:
        for (source, name), outcome in self.outcomes.items():
            for clip, found in outcome.clips.items() if name == protocol.name else ():
                values = {m: found.clip.value(m) for m in MEASURE}
                known = {m: None if isnan(value) else value for m, value in values.items()}
                video = self.video(source, protocol, clip).relative_to(self.folder).as_posix()
                yield ClipResult(source, name, clip, found.caption, video, known)


def _table(protocol: Protocol, track: str, rows: Sequence[Row]) -> Table:
    which = "both tracks" if track == "all" else f"track {track}"
    title = f"{protocol.name}: {protocol.meaning}; {protocol.frames} frames, {which}"
    return Table(title, {r.name: r.measures[track] for r in rows}, {r.name: r.clips[track] for r in rows})


# --- the file of one source and protocol ------------------------------------------------------


def _as_json(outcome: Outcome, key: Any) -> str:
    clips = {
        name: {
            "track": found.track,
            "caption": found.caption,
            "sums": found.clip.sums,
            "curves": {curve: pairs.tolist() for curve, pairs in found.clip.curves.items()},
        }
        for name, found in outcome.clips.items()
    }
    return json.dumps({"format": FORMAT, "key": key, "lost": list(outcome.lost), "clips": clips})


def _read_outcome(path: Path, key: Any) -> Outcome | None:
    """What the file holds, if it is whole and depends on the same ``key``."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if (held["format"], held["key"]) != (FORMAT, key):
            return None
        return Outcome({name: _clip(clip) for name, clip in held["clips"].items()}, held["lost"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none yet, or damaged
        return None


def _clip(held: Mapping[str, Any]) -> Measured:
    sums = {name: (float(a), float(b)) for name, (a, b) in held["sums"].items()}
    curves = {name: np.array(pairs, np.float64) for name, pairs in held["curves"].items()}
    return Measured(held["track"], held["caption"], ClipMeasures(sums, curves))
