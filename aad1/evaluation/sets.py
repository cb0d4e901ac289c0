"""Measures of whole sets of clips, added to a report: how far from the true distribution, how many futures.

They need more clips than the protocols have and keep no frames: of each source the state encoder's features
(``features/SOURCE.npz``) and its diversity (``diversity/SOURCE.json``), used again while they depend on the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from aad1.data.world import WORLD_VERSION, Clip
from aad1.evaluation import distribution, diversity
from aad1.evaluation.distribution import FeatureBank, compare, reference_clips
from aad1.evaluation.diversity import SEEDS, Diversity, diversity_curves, diversity_row, seeded, truth_samples
from aad1.evaluation.protocols import PROTOCOLS, Protocol
from aad1.evaluation.report import Report, Table
from aad1.evaluation.sources import Lost, Source
from aad1.evaluation.world import Sample
from aad1.files import write_atomic
from aad1.models.checkpoint_io import bundled, folder_hash
from aad1.models.state_encoder import load_state_encoder
from aad1.progress import Progress

IMAGES = 16  # free clips whose image is animated with several seeds


@dataclass(frozen=True)
class SetEvaluation:
    """Evaluates into ``folder``; clips: how many on either side of a distance; images: how many are animated anew."""

    folder: Path
    clips: int = distribution.CLIPS
    images: int = IMAGES

    def with_distribution(self, report: Report, sources: Sequence[Source]) -> Report:
        """The report with each source's distance to true clips, the truth's own beside them."""
        protocol = replace(PROTOCOLS["short"], name="distribution", clips=self.clips)
        able, missing = _able(sources, protocol)
        banks = {source.name: self._bank(source, protocol, missing) for source in able}
        truth = Source(distribution.TRUTH, lambda _, clips: (Sample(c.frames, c.truth) for _, c in clips), {"truth": 1})
        banks = {truth.name: self._bank(truth, protocol, missing), **banks}
        reference = FeatureBank(load_state_encoder())
        for clip in reference_clips(protocol.frames, self.clips):
            reference.add(clip.frames)
        found = compare({name: bank for name, bank in banks.items() if len(bank)}, reference)
        title = f"distribution: {protocol.meaning}; {protocol.frames} frames, both tracks"
        return replace(
            report,
            columns=[*report.columns, *distribution.COLUMNS],
            tables=[*report.tables, Table(title, found.rows, found.clips)],
            curves=[*report.curves, found.curves],
            notes=[*report.notes, *found.notes],
            missing=[*report.missing, *missing, *found.missing],
        )

    def _bank(self, source: Source, protocol: Protocol, missing: list[str]) -> FeatureBank:
        path = self.folder / "features" / f"{source.name}.npz"
        key = _key(source, protocol) | {"encoder": folder_hash(bundled("tiny") / "state_encoder")}
        held = _read_features(path, key)
        if held is not None:
            return FeatureBank(load_state_encoder(), list(held))
        bank, clips = FeatureBank(load_state_encoder()), list(protocol.load())
        for sample in _watched(source, protocol, clips, missing):
            bank.add(sample.frames)
        if len(bank) == len(clips):
            buffer = io.BytesIO()
            np.savez(buffer, features=bank.features, key=np.array(json.dumps(key)))
            write_atomic(path, buffer.getvalue())
        return bank

    def with_diversity(self, report: Report, sources: Sequence[Source]) -> Report:
        """The report with the diversity of each source's futures of the same images, beside the world's own."""
        protocol = replace(PROTOCOLS["short"], name="diversity", clips=2 * self.images)  # every second one is free
        clips = [clip for _, clip in protocol.load()]
        able, missing = _able(sources, protocol)
        found = {"truth": diversity_row(truth_samples(clips))}
        for source in able:
            found[source.name] = self._diversity(source, protocol, clips, missing)
        rows, counts = {n: d.row for n, d in found.items()}, {n: d.clips for n, d in found.items()}
        title = f"diversity: {self.images} free images, {SEEDS} seeds of each; {protocol.frames} frames"
        return replace(
            report,
            columns=[*report.columns, *diversity.COLUMNS],
            tables=[*report.tables, Table(title, rows, counts)],
            curves=[*report.curves, diversity_curves(found)],
            missing=[*report.missing, *missing, *(f"{n}, {line}" for n, d in found.items() for line in d.missing)],
        )

    def _diversity(self, source: Source, protocol: Protocol, clips: Iterable[Clip], missing: list[str]) -> Diversity:
        path, key = self.folder / "diversity" / f"{source.name}.json", _key(source, protocol) | {"seeds": SEEDS}
        held = _read_diversity(path, key)
        if held is None:
            named = [(f"seed-{index}", clip) for index, clip in enumerate(seeded(clips))]
            held = diversity_row(_watched(source, protocol, named, missing))
            write_atomic(path, json.dumps({"key": key, "diversity": asdict(held)}).encode())
        return held


def _able(sources: Sequence[Source], protocol: Protocol) -> tuple[list[Source], list[str]]:
    """The sources that can make such clips, but the truth, and why the others are left out."""
    able: list[Source] = []
    missing: list[str] = []
    for source in sources:
        if source.saved:
            missing.append(f"{source.name}, {protocol.name}: saved videos hold the protocols' clips only")
        elif source.frames not in (None, protocol.frames):
            missing.append(f"{source.name}, {protocol.name}: it makes {source.frames} frames only")
        elif source.name != distribution.TRUTH:
            able.append(source)
    return able, missing


def _key(source: Source, protocol: Protocol) -> dict[str, Any]:
    key = {"source": source.key, "protocol": asdict(protocol), "world": WORLD_VERSION}
    return dict(json.loads(json.dumps(key)))


def _watched(
    source: Source, protocol: Protocol, clips: Sequence[tuple[str, Clip]], missing: list[str]
) -> Iterator[Sample]:
    with Progress(f"{source.name}, {protocol.name}", len(clips), unit="clip") as bar:
        for sample in source.samples(protocol, clips):
            bar.advance()
            if isinstance(sample, Lost):
                missing.append(f"{source.name}, {protocol.name}: {sample.reason}")
            else:
                yield sample


def _read_features(path: Path, key: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    try:
        with np.load(path) as held:
            return held["features"] if json.loads(str(held["key"])) == key else None
    except (OSError, ValueError, LookupError, EOFError):  # none yet, or damaged
        return None


def _read_diversity(path: Path, key: Mapping[str, Any]) -> Diversity | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Diversity).validate_python(held["diversity"]) if held["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, ValidationError):  # none yet, or damaged
        return None
