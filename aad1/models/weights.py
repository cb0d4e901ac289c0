"""Weight files read and written one tensor at a time: safetensors, and PyTorch's zip files (.pt, .pth, .bin).

Opening reads names, shapes and types; values follow when asked for, from a mapped file that is mapped anew after
every MAPPED bytes. So the memory of a copy, cast or renaming is one tensor and MAPPED bytes of file, whatever the
model. Nothing in a file is executed: pickles are read by PyTorch's restricted reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from torch import Tensor

from aad1.errors import UserError

PICKLED = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLED)
MAPPED = 2**28
SHARD = 5 * 10**9  # bytes of weights in a file, as diffusers and transformers have it
TYPES = {  # safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where it is, and what it is like. ``group`` is the entry of a .pt that holds it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    group: str = ""

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Made:
    """A tensor to be written: what it is made of, and how; by default its one ingredient, as ``dtype``."""

    sources: tuple[Stored, ...]
    dtype: torch.dtype
    make: Callable[..., Tensor] = lambda tensor: tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the first ingredient."""
        return self.sources[0].shape

    @property
    def bytes(self) -> int:
        """Its size when written."""
        return prod(self.shape) * self.dtype.itemsize


# --- reading ---------------------------------------------------------------------------------


def tensors_of(path: Path, groups: Sequence[str] = ()) -> dict[str, Stored]:
    """What a weight file holds, or all those of a folder.

    ``groups``: of a .pt that holds several models, the entries to look into, best first; else what is at its top.

    Raises:
        UserError: when a file is damaged, foreign or wants to run code, or when two of them claim one tensor.
    """
    files = _files_of(path) if path.is_dir() else [path]
    found: dict[str, Stored] = {}
    for file in files:
        for name, stored in _names_in(file, groups).items():
            if name in found:
                raise UserError(
                    f"both '{found[name].file.name}' and '{file.name}' in '{path}' hold '{name}'; "
                    "keep one set of weights in the folder and move the other away"
                )
            found[name] = stored
    return found


def _files_of(folder: Path) -> list[Path]:
    """The files that a folder's index names; without an index, every weight file, safetensors rather than pickles."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise UserError(f"'{folder}' has {len(indexes)} indexes of its weights; keep one and move the others away")
    if indexes:
        files = [folder / name for name in _indexed(indexes[0])]
        if lost := [file.name for file in files if not file.is_file()]:
            raise UserError(
                f"'{indexes[0]}' names {len(lost)} files that are missing, such as {lost[0]}; download them"
            )
        return files
    for suffixes in ((".safetensors",), PICKLED):
        if files := sorted(f for f in folder.iterdir() if f.suffix in suffixes and f.is_file()):
            return files
    raise UserError(f"'{folder}' has no weights: no file in it ends in {', '.join(SUFFIXES)}")


def _indexed(index: Path) -> list[str]:
    try:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"'{index}' is not an index of weights ({error}); download it again") from None
    if strange := [name for name in names if Path(str(name)).name != name]:
        raise UserError(f"'{index}' names a file outside its folder ({strange[0]}); it cannot be trusted")
    return names


def _names_in(file: Path, groups: Sequence[str]) -> dict[str, Stored]:
    opened = _open(file)
    if isinstance(opened, dict):
        group = next((g for g in groups if isinstance(opened.get(g), dict)), "")
        held = opened[group] if group else opened
        found = {
            name: Stored(file, name, tuple(x.shape), x.dtype, group)
            for name, x in held.items()
            if isinstance(name, str) and isinstance(x, Tensor)
        }
    else:
        found = {}
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            piece = opened.get_slice(name)
            found[name] = Stored(file, name, tuple(piece.get_shape()), _type(file, piece.get_dtype()))
    if not found:
        held_there = f": its entries are {', '.join(map(str, list(opened)[:5]))}" if isinstance(opened, dict) else ""
        raise UserError(f"'{file}' holds no tensors{held_there}; give a file of weights")
    return found


def _type(file: Path, name: str) -> torch.dtype:
    if name not in TYPES:
        raise UserError(f"'{file}' holds numbers of type {name}; allowed: {', '.join(TYPES)}")
    return TYPES[name]


def _open(file: Path) -> Any:
    """A safetensors handle, or the dict of a .pt whose tensors are mapped; a UserError for everything else."""
    if file.suffix not in SUFFIXES or not file.is_file():
        raise UserError(f"'{file}' is not a file of weights; allowed are files ending in {', '.join(SUFFIXES)}")
    try:
        if file.suffix not in PICKLED:
            return safe_open(file, framework="pt")
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise a dozen kinds for damage
        raise UserError(f"cannot read '{file}': {_reason(file, error)}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"'{file}' holds a {type(loaded).__name__}, not a table of named weights")
    return loaded


def _reason(file: Path, error: Exception) -> str:
    if not file.stat().st_size:
        return "it is empty; download it again"
    words = str(error)
    if "Weights only load failed" in words and ("nsupported" in words or "GLOBAL" in words):
        return "it holds more than weights and could run code when read; nothing was run; ask for a safetensors file"
    if "mmap can only be used" in words:
        return "it is no checkpoint, or one in an old format that runs code when read; ask for a safetensors file"
    if "zip archive" in words or "deserializing" in words or "Weights only load failed" in words:
        return f"it is damaged or cut off ({' '.join(words.split())[:100]}); download it again"
    return f"{' '.join(words.split())[:150]}; download it again"


class Reader:
    """Gives stored tensors, each to be used up before many more are taken: they are views of a mapped file."""

    def __init__(self) -> None:
        self._opened: dict[Path, Any] = {}
        self._mapped = 0

    def __call__(self, stored: Stored) -> Tensor:
        """The tensor itself."""
        if self._mapped > MAPPED:
            self._opened, self._mapped = {}, 0  # lets go of the pages that were read
        if stored.file not in self._opened:
            self._opened[stored.file] = _open(stored.file)
        source = self._opened[stored.file]
        self._mapped += stored.bytes
        if isinstance(source, dict):
            return (source[stored.group] if stored.group else source)[stored.name].detach()
        return source.get_tensor(stored.name)


# --- writing ---------------------------------------------------------------------------------


def made(wanted: Mapping[str, Made]) -> Iterator[tuple[str, Tensor]]:
    """Make the tensors one after the other."""
    read = Reader()
    for name, one in wanted.items():
        yield name, one.make(*map(read, one.sources)).to(one.dtype).contiguous()


def write_shards(
    folder: Path,
    stem: str,
    wanted: Mapping[str, Made],
    *,
    shard: int = SHARD,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write tensors as safetensors of at most ``shard`` bytes and, if there are several, their index.

    ``stem`` is ``diffusion_pytorch_model`` or ``model``; ``done`` is called after every tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_state_dict_into_shards_factory(
        dict(wanted),
        get_storage_size=lambda one: one.bytes,
        get_storage_id=lambda one: None,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=shard,
    )
    for name, names in split.filename_to_tensors.items():
        _write_safetensors(folder / name, {n: wanted[n] for n in names}, done)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_safetensors(path: Path, wanted: Mapping[str, Made], done: Callable[[], None]) -> None:
    """The library writes a file from tensors that are all in memory; this takes them one at a time."""
    order = sorted(wanted, key=lambda name: (-wanted[name].dtype.itemsize, name))  # every tensor aligned to its type
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + wanted[name].bytes
        header[name] = {
            "dtype": TYPE_NAMES[wanted[name].dtype],
            "shape": wanted[name].shape,
            "data_offsets": (start, end),
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in made({name: wanted[name] for name in order}):
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            done()
