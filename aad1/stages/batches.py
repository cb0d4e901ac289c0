"""What the stages are fed: latent clips and trajectories from a store, with their text embedded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from aad1.data.latents import LatentStore
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import TextEncoder
from aad1.rollout import ClipRollout
from aad1.training.randomness import Draws

NOISE_BANDS = ("low", "middle", "high")
Batch = TypeVar("Batch")


class ClipBatch(NamedTuple):
    """latents: [batch, channels, frames, height, width], image frame first; text: [batch, length, dim]."""

    latents: Tensor
    text: Tensor

    @property
    def image(self) -> Tensor:
        """The encoded first frame: the VAE is causal, so the first latent frame is the image alone."""
        return self.latents[:, :, :1]


class TrajectoryBatch(NamedTuple):
    """points: [batch, levels, channels, frames, height, width], the last being t = 0; text as above."""

    points: Tensor
    text: Tensor


class Stored(Generic[Batch]):
    """Captioned tensors of a store on ``device``, read as batches; a subclass says which tensor and which batch.

    ``count``: only the first so many of the store.
    """

    tensor: str
    batch: Callable[[Tensor, Tensor], Batch]

    def __init__(self, store: LatentStore, text: TextEncoder, device: torch.device, count: int | None = None) -> None:
        self.store, self.text, self.device = store, text, device
        self._count = len(store) if count is None else count

    def __len__(self) -> int:
        return self._count

    @property
    def buckets(self) -> Sequence[int]:
        """Which picture size each item has: a batch holds one."""
        return self.store.buckets[: len(self)].tolist()

    def read(self, indices: Sequence[int]) -> Batch:
        """The items at ``indices``, their captions embedded."""
        tensors, rows = self.store.read(indices)
        text = self.text.embed([row["caption"] for row in rows])
        return type(self).batch(tensors[self.tensor].float().to(self.device), text.to(self.device))


class LatentClips(Stored[ClipBatch]):
    """Clips of a latent store."""

    tensor, batch = "latents", ClipBatch


class Trajectories(Stored[TrajectoryBatch]):
    """Teacher trajectories of a store."""

    tensor, batch = "points", TrajectoryBatch


def tokens_of(patch: Sequence[int], batch: ClipBatch | TrajectoryBatch) -> int:
    """Tokens of a batch's clips, as a transformer with patches of this size (frames, height, width) sees them."""
    clips = batch.latents if isinstance(batch, ClipBatch) else batch.points[:, 0]
    return len(clips) * math.prod(side // p for side, p in zip(clips.shape[2:], patch, strict=True))


def roll_batch(
    roll: ClipRollout,
    generator: CausalWanTransformer3DModel,
    batch: ClipBatch,
    levels: Sequence[float],
    noise: Draws,
) -> Tensor:
    """Roll the generator out over its own outputs from a batch's images and prompts (Eq. 4, Eq. 7)."""
    return roll(
        generator,
        batch.image,
        batch.text,
        noise.normal(batch.latents[:, :, 1:]),
        levels=levels,
        renoise=noise.normal,
    )


def by_noise_level(name: str, values: Tensor, level: Tensor) -> dict[str, float]:
    """Mean of ``values`` [batch] in three bands of the noise level [batch], for the log; empty bands are left out."""
    band = (level * len(NOISE_BANDS)).long().clamp_max(len(NOISE_BANDS) - 1)
    parts = {f"{name}_t_{which}": values[band == i] for i, which in enumerate(NOISE_BANDS)}
    return {key: float(part.mean()) for key, part in parts.items() if len(part)}
