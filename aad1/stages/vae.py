"""Train the video autoencoder of an embedded folder: L1 + MSE + KL on crops around the moving shapes.

A convolutional VAE trained on small crops works on whole frames, at a fraction of the cost; its
latent statistics are then measured on whole clips and written into its config, as Wan's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from aad1.data.media import VideoWriter, tensor_to_video, video_to_tensor
from aad1.data.world import SIZE, make_clip
from aad1.models.checkpoint_io import save_component
from aad1.stages.base import PlainStage
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.player import OptimizerConfig, Player

WORLD_TRAIN_SCENES = 1_000_000
LONGEST_START = 16
STATISTICS_CLIPS = 64
VALIDATION_CLIPS = 8


@dataclass(frozen=True, kw_only=True)
class VaeConfig(LoopConfig):
    """crop: side in pixels; frames: 1 + 4n pixel frames a sample; weights of the squared error and of the KL."""

    optimizer: OptimizerConfig
    crop: int = 32
    frames: int = 9
    mse_weight: float = 2.0
    kl_weight: float = 1e-4


@dataclass(frozen=True)
class WorldCrops:
    """Crops of world clips that hold at least one shape, [batch, 3, frames, crop, crop] in [-1, 1]."""

    crop: int
    frames: int
    count: int = WORLD_TRAIN_SCENES

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> Tensor:
        """The crops of these scenes; start, place and all else derive from the index."""
        return video_to_tensor(np.stack([self._crop(index) for index in indices]))

    def _crop(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        clip = make_clip("train", index, frames=self.frames, start=int(rng.integers(LONGEST_START)))
        positions = clip.truth.positions
        centre = positions[rng.integers(len(positions)), self.frames // 2] + rng.uniform(-10, 10, size=2)
        x, y = np.clip(centre - self.crop / 2, 0, SIZE - self.crop).astype(int)
        return clip.frames[:, y : y + self.crop, x : x + self.crop]


@dataclass
class VaeStage(PlainStage):
    """The autoencoder is the only player."""

    config: VaeConfig
    vae: AutoencoderKLWan
    name: str = "vae"
    players: Mapping[str, Player] = field(init=False)
    dataset: WorldCrops = field(init=False)

    def __post_init__(self) -> None:
        self.vae.requires_grad_(True)
        self.players = {"vae": Player("vae", self.vae, self.config.optimizer)}
        self.dataset = WorldCrops(self.config.crop, self.config.frames)

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("vae",)

    def loss(self, turn: Turn, batch: Tensor, noise: torch.Generator) -> Loss:
        """|x_hat - x| + w_mse (x_hat - x)^2 + w_kl KL(q(z|x) || N(0, 1)), means over elements."""
        posterior = self.vae.encode(batch).latent_dist
        eps = torch.randn(posterior.mean.shape, generator=noise).to(posterior.mean)
        error = self.vae.decode(posterior.mean + posterior.std * eps).sample - batch
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        mse = error.square().mean()
        value = error.abs().mean() + self.config.mse_weight * mse + self.config.kl_weight * kl
        return Loss(value, {"psnr": psnr(mse), "kl": float(kl.detach())})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """PSNR (dB) on whole held-out clips; truth above, reconstruction below, in an mp4."""
        clips = np.stack([make_clip("val", index, frames=17).frames for index in range(VALIDATION_CLIPS)])
        frames = video_to_tensor(clips)
        decoded = self.vae.decode(self.vae.encode(frames).latent_dist.mode()).sample.clamp(-1, 1)
        rows = np.concatenate([tensor_to_video(frames), tensor_to_video(decoded)], axis=2)
        samples.mkdir(parents=True, exist_ok=True)
        with VideoWriter(samples / f"step-{step:06d}.mp4", fps=8, scale=2) as video:
            video.write(np.concatenate(list(rows), axis=2))
        return {"psnr": psnr((decoded - frames).square().mean())}

    def export(self, folder: Path) -> Path:
        """Save the averaged autoencoder with the statistics of its latents."""
        with self.players["vae"].averaged(), torch.no_grad():
            mean, std = latent_statistics(self.vae)
            self.vae.register_to_config(latents_mean=mean, latents_std=std)
            save_component(self.vae, folder / "vae")
        return folder / "vae"


def psnr(mse: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of frames in [-1, 1]."""
    return float(-10 * torch.log10(mse.detach() / 4))


def latent_statistics(vae: AutoencoderKLWan) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over whole training clips."""
    latents = []
    for index in range(STATISTICS_CLIPS):
        clip = make_clip("train", index, frames=33)
        latents.append(vae.encode(video_to_tensor(clip.frames[None])).latent_dist.mode())
    values = torch.cat(latents).transpose(0, 1).flatten(1)
    return values.mean(1).tolist(), values.std(1).tolist()
