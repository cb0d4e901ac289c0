"""Stages II and III at once, which the paper advises against: its argument for phases, as an experiment.

The generator descends Eq. 9 + weight x Eq. 6 on one rollout. The two pull to different targets, the data and the
teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aad1.stages.adversarial import AdversarialStage
from aad1.stages.base import PlainStage
from aad1.stages.batches import ClipBatch, LatentClips
from aad1.stages.dmd_warmup import ScoreDistillation
from aad1.training.loop import Loss, Turn
from aad1.training.player import Player
from aad1.training.randomness import Draws


@dataclass
class JointStage(PlainStage):
    """Players: generator, critic and fake score."""

    game: AdversarialStage
    scores: ScoreDistillation
    name: str = "adversarial"
    players: Mapping[str, Player] = field(init=False)

    def __post_init__(self) -> None:
        fake_score = Player("fake_score", self.scores.fake_score, self.scores.config.fake_score_optimizer)
        self.players = {"fake_score": fake_score, **self.game.players}

    @property
    def dataset(self) -> LatentClips:
        """The game's own clips."""
        return self.game.dataset

    def turns(self, step: int) -> Sequence[str]:
        """The fake score's updates, then the game's turns."""
        return ("fake_score",) * self.scores.config.fake_score_updates + tuple(self.game.turns(step))

    def loss(self, turn: Turn, batch: ClipBatch, noise: Draws) -> Loss:
        """Eq. 5 for the fake score, Eq. 8 and 10 for the critic, Eq. 9 + weight x Eq. 6 for the generator."""
        if turn.player == "critic":
            return self.game.loss(turn, batch, noise)
        self.game.let_critic_learn(False)
        if turn.player == "fake_score":
            with torch.no_grad():
                clip = self.game.rolled(batch, noise)
            return self.scores.fake_score_loss(clip, batch.text, noise)
        clip = self.game.rolled(batch, noise)
        realism = self.game.generator_loss(batch, clip, noise)
        matching = self.scores.generator_loss(clip, batch.text, noise)
        value = realism.value + self.game.config.dmd_weight * matching.value
        return Loss(value, {**realism.metrics, **matching.metrics})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Measure the student, as the game does."""
        return self.game.evaluate(step, samples)

    def merit(self, measured: Mapping[str, float]) -> float | None:
        """As the game has it."""
        return self.game.merit(measured)

    def export(self, folder: Path) -> Path:
        """Save the averaged student, as the game does."""
        return self.game.export(folder)
