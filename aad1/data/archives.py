"""WebDataset shards: videos and captions in .tar files, read where they lie.

Members of one stem belong together: ``000.mp4`` with ``000.txt`` (the caption) or ``000.json`` (with "caption" or
"text"). Nothing is unpacked: a member is read by its offset.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, cast

from aad1.data.entries import CAPTION_SUFFIXES, MOST_CAPTION, VIDEO_SUFFIXES, ClipFile, captioned, printable
from aad1.errors import UserError

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [offset, offset + size) of a file."""

    path: Path
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """These bytes as a file."""
        return cast(BinaryIO, _Part(self))


class _Part(io.RawIOBase):
    """A span of a file as a file of its own."""

    def __init__(self, span: Span) -> None:
        self._file, self._span, self._at = span.path.open("rb"), span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._span.size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._span.size - self._at))
        self._file.seek(self._span.offset + self._at)
        read = self._file.readinto(memoryview(buffer)[:wanted])
        self._at += read
        return read

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._span.size - self._at)
        self._file.seek(self._span.offset + self._at)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def expanded(pattern: str) -> list[Path]:
    """``shards-{000..009}.tar`` as the ten shards. Raises UserError when one does not exist."""
    parts = BRACES.split(pattern)
    texts, ranges = parts[::3], list(zip(parts[1::3], parts[2::3], strict=True))
    counts = [range(int(low), int(high) + 1) for low, high in ranges]
    total = 1
    for count in counts:
        total *= len(count)
    if not 0 < total <= MOST_SHARDS:
        raise UserError(f"{pattern} stands for {total} shards; use 1 to {MOST_SHARDS}, as in shards-{{000..009}}.tar")
    widths = [len(low) for low, _ in ranges]
    paths = [Path(_filled(texts, widths, numbers)) for numbers in product(*counts)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist, one of {len(missing)} missing of the {len(paths)} in {pattern}")
    return paths


def _filled(texts: Sequence[str], widths: Sequence[int], numbers: Sequence[int]) -> str:
    shown = [f"{number:0{width}d}" for number, width in zip(numbers, widths, strict=True)]
    return "".join(text + number for text, number in zip(texts, [*shown, ""], strict=True))


@dataclass
class _Group:
    """Members of one stem: the videos' names and places, and the captions by the suffix of their file."""

    videos: list[tuple[str, Span]] = field(default_factory=list)
    captions: dict[str, Span] = field(default_factory=dict)


def tar_clips(shards: Sequence[Path]) -> Iterator[ClipFile]:
    """The clips of shards, in their order; what cannot be read of a shard is one entry that says so."""
    for shard in shards:
        groups: dict[str, _Group] = {}
        problem = _read_groups(shard, groups)
        with shard.open("rb") if groups else io.BytesIO() as file:
            for group in groups.values():
                for name, span in group.videos:
                    yield _entry(shard, f"{shard.name}/{name}", span, group, file)
        if problem:
            yield ClipFile(shard, "", shard.name, problem)


def _read_groups(shard: Path, groups: dict[str, _Group]) -> str:
    """Fill ``groups`` by stem with what a shard holds; returns what is wrong with it."""
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    return f"it is cut off within {printable(member.name)}; what stands before is used"
                if member.isreg():
                    _place(groups, member.name, Span(shard, member.offset_data, member.size))
            return _end_problem(shard, tar.offset)
    except tarfile.ReadError as error:
        if groups:
            return f"it is damaged ({error}); what stands before is used"
        return f"it is no .tar that can be read by offset ({error}); unpack what compresses it, or write it again"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def _end_problem(shard: Path, offset: int) -> str:
    """tarfile takes a damaged header for the end: the true end is zeros, or that of the file."""
    with shard.open("rb") as file:
        file.seek(offset)
        rest = file.read(tarfile.BLOCKSIZE)
    return "" if not any(rest) else f"it is damaged at byte {offset}; what stands before is used"


def _place(groups: dict[str, _Group], member: str, span: Span) -> None:
    stem, suffix = os.path.splitext(member)
    if os.path.basename(stem).startswith("."):
        return
    kind = suffix.lower()
    if kind in VIDEO_SUFFIXES:
        groups.setdefault(stem, _Group()).videos.append((printable(member), span))
    elif kind in CAPTION_SUFFIXES:
        groups.setdefault(stem, _Group()).captions[kind] = span


def _entry(shard: Path, name: str, span: Span, group: _Group, file: BinaryIO) -> ClipFile:
    for suffix in CAPTION_SUFFIXES:
        if suffix in group.captions:
            caption = group.captions[suffix]
            file.seek(caption.offset)
            data = file.read(min(caption.size, MOST_CAPTION + 1))
            return captioned(shard, name, data, suffix, f"its {suffix}", span)
    return ClipFile(shard, "", name, "no caption: it has no .txt or .json of its stem", inside=span)
