"""A small 3-D convolutional network that says what a window of the embedded world shows.

It is trained to regress the state (where, how fast, how large and of which shape the object of every hue is) and the
condition of the picture (how soft, how unsteady), so its features change with motion; those of an untrained network
hardly do. Distances between distributions of videos are taken on these features (``evaluation.distribution``).

Axes: windows are float [batch, 3, WINDOW, 64, 64] in [-1, 1]; features [batch, features]; states [batch, hues, ...]
in the order of ``world.HUES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from aad1.data.world import HUES, SHAPES
from aad1.errors import UserError
from aad1.models.checkpoint_io import bundled
from aad1.models.loading import whole_model

WINDOW = 17  # frames: a chunk of 16 and the frame before it, so that neighbouring windows share one frame
STEP = WINDOW - 1
MIDDLE = STEP // 2  # the frame of a window whose positions and velocities are regressed
PART = "state_encoder"  # its subfolder of a model folder
GROUPS = 4
TIMES = STEP // 2 + 1  # moments that the convolutions leave
CONTRAST = 4.0  # of the maps that places are read from
LEAST_VARIANCE = 1e-3  # of the largest: directions in which features hardly vary are not blown up


class State(NamedTuple):
    """What a window shows, for every hue; and of the whole window, softness and roughness, [batch] px.

    presence: logit (or 0 and 1); position: [..., 2] px and velocity: [..., 2] px a frame, both of the middle frame;
    speed: mean over the window, px a frame; radius: px; shape: [..., shapes] logits (or one-hot): the last five
    mean something only where the hue is present. softness: width of a Gaussian blur; roughness: standard deviation
    of the noise on positions.
    """

    presence: Tensor
    position: Tensor
    velocity: Tensor
    speed: Tensor
    radius: Tensor
    shape: Tensor
    softness: Tensor
    roughness: Tensor


SCALES = {"position": (32.0, 16.0), "velocity": (0.0, 1.0), "speed": (1.0, 0.6), "radius": (5.5, 0.6)} | {
    "softness": (0.3, 0.4),
    "roughness": (0.25, 0.3),
}  # middle and spread of each, in px: what is regressed is (value - middle) / spread
WIDTHS = (1, 2, 2, 1, 1, len(SHAPES))  # of a hue's parts of a state
HUES_WIDTH = len(HUES) * sum(WIDTHS)


class StateEncoder(ModelMixin, ConfigMixin):
    """3-D convolutions, whose last maps are read as places (a softmax over space); two layers to the features.

    channels: of the convolutions; hidden: width between places and features; features: how many. The state is a
    linear function of the features.
    """

    feature_mean: Tensor
    whitening: Tensor

    @register_to_config
    def __init__(self, channels: Sequence[int] = (16, 32, 32), hidden: int = 128, features: int = 64) -> None:
        super().__init__()
        first, second, last = channels
        self.trunk = nn.Sequential(
            *_convolution(3, first, (3, 5, 5), (2, 2, 2)),
            *_convolution(first, second, (3, 3, 3), (1, 2, 2)),
            *_convolution(second, last, (3, 3, 3), (1, 1, 1)),
        )
        self.to_maps = nn.Conv3d(last, last, (1, 3, 3), padding=(0, 1, 1))
        read = nn.Linear(4 * last * TIMES, hidden)
        self.to_features = nn.Sequential(read, nn.SiLU(), nn.Linear(hidden, features))
        self.head = nn.Linear(features, HUES_WIDTH + 2)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("whitening", torch.eye(features))

    def forward(self, windows: Tensor) -> Tensor:
        """Features of windows; over the world's true clips their mean is 0 and their covariance the unit matrix."""
        return (self._raw(windows) - self.feature_mean) @ self.whitening

    def state(self, windows: Tensor) -> State:
        """What the windows show."""
        found = self.head(self._raw(windows))
        each = found[:, :HUES_WIDTH].unflatten(-1, (len(HUES), sum(WIDTHS)))
        presence, position, velocity, speed, radius, shape = (p.squeeze(-1) for p in each.split(WIDTHS, dim=-1))
        softness, roughness = found[:, HUES_WIDTH:].unbind(-1)
        raw = State(presence, position, velocity, speed, radius, shape, softness, roughness)
        scaled = {name: middle + spread * getattr(raw, name) for name, (middle, spread) in SCALES.items()}
        return raw._replace(**scaled)

    @torch.no_grad()
    def whiten(self, windows: Sequence[Tensor]) -> None:
        """Give the features mean 0 and unit covariance over these batches of windows."""
        raw = torch.cat([self._raw(part) for part in windows]).double()
        variances, directions = torch.linalg.eigh(raw.T.cov())
        scales = variances.clamp_min(LEAST_VARIANCE * float(variances.max())).rsqrt()
        self.feature_mean.copy_(raw.mean(0))
        self.whitening.copy_(directions * scales)

    def _raw(self, windows: Tensor) -> Tensor:
        hidden = self.trunk(windows)
        maps = CONTRAST * self.to_maps(hidden).flatten(-2)
        where = maps.softmax(-1) @ _grid(hidden)
        read = [where.flatten(1), maps.logsumexp(-1).flatten(1), hidden.mean((-2, -1)).flatten(1)]
        return cast(Tensor, self.to_features(torch.cat(read, dim=1)))


def _convolution(
    before: int, after: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> tuple[nn.Module, ...]:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(before, after, kernel, stride, padding), nn.GroupNorm(GROUPS, after), nn.SiLU()


def _grid(maps: Tensor) -> Tensor:
    """Places (x, y) in [-1, 1] of the pixels of maps [..., height, width], flattened: [height width, 2]."""
    height, width = maps.shape[-2:]
    y, x = (torch.linspace(-1, 1, side, device=maps.device, dtype=maps.dtype) for side in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def load_state_encoder(folder: Path | None = None, device: str = "cpu") -> StateEncoder:
    """The state encoder of a model folder (by default the bundled one), frozen.

    Raises UserError when its weights are missing or damaged.
    """
    path = (folder or bundled("tiny")) / PART
    if not path.is_dir():
        raise UserError(
            f"'{path.parent}' has no {PART}; `aad1 train {PART} --install` makes one, or use that of the bundled folder"
        )
    model: StateEncoder = whole_model(StateEncoder, path, torch.float32, str(device))
    return model.eval().requires_grad_(False)
