"""The teacher's trajectories that stage I learns from: made once, stored, resumable.

Only the points at the levels used in training are kept. The grid, its shift and the guidance are part
of the store's manifest and are checked before stage I begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aad1.data.blocks import Clip
from aad1.data.filling import Work
from aad1.data.latents import LatentStore
from aad1.data.store import Manifest, Skip, items_on_disk
from aad1.errors import UserError
from aad1.flow import euler_grid, grid_index, shifted_levels
from aad1.limits import Count, FallingLevels, Number, Positive
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import TextEncoder
from aad1.teacher_sampling import trajectory
from aad1.training.randomness import generator_for


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """count: how many; levels: noise levels BEFORE the shift that stage I trains at (t = 0 is always kept);
    clean_image: the first frame is a real clip's, held clean, for a teacher trained with teacher.clean_image.
    """

    count: Count
    batch: Count
    steps: Count = 48
    shift: Positive = 5.0
    guidance: Number = 6.0
    levels: FallingLevels = (1.0, 0.75, 0.5, 0.25)
    clean_image: bool = False

    @property
    def stored_levels(self) -> tuple[float, ...]:
        """The noise levels kept, falling, t = 0 last."""
        return (*shifted_levels(self.levels, self.shift), 0.0)


def stored_indices(config: TrajectoryConfig) -> list[int]:
    """Where the stored levels stand in the sampler's grid; raises UserError when one is not in it."""
    grid = euler_grid(config.steps, config.shift)
    found = [grid_index(grid, level) for level in config.stored_levels]
    if None in found:
        lost = ", ".join(f"{lv:.4f}" for lv, i in zip(config.stored_levels, found, strict=True) if i is None)
        raise UserError(
            f"{config.steps} Euler steps at shift {config.shift} do not pass t = {lost}; "
            "choose a number of steps whose grid holds every level (48 holds 1, .75, .5 and .25)"
        )
    return [i for i in found if i is not None]


def manifest_for(
    config: TrajectoryConfig, clips: LatentStore, teacher_hash: str, seed: int, negative_prompt: str
) -> Manifest:
    """What a trajectory store of these settings says of itself."""
    settings: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in ("count", "batch")}
    held = clips.manifest
    extra = {**settings, "stored_levels": config.stored_levels, "teacher": teacher_hash, "seed": seed}
    extra["negative_prompt"] = negative_prompt
    return Manifest("trajectories", held.encoder, held.fps, held.size, held.frames, held.buckets, extra)


def origins_of(clips: LatentStore, count: int) -> list[dict[str, str]]:
    """The caption and the source of the clip behind each trajectory; clips are used again when they are too few."""
    rows = (clips.row(index % len(clips)) for index in range(count))
    return [{"caption": row["caption"], "source": row["source"]} for row in rows]


@dataclass(frozen=True)
class Denoising:
    """What trajectories are made from: the teacher (called for when the first is made), captions, clips, noise."""

    teacher: Callable[[], CausalWanTransformer3DModel]
    text: TextEncoder
    clips: LatentStore
    config: TrajectoryConfig
    seed: int
    negative_prompt: str


def trajectory_work(source: Denoising, out: Path, teacher_hash: str) -> Work:
    """How the captions of the clips, denoised from fresh noise, become the trajectory store ``out``.

    A block is one batch: a trajectory takes minutes with a large teacher, and a kill costs a block. A store that holds
    more than ``config.count`` already keeps them.
    """
    config = source.config
    manifest = manifest_for(config, source.clips, teacher_hash, source.seed, source.negative_prompt)
    count = max(config.count, items_on_disk(out))
    sources = [origin["source"] for origin in origins_of(source.clips, count)]
    return Work(out, manifest, sources, config.batch, partial(_blocks, source), unit="trajectory")


def _blocks(source: Denoising, wanted: Sequence[range]) -> Iterator[list[Clip | Skip]]:
    if not wanted:
        return
    teacher, buckets, keep = source.teacher(), source.clips.buckets, stored_indices(source.config)
    for block in wanted:
        points: dict[int, Tensor] = {}
        for indices in _alike(block, buckets, source.config.batch):
            points |= dict(zip(indices, _points(source, teacher, indices, keep).half(), strict=True))
        yield [_clip(source.clips, index, points[index], int(buckets[index % len(buckets)])) for index in block]


def _alike(block: range, buckets: NDArray[np.int64], most: int) -> Iterator[list[int]]:
    """A block's trajectories in batches of one picture size, that of the clip behind each."""
    of = {index: int(buckets[index % len(buckets)]) for index in block}
    for bucket in sorted(set(of.values())):
        indices = [index for index in block if of[index] == bucket]
        yield from (indices[start : start + most] for start in range(0, len(indices), most))


def _clip(clips: LatentStore, index: int, points: Tensor, bucket: int) -> Clip:
    row = clips.row(index % len(clips))
    return Clip({"points": points}, {"caption": row["caption"], "source": row["source"]}, bucket)


def _noise(shape: Sequence[int], indices: Sequence[int], seed: int) -> Tensor:
    """Each trajectory's own noise, whatever its batch: [len(indices), *shape]."""
    return torch.stack([torch.randn(*shape, generator=generator_for(seed, "trajectories", i)) for i in indices])


def _points(
    source: Denoising, teacher: CausalWanTransformer3DModel, indices: Sequence[int], keep: Sequence[int]
) -> Tensor:
    """The kept points of these trajectories, [batch, levels, channels, frames, height, width]."""
    config = source.config
    tensors, rows = source.clips.read([index % len(source.clips) for index in indices])
    clips = tensors["latents"]
    noise = _noise(clips.shape[1:], indices, source.seed).to(teacher.device)
    embedded = source.text.embed([row["caption"] for row in rows]).to(noise)
    negative = source.text.embed([source.negative_prompt]).to(noise).expand_as(embedded)
    grid = euler_grid(config.steps, config.shift)
    image = clips[:, :, :1].to(noise) if config.clean_image else None
    path = trajectory(teacher, noise, embedded, negative, grid=grid, guidance=config.guidance, image=image)
    wanted = set(keep)
    return torch.stack([latents for index, latents in enumerate(path) if index in wanted], dim=1)
