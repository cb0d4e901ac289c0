"""Clips -> latents, once, before training: reads ahead, encodes in batches, leaves out what is broken.

The encoder is any callable from float [batch, 3, frames, height, width] in [-1, 1] to latents
[batch, channels, latent frames, latent height, latent width].
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from aad1.data.blocks import Clip
from aad1.data.clips import parts_of, read_clip
from aad1.data.entries import ClipError, ClipFile
from aad1.data.filling import Summary, Work
from aad1.data.media import video_to_tensor
from aad1.data.selection import WHATEVER, Facts, Picked, Selection, Size
from aad1.data.store import Manifest, Skip
from aad1.data.world import SPLITS, Track, make_clip, sample_scene
from aad1.errors import UserError, nearest

Encode = Callable[[Tensor], Tensor]
Outcome = tuple[int, Tensor, Facts] | ClipError  # bucket, latents and facts, or why there are none
READERS = min(4, max(1, (os.cpu_count() or 1) // 2))  # threads that read the next clips while a batch is encoded
LEAST_BLOCK = 16  # clips: what a kill costs at most, in each process; a 480p latent has 8 MB


@dataclass(frozen=True)
class SourceClip:
    """A clip to be read when its turn comes.

    ``read`` returns its frames and facts or raises ClipError; ``extra`` is added to the row.
    """

    source: str
    caption: str
    read: Callable[[], Picked]
    extra: Mapping[str, Any] = field(default_factory=dict)


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
    return SourceClip(
        source, caption, lambda: Picked(make_clip(split, index, frames, actual).frames), {"track": actual}
    )


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
    read = partial(read_clip, sizes=sizes, fps=fps, frames=frames, selection=selection)
    return [SourceClip(clip.name, clip.caption, partial(read, clip)) for clip in parts_of(clips, selection)]


# --- the work ---------------------------------------------------------------------------------


def clip_work(
    clips: Sequence[SourceClip],
    out: Path,
    encode: Encode,
    manifest: Manifest,
    *,
    batch_size: int = 8,
    block: int | None = None,
    readers: int = READERS,
) -> Work:
    """How ``clips`` become the latent store ``out``: one tensor, "latents", and rows with caption, source and facts.

    A block has the least multiple of ``batch_size`` that is no less than LEAST_BLOCK, if ``block`` does not say
    otherwise.
    """
    size = block or -(-LEAST_BLOCK // batch_size) * batch_size
    sources = [clip.source for clip in clips]
    return Work(out, manifest, sources, size, partial(_blocks, clips, encode, manifest, batch_size, readers))


def require_clips(summary: Summary) -> None:
    """Raise UserError when no clip at all could be used."""
    if not summary.count:
        first = summary.skipped[0].reason
        raise UserError(f"none of the {len(summary.skipped)} clips could be used; the first: {first}")


def _blocks(
    clips: Sequence[SourceClip],
    encode: Encode,
    manifest: Manifest,
    batch_size: int,
    readers: int,
    wanted: Sequence[range],
) -> Iterator[list[Clip | Skip]]:
    """What became of each block's clips, while the next ones are being read."""
    positions = [position for block in wanted for position in block]
    reads = _read_ahead([clips[position] for position in positions], batch_size + readers, readers)
    with closing(reads):
        for block in wanted:
            batches = _Batches(encode, manifest, batch_size)
            done: dict[int, Outcome] = {}
            for position, read in zip(block, reads, strict=False):
                done |= batches.add(position, read) if isinstance(read, Picked) else {position: read}
            done |= batches.rest()
            yield [_outcome(clips[position], position, done[position]) for position in block]


def _read_ahead(clips: Iterable[SourceClip], waiting: int, readers: int) -> Generator[Picked | ClipError, None, None]:
    """What was read for each clip, in order; no more than ``waiting`` decoded clips are held."""
    ahead: deque[Future[Picked | ClipError]] = deque()
    left = iter(clips)
    with ThreadPoolExecutor(max_workers=readers) as pool:
        try:
            while True:
                ahead += [pool.submit(_read, clip) for clip in islice(left, waiting - len(ahead))]
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(clip: SourceClip) -> Picked | ClipError:
    try:
        return clip.read()
    except ClipError as error:
        return error


class _Batches:
    """Clips of a block that wait until a batch of their picture size is full.

    Batches never reach over a block: an encoder's last bits may depend on a clip's neighbours, and a block shall have
    the same bytes whenever and by whomever it is made.
    """

    def __init__(self, encode: Encode, manifest: Manifest, size: int) -> None:
        self.encode, self.manifest, self.size = encode, manifest, size
        self._waiting: dict[int, dict[int, Picked]] = {}

    def add(self, position: int, picked: Picked) -> dict[int, Outcome]:
        """Take a clip; returns the clips of the batch that it fills, if it does, by position."""
        frames, *size, _ = picked.frames.shape
        if frames != self.manifest.frames or tuple(size) not in self.manifest.buckets:
            raise ValueError(f"a clip of shape {picked.frames.shape} for {self.manifest}")
        bucket = self.manifest.buckets.index((size[0], size[1]))
        batch = self._waiting.setdefault(bucket, {})
        batch[position] = picked
        return self._encoded(bucket) if len(batch) == self.size else {}

    def rest(self) -> dict[int, Outcome]:
        """The clips of all batches that were not filled."""
        return {position: kept for bucket in sorted(self._waiting) for position, kept in self._encoded(bucket).items()}

    def _encoded(self, bucket: int) -> dict[int, Outcome]:
        batch = self._waiting.pop(bucket)
        latents = self.encode(video_to_tensor(np.stack([picked.frames for picked in batch.values()]))).cpu()
        return {p: (bucket, clip, batch[p].facts) for p, clip in zip(batch, latents, strict=True)}


def _outcome(clip: SourceClip, position: int, found: Outcome) -> Clip | Skip:
    if isinstance(found, ClipError):
        return Skip(position, clip.source, found.reason, found.kind)
    bucket, latents, facts = found
    if not latents.isfinite().all():
        return Skip(position, clip.source, "its latents are not finite")
    return Clip({"latents": latents}, {"source": clip.source, "caption": clip.caption, **clip.extra, **facts}, bucket)
