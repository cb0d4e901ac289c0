"""A user's videos and captions, in whatever form they come, as one list.

    folder/                   videos to any depth, the caption in a .txt (or .json) file of the same stem
    list.csv, list.jsonl      a row a video: video (or path), caption (or text), and if wanted start and end in seconds
    table.parquet             the same columns, the video as a path or as bytes; or a folder of such files
    shard.tar                 WebDataset; or a folder of shards, or shards-{000..009}.tar
    hf:owner/name[:split]     a Hugging Face dataset; or a folder that its save_to_disk wrote

The order is stable, names stay the same wherever the source lies, and nothing is unpacked.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from aad1.data.archives import BRACES, expanded, tar_clips
from aad1.data.entries import CAPTION_SUFFIXES, MOST_CAPTION, VIDEO_SUFFIXES, ClipFile, captioned, printable
from aad1.data.lists import LIST_SUFFIXES, list_clips
from aad1.data.tables import HUB, SAVED, dataset_clips, parquet_clips
from aad1.errors import UserError

TABLE, ARCHIVE = ".parquet", ".tar"
ALLOWED = "a folder of videos, a .csv, .jsonl or .parquet list, .tar shards, or hf:owner/name"


def find_clips(source: str | Path) -> list[ClipFile]:
    """List the clips of a source, in a stable order.

    Raises UserError when the source itself cannot be used; what is wrong with single entries is noted in
    their ``problem``.
    """
    return _some(source, _listed(str(source)))


def find_files(source: Path) -> list[ClipFile]:
    """As ``find_clips``, for what must be files of their own: a folder of videos, or a .csv or .jsonl list of them."""
    if source.suffix.lower() in LIST_SUFFIXES and not source.is_dir():
        return _some(source, list_clips(source))
    if not source.is_dir():
        raise UserError(f"{source} is no folder of videos and no list of them; give a folder, or a .csv or .jsonl file")
    return _some(source, folder_clips(source))


def _some(source: str | Path, found: Iterable[ClipFile]) -> list[ClipFile]:
    clips = list(_apart(found))
    if not clips:
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise UserError(f"{source} holds no videos; a folder needs {kinds} files, a list one row a video")
    return clips


def _listed(source: str) -> Iterable[ClipFile]:
    path = Path(source)
    if source.startswith(HUB):
        return dataset_clips(source)
    if path.is_dir():
        return _of_folder(path)
    if BRACES.search(source) and not path.exists():
        return tar_clips(expanded(source))
    if not path.exists():
        raise UserError(f"{source} does not exist; give {ALLOWED}")
    match path.suffix.lower():
        case suffix if suffix in LIST_SUFFIXES:
            return list_clips(path)
        case suffix if suffix == TABLE:
            return parquet_clips([path], path.parent)
        case suffix if suffix == ARCHIVE:
            return tar_clips([path])
    raise UserError(f"{source} is no list of clips; give {ALLOWED}")


def _of_folder(folder: Path) -> Iterable[ClipFile]:
    """Whatever kind of files a folder holds: a dataset, videos, shards or tables; raises UserError for a mixture."""
    if any((folder / name).is_file() for name in SAVED):
        return dataset_clips(str(folder))
    files = _files(folder, (*VIDEO_SUFFIXES, ARCHIVE, TABLE))
    kinds = {name: [f for f in files if f.lower().endswith(ends)] for name, ends in _KINDS.items()}
    found = [name for name, held in kinds.items() if held]
    if len(found) > 1:
        counted = " and ".join(f"{len(kinds[name])} {name}" for name in found)
        raise UserError(f"{folder} holds {counted}; give a folder with one kind of them")
    paths = [folder / name for name in files]
    if found == ["shards (.tar)"]:
        return tar_clips(paths)
    return parquet_clips(paths, folder) if found == ["tables (.parquet)"] else folder_clips(folder)


_KINDS = {"videos": VIDEO_SUFFIXES, "shards (.tar)": (ARCHIVE,), "tables (.parquet)": (TABLE,)}


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files of these suffixes below a folder, sorted; hidden ones (such as macOS's ._ copies) are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = Path(place).relative_to(folder).as_posix()
        before = "" if inner == "." else f"{inner}/"
        found += [before + n for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]
    return sorted(found)


def folder_clips(folder: Path) -> Iterator[ClipFile]:
    """Every video below a folder, with the caption beside it."""
    beside = set(_files(folder, tuple(CAPTION_SUFFIXES)))
    for name in _files(folder, VIDEO_SUFFIXES):
        stem = os.path.splitext(name)[0]
        wanted = (stem + kind for suffix in CAPTION_SUFFIXES for kind in (suffix, suffix.upper()))
        caption = next((path for path in wanted if path in beside), None)
        yield _with_caption(folder, name, caption or stem + CAPTION_SUFFIXES[0])


def _with_caption(folder: Path, name: str, caption: str) -> ClipFile:
    path, shown, where = folder / name, printable(name), printable(os.path.basename(caption))
    try:
        with (folder / caption).open("rb") as file:
            data = file.read(MOST_CAPTION + 1)
    except FileNotFoundError:
        return ClipFile(path, "", shown, f"no caption: {where} is missing")
    except OSError as error:
        return ClipFile(path, "", shown, f"no caption: {where} cannot be read ({error.strerror})")
    return captioned(path, shown, data, os.path.splitext(caption)[1].lower(), where)


def _apart(clips: Iterable[ClipFile]) -> Iterator[ClipFile]:
    """The clips with names that differ; one that stands there twice, with the same caption, is used once."""
    seen: dict[object, str] = {}
    names: Counter[str] = Counter()
    for clip in clips:
        names[clip.name] += 1
        name = clip.name if names[clip.name] == 1 else f"{clip.name} ({names[clip.name]})"
        place = (os.path.normpath(clip.path), clip.inside, clip.start, clip.end, clip.caption)
        first = seen.setdefault(place, name)
        if first != name and not clip.problem:
            problem = f"listed before: the same clip and caption as {first}"
            yield replace(clip, name=name, problem=problem, kind="filtered")
        else:
            yield clip if name == clip.name else replace(clip, name=name)
