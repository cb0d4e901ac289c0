"""Lists of videos: .csv and .jsonl files, paths relative to the list."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from aad1.data.entries import CAPTION_COLUMNS, VIDEO_COLUMNS, ClipFile, decoded, entry_of
from aad1.errors import UserError

LIST_SUFFIXES = (".csv", ".jsonl")


def list_clips(source: Path) -> list[ClipFile]:
    """One clip a row. Raises UserError for a list that cannot be read, or lacks a column."""
    return [_from_row(source, number, row) for number, row in list_rows(source, partial(check_columns, source))]


def list_rows(
    source: Path, check_header: Callable[[tuple[str, ...]], None]
) -> list[tuple[int, Mapping[Any, object] | None]]:
    """Line number and row of everything a .jsonl or .csv file lists; None for what is no JSON object.

    check_header is given the columns of a .csv and raises UserError for wrong ones. Raises UserError for a file that
    cannot be read as text.
    """
    try:
        lines = io.StringIO(decoded(source.read_bytes()), newline="")
        return list(_jsonl_rows(lines) if source.suffix.lower() == ".jsonl" else _csv_rows(lines, check_header))
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; give a .jsonl or .csv list of videos") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{source} cannot be read ({error}); save it as UTF-8 text") from None


def _jsonl_rows(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, object] | None]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else None


def _csv_rows(
    lines: Iterable[str], check_header: Callable[[tuple[str, ...]], None]
) -> Iterator[tuple[int, Mapping[Any, object]]]:
    # Strict: a quote that is never closed would make one caption of all that follows it.
    reader = csv.DictReader(lines, strict=True)
    check_header(tuple(reader.fieldnames or ()))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from None


def check_columns(source: Path, columns: tuple[str, ...]) -> None:
    """Raise UserError unless these columns name videos and captions."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise UserError(f"{source} separates its columns by {name}; save it with commas")
    for wanted in (VIDEO_COLUMNS, CAPTION_COLUMNS):
        if not set(wanted) & set(columns):
            names = " or ".join(repr(w) for w in wanted)
            raise UserError(f"{source} has the columns {', '.join(columns) or 'none'}; one must be named {names}")


def _from_row(source: Path, number: int, row: Mapping[Any, object] | None) -> ClipFile:
    line = f"line {number}"
    if row is None:
        return ClipFile(source, "", line, f"{line} is not a JSON object")
    if None in row:
        return ClipFile(source, "", line, f"{line} has more columns than the header; put a caption in quotes")
    video = next((row[c] for c in VIDEO_COLUMNS if row.get(c)), None)
    if not isinstance(video, str):
        return ClipFile(source, "", line, f"{line} names no video")
    return entry_of(source.parent / video, name_of(video, source.parent), row, f"{line} of {source.name}")


def name_of(video: str, folder: Path) -> str:
    """A listed path as it stands in a store: never one of this machine alone."""
    if not os.path.isabs(video):
        return video
    return os.path.relpath(video, folder.absolute()) if Path(video).is_relative_to(folder.absolute()) else _tail(video)


def _tail(video: str) -> str:
    """The file and its folder: what tells it from others, and nothing of where they are kept."""
    return "/".join(Path(video).parts[-2:]).lstrip("/")
