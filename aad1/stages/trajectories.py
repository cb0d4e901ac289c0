"""The teacher's trajectories that stage I learns from: made once, stored, resumable.

Only the points at the levels used in training are kept. The grid, its shift and the guidance are part
of the store's manifest and are checked before stage I begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aad1.data.latents import LatentStore, Manifest, StoreWriter
from aad1.errors import UserError
from aad1.flow import euler_grid, grid_index, shifted_levels
from aad1.limits import Count, FallingLevels, Number, Positive
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import TextEncoder
from aad1.progress import Progress
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
    return Manifest("trajectories", held.encoder, held.fps, held.size, held.frames, extra=extra)


def origins_of(clips: LatentStore, count: int) -> list[dict[str, str]]:
    """The caption and the source of the clip behind each trajectory; clips are used again when they are too few."""
    rows = (clips.row(index % len(clips)) for index in range(count))
    return [{"caption": row["caption"], "source": row["source"]} for row in rows]


def make_trajectories(
    teacher: CausalWanTransformer3DModel,
    text: TextEncoder,
    clips: LatentStore,
    out: Path,
    config: TrajectoryConfig,
    *,
    teacher_hash: str,
    seed: int,
    negative_prompt: str,
) -> None:
    """Denoise the captions of ``clips`` from fresh noise and store the points; continues an unfinished store."""
    keep = stored_indices(config)
    with StoreWriter(out, manifest_for(config, clips, teacher_hash, seed, negative_prompt)) as writer:
        origins = origins_of(clips, max(config.count, writer.completed))
        writer.require_sources([origin["source"] for origin in origins], "trajectory")
        bar = Progress("trajectories", config.count, done=writer.completed, unit="clip")
        with bar:
            # Whole batches, also where a part of one is done: a result's last bits may depend on its neighbours.
            begun = writer.completed % config.batch if writer.completed < config.count else 0
            for start in range(writer.completed - begun, config.count, config.batch):
                indices = range(start, min(start + config.batch, config.count))
                noise = _noise(clips, indices, seed, teacher.device)
                image = _images(clips, indices, teacher.device) if config.clean_image else None
                texts = [origins[index]["caption"] for index in indices]
                points = _points(teacher, text, noise, image, texts, negative_prompt, config, keep)
                before = writer.completed
                for index, point in zip(indices, points, strict=True):
                    if index >= before:
                        writer.add({"points": point.half()}, origins[index])
                bar.advance(writer.completed - before)


def _noise(clips: LatentStore, indices: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Each trajectory's own noise, whatever its batch."""
    shape = clips.read([0])[0]["latents"].shape[1:]
    return torch.stack([torch.randn(shape, generator=generator_for(seed, "trajectories", i)) for i in indices]).to(
        device
    )


def _images(clips: LatentStore, indices: Sequence[int], device: torch.device) -> Tensor:
    """The first frames of the clips whose captions the trajectories follow."""
    tensors, _ = clips.read([index % len(clips) for index in indices])
    return tensors["latents"][:, :, :1].float().to(device)


def _points(
    teacher: CausalWanTransformer3DModel,
    text: TextEncoder,
    noise: Tensor,
    image: Tensor | None,
    captions: Sequence[str],
    negative_prompt: str,
    config: TrajectoryConfig,
    keep: Sequence[int],
) -> Tensor:
    """The kept points, [batch, levels, channels, frames, height, width]."""
    embedded = text.embed(captions).to(noise)
    negative = text.embed([negative_prompt]).to(noise).expand_as(embedded)
    grid = euler_grid(config.steps, config.shift)
    path = trajectory(teacher, noise, embedded, negative, grid=grid, guidance=config.guidance, image=image)
    wanted = set(keep)
    return torch.stack([latents for index, latents in enumerate(path) if index in wanted], dim=1)
