"""Train the video autoencoder of an embedded folder: L1 + MSE on small windows full of moving shapes.

A convolutional VAE trained on small windows works on whole frames, at a fraction of the cost; its
latent statistics are then measured on whole clips and written into its config, as Wan's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import Tensor, nn

from aad1.data.media import VideoWriter, tensor_to_video, video_to_tensor
from aad1.data.world import crowded_frames, make_clip, rng_for
from aad1.limits import Count, Weight
from aad1.models.checkpoint_io import save_component
from aad1.models.vae import Geometry, geometry
from aad1.stages.base import PlainStage
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws

TRAINING_WINDOWS = 1_000_000
STATISTICS_CLIPS = 64
VALIDATION_CLIPS = 8
ANCHORED = 12  # latent channels: three colours of four quarters


@dataclass(frozen=True, kw_only=True)
class VaeConfig(LoopConfig):
    """window: side in pixels; frames: 1 + 4n pixel frames a sample; shapes: in every window.

    mse_weight, latent_weight: of the squared error and of the latents' mean square, beside an L1 of 1;
    anchor_weight: of the squared distance between the first twelve latent channels and ``anchors``.
    """

    optimizer: OptimizerConfig
    window: Count = 32
    frames: Count = 9
    shapes: Count = 4
    mse_weight: Weight = 2.0
    latent_weight: Weight = 1e-5
    anchor_weight: Weight = 0.0


@dataclass(frozen=True)
class CrowdedWindows:
    """Small windows full of the world's shapes, [batch, 3, frames, size, size] in [-1, 1]."""

    size: int
    frames: int
    shapes: int
    count: int = TRAINING_WINDOWS

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> Tensor:
        """The windows of these indices, from which everything in them derives."""
        rngs = [rng_for("train", index) for index in indices]
        return video_to_tensor(np.stack([crowded_frames(rng, self.frames, self.size, self.shapes) for rng in rngs]))


@dataclass
class VaeStage(PlainStage):
    """The autoencoder is the only player."""

    config: VaeConfig
    vae: AutoencoderKLWan
    name: str = "vae"
    players: Mapping[str, Player] = field(init=False)
    dataset: CrowdedWindows = field(init=False)

    def __post_init__(self) -> None:
        self.vae.requires_grad_(True)
        self.players = {"vae": Player("vae", self.vae, self.config.optimizer)}
        self.dataset = CrowdedWindows(self.config.window, self.config.frames, self.config.shapes)

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("vae",)

    def loss(self, turn: Turn, batch: Tensor, noise: Draws) -> Loss:
        """|x_hat - x| + w_mse (x_hat - x)^2 + w_z z^2 + w_a (z_anchored - anchors(x))^2, means over elements.

        The latent is the posterior's mean: sampling it at this size of model and budget kept the
        shapes from being learnt at all (docs/log.md).
        """
        batch = batch.to(self.vae.device)
        latents = self.vae.encode(batch).latent_dist.mode()
        error = self.vae.decode(latents).sample - batch
        mse, size = error.square().mean(), latents.square().mean()
        value = error.abs().mean() + self.config.mse_weight * mse + self.config.latent_weight * size
        metrics = {"psnr": psnr(mse), "latent_square": float(size.detach())}
        if self.config.anchor_weight:
            anchor = (latents[:, :ANCHORED] - anchors(batch, geometry(self.vae))).square().mean()
            value = value + self.config.anchor_weight * anchor
            metrics["anchor"] = float(anchor.detach())
        return Loss(value, metrics)

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """PSNR (dB) on whole held-out clips; truth above, reconstruction below, in an mp4."""
        clips = np.stack([make_clip("val", index, frames=17).frames for index in range(VALIDATION_CLIPS)])
        frames = video_to_tensor(clips).to(self.vae.device)
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


def anchors(frames: Tensor, shape: Geometry) -> Tensor:
    """Mean colours of the four quarters of every latent pixel: frames [B, 3, n, H, W] -> [B, 12, m, h, w].

    Channels that are a small linear picture keep objects where they are and move as they move, so a transformer
    can follow them through noise; an autoencoder left alone finds codes that change with every fraction of a pixel.
    """
    side = shape.spatial // 2
    first, rest = F.avg_pool3d(frames[:, :, :1], (1, side, side)), frames[:, :, 1:]
    small = torch.cat([first, F.avg_pool3d(rest, (shape.temporal, side, side))], dim=2)
    return F.pixel_unshuffle(small.transpose(1, 2), 2).transpose(1, 2)


def psnr(mse: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of frames in [-1, 1]."""
    return float(-10 * torch.log10(mse.detach() / 4))


def calm_residuals(vae: AutoencoderKLWan) -> None:
    """Zero the last layer of every residual branch: a new residual autoencoder starts as its shortcuts alone."""
    for module in vae.modules():
        for last in _last_layers(module):
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)


def _last_layers(module: nn.Module) -> list[Any]:
    if isinstance(module, WanResidualBlock):
        return [module.conv2]
    if isinstance(module, WanAttentionBlock):
        return [module.proj]
    if isinstance(module, WanResample):
        return [layer for layer in module.resample.modules() if isinstance(layer, nn.Conv2d)]
    return []


def latent_statistics(vae: AutoencoderKLWan) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over whole training clips."""
    latents = []
    for index in range(STATISTICS_CLIPS):
        clip = make_clip("train", index, frames=33)
        latents.append(vae.encode(video_to_tensor(clip.frames[None]).to(vae.device)).latent_dist.mode())
    values = torch.cat(latents).transpose(0, 1).flatten(1)
    return values.mean(1).tolist(), values.std(1).tolist()
