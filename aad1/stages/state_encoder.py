"""Train the state encoder: from 17 frames of the embedded world, where everything is, and how it moves.

Windows are drawn from the training split's scenes, each object at a speed of its own between rest and more than the
world's, half of them blurred and half with unsteady positions, so that the features also tell clips apart that no
true clip resembles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from aad1.data.media import video_to_tensor
from aad1.data.world import HUES, SHAPES, Scene, Truth, make_clip, render, rng_for, sample_scene, simulate
from aad1.limits import Count, Positive, Weight
from aad1.models.checkpoint_io import save_component
from aad1.models.state_encoder import MIDDLE, PART, SCALES, STEP, WINDOW, State, StateEncoder
from aad1.stages.base import PlainStage
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws

TRAINING_WINDOWS = 1_000_000
STATISTICS_CLIPS = 512  # of the training split, for the features' mean and covariance
WINDOWS_OF_A_CLIP = 5


@dataclass(frozen=True, kw_only=True)
class StateEncoderConfig(LoopConfig):
    """channels: of the three convolutions; hidden: width of the layer behind them; features: numbers for a window.

    fastest: speeds are multiplied by up to this; softest, roughest: largest blur, and noise on positions, in px;
    validation: how many held-out clips, of five windows each.
    """

    optimizer: OptimizerConfig
    channels: tuple[Count, Count, Count] = (16, 32, 32)
    hidden: Count = 128
    features: Count = 64
    fastest: Positive = 1.6
    softest: Weight = 1.2
    roughest: Weight = 1.0
    validation: Count = 64


class Window(NamedTuple):
    """windows: [batch, 3, WINDOW, 64, 64] in [-1, 1]; state: what they truly show."""

    frames: Tensor
    state: State


@dataclass(frozen=True)
class StateWindows:
    """The beginnings of the training split's scenes, at many speeds, and some of them spoilt."""

    fastest: float
    softest: float
    roughest: float
    count: int = TRAINING_WINDOWS

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> Window:
        """The windows of these indices, from which everything in them derives."""
        return collate([self._window(index) for index in indices])

    def _window(self, index: int) -> Shown:
        scene = sample_scene("train", index, "free")
        rng = np.random.default_rng(rng_for("train", index).integers(2**63))  # apart from the scene's own stream
        factors = rng.uniform(0, self.fastest, len(scene.shapes))
        truth = simulate(_paced(scene, factors), WINDOW)
        softness, roughness = (_half_the_time(rng, most) for most in (self.softest, self.roughest))
        frames = render(scene, truth.positions + rng.normal(0, roughness, truth.positions.shape))
        return Shown(blurred(frames, softness), truth, softness, roughness)


def _paced(scene: Scene, factors: NDArray[np.float64]) -> Scene:
    """The scene with each shape's velocity multiplied."""
    shapes = ((s, float(k)) for s, k in zip(scene.shapes, factors, strict=True))
    return replace(scene, shapes=tuple(replace(s, velocity=(k * s.velocity[0], k * s.velocity[1])) for s, k in shapes))


def _half_the_time(rng: np.random.Generator, most: float) -> float:
    """A number up to ``most``, or 0."""
    return float(rng.uniform(0, most)) * int(rng.integers(2))


def blurred(frames: NDArray[np.uint8], width: float) -> NDArray[np.uint8]:
    """Frames [frames, height, width, 3] through a Gaussian of this standard deviation in px."""
    return ndimage.gaussian_filter(frames, (0, width, width, 0)) if width else frames


class Shown(NamedTuple):
    """Frames [WINDOW, 64, 64, 3], what truly happens in them, and in what condition they are."""

    frames: NDArray[np.uint8]
    truth: Truth
    softness: float = 0.0
    roughness: float = 0.0


def collate(shown: Sequence[Shown]) -> Window:
    """Windows as one batch."""
    states = zip(*(true_state(one) for one in shown), strict=True)
    return Window(video_to_tensor(np.stack([one.frames for one in shown])), State(*(torch.stack(s) for s in states)))


def true_state(shown: Shown) -> State:
    """What a window shows: [hues, ...], 0 for a hue that is not there."""
    truth, count = shown.truth, len(HUES)
    state = State(
        torch.zeros(count),
        torch.zeros(count, 2),
        torch.zeros(count, 2),
        torch.zeros(count),
        torch.zeros(count),
        torch.zeros(count, len(SHAPES)),
        torch.tensor(shown.softness),
        torch.tensor(shown.roughness),
    )
    for i, shape in enumerate(truth.scene.shapes):
        hue = list(HUES).index(shape.hue)
        state.presence[hue], state.radius[hue] = 1.0, shape.radius
        state.position[hue] = torch.from_numpy(truth.positions[i, MIDDLE])
        state.velocity[hue] = torch.from_numpy(truth.velocities[i, MIDDLE])
        state.speed[hue] = float(truth.speeds[i].mean())
        state.shape[hue, SHAPES.index(shape.shape)] = 1.0
    return state


def held_out_windows(count: int) -> Iterator[Window]:
    """The windows of ``count`` true clips of the validation split, a batch a clip."""
    yield from (whole_clip("val", index) for index in range(count))


def whole_clip(split: str, index: int) -> Window:
    """The WINDOWS_OF_A_CLIP windows of one clip; neighbours share a frame."""
    clip = make_clip(split, index, 1 + WINDOWS_OF_A_CLIP * STEP)
    spans = [slice(start, start + WINDOW) for start in range(0, WINDOWS_OF_A_CLIP * STEP, STEP)]
    return collate([Shown(clip.frames[span], _part(clip.truth, span)) for span in spans])


def _part(truth: Truth, span: slice) -> Truth:
    return Truth(truth.scene, truth.positions[:, span], truth.velocities[:, span], truth.events[:, span])


@dataclass
class StateEncoderStage(PlainStage):
    """The encoder is the only player."""

    config: StateEncoderConfig
    encoder: StateEncoder
    name: str = PART
    players: Mapping[str, Player] = field(init=False)
    dataset: StateWindows = field(init=False)

    def __post_init__(self) -> None:
        self.players = {"encoder": Player("encoder", self.encoder, self.config.optimizer)}
        self.dataset = StateWindows(self.config.fastest, self.config.softest, self.config.roughest)

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("encoder",)

    def loss(self, turn: Turn, batch: Window, noise: Draws) -> Loss:
        """Cross-entropy of presence and of the present objects' shapes, and squared errors of all else, by SCALES."""
        found, true = self.encoder.state(batch.frames.to(self.encoder.device)), _to(batch.state, self.encoder.device)
        there = true.presence > 0
        errors = {
            "presence": F.binary_cross_entropy_with_logits(found.presence, true.presence),
            "shape": F.cross_entropy(found.shape[there], true.shape[there]),
        }
        for name, (_, spread) in SCALES.items():
            error = (getattr(found, name) - getattr(true, name)) / spread
            errors[name] = (error[there] if error.shape[:2] == there.shape else error).square().mean()
        return Loss(torch.stack(list(errors.values())).sum(), {name: float(e.detach()) for name, e in errors.items()})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """How well the state of held-out clips is read, by ``scores``."""
        return scores(self.encoder, self._held_out)

    @cached_property
    def _held_out(self) -> list[Window]:
        return list(held_out_windows(self.config.validation))

    def export(self, folder: Path) -> Path:
        """Save the averaged encoder, its features white over true clips."""
        with self.players["encoder"].averaged():
            clips = (whole_clip("train", index).frames for index in range(STATISTICS_CLIPS))
            self.encoder.whiten([frames.to(self.encoder.device) for frames in clips])
            save_component(self.encoder, folder / PART)
        return folder / PART


def _to(state: State, device: torch.device) -> State:
    return State(*(part.to(device) for part in state))


@torch.no_grad()
def scores(encoder: StateEncoder, batches: Sequence[Window]) -> dict[str, float]:
    """How well an encoder reads windows: R^2 (1 is perfect), mean errors in px, and shares answered right.

    R^2 = 1 - sum of squared errors / sum of squared deviations from the mean, over the objects that are there.
    """
    parts = [(encoder.state(b.frames.to(encoder.device)), _to(b.state, encoder.device)) for b in batches]
    found, true = (State(*(torch.cat(part) for part in zip(*side, strict=True))) for side in zip(*parts, strict=True))
    there = true.presence > 0
    result = {"presence": float(((found.presence > 0) == there).float().mean())}
    for name in ("position", "velocity", "speed", "radius"):
        a, b = getattr(found, name)[there], getattr(true, name)[there]
        result[f"{name}_r2"] = float(1 - (a - b).square().sum() / (b - b.mean(0)).square().sum())
        result[f"{name}_error"] = float(((a - b).norm(dim=-1) if a.ndim > 1 else (a - b).abs()).mean())
    result["shape"] = float((found.shape.argmax(-1) == true.shape.argmax(-1))[there].float().mean())
    return result
