"""Chunkwise causal encoding and decoding around ``AutoencoderKLWan``; each stream owns its cache.

Axes: frames are float [batch, 3, frames, height, width] in [-1, 1]; latents are normalised
[batch, channels, frames, height, width]. The first frame is a latent frame of its own, every later
latent frame is ``temporal`` frames. ``AutoencoderKLWan.encode`` keeps its cache in the module and
clears it; here the same submodules are called with a cache per stream, so that streams can share a VAE.

Nothing here switches gradients off: freeze the VAE's parameters (``WanFolder.vae`` does) and no graph is
kept unless the input asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aad1.errors import UserError

PIXELS_AT_ONCE = 256 * 256  # latent frames in a pass x pixels of their pictures: large pictures go one by one


@dataclass(frozen=True)
class Geometry:
    """How pixels and latents correspond: frames per later latent frame, pixels per latent pixel, channels."""

    temporal: int
    spatial: int
    channels: int

    def latent_frames(self, frames: int) -> int:
        """Return the latent frames of a clip of ``frames`` frames (1 + temporal n); UserError for others."""
        if frames < 1 or (frames - 1) % self.temporal:
            lower = 1 + (max(frames, 1) - 1) // self.temporal * self.temporal
            raise UserError(
                f"{frames} frames do not fit the VAE: allowed are 1 + {self.temporal}n; "
                f"use {lower} or {lower + self.temporal}"
            )
        return 1 + (frames - 1) // self.temporal

    def frames(self, latent_frames: int) -> int:
        """Return how many frames a clip of ``latent_frames`` latent frames decodes to."""
        return 1 + self.temporal * (latent_frames - 1)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the latent (height, width) of a picture; UserError when the VAE's factor does not divide it."""
        if height % self.spatial or width % self.spatial:
            raise UserError(
                f"a picture of {width}x{height} does not fit the VAE: width and height must be multiples of "
                f"{self.spatial}; nearest smaller: {width // self.spatial * self.spatial}x"
                f"{height // self.spatial * self.spatial}"
            )
        return height // self.spatial, width // self.spatial


def geometry(vae: AutoencoderKLWan) -> Geometry:
    """Read the geometry from the VAE's config.

    Raises:
        UserError: when the declared factors are not those of its layers.
    """
    config = vae.config
    layers = 2 ** sum(config.temperal_downsample), 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
    declared = config.scale_factor_temporal, config.scale_factor_spatial
    if layers != declared:
        raise UserError(
            f"the VAE's config declares scale factors (temporal, spatial) {declared}, but its layers have {layers}; "
            "mend scale_factor_temporal and scale_factor_spatial"
        )
    return Geometry(*declared, config.z_dim)


# --- latents and pictures --------------------------------------------------------------------


def _moments(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """The config's mean and standard deviation of the latents, each [1, channels, 1, 1, 1]."""
    pair = torch.tensor([vae.config.latents_mean, vae.config.latents_std], dtype=like.dtype, device=like.device)
    mean, std = pair[:, None, :, None, None, None]
    return mean, std


def normalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """(z - latents_mean) / latents_std, per channel: what the transformer sees."""
    mean, std = _moments(vae, latents)
    return (latents - mean) / std


def denormalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """z latents_std + latents_mean, per channel: what the VAE's decoder sees."""
    mean, std = _moments(vae, latents)
    return latents * std + mean


# --- streams ---------------------------------------------------------------------------------


class _OneVideoKernels(TorchFunctionMode):
    """The same operations by kernels that suit one small video on a CPU; elsewhere nothing changes.

    PyTorch sends a small 3-D convolution of one clip to a kernel ten times slower than oneDNN's, and its norm
    over channels strides through memory; together they take two thirds of a streamed decoding (docs/log.md).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.normalize and args[0].device.type == "cpu" and kwargs["p"] == 2:
            x = args[0]
            return x / x.square().sum(kwargs["dim"], keepdim=True).sqrt().clamp_min(kwargs["eps"])
        if func is torch.conv3d and not kwargs and _suits_onednn(args[0]):
            x, weight, bias, stride, padding, dilation, groups = args
            return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
        return func(*args, **(kwargs or {}))


def _suits_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class _Stream:
    """A position in a video and the features that the next chunk's convolutions need."""

    def __init__(self, vae: AutoencoderKLWan, part: nn.Module, frames_per_call: int | None) -> None:
        self.vae = vae
        self.geometry = geometry(vae)
        self._slots = sum(isinstance(module, WanCausalConv3d) for module in part.modules())
        self._frames_per_call = frames_per_call
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next chunk begins a video."""
        self._cache: list[Tensor | str | None] = [None] * self._slots
        self.latent_frames = 0

    def _split(self, count: int, pixels: int) -> list[int]:
        """Split ``count`` latent frames of ``pixels`` (batch included) into calls; a video's first is always alone."""
        first = [1] if self.latent_frames == 0 else []
        rest = count - len(first)
        size = self._frames_per_call or max(1, PIXELS_AT_ONCE // pixels)
        return first + [min(size, rest - done) for done in range(0, rest, size)]


class DecodeStream(_Stream):
    """Decodes a video chunk by chunk, as if it were decoded whole.

    ``frames_per_call`` is how many latent frames a pass of the decoder takes (None: as many as PIXELS_AT_ONCE
    allows, so that memory is bounded); it trades memory for speed and does not change the result.
    """

    def __init__(self, vae: AutoencoderKLWan, *, frames_per_call: int | None = None) -> None:
        super().__init__(vae, vae.decoder, frames_per_call)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next ``m`` normalised latent frames.

        Returns frames [batch, 3, n, height, width] in [-1, 1], with n = 1 + temporal (m - 1) for the
        video's first chunk and temporal m for every later one.
        """
        z = self.vae.post_quant_conv(denormalise(self.vae, latents.to(self.vae.dtype)))
        pieces, pixels = [], z[:, 0, 0].numel() * self.geometry.spatial**2
        for part in z.split(self._split(z.shape[2], pixels), dim=2):
            first = self.latent_frames == 0
            with _OneVideoKernels():
                pieces.append(self.vae.decoder(part, feat_cache=self._cache, feat_idx=[0], first_chunk=first))
            self.latent_frames += part.shape[2]
        return unpatchify(torch.cat(pieces, 2), self.vae.config.patch_size or 1).clamp(-1, 1)


class EncodeStream(_Stream):
    """Encodes a video chunk by chunk, as if it were encoded whole; arguments as for DecodeStream."""

    def __init__(self, vae: AutoencoderKLWan, *, frames_per_call: int | None = None) -> None:
        super().__init__(vae, vae.encoder, frames_per_call)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode the next frames: 1 + temporal n at the video's beginning, temporal n later.

        Returns normalised latents [batch, channels, m, h, w], the posterior's mode.

        Raises:
            UserError: when the frames or the picture size do not divide.
        """
        self.geometry.latent_size(*frames.shape[-2:])
        x = patchify(frames.to(self.vae.dtype), self.vae.config.patch_size or 1)
        pieces = []
        for count in self._split(self._latent_frames(frames.shape[2]), frames[:, 0, 0].numel()):
            pixels = 1 if self.latent_frames == 0 else count * self.geometry.temporal
            part, x = x[:, :, :pixels], x[:, :, pixels:]
            with _OneVideoKernels():
                pieces.append(self.vae.encoder(part, feat_cache=self._cache, feat_idx=[0]))
            self.latent_frames += count
        mode = self.vae.quant_conv(torch.cat(pieces, 2)).chunk(2, dim=1)[0]
        return normalise(self.vae, mode)

    def _latent_frames(self, frames: int) -> int:
        if self.latent_frames == 0:
            return self.geometry.latent_frames(frames)
        if frames < 1 or frames % self.geometry.temporal:
            raise UserError(
                f"{frames} frames do not continue a video: allowed are multiples of {self.geometry.temporal}"
            )
        return frames // self.geometry.temporal


def encode_video(vae: AutoencoderKLWan, frames: Tensor, *, frames_per_call: int | None = None) -> Tensor:
    """Encode frames [B, 3, 1 + temporal n, H, W] in [-1, 1] -> normalised latents [B, C, 1 + n, h, w].

    Raises:
        UserError: when the number of frames or the picture size does not divide.
    """
    return EncodeStream(vae, frames_per_call=frames_per_call).encode(frames)


def encode_image(vae: AutoencoderKLWan, image: Tensor) -> Tensor:
    """Encode a picture [B, 3, H, W] (or [B, 3, 1, H, W]) in [-1, 1] -> one latent frame [B, C, 1, h, w].

    Raises:
        UserError: when the picture's size does not divide.
    """
    return encode_video(vae, image if image.ndim == 5 else image[:, :, None])


def decode_video(vae: AutoencoderKLWan, latents: Tensor, *, frames_per_call: int | None = None) -> Tensor:
    """Decode normalised latents [B, C, 1 + n, h, w] -> frames [B, 3, 1 + temporal n, H, W] in [-1, 1]."""
    return DecodeStream(vae, frames_per_call=frames_per_call).decode(latents)
