"""Clips -> latents, once, before training: reads, encodes in batches, skips what is broken, continues.

The encoder is any callable from float [batch, 3, frames, height, width] in [-1, 1] to latents
[batch, channels, latent frames, latent height, latent width].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aad1.data.clips import parts_of, read_clip
from aad1.data.entries import ClipError, ClipFile
from aad1.data.latents import SHARD_SIZE, SKIPPED, Manifest, Skip, StoreWriter
from aad1.data.media import video_to_tensor
from aad1.data.selection import WHATEVER, Selection, Size
from aad1.data.world import SPLITS, Track, make_clip, sample_scene
from aad1.errors import UserError, nearest
from aad1.progress import Progress

Encode = Callable[[Tensor], Tensor]
Read = NDArray[np.uint8] | ClipError
READERS = 2  # threads that read the next batch while this one is encoded
SHOWN = 10  # skipped clips named in the summary


@dataclass(frozen=True)
class SourceClip:
    """A clip to be read when its turn comes.

    ``read`` returns uint8 [frames, height, width, 3] or raises ClipError; ``extra`` is added to the row.
    """

    source: str
    caption: str
    read: Callable[[], NDArray[np.uint8]]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What ``prepare_clips`` did: clips in the store, and what was skipped (earlier runs included)."""

    folder: Path
    count: int
    skipped: tuple[Skip, ...]

    def __str__(self) -> str:
        text = f"{self.folder}: {self.count} clips"
        if not self.skipped:
            return text
        lines = [f"  {skip.source}: {skip.reason}" for skip in self.skipped[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"  and {len(self.skipped) - SHOWN} more")
        where = f"all in {self.folder / SKIPPED}; to try them again, delete {self.folder}"
        return "\n".join([f"{text}, {len(self.skipped)} skipped ({where})", *lines])


# --- sources ----------------------------------------------------------------------------------


def world_clips(split: str, count: int, frames: int, track: Track | None = None, first: int = 0) -> list[SourceClip]:
    """Clips ``first`` to ``first + count - 1`` of the embedded world (64x64, 16 fps)."""
    if split not in SPLITS:
        raise UserError(f"there is no world split '{split}'{nearest(split, SPLITS)}")
    return [_world_clip(split, index, frames, track) for index in range(first, first + count)]


def _world_clip(split: str, index: int, frames: int, track: Track | None) -> SourceClip:
    actual: Track = track or ("determined" if index % 2 == 0 else "free")
    caption = sample_scene(split, index, actual).caption
    source = f"world:{split}:{index}:{actual}"
    return SourceClip(source, caption, lambda: make_clip(split, index, frames, actual).frames, {"track": actual})


def parse_world_source(source: str) -> tuple[str, int, Track]:
    """("train", 7, "free") from "world:train:7:free"; raises UserError for anything else."""
    parts = source.split(":")
    if len(parts) == 4 and parts[0] == "world" and parts[2].isdecimal():
        _, split, index, track = parts
        if split in SPLITS and track in ("determined", "free"):
            return split, int(index), cast(Track, track)
    raise UserError(
        f"'{source}' is no clip of the embedded world (world:<split>:<index>:<track>); its truth is unknown"
    )


def file_clips(
    clips: Sequence[ClipFile],
    *,
    sizes: Sequence[Size],
    fps: float,
    frames: int,
    selection: Selection = WHATEVER,
) -> list[SourceClip]:
    """A user's clips (``find_clips``), read at these settings; rows name them as the user's list does."""
    read = partial(_frames_of, sizes=sizes, fps=fps, frames=frames, selection=selection)
    return [SourceClip(clip.name, clip.caption, partial(read, clip)) for clip in parts_of(clips, selection)]


def _frames_of(clip: ClipFile, **settings: Any) -> NDArray[np.uint8]:
    return read_clip(clip, **settings).frames


# --- the work ---------------------------------------------------------------------------------


def prepare_clips(
    clips: Sequence[SourceClip],
    out: str | Path,
    encode: Encode,
    manifest: Manifest,
    *,
    batch_size: int = 8,
    shard_size: int = SHARD_SIZE,
    readers: int = READERS,
    progress: Progress | None = None,
) -> Summary:
    """Encode ``clips`` into the latent store ``out``, or continue there; prints and returns a summary.

    The store has one tensor, "latents", and rows with caption, source and the clip's extra fields. A longer
    list whose beginning is the same extends a store. Raises UserError when the store was begun with other
    settings or other clips, and when no clip at all could be used.
    """
    with StoreWriter(out, manifest, shard_size) as writer:
        writer.require_sources([clip.source for clip in clips], "clip")
        bar = progress or Progress("Encoding clips", len(clips), done=writer.completed, unit="clip")
        with bar:
            for positions, read in _batches(clips, writer, batch_size, readers):
                before = writer.completed
                _add_batch(writer, clips[: positions.stop], _encoded(read, encode, manifest))
                bar.advance(writer.completed - before, skipped=len(writer.skips))
    summary = Summary(writer.folder, len(clips) - len(writer.skips), tuple(s for _, s in sorted(writer.skips.items())))
    bar.print(str(summary))
    if not summary.count:
        raise UserError(f"none of the {len(clips)} clips could be used; the first: {summary.skipped[0].reason}")
    return summary


def _batches(
    clips: Sequence[SourceClip], writer: StoreWriter, batch_size: int, readers: int
) -> Iterator[tuple[range, dict[int, Read]]]:
    """The positions of a batch and what was read for them, while the next batch is being read.

    Batches start at multiples of ``batch_size`` whatever was done before, and known bad clips stay out:
    an encoder's last bits may depend on a clip's neighbours, and a continued store shall have the same bytes.
    """
    first = writer.completed - writer.completed % batch_size if writer.completed < len(clips) else len(clips)
    known = frozenset(writer.skips)
    with ThreadPoolExecutor(max_workers=readers) as pool:

        def submit(start: int) -> tuple[range, dict[int, Future[Read]]]:
            positions = range(start, min(start + batch_size, len(clips)))
            return positions, {p: pool.submit(_read, clips[p]) for p in positions if p not in known}

        ahead = submit(first)
        while ahead[0]:
            (positions, futures), ahead = ahead, submit(ahead[0].stop)
            yield positions, {position: future.result() for position, future in futures.items()}


def _read(clip: SourceClip) -> Read:
    try:
        return clip.read()
    except ClipError as error:
        return error


def _encoded(read: Mapping[int, Read], encode: Encode, manifest: Manifest) -> dict[int, Tensor | ClipError]:
    """Latents [channels, frames, height, width] for every position that could be read."""
    good = {position: frames for position, frames in read.items() if not isinstance(frames, ClipError)}
    for frames in good.values():
        if frames.shape != (manifest.frames, *manifest.size, 3):
            raise ValueError(f"a clip of shape {frames.shape} for {manifest}")
    found: dict[int, Tensor | ClipError] = {p: e for p, e in read.items() if isinstance(e, ClipError)}
    if good:
        latents = encode(video_to_tensor(np.stack(list(good.values())))).cpu()
        found |= dict(zip(good, latents, strict=True))
    return found


def _add_batch(writer: StoreWriter, clips: Sequence[SourceClip], found: Mapping[int, Tensor | ClipError]) -> None:
    """Record every clip that is not done yet, as latents or as skipped."""
    for position in range(writer.completed, len(clips)):
        clip, result = clips[position], found.get(position)
        if isinstance(result, Tensor) and result.isfinite().all():
            writer.add({"latents": result}, {"source": clip.source, "caption": clip.caption, **clip.extra})
        elif isinstance(result, ClipError):
            writer.skip(clip.source, result.reason)
        else:  # skipped by an earlier run, whose reason stands, or spoilt by the encoder
            writer.skip(clip.source, "its latents are not finite")
