"""Train or fine-tune the bidirectional teacher: ordinary text-to-video flow matching with text dropout.

One noise level a clip, all frames together; dropped text is the empty prompt, so that the teacher can
be guided. For the embedded teacher it starts from random weights; for a user's data, from their folder.
A curriculum begins with what is learnt soonest: short clips near pure noise whose first frame is given, where
the caption alone tells how they go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from aad1.flow import add_noise, shift_t, with_clean_image
from aad1.limits import Count, Positive, Share
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_transformer
from aad1.objectives.flow_matching import flow_matching
from aad1.stages.base import PlainStage
from aad1.stages.batches import ClipBatch, LatentClips, by_noise_level
from aad1.stages.showing import Showing
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """shift: of the noise levels, towards noise; clean_image: share of clips whose first frame is given clean, as an
    image, and carries no loss; frames: so many latent frames of a clip are used at most, the first ones (None: all).
    """

    shift: Positive = 3.0
    clean_image: Share = 0.0
    frames: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Lesson(Exercise):
    """An exercise for so many steps."""

    steps: Count


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(LoopConfig, Exercise):
    """text_dropout: share of clips that get the empty prompt; curriculum: lessons of the first steps, one after the
    other, before the section's own exercise; learning rates know nothing of them.
    """

    optimizer: OptimizerConfig
    text_dropout: Share = 0.1
    curriculum: tuple[Lesson, ...] = ()

    def exercise(self, step: int) -> Exercise:
        """What is practised at ``step``, counted from 0."""
        for lesson in self.curriculum:
            if step < lesson.steps:
                return lesson
            step -= lesson.steps
        return self


@dataclass
class TeacherStage(PlainStage):
    """The teacher is the only player. ``empty_text``: the embedded empty prompt, [1, length, dim]."""

    config: TeacherConfig
    teacher: CausalWanTransformer3DModel
    dataset: LatentClips
    empty_text: Tensor
    showing: Showing
    name: str = "teacher"
    players: Mapping[str, Player] = field(init=False)

    def __post_init__(self) -> None:
        self.players = {"teacher": Player("teacher", self.teacher, self.config.optimizer)}

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("teacher",)

    def loss(self, turn: Turn, batch: ClipBatch, noise: Draws) -> Loss:
        """E || v(x_t, t, text) - (eps - x0) ||^2 at one shifted noise level a clip, but for clean images."""
        exercise = self.config.exercise(turn.step)
        x0 = batch.latents[:, :, : exercise.frames]
        eps = noise.normal(x0)
        level = shift_t(noise.uniform(len(x0), 1).to(x0), exercise.shift)
        dropped = noise.uniform(len(x0), 1, 1).to(x0) < self.config.text_dropout
        text = torch.where(dropped, self.empty_text.to(batch.text), batch.text)
        given = noise.uniform(len(x0), 1).to(x0) < exercise.clean_image
        t = level.expand(-1, x0.shape[2])
        t = torch.where(given, with_clean_image(t), t)
        predicted = self.teacher(add_noise(x0, eps, t), t, text)
        return Loss(flow_matching(predicted, x0, eps, t), _loss_by_level(predicted, eps - x0, level))

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Sample held-out captions and measure the clips."""
        return self.showing.teacher(self.teacher, samples / f"step-{step:06d}.mp4")

    def export(self, folder: Path) -> Path:
        """Save the averaged teacher as a stock Wan transformer."""
        with self.players["teacher"].averaged():
            save_transformer(self.teacher, folder / "transformer", as_stock=True)
        return folder / "transformer"


def _loss_by_level(predicted: Tensor, target: Tensor, level: Tensor) -> dict[str, float]:
    """Mean squared error by noise level, image frame aside: the bands fall at very different rates."""
    error = (predicted.detach() - target)[:, :, 1:].square().mean(dim=(1, 2, 3, 4))
    return by_noise_level("loss", error, level[:, 0])
