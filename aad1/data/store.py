"""The latent store on the disk: blocks of clips, what became of every source item, and a manifest.

    folder/manifest.json                     what every clip has in common; ``complete`` once all is there
    folder/index.jsonl                       one line a block: its clips and the sizes of its files
    folder/block-00000.jsonl                 one line a source item: its row, or why it is left out
    folder/block-00000-480x832.safetensors   the block's clips of one picture size, [clips, ...]
    folder/skipped.jsonl                     all items that are left out, for people

Block b is made of the source items b * block to (b + 1) * block - 1, whichever process makes it. Its lines are
written after its tensors, so a block is there whole or not at all; index and manifest come last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aad1.data.entries import Kind
from aad1.data.selection import Size
from aad1.errors import UserError
from aad1.files import write_atomic

FORMAT = 2
MANIFEST, INDEX, SKIPPED = "manifest.json", "index.jsonl", "skipped.jsonl"
KINDS = ("latents", "trajectories")
MOST_BUCKETS = 36  # a clip's bucket is one digit of the index
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Manifest:
    """What every clip of a store has in common.

    encoder: hash of the VAE that made it; size: (height, width) in pixels of the main size; frames: pixel frames a
    clip; buckets: all picture sizes, the main one alone if none are given; extra: JSON values.
    """

    kind: str
    encoder: str
    fps: float
    size: Size
    frames: int
    buckets: tuple[Size, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "buckets", self.buckets or (self.size,))
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}; allowed: {', '.join(KINDS)}")
        if len(self.buckets) > MOST_BUCKETS or self.size not in self.buckets:
            raise ValueError(f"buckets {self.buckets}: at most {MOST_BUCKETS}, and {self.size} among them")


@dataclass(frozen=True)
class Header:
    """All of manifest.json; ``block``: source items a block, ``items``: how many there are in all."""

    manifest: Manifest
    block: int
    items: int
    complete: bool = False


@dataclass(frozen=True)
class Skip:
    """A source item that is left out; ``kind`` says whether it is "broken" or "filtered" by what was asked for."""

    position: int
    source: str
    reason: str
    kind: Kind = "broken"


@dataclass(frozen=True)
class Record:
    """What became of a block's items: the rows of its clips with their buckets, and what is left out."""

    rows: tuple[dict[str, Any], ...]
    buckets: str
    skips: tuple[Skip, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class BlockFacts:
    """One line of the index: ``clips`` has the bucket of each clip as a digit, ``bytes`` the size of each file."""

    number: int
    clips: str
    bytes: Mapping[str, int]


# --- names ------------------------------------------------------------------------------------


def record_path(folder: Path, number: int) -> Path:
    """Where a block's lines are."""
    return folder / f"block-{number:05d}.jsonl"


def tensor_path(folder: Path, number: int, size: Size) -> Path:
    """Where a block's clips of one picture size (height, width) are."""
    return folder / f"block-{number:05d}-{size[0]}x{size[1]}.safetensors"


def block_number(name: str) -> int | None:
    """The block that a file of this name belongs to, None for any other file."""
    stem, _, suffix = name.partition(".")
    word, _, rest = stem.partition("-")
    number = rest.partition("-")[0]
    return int(number) if word == "block" and number.isdecimal() and suffix in ("jsonl", "safetensors") else None


def blocks_on_disk(folder: Path) -> list[int]:
    """The numbers of all blocks that are there, rising."""
    names = (entry.name for entry in folder.iterdir() if entry.suffix == ".jsonl")
    return sorted(number for name in names if (number := block_number(name)) is not None)


def items_on_disk(folder: Path) -> int:
    """How many source items the blocks of a store reach to; 0 where there is none."""
    if not (folder / MANIFEST).exists() or not (numbers := blocks_on_disk(folder)):
        return 0
    header = read_header(folder)
    return min(header.items, (numbers[-1] + 1) * header.block)


# --- lines ------------------------------------------------------------------------------------


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows).encode()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects that ``json_lines`` wrote."""
    # Not splitlines(): a caption may hold a Unicode line separator.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def kept_line(row: Mapping[str, Any], bucket: int) -> dict[str, Any]:
    """The line of a clip."""
    return {"bucket": DIGITS[bucket], "row": dict(row)}


def skip_line(skip: Skip) -> dict[str, Any]:
    """The line of an item that is left out."""
    return {"skip": asdict(skip)}


def read_record(folder: Path, number: int) -> Record:
    """A block's lines; raises OSError, ValueError, KeyError or TypeError for what is no such file."""
    lines = read_lines(record_path(folder, number))
    kept = [line for line in lines if "skip" not in line]
    return Record(
        rows=tuple(line["row"] for line in kept),
        buckets="".join(line["bucket"] for line in kept),
        skips=tuple(Skip(**line["skip"]) for line in lines if "skip" in line),
        sources=tuple(str((line.get("skip") or line["row"]).get("source", "")) for line in lines),
    )


# --- the manifest -----------------------------------------------------------------------------


def write_header(folder: Path, header: Header) -> None:
    """Write manifest.json."""
    facts = {"format": FORMAT} | asdict(header)
    facts |= facts.pop("manifest")
    write_atomic(folder / MANIFEST, json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n")


def read_header(folder: Path) -> Header:
    """Parse manifest.json, or raise UserError saying what is wrong with the store."""
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        _refuse_format(folder, facts["format"])
        shared = {f.name: facts[f.name] for f in fields(Manifest)}
        shared |= {"size": tuple(shared["size"]), "buckets": tuple(map(tuple, shared["buckets"]))}
        return Header(Manifest(**shared), facts["block"], facts["items"], facts["complete"])
    except FileNotFoundError:
        raise UserError(f"{folder} is no latent store: it has no {MANIFEST}; make one with `aad1 prepare`") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); make the store again with `aad1 prepare`") from None


def _refuse_format(folder: Path, held: int) -> None:
    if held == FORMAT:
        return
    remedy = "update aad1" if held > FORMAT else "delete it and run its `aad1 prepare` again"
    raise UserError(f"store {folder} has format {held}, this version reads format {FORMAT}; {remedy}")


# --- blocks -----------------------------------------------------------------------------------


def look_at(folder: Path, manifest: Manifest, number: int) -> tuple[Record, BlockFacts]:
    """Read a block's lines and the headers of its tensors; raises ValueError saying what is torn or missing."""
    path = record_path(folder, number)
    try:
        record = read_record(folder, number)
        sizes = {path.name: path.stat().st_size}
        for digit in sorted(set(record.buckets)):
            tensors = tensor_path(folder, number, manifest.buckets[DIGITS.index(digit)])
            _check_count(tensors, record.buckets.count(digit))
            sizes[tensors.name] = tensors.stat().st_size
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename or path).name} is missing") from None
    except (SafetensorError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"block-{number:05d} is torn ({' '.join(str(error).split())})") from None
    return record, BlockFacts(number, record.buckets, sizes)


def _check_count(path: Path, expected: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(2, "missing", str(path))
    with safe_open(path, framework="pt") as tensors:
        counts = {tensors.get_slice(name).get_shape()[0] for name in tensors.keys()}  # noqa: SIM118
    if counts != {expected}:
        raise ValueError(f"{path.name} holds {sorted(counts)} clips where {expected} are listed")


def write_index(folder: Path, blocks: Sequence[BlockFacts]) -> None:
    """Write index.jsonl."""
    lines = [{"number": block.number, "clips": block.clips, "bytes": dict(block.bytes)} for block in blocks]
    write_atomic(folder / INDEX, json_lines(lines))


def read_index(folder: Path) -> list[BlockFacts]:
    """The blocks of a complete store, whose files must have the sizes listed; raises UserError for the first without.

    It opens no block: a store of 100,000 clips is there in a moment. What only reading can show is shown by reading.
    """
    path = folder / INDEX
    try:
        blocks = [BlockFacts(**line) for line in read_lines(path)]
        wanted = {name: size for block in blocks for name, size in block.bytes.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); run its `aad1 prepare` again to mend it") from None
    held = {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.name in wanted}
    for name, size in wanted.items():
        if (now := held.get(name)) != size:
            what = "is missing" if now is None else f"is torn ({now} bytes of {size})"
            raise UserError(f"store {folder}: {name} {what}; run its `aad1 prepare` again to mend it")
    return blocks


def scan(folder: Path, manifest: Manifest) -> Iterator[BlockFacts]:
    """The blocks of a store that is still being made; raises UserError for a torn one."""
    for number in blocks_on_disk(folder):
        try:
            yield look_at(folder, manifest, number)[1]
        except ValueError as error:
            raise UserError(f"store {folder}: {error}; run its `aad1 prepare` again to mend it") from None
