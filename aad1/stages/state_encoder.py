"""Train the state encoder: from 17 frames of the embedded world, where everything is, and how it moves.

Windows are drawn afresh from the training split's scenes, each object at a speed of its own between rest and more
than the world's, so that the features also tell clips apart that no true clip resembles: slow, frozen and hasty ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from aad1.data.media import video_to_tensor
from aad1.data.world import HUES, SHAPES, Scene, Truth, make_clip, render, rng_for, sample_scene, simulate
from aad1.limits import Count, Positive
from aad1.models.checkpoint_io import save_component
from aad1.models.state_encoder import PART, PATH, RADIUS_SPREAD, REACH, STEP, WINDOW, State, StateEncoder
from aad1.stages.base import PlainStage
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.player import OptimizerConfig, Player

TRAINING_WINDOWS = 1_000_000
STATISTICS_CLIPS = 256  # of the training split, for the features' mean and variance
WINDOWS_OF_A_CLIP = 5


@dataclass(frozen=True, kw_only=True)
class StateEncoderConfig(LoopConfig):
    """channels: of the five convolutions; features: how many numbers describe a window.

    fastest: speeds are multiplied by up to this; validation: how many held-out clips, of five windows each.
    """

    optimizer: OptimizerConfig
    channels: Annotated[tuple[Count, ...], Field(min_length=5, max_length=5)] = (16, 32, 64, 64, 48)
    features: Count = 64
    fastest: Positive = 1.6
    validation: Count = 64


class Window(NamedTuple):
    """windows: [batch, 3, WINDOW, 64, 64] in [-1, 1]; state: what they truly show."""

    frames: Tensor
    state: State


@dataclass(frozen=True)
class StateWindows:
    """The beginnings of the training split's scenes, at many speeds."""

    fastest: float
    count: int = TRAINING_WINDOWS

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> Window:
        """The windows of these indices, from which everything in them derives."""
        truths = [simulate(self._scene(index), WINDOW) for index in indices]
        return collate([(render(t.scene, t.positions), t) for t in truths])

    def _scene(self, index: int) -> Scene:
        scene = sample_scene("train", index, "free")
        scales = np.random.default_rng(rng_for("train", index).integers(2**63)).uniform(
            0, self.fastest, len(scene.shapes)
        )
        shapes = zip(scene.shapes, scales, strict=True)
        return replace(scene, shapes=tuple(replace(s, velocity=_scaled(s.velocity, k)) for s, k in shapes))


def _scaled(velocity: tuple[float, float], factor: float) -> tuple[float, float]:
    return velocity[0] * factor, velocity[1] * factor


def collate(clips: Sequence[tuple[np.ndarray, Truth]]) -> Window:
    """Frames and truths of windows as one batch."""
    frames, truths = zip(*clips, strict=True)
    states = [true_state(truth) for truth in truths]
    return Window(video_to_tensor(np.stack(frames)), State(*(torch.stack(part) for part in zip(*states, strict=True))))


def true_state(truth: Truth) -> State:
    """What a window of WINDOW frames shows: [hues, ...], 0 for a hue that is not there."""
    state = State(
        torch.zeros(len(HUES)),
        torch.zeros(len(HUES), len(PATH), 2),
        torch.zeros(len(HUES), 2),
        torch.zeros(len(HUES)),
        torch.zeros(len(HUES)),
        torch.zeros(len(HUES), len(SHAPES)),
    )
    for i, shape in enumerate(truth.scene.shapes):
        hue = list(HUES).index(shape.hue)
        state.presence[hue], state.radius[hue] = 1.0, shape.radius
        state.path[hue] = torch.from_numpy(truth.positions[i, list(PATH)])
        state.velocity[hue] = torch.from_numpy(truth.velocities[i, STEP // 2])
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
    return collate([(clip.frames[span], _part(clip.truth, span)) for span in spans])


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
        self.dataset = StateWindows(self.config.fastest)

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("encoder",)

    def loss(self, turn: Turn, batch: Window, noise: torch.Generator) -> Loss:
        """Cross-entropy of presence and of the present objects' shapes, and squared errors of the rest of their state.

        Positions count in units of a quarter of the picture, radii in their spread, speeds in px a frame.
        """
        found, true = self.encoder.state(batch.frames.to(self.encoder.device)), _to(batch.state, self.encoder.device)
        there = true.presence > 0
        errors = {
            "presence": F.binary_cross_entropy_with_logits(found.presence, true.presence),
            "path": ((found.path - true.path)[there] / REACH).square().mean(),
            "velocity": (found.velocity - true.velocity)[there].square().mean(),
            "speed": (found.speed - true.speed)[there].square().mean(),
            "radius": ((found.radius - true.radius)[there] / RADIUS_SPREAD).square().mean(),
            "shape": F.cross_entropy(found.shape[there], true.shape[there]),
        }
        return Loss(torch.stack(list(errors.values())).sum(), {name: float(e.detach()) for name, e in errors.items()})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """How well the state of held-out clips is read, by ``scores``."""
        return scores(self.encoder, self._held_out)

    @cached_property
    def _held_out(self) -> list[Window]:
        return list(held_out_windows(self.config.validation))

    def export(self, folder: Path) -> Path:
        """Save the averaged encoder, its features of mean 0 and variance 1 over true clips."""
        with self.players["encoder"].averaged():
            clips = (whole_clip("train", index).frames for index in range(STATISTICS_CLIPS))
            self.encoder.standardise([frames.to(self.encoder.device) for frames in clips])
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
    for name in ("path", "velocity", "speed", "radius"):
        a, b = getattr(found, name)[there], getattr(true, name)[there]
        result[f"{name}_r2"] = float(1 - (a - b).square().sum() / (b - b.mean(0)).square().sum())
        result[f"{name}_error"] = float(((a - b).norm(dim=-1) if a.ndim > 1 else (a - b).abs()).mean())
    result["shape"] = float((found.shape.argmax(-1) == true.shape.argmax(-1))[there].float().mean())
    return result
