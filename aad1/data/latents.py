"""Reading a latent store: any clip by its index, memory-mapped, with little held however large the store."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aad1.data.store import (
    DIGITS,
    SKIPPED,
    Manifest,
    Record,
    Skip,
    json_lines,
    read_header,
    read_index,
    read_record,
    scan,
    tensor_path,
)
from aad1.errors import UserError

OPEN_BLOCKS = 64  # memory maps, and blocks' rows, that are kept at a time
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LatentStore:
    """A finished store. Raises UserError when it is missing, torn, unfinished or empty.

    ``unfinished`` True opens one that is still being made, as far as it goes.
    """

    def __init__(self, folder: str | Path, *, unfinished: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"store {self.folder} does not exist; make it with `aad1 prepare` or mend the path")
        header = read_header(self.folder)
        self.manifest = header.manifest
        self._blocks = read_index(self.folder) if header.complete else list(scan(self.folder, header.manifest))
        self._ends = np.cumsum([len(block.clips) for block in self._blocks], dtype=np.int64)
        if not header.complete and not unfinished:
            raise UserError(
                f"store {self.folder} is unfinished ({len(self)} clips so far); "
                "run its `aad1 prepare` again to finish it"
            )
        if not len(self):
            raise UserError(f"store {self.folder} is empty; see {SKIPPED} in it for the reasons")
        self._open: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._records: OrderedDict[int, Record] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def buckets(self) -> NDArray[np.int64]:
        """For every clip, which of ``manifest.buckets`` its picture has."""
        digits = "".join(block.clips for block in self._blocks)
        return np.array([DIGITS.index(digit) for digit in digits], dtype=np.int64)

    def read(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The clips at ``indices``, which have one picture size: tensors [len(indices), ...], and their rows.

        Raises IndexError outside 0 .. len - 1, UserError when a file turns out to be torn.
        """
        clips = [self._clip(index) for index in indices]
        names = clips[0] if clips else ()
        return {name: torch.stack([clip[name] for clip in clips]) for name in names}, [self.row(i) for i in indices]

    def row(self, index: int) -> dict[str, Any]:
        """The JSON row of one clip."""
        block, at = self._place(index)
        return self._record(block).rows[at]

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in order."""
        return [self.row(i) for i in range(len(self))]

    def skipped(self) -> list[Skip]:
        """The source items that are left out."""
        return [skip for block in range(len(self._blocks)) for skip in self._record(block).skips]

    def fingerprint(self, count: int) -> str:
        """A hash of the rows (captions and sources) of the first ``count`` clips, or of as many as there are."""
        total = hashlib.sha256()
        for index in range(min(count, len(self))):
            total.update(json_lines([self.row(index)]))
        return total.hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        """The block in the list of blocks, and the place among its clips."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a store of {len(self)}")
        block = int(np.searchsorted(self._ends, index, side="right"))
        return block, index - (int(self._ends[block]) - len(self._blocks[block].clips))

    def _clip(self, index: int) -> dict[str, Tensor]:
        block, at = self._place(index)
        clips = self._blocks[block].clips
        tensors = self._tensors(block, clips[at])
        among_its_size = clips[:at].count(clips[at])
        return {name: tensors.get_slice(name)[among_its_size] for name in sorted(tensors.keys())}

    def _tensors(self, block: int, digit: str) -> Any:
        path = tensor_path(self.folder, self._blocks[block].number, self.manifest.buckets[DIGITS.index(digit)])
        return _remembered(self._open, (block, digit), lambda: self._or_torn(block, lambda: _mapped(path)))

    def _record(self, block: int) -> Record:
        number = self._blocks[block].number
        return _remembered(self._records, block, lambda: self._or_torn(block, lambda: read_record(self.folder, number)))

    def _or_torn(self, block: int, read: Callable[[], Value]) -> Value:
        try:
            return read()
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            name = f"block-{self._blocks[block].number:05d}"
            why = " ".join(str(error).split())
            raise UserError(
                f"store {self.folder}: {name} is torn ({why}); run its `aad1 prepare` again to mend it"
            ) from None


def _mapped(path: Path) -> Any:
    return safe_open(path, framework="pt")


def _remembered(held: OrderedDict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """What ``held`` has under ``key``, made if need be; the longest unused beyond OPEN_BLOCKS is dropped."""
    if key not in held:
        held[key] = make()
    held.move_to_end(key)
    if len(held) > OPEN_BLOCKS:
        held.popitem(last=False)
    return held[key]


def require(store: LatentStore, **expected: Any) -> None:
    """Raise UserError unless the store's manifest (or its ``extra``) has exactly these values."""
    manifest = store.manifest
    facts = plain({f.name: getattr(manifest, f.name) for f in fields(Manifest)} | manifest.extra)
    for name, wanted in expected.items():
        held = facts.get(name, "not set")
        if held == plain(wanted):
            continue
        if name == "encoder":
            raise UserError(
                f"store {store.folder} was made with another VAE (hash {held}), this model's is {wanted}; "
                "delete it and run `aad1 prepare` again, or give another -o"
            )
        raise UserError(
            f"store {store.folder} has {name} {held}, this run needs {wanted}; "
            "delete it and run `aad1 prepare` again, or give another -o"
        )


def plain(value: Any) -> Any:
    """As JSON gives it back (tuples become lists), for comparing."""
    return json.loads(json.dumps(value))
