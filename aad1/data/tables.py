"""Tables of videos: Parquet files and Hugging Face datasets, with paths or the videos' own bytes.

Listing reads captions and paths alone; a video's bytes are read when its turn comes.
"""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from aad1.data.entries import CAPTION_COLUMNS, VIDEO_COLUMNS, ClipFile, entry_of
from aad1.data.lists import name_of
from aad1.errors import UserError

HUB = "hf:"
SAVED = ("dataset_dict.json", "dataset_info.json")  # by which a folder of save_to_disk is known
SPLIT = "train"
MOST_GROUP = 4 * 2**30  # bytes of a Parquet file's row group: it is read as a whole
ROWS_AT_ONCE = 10_000
NAMED = 300  # characters of a library's complaint that are shown


def optional(name: str, what: str) -> Any:
    """A library that only some sources need; raises UserError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{what} needs {name.partition(".")[0]}; install it with: pip install "aad1[data]"') from None


@dataclass(frozen=True)
class _Columns:
    """video: the column with the videos; nested: whether it holds structs of bytes and path; light: those to list."""

    video: str
    is_path: bool
    nested: bool
    light: tuple[str, ...]


def _columns(schema: Any, where: str) -> _Columns:
    """Which columns of an Arrow schema hold what. Raises UserError when they are not to be told."""
    types, names = importlib.import_module("pyarrow.types"), list(schema.names)

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def is_nested(kind: Any) -> bool:
        return bool(types.is_struct(kind) and any(f.name == "bytes" and is_bytes(f.type) for f in kind))

    kinds = {field.name: field.type for field in schema}
    holding = [name for name in names if is_bytes(kinds[name]) or is_nested(kinds[name])]
    video = next((c for c in VIDEO_COLUMNS if c in kinds), holding[0] if len(holding) == 1 else None)
    shown = ", ".join(names) or "none"
    if video is None:
        raise UserError(f"{where} has the columns {shown}; one must be 'video' or 'path', with paths or bytes")
    if not set(CAPTION_COLUMNS) & set(names):
        raise UserError(f"{where} has the columns {shown}; one must be named 'caption' or 'text'")
    is_path = types.is_string(kinds[video]) or types.is_large_string(kinds[video])
    if not is_path and video not in holding:
        raise UserError(f"{where}: column '{video}' holds {kinds[video]}; it must hold paths or the bytes of videos")
    light = [c for c in (*CAPTION_COLUMNS, "start", "end") if c in kinds]
    return _Columns(video, is_path, is_nested(kinds[video]), (*light, *([video] if is_path else [])))


# --- Parquet ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetCell:
    """A video in a column of a Parquet file: row ``row`` of row group ``group``."""

    path: Path
    column: str
    group: int
    row: int

    def open(self) -> BinaryIO:
        """The video's bytes as a file."""
        with _LOCK:
            values = _group(self.path, self.column, self.group)
        return _file_of(values[self.row].as_py(), self.path.parent)


_LOCK = threading.Lock()  # readers want neighbouring rows: one of them loads the group


@lru_cache(maxsize=2)
def _group(path: Path, column: str, group: int) -> Any:
    parquet = optional("pyarrow.parquet", str(path))
    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


def parquet_clips(files: Sequence[Path], root: Path) -> Iterator[ClipFile]:
    """The clips of Parquet files, in their order; paths in them are relative to the file. Raises UserError for one that
    is damaged or lacks a column.
    """
    parquet = optional("pyarrow.parquet", str(files[0]))
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                yield from _parquet_rows(file, path, path.relative_to(root).as_posix())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as Parquet ({_brief(error)}); write it again") from None


def _parquet_rows(file: Any, path: Path, shown: str) -> Iterator[ClipFile]:
    columns, first = _columns(file.schema_arrow, str(path)), 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        held = [about.column(i) for i in range(about.num_columns)]
        size = sum(c.total_uncompressed_size for c in held if c.path_in_schema.split(".")[0] == columns.video)
        if not columns.is_path and size > MOST_GROUP:
            raise UserError(
                f"{path} has {size / 2**30:.1f} GiB of videos in one row group, and groups are read whole; write it "
                "with smaller ones, such as row_group_size=16"
            )
        batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns.light))
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows):
            cell = None if columns.is_path else ParquetCell(path, columns.video, group, number)
            yield _entry(path, f"row {first + number}", f"{shown} row {first + number}", row, columns, cell)
        first += about.num_rows


def _entry(path: Path, where: str, name: str, row: Mapping[str, Any], columns: _Columns, cell: Any) -> ClipFile:
    """The entry of a row; ``path`` is the table, or the folder that its paths are relative to."""
    if cell is not None:
        return entry_of(path, name, row, where, cell)
    video, folder = row[columns.video], path if path.is_dir() else path.parent
    if not video:
        return ClipFile(path, "", name, f"{where} names no video")
    return entry_of(folder / video, name_of(video, folder), row, where)


def _file_of(value: Any, folder: Path) -> BinaryIO:
    """A cell's video as a file: bytes, or a struct of bytes or else a path."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data:
        return io.BytesIO(data)
    if path and "://" not in path:
        return (folder / path).open("rb")
    raise ValueError("its cell is empty")


# --- Hugging Face -----------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetCell:
    """A video in a row of a Hugging Face dataset that holds this column alone."""

    dataset: Any
    column: str
    row: int

    def open(self) -> BinaryIO:
        """The video's bytes as a file."""
        return _file_of(self.dataset[self.row][self.column], Path())


def dataset_clips(source: str) -> Iterator[ClipFile]:
    """The clips of ``hf:owner/name[:split]`` or of a folder that save_to_disk wrote.

    Videos stay undecoded. Raises UserError when the dataset cannot be had or lacks a column.
    """
    dataset, place = _dataset(source), Path(source.removeprefix(HUB).partition(":")[0])
    columns = _columns(dataset.features.arrow_schema, source)
    undecoded = dataset.select_columns([columns.video])
    if hasattr(undecoded.features[columns.video], "decode"):
        video = type(undecoded.features[columns.video])
        undecoded = undecoded.cast_column(columns.video, video(decode=False))
    listed = dataset.select_columns(list(columns.light)).with_format("arrow")
    for first in range(0, len(dataset), ROWS_AT_ONCE):
        rows = listed[first : first + ROWS_AT_ONCE].to_pylist()
        for number, row in enumerate(rows, start=first):
            cell = None if columns.is_path else DatasetCell(undecoded, columns.video, number)
            yield _entry(place, f"row {number}", f"row {number}", row, columns, cell)


def _dataset(source: str) -> Any:
    datasets = optional("datasets", source)
    try:
        if not source.startswith(HUB):
            found = datasets.load_from_disk(source)
            return found if isinstance(found, datasets.Dataset) else _only_split(found, source)
        name, _, split = source.removeprefix(HUB).partition(":")
        return datasets.load_dataset(name, split=split or SPLIT)
    except UserError:
        raise
    except Exception as error:  # whatever the hub, the network and its caches raise
        raise UserError(
            f"{source} cannot be loaded ({_brief(error)}); check its name and split (hf:owner/name:split) and the "
            "network, or download it and give the folder"
        ) from None


def _only_split(splits: Mapping[str, Any], source: str) -> Any:
    """The training split, or the only one there is."""
    if SPLIT in splits:
        return splits[SPLIT]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise UserError(f"{source} has the splits {', '.join(splits)}; give the folder of one of them")


def _brief(error: Exception) -> str:
    """What a library says, on one line of reasonable length."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= NAMED else words[: NAMED - 3] + "..."
