"""One clip of a source before it is read: where its video lies, and its caption.

What is wrong with one entry is its ``problem``, which its reading raises: one bad file must not end a night's work.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

Kind = Literal["broken", "filtered"]  # it cannot be used, or was not asked for
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
VIDEO_COLUMNS = ("video", "path")
CAPTION_COLUMNS = ("caption", "text")
CAPTION_SUFFIXES = (".txt", ".json")  # of files beside videos, the first one wins
MOST_CAPTION = 2**20  # bytes of such a file
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins as the mark of UTF-16 does, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class ClipError(Exception):
    """One clip cannot be used: ``path`` says which, ``reason`` why, ``kind`` whether it is broken or not wanted.

    ``facts``: what was found out about the clip before.
    """

    def __init__(self, path: Path, reason: str, kind: Kind = "broken") -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.kind = path, reason, kind
        self.facts: dict[str, Any] = {}


class Inside(Protocol):
    """A video that lies inside of another file."""

    def open(self) -> BinaryIO:
        """A file of its bytes alone, which can seek; raises OSError or ValueError."""
        ...


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A video, or a part of one, with its caption; ``name`` is its path within the source.

    path: the video, or the file that holds it: then ``inside`` opens it. problem says why the entry is unusable
    ("" when all is well), kind what kind of problem that is. start, end: the part of the video in seconds (None: to its
    end). part: which of the clips of that part, where several are taken.
    """

    path: Path
    caption: str
    name: str
    problem: str = ""
    kind: Kind = "broken"
    inside: Inside | None = None
    start: float = 0.0
    end: float | None = None
    part: int = 0


def decoded(data: bytes) -> str:
    """Text by its byte order mark, else UTF-8; raises ValueError, which says why, rather than guess."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not readable UTF-8 text (byte {error.start} does not fit)") from None
    if "\0" in text:
        raise ValueError("not readable UTF-8 text (it holds zero bytes, as UTF-16 without a byte order mark does)")
    return text


def printable(name: str) -> str:
    """A file's name as text that can be written: bytes that are not UTF-8 are shown as numbers."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def entry_of(
    path: Path,
    name: str,
    record: Mapping[str, Any],
    where: str,
    inside: Inside | None = None,
) -> ClipFile:
    """An entry whose caption, and start and end if it has them, stand in ``record``; ``where`` names it to people."""
    start, end, problem = _times(record, where)
    caption = next((record[c] for c in CAPTION_COLUMNS if record.get(c) is not None), None)
    text = " ".join(caption.split()) if isinstance(caption, str) else ""
    problem = problem or caption_problem(caption, where)
    span = "" if (start, end) == (0.0, None) else f"#t={start:g}{'' if end is None else f',{end:g}'}"
    return ClipFile(path, "" if problem else text, name + span, problem, inside=inside, start=start, end=end)


def caption_problem(caption: object, where: str) -> str:
    """Why this is no caption; "" when it is one."""
    if not isinstance(caption, str):
        return f"no caption in {where}"
    if not caption.strip():
        return "the caption is empty"
    if "\ufffd" in caption or any("\ud800" <= sign <= "\udfff" for sign in caption):
        return f"the caption in {where} was decoded wrongly before: it holds signs that stand for lost ones"
    return ""


def _times(record: Mapping[str, Any], where: str) -> tuple[float, float | None, str]:
    """Start and end in seconds, and what is wrong with them."""
    found: list[float | None] = []
    for column in ("start", "end"):
        try:
            found.append(_seconds(record.get(column)))
        except (TypeError, ValueError):
            return 0.0, None, f"{column} {record[column]!r} in {where} is no number of seconds"
    start, end = found[0] or 0.0, found[1]
    if end is not None and end <= start:
        return 0.0, None, f"end {end:g} in {where} is not after start {start:g}"
    return start, end, ""


def _seconds(value: Any) -> float | None:
    if value is None or value == "" or value != value:
        return None
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(seconds)
    return seconds


def captioned(path: Path, name: str, data: bytes, suffix: str, where: str, inside: Inside | None = None) -> ClipFile:
    """An entry whose caption is the text ``data`` of a .txt file, or stands in that of a .json file."""
    try:
        record = {"caption": _caption_in(data, suffix)}
    except (ValueError, RecursionError) as error:
        return ClipFile(path, "", name, f"no caption: {where} is {error}", inside=inside)
    return entry_of(path, name, record, where, inside)


def _caption_in(data: bytes, suffix: str) -> Any:
    """The caption that a file holds; raises ValueError with what the file is instead."""
    if len(data) > MOST_CAPTION:
        raise ValueError(f"longer than {MOST_CAPTION // 1024} KiB")
    text = decoded(data)
    if suffix != ".json":
        return text
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return next((record[c] for c in CAPTION_COLUMNS if record.get(c) is not None), None)
