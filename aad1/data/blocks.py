"""Writing a latent store block by block: each appears whole or not at all, whoever makes it and in whatever order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from aad1.data.claim import LOCK, Claim, Plan
from aad1.data.latents import plain
from aad1.data.store import (
    INDEX,
    MANIFEST,
    SKIPPED,
    BlockFacts,
    Header,
    Manifest,
    Record,
    Skip,
    block_number,
    blocks_on_disk,
    json_lines,
    kept_line,
    look_at,
    read_header,
    record_path,
    skip_line,
    tensor_path,
    write_header,
    write_index,
)
from aad1.errors import UserError
from aad1.files import write_atomic, write_errors

OURS = (MANIFEST, INDEX, SKIPPED, LOCK)


@dataclass(frozen=True)
class Clip:
    """A source item that is kept: tensors without a batch axis, the JSON row, and which of the picture sizes it has."""

    tensors: Mapping[str, Tensor]
    row: Mapping[str, Any]
    bucket: int = 0


def write_block(folder: Path, manifest: Manifest, number: int, items: Sequence[Clip | Skip]) -> None:
    """Write all that became of a block's source items, its lines last. Raises UserError when the disk is full."""
    clips = [item for item in items if isinstance(item, Clip)]
    for bucket in sorted({clip.bucket for clip in clips}):
        alike = [clip.tensors for clip in clips if clip.bucket == bucket]
        path = tensor_path(folder, number, manifest.buckets[bucket])
        write_atomic(path, save({name: _stacked(alike, name) for name in sorted(alike[0])}))
    lines = [kept_line(item.row, item.bucket) if isinstance(item, Clip) else skip_line(item) for item in items]
    write_atomic(record_path(folder, number), json_lines(lines))


def _stacked(clips: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    return torch.stack([clip[name].detach().cpu() for clip in clips])


class StoreWriter:
    """The leader's view of a store: begins or continues it, says which blocks are missing, and completes it.

    A context manager that holds the store against other runs. ``sources`` names every source item; ``unit`` is what
    messages call one. A store is continued only with the settings and the sources it was begun with, but the list may
    have grown at its end; the number of items a block stays that of the beginning. Raises UserError for anything else,
    for a folder that holds something else, when another run has the store, and when the disk is full.
    """

    def __init__(
        self, folder: str | Path, manifest: Manifest, sources: Sequence[str], *, block: int, unit: str = "clip"
    ) -> None:
        self.folder, self.manifest, self.sources, self.unit = Path(folder), manifest, sources, unit
        self.header = Header(manifest, block, len(sources))
        self.skips: list[Skip] = []
        self.done = 0  # source items of the blocks that are there
        self._facts: dict[int, BlockFacts] = {}
        self._missing: set[int] = set()

    def __enter__(self) -> StoreWriter:
        self._occupy()
        self._claim = Claim(self.folder)
        try:
            self._continue() if (self.folder / MANIFEST).exists() else self._begin()
        except BaseException:
            self._claim.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._claim.release()

    # --- what is there -------------------------------------------------------------------------

    @property
    def missing(self) -> list[int]:
        """The blocks that are not there, as of the last ``look``."""
        return sorted(self._missing)

    @property
    def count(self) -> int:
        """Clips that are there."""
        return sum(len(facts.clips) for facts in self._facts.values())

    def publish(self, run: str = "") -> Plan:
        """Let the other processes of the run begin; returns what is to be done, of which each has its share."""
        plan = Plan(run, self.header.block, self.header.items, tuple(self.missing))
        self._claim.publish(plan)
        return plan

    def look(self) -> None:
        """Take account of blocks that have come since."""
        for number in self._missing.intersection(blocks_on_disk(self.folder)):
            self._note(*look_at(self.folder, self.manifest, number))

    def complete(self) -> None:
        """Write the index and the manifest of a store of which no block is missing."""
        if self._missing:
            raise ValueError(f"blocks {self.missing} are missing")
        skips = sorted(self.skips, key=lambda skip: skip.position)
        write_atomic(self.folder / SKIPPED, json_lines([asdict(skip) for skip in skips]))
        write_index(self.folder, [self._facts[number] for number in sorted(self._facts)])
        write_header(self.folder, replace(self.header, complete=True))

    # --- beginning -----------------------------------------------------------------------------

    def _occupy(self) -> None:
        """Make the folder, or take an empty one, or one that holds a store."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / MANIFEST).exists():
                return
            foreign = next((p.name for p in self.folder.iterdir() if not _is_ours(p.name)), None)
        except OSError as error:
            raise UserError(f"cannot make the store {self.folder}: {error.strerror}; choose another place") from None
        if foreign:
            raise UserError(f"{self.folder} holds {foreign} and is no latent store; give a new or empty folder")

    def _begin(self) -> None:
        self._remove(blocks_on_disk(self.folder))
        self._missing = set(self._numbers)
        write_header(self.folder, self.header)

    @property
    def _numbers(self) -> range:
        """All blocks there will be."""
        return range(-(-self.header.items // self.header.block))

    def _items(self, number: int) -> int:
        """How many source items a block has."""
        return min(self.header.block, self.header.items - number * self.header.block)

    def _continue(self) -> None:
        held = read_header(self.folder)
        found = self._look_at_all(held.manifest)
        if not any(record.rows for record, _ in found.values()):  # a store that kept nothing binds nobody
            return self._begin()
        self._refuse_others(held.manifest)
        self.manifest = held.manifest
        self.header = replace(self.header, manifest=held.manifest, block=held.block)
        found = self._without_outgrown(found)
        self._missing = set(self._numbers)
        if held != replace(self.header, complete=True) or found.keys() != self._missing:
            write_header(self.folder, self.header)
        self._remove([number for number in blocks_on_disk(self.folder) if number not in found])
        for record, facts in found.values():
            self._note(record, facts)
        return None

    def _look_at_all(self, manifest: Manifest) -> dict[int, tuple[Record, BlockFacts]]:
        """All blocks that are whole; the others are named."""
        found = {}
        for number in blocks_on_disk(self.folder):
            try:
                found[number] = look_at(self.folder, manifest, number)
            except ValueError as error:
                warnings.warn(f"store {self.folder}: {error}; it is made again", stacklevel=4)
        return found

    def _refuse_others(self, held: Manifest) -> None:
        """A store is continued only with the settings it was begun with."""
        was, now = _flat(held), _flat(self.manifest)
        for name in sorted(was.keys() | now.keys()):
            before, after = was.get(name, "not set"), now.get(name, "not set")
            if before != after:
                raise UserError(
                    f"store {self.folder} was begun with {name} {before or repr(before)}, this run has "
                    f"{after or repr(after)}; use the same settings to continue it, or delete it, or give another -o"
                )

    def _without_outgrown(self, found: Mapping[int, tuple[Record, BlockFacts]]) -> dict[int, tuple[Record, BlockFacts]]:
        """Leave out a last block that was short and is so no longer, for the list has grown; it is made again."""
        whole = {}
        for number, (record, facts) in found.items():
            self._require_sources(number, record)
            if len(record.sources) == self._items(number):
                whole[number] = record, facts
        return whole

    def _require_sources(self, number: int, record: Record) -> None:
        first = number * self.header.block
        for position, source in enumerate(record.sources, start=first):
            now = self.sources[position] if position < len(self.sources) else "nothing"
            if source != now:
                raise UserError(
                    f"store {self.folder} was begun with {source} as {self.unit} {position}, now it is {now}; "
                    "give the same clips to continue it, or delete it, or give another -o"
                )

    def _note(self, record: Record, facts: BlockFacts) -> None:
        self._require_sources(facts.number, record)
        self.skips += record.skips
        self.done += self._items(facts.number)
        self._facts[facts.number] = facts
        self._missing.remove(facts.number)

    def _remove(self, numbers: Sequence[int]) -> None:
        """Remove blocks, and what killed processes left of others: lines first, so that no torn block counts."""
        kept = set(blocks_on_disk(self.folder)) - set(numbers)
        with write_errors(self.folder):
            for number in numbers:
                record_path(self.folder, number).unlink()
            for path in list(self.folder.iterdir()):
                number_of = block_number(path.name)
                if path.suffix == ".tmp" or (number_of is not None and number_of not in kept):
                    with suppress(FileNotFoundError):
                        path.unlink()


def _is_ours(name: str) -> bool:
    return name in OURS or name.endswith(".tmp") or block_number(name) is not None


def _flat(manifest: Manifest) -> dict[str, Any]:
    """A manifest's values by name, those of ``extra`` apart."""
    values: dict[str, Any] = plain(asdict(manifest))
    return values | {f"extra.{name}": value for name, value in values.pop("extra").items()}
