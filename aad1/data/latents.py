"""The latent store: safetensors shards, one JSON line a clip, and a manifest; and the order they are read in.

    folder/manifest.json             what the store is, which shards are whole (written last)
    folder/shard-00000.safetensors   named tensors, [clips of the shard, ...]
    folder/shard-00000.jsonl         one line a clip: caption, source, anything else
    folder/skipped.jsonl             source items that could not be used, and why

Only what the manifest lists counts, so a crash at any moment leaves a store that can be continued, and
a continued store has the same bytes as an unbroken one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aad1.errors import UserError
from aad1.files import sync, write_atomic, write_errors

FORMAT = 1
MANIFEST, SKIPPED = "manifest.json", "skipped.jsonl"
KINDS = ("latents", "trajectories")
OPEN_SHARDS = 64  # memory maps kept at a time
SHARD_SIZE = 64  # clips; a 480p latent has 8 MB, and a crash costs what has not filled a shard


@dataclass(frozen=True)
class Manifest:
    """What every clip of a store has in common.

    encoder: hash of the VAE that made it; size: (height, width) in pixels; frames: pixel frames a clip;
    latent_shape: of the tensor named "latents", filled in by the first clip; extra: JSON values.
    """

    kind: str
    encoder: str
    fps: float
    size: tuple[int, int]
    frames: int
    latent_shape: tuple[int, ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}; allowed: {', '.join(KINDS)}")


@dataclass(frozen=True)
class Shard:
    """One shard of the manifest; ``completed`` is the number of source items done when it was written."""

    name: str
    count: int
    completed: int


@dataclass(frozen=True)
class Skip:
    """A source item that could not be used."""

    position: int
    source: str
    reason: str


@dataclass(frozen=True)
class _Index:
    """All of manifest.json."""

    manifest: Manifest
    shard_size: int
    shards: tuple[Shard, ...] = ()
    completed: int = 0
    complete: bool = False


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows).encode()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a caption may hold a Unicode line separator.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _write_index(folder: Path, index: _Index) -> None:
    facts = {"format": FORMAT, "count": sum(s.count for s in index.shards)} | asdict(index)
    facts |= facts.pop("manifest")
    write_atomic(folder / MANIFEST, json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n")


def _read_index(folder: Path) -> _Index:
    """Parse manifest.json, or raise UserError saying what is wrong with the store."""
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] > FORMAT:
            raise UserError(
                f"store {folder} has format {facts['format']}, this version reads up to {FORMAT}; update aad1"
            )
        shared = {f.name: facts[f.name] for f in fields(Manifest)}
        shared["size"] = tuple(shared["size"])
        shared["latent_shape"] = None if shared["latent_shape"] is None else tuple(shared["latent_shape"])
        shards = tuple(Shard(**shard) for shard in facts["shards"])
        return _Index(Manifest(**shared), facts["shard_size"], shards, facts["completed"], facts["complete"])
    except FileNotFoundError:
        raise UserError(f"{folder} is no latent store: it has no {MANIFEST}; make one with `aad1 prepare`") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); make the store again with `aad1 prepare`") from None


def shard_problem(folder: Path, shard: Shard) -> str:
    """Why a listed shard cannot be used: missing, torn, or of another length; "" when it is whole."""
    for suffix in (".jsonl", ".safetensors"):
        if not (folder / (shard.name + suffix)).is_file():
            return f"{shard.name}{suffix} is missing"
    try:
        lines = len(_read_lines(folder / f"{shard.name}.jsonl"))
        with safe_open(folder / f"{shard.name}.safetensors", framework="pt") as tensors:
            counts = {tensors.get_slice(name).get_shape()[0] for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        return f"{shard.name} is torn ({error})"
    if lines != shard.count or counts != {shard.count}:
        return f"{shard.name} holds {counts or {0}} clips and {lines} rows where {shard.count} are listed"
    return ""


# --- writing ----------------------------------------------------------------------------------


class StoreWriter:
    """Write a store clip by clip, or continue one.

    A context manager: leaving it normally (or by Ctrl-C) writes the last, partial shard; only a normal
    exit marks the store complete. ``completed`` says how many source items are done, skipped ones
    included: start there. Raises UserError when the folder holds something else or a store made with
    other settings, and when the disk is full.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, shard_size: int = SHARD_SIZE) -> None:
        if shard_size < 1:
            raise UserError(f"shard size {shard_size}; use 1 or more clips a shard")
        self.folder, self.manifest, self.shard_size = Path(folder), manifest, shard_size
        self.completed = 0
        self._shards: list[Shard] = []
        self._tensors: list[dict[str, Tensor]] = []
        self._rows: list[dict[str, Any]] = []
        self._skips: dict[int, Skip] = {}
        self._layout: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self._busy = False  # true where an interrupt would find the clips at hand half recorded
        index = _read_index(self.folder) if (self.folder / MANIFEST).exists() else None
        if index is None:
            self._claim()
        if index is None or not index.shards:
            self._start()
        else:
            self._resume(index)

    def _claim(self) -> None:
        """Make the folder, or take an empty one."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            occupied = next((p.name for p in self.folder.iterdir() if not p.name.endswith(".tmp")), None)
        except OSError as error:
            raise UserError(f"cannot make the store {self.folder}: {error.strerror}; choose another place") from None
        if occupied:
            raise UserError(f"{self.folder} holds {occupied} and is no latent store; give a new or empty folder")

    def _start(self) -> None:
        """Begin with nothing; a store that never came to a first shard binds nobody, and its skips are tried again."""
        with write_errors(self.folder):
            (self.folder / SKIPPED).unlink(missing_ok=True)
        self._write_index(complete=False)

    def _resume(self, index: _Index) -> None:
        self._refuse_others(index)
        self.manifest = index.manifest
        self.completed, self._shards = index.completed, list(index.shards)
        for number, shard in enumerate(index.shards):
            if problem := shard_problem(self.folder, shard):
                warnings.warn(f"store {self.folder}: {problem}; it is made again from there", stacklevel=3)
                self._shards = self._shards[:number]
                self.completed = self._shards[-1].completed if self._shards else 0
                break
        self._skips = self._read_skips()
        if self._shards:
            self._layout = _layout_of(self._read_tensors(self._shards[-1])[0])
        if self._shards and self._shards[-1].count < self.shard_size:
            self._take_back_last()

    def _refuse_others(self, index: _Index) -> None:
        """A store is continued only with the settings it was begun with."""
        held = _plain(asdict(index.manifest)) | {"shard_size": index.shard_size}
        asked = _plain(asdict(self.manifest)) | {"shard_size": self.shard_size}
        if asked["latent_shape"] is None:
            asked["latent_shape"] = held["latent_shape"]
        held |= {f"extra.{k}": v for k, v in held.pop("extra").items()}
        asked |= {f"extra.{k}": v for k, v in asked.pop("extra").items()}
        for name in sorted(held.keys() | asked.keys()):
            was, now = held.get(name, "not set"), asked.get(name, "not set")
            if was != now:
                raise UserError(
                    f"store {self.folder} was begun with {name} {was or repr(was)}, this run has {now or repr(now)}; "
                    "use the same settings to continue it, or delete it, or give another -o"
                )

    def _read_tensors(self, shard: Shard) -> list[dict[str, Tensor]]:
        with safe_open(self.folder / f"{shard.name}.safetensors", framework="pt") as tensors:
            stacked = {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
        return [{name: t[i] for name, t in stacked.items()} for i in range(shard.count)]

    def _take_back_last(self) -> None:
        """Go on filling a partial shard, so that shards do not depend on where a run stopped."""
        last = self._shards.pop()
        self._tensors = self._read_tensors(last)
        self._rows = _read_lines(self.folder / f"{last.name}.jsonl")

    def _read_skips(self) -> dict[int, Skip]:
        """Everything ever skipped; a line torn by a crash is dropped from the file."""
        path = self.folder / SKIPPED
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            write_atomic(path, b"".join(whole))
        skips = (Skip(**json.loads(line)) for line in whole)
        return {skip.position: skip for skip in skips}

    @property
    def skips(self) -> Mapping[int, Skip]:
        """Source items known to be unusable, by position; some may lie after ``completed``."""
        return self._skips

    def sources(self) -> dict[int, str]:
        """The ``source`` of every finished item by position, for comparing with the list at hand."""
        rows = [row for shard in self._shards for row in _read_lines(self.folder / f"{shard.name}.jsonl")]
        kept = iter([*rows, *self._rows])
        found = {position: skip.source for position, skip in self._skips.items()}
        for position in range(self.completed):
            if position not in found:
                found[position] = str(next(kept).get("source", ""))
        return found

    def require_sources(self, sources: Sequence[str], unit: str) -> None:
        """A store is continued only with the list it was begun with; the list may have grown at its end.

        Raises UserError for another one; ``unit`` is what the message calls an item.
        """
        for position, source in sorted(self.sources().items()):
            now = sources[position] if position < len(sources) else "nothing"
            if source != now:
                raise UserError(
                    f"store {self.folder} was begun with {source} as {unit} {position}, now it is {now}; "
                    "give the same clips to continue it, or delete it, or give another -o"
                )

    def add(self, tensors: Mapping[str, Tensor], row: Mapping[str, Any]) -> None:
        """Append one source item: its tensors (no batch axis) and its JSON row.

        Raises ValueError when the tensors differ in name, shape or type from those before.
        """
        kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        layout = _layout_of(kept)
        self._layout = self._layout or layout
        if not kept or layout != self._layout:
            raise ValueError(f"a clip with {layout} in a store of {self._layout}")
        self._note_latent_shape(kept)
        self._busy = True
        self._tensors.append(kept)
        self._rows.append(dict(row))
        self.completed += 1
        if len(self._rows) == self.shard_size:
            self._flush()
            self._write_index(complete=False)
        self._busy = False

    def _note_latent_shape(self, tensors: Mapping[str, Tensor]) -> None:
        if "latents" not in tensors:
            return
        shape = tuple(tensors["latents"].shape)
        if self.manifest.latent_shape is None:
            self.manifest = replace(self.manifest, latent_shape=shape)
        if self.manifest.latent_shape != shape:
            raise ValueError(f"latents of shape {shape} in a store of {self.manifest.latent_shape}")

    def skip(self, source: str, reason: str) -> None:
        """Record that the next source item cannot be used; at once, so that no later run tries it again."""
        position = self.completed
        if position not in self._skips:
            self._append_skip(Skip(position, source, reason))
        self.completed += 1

    def _append_skip(self, skip: Skip) -> None:
        path = self.folder / SKIPPED
        with write_errors(path):
            with path.open("ab") as file:
                file.write(_json_lines([asdict(skip)]))
            sync(path)
        self._skips[skip.position] = skip

    def _flush(self) -> None:
        """Write the clips at hand as one shard: rows first, so that tensors never lack theirs."""
        if not self._rows:
            return
        shard = Shard(f"shard-{len(self._shards):05d}", len(self._rows), self.completed)
        stacked = {name: torch.stack([t[name] for t in self._tensors]) for name in sorted(self._tensors[0])}
        write_atomic(self.folder / f"{shard.name}.jsonl", _json_lines(self._rows))
        write_atomic(self.folder / f"{shard.name}.safetensors", save(stacked))
        self._shards.append(shard)
        self._tensors, self._rows = [], []

    def _write_index(self, complete: bool) -> None:
        index = _Index(self.manifest, self.shard_size, tuple(self._shards), self.completed, complete)
        _write_index(self.folder, index)

    def close(self, complete: bool = True) -> None:
        """Write what is at hand; ``complete`` says that no source items are left."""
        self._flush()
        self._write_index(complete)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt) and not self._busy:
            self.close(complete=False)


def _layout_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (t.shape, t.dtype) for name, t in sorted(tensors.items())}


def _plain(value: Any) -> Any:
    """As JSON gives it back (tuples become lists), for comparing."""
    return json.loads(json.dumps(value))


# --- reading ----------------------------------------------------------------------------------


class LatentStore:
    """A finished store, memory-mapped. Raises UserError when it is missing, torn, unfinished or empty.

    ``unfinished`` True opens one that is still being made, as far as it goes.
    """

    def __init__(self, folder: str | Path, *, unfinished: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"store {self.folder} does not exist; make it with `aad1 prepare` or mend the path")
        index = _read_index(self.folder)
        self.manifest, self._shards = index.manifest, index.shards
        for shard in self._shards:
            if problem := shard_problem(self.folder, shard):
                raise UserError(f"store {self.folder}: {problem}; run its `aad1 prepare` again to mend it")
        self._ends = list(accumulate(shard.count for shard in self._shards))
        if not index.complete and not unfinished:
            raise UserError(
                f"store {self.folder} is unfinished ({len(self)} clips so far); "
                "run its `aad1 prepare` again to finish it"
            )
        if not len(self):
            raise UserError(f"store {self.folder} is empty; see {SKIPPED} in it for the reasons")
        self._open: dict[int, Any] = {}
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The clips at ``indices``: tensors stacked to [len(indices), ...], and their rows.

        Raises IndexError outside 0 .. len - 1.
        """
        places = [self._place(i) for i in indices]
        slices = {n: [self._tensors(shard).get_slice(n)[at] for shard, at in places] for n in self._names(places)}
        return {name: torch.stack(parts) for name, parts in slices.items()}, [self.row(i) for i in indices]

    def row(self, index: int) -> dict[str, Any]:
        """The JSON row of one clip."""
        shard, at = self._place(index)
        if shard not in self._rows:
            self._rows[shard] = _read_lines(self.folder / f"{self._shards[shard].name}.jsonl")
        return self._rows[shard][at]

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in order."""
        return [self.row(i) for i in range(len(self))]

    def skipped(self) -> list[Skip]:
        """The source items that could not be used."""
        path = self.folder / SKIPPED
        return [Skip(**line) for line in _read_lines(path)] if path.exists() else []

    def fingerprint(self, count: int) -> str:
        """A hash of the rows (captions and sources) of the first ``count`` clips, or of as many as there are."""
        rows = [self.row(i) for i in range(min(count, len(self)))]
        return hashlib.sha256(_json_lines(rows)).hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of a store of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self._shards[shard].count)

    def _names(self, places: Sequence[tuple[int, int]]) -> list[str]:
        return sorted(self._tensors(places[0][0]).keys()) if places else []

    def _tensors(self, shard: int) -> Any:
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = safe_open(self.folder / f"{self._shards[shard].name}.safetensors", framework="pt")
        return self._open[shard]


def require(store: LatentStore, **expected: Any) -> None:
    """Raise UserError unless the store's manifest (or its ``extra``) has exactly these values."""
    manifest = store.manifest
    facts = _plain({f.name: getattr(manifest, f.name) for f in fields(Manifest)} | manifest.extra)
    for name, wanted in expected.items():
        held = facts.get(name, "not set")
        if held == _plain(wanted):
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


# --- order ------------------------------------------------------------------------------------


class SamplerState(TypedDict):
    """All there is to remember: the clips handed out over all ranks in this epoch, of ``count``."""

    count: int
    seed: int
    epoch: int
    consumed: int


class Sampler:
    """An endless stream of clip indices; every epoch is a permutation drawn from (seed, epoch).

    The order is one global stream: W ranks with batches of b take, together, what one rank with a batch
    of W b takes. A batch may end one epoch and begin the next. All ranks must ask for equal batches.
    """

    def __init__(self, count: int, seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        if count < 1 or not 0 <= rank < world_size:
            raise ValueError(f"a sampler over {count} clips for rank {rank} of {world_size}")
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self._set_epoch(0, 0)

    @classmethod
    def restore(cls, state: SamplerState, available: int, *, rank: int = 0, world_size: int = 1) -> Sampler:
        """Continue where ``state`` was taken, on any number of ranks, over the clips that the run was begun with.

        Clips that came after those are left out: with them every epoch would have another order. Raises UserError
        when the data has become fewer.
        """
        if available < state["count"]:
            raise UserError(
                f"the run to continue was begun with {state['count']} clips, the data has only {available}; "
                "continue with the data it was begun with"
            )
        sampler = cls(state["count"], state["seed"], rank=rank, world_size=world_size)
        sampler._set_epoch(state["epoch"], state["consumed"])
        return sampler

    def state(self) -> SamplerState:
        """What ``restore`` needs."""
        return {"count": self.count, "seed": self.seed, "epoch": self.epoch, "consumed": self.consumed}

    def next(self, batch_size: int) -> list[int]:
        """This rank's next ``batch_size`` indices; the stream moves on for all ranks."""
        everyone = self._take(batch_size * self.world_size)
        return everyone[self.rank * batch_size : (self.rank + 1) * batch_size]

    def _take(self, wanted: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < wanted:
            if self.consumed == self.count:
                self._set_epoch(self.epoch + 1, 0)
            part = self._order[self.consumed : self.consumed + wanted - len(taken)]
            self.consumed += len(part)
            taken += part.tolist()
        return taken

    def _set_epoch(self, epoch: int, consumed: int) -> None:
        self.epoch, self.consumed = epoch, consumed
        stream = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        self._order: NDArray[np.int64] = stream.permutation(self.count)
