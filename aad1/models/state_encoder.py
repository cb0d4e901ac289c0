"""A small 3-D convolutional network that says what a window of the embedded world shows.

It is trained to regress the state (where, how fast, how large and of which shape the object of every hue is), so
its features change with motion; those of an untrained network hardly do. Distances between distributions of videos
are taken on these features (``evaluation.distribution``).

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

from aad1.data.world import HUES, SHAPES, SIZE
from aad1.errors import UserError
from aad1.models.checkpoint_io import bundled, whole_model

WINDOW = 17  # frames: a chunk of 16 and the frame before it, so that neighbouring windows share one frame
STEP = WINDOW - 1
PATH = (0, STEP // 2, STEP)  # frames of a window whose positions are regressed
PART = "state_encoder"  # its subfolder of a model folder
GROUPS = 4
CONVOLUTIONS = ((5, (2, 2, 2)), (3, (1, 2, 2)), (3, (2, 2, 2)), (3, (2, 1, 1)), (3, (1, 2, 2)))  # side, stride
CENTRE, REACH = SIZE / 2, SIZE / 4  # a position p is regressed as (p - CENTRE) / REACH
MIDDLE_RADIUS, RADIUS_SPREAD = 5.5, 0.6  # px


class State(NamedTuple):
    """What a window shows, for every hue.

    presence: logit (or 0 and 1); path: [..., len(PATH), 2] px; velocity: [..., 2] px a frame at the middle;
    speed: mean over the window, px a frame; radius: px; shape: [..., shapes] logits (or one-hot). The last five
    mean something only where the hue is present.
    """

    presence: Tensor
    path: Tensor
    velocity: Tensor
    speed: Tensor
    radius: Tensor
    shape: Tensor


WIDTHS = (1, 2 * len(PATH), 2, 1, 1, len(SHAPES))  # of the six parts of a state


class StateEncoder(ModelMixin, ConfigMixin):
    """Five strided convolutions, one linear layer to the features, and a linear head for the state.

    channels: of the five convolutions; features: how many.
    """

    feature_mean: Tensor
    feature_std: Tensor

    @register_to_config
    def __init__(self, channels: Sequence[int] = (16, 32, 64, 64, 48), features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (across, stride), before, after in zip(CONVOLUTIONS, (3, *channels[:-1]), channels, strict=True):
            kernel, padding = (3, across, across), (1, across // 2, across // 2)
            layers += [nn.Conv3d(before, after, kernel, stride, padding), nn.GroupNorm(GROUPS, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.to_features = nn.Sequential(nn.Linear(channels[-1] * 3 * (SIZE // 16) ** 2, features), nn.SiLU())
        self.head = nn.Linear(features, len(HUES) * sum(WIDTHS))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))

    def forward(self, windows: Tensor) -> Tensor:
        """Features of windows, each of mean 0 and variance 1 over the world's true clips."""
        return (self._raw(windows) - self.feature_mean) / self.feature_std

    def state(self, windows: Tensor) -> State:
        """What the windows show."""
        found = self.head(self._raw(windows)).unflatten(-1, (len(HUES), sum(WIDTHS)))
        presence, path, velocity, speed, radius, shape = found.split(WIDTHS, dim=-1)
        return State(
            presence.squeeze(-1),
            CENTRE + REACH * path.unflatten(-1, (len(PATH), 2)),
            velocity,
            1 + speed.squeeze(-1),
            MIDDLE_RADIUS + RADIUS_SPREAD * radius.squeeze(-1),
            shape,
        )

    @torch.no_grad()
    def standardise(self, windows: Sequence[Tensor]) -> None:
        """Give every feature mean 0 and variance 1 over these batches of windows."""
        raw = torch.cat([self._raw(part) for part in windows])
        self.feature_mean.copy_(raw.mean(0))
        self.feature_std.copy_(raw.std(0).clamp_min(1e-3))

    def _raw(self, windows: Tensor) -> Tensor:
        return cast(Tensor, self.to_features(self.trunk(windows)))


def load_state_encoder(folder: Path | None = None, device: str = "cpu") -> StateEncoder:
    """The state encoder of a model folder (by default the bundled one), frozen.

    Raises UserError when its weights are missing or damaged.
    """
    path = (folder or bundled("tiny")) / PART
    if not path.is_dir():
        raise UserError(
            f"'{path.parent}' has no {PART}; `aad1 train {PART} --install` makes one, or use that of the bundled folder"
        )
    model: StateEncoder = whole_model(StateEncoder, path)
    return model.to(device).eval().requires_grad_(False)
