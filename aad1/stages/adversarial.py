"""Stage III: asymmetric adversarial refinement (Eq. 7 to 10).

The generator stays causal; the critic sees the whole clip in both directions and gives one logit. It
never sees clean clips: real and generated ones are noised to one tau, with the same noise. In the
paper's ablations only ``visibility`` and ``granularity`` of the critic change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from aad1.flow import add_noise, shift_t
from aad1.limits import Count, LevelInterval, Natural, Positive, Weight
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_transformer
from aad1.models.context import Visibility
from aad1.models.critic import Critic, Granularity
from aad1.objectives.adversarial import consistency, critic_loss, generator_loss
from aad1.rollout import ClipRollout, roll_clip
from aad1.stages.base import PlainStage
from aad1.stages.batches import ClipBatch, LatentClips, by_noise_level, roll_batch
from aad1.stages.showing import Showing
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.motion_guard import merit
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """layers: blocks (0-based) that a query head reads; queries: learnable tokens a head."""

    layers: Annotated[tuple[Natural, ...], Field(min_length=1)]
    visibility: Visibility = "full"
    granularity: Granularity = "clip"
    queries: Count = 1


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(LoopConfig):
    """How the game is played.

    begins_with: the stage whose student it refines (the paper's is stage II's); dmd_weight: of Eq. 6 beside Eq. 9
    in the generator's loss, with scores as dmd_warmup has them (0: phases, as in the paper); critic_updates: a
    generator update; head_start: critic updates before the first of them; consistency_weight, consistency_sigma:
    lambda and sigma of Eq. 10; t_range: where tau lies ([0, 0] shows the critic clean clips); shift: how far it is
    moved towards noise in there (1 = uniform).
    """

    critic: CriticConfig
    generator_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    begins_with: Literal["dmd_warmup", "ode_init"] = "dmd_warmup"
    dmd_weight: Weight = 0.0
    critic_updates: Count = 1
    head_start: Natural = 0
    consistency_weight: Weight = 20.0
    consistency_sigma: Weight = 0.05
    t_range: LevelInterval = (0.0, 1.0)
    shift: Positive = 1.0


class Noising(NamedTuple):
    """One tau a sample and one noise, the same for real and generated clips."""

    eps: Tensor
    t: Tensor


@dataclass
class AdversarialStage(PlainStage):
    """Players: generator and critic. roll: how the generator's clips are rolled out."""

    config: AdversarialConfig
    generator_model: CausalWanTransformer3DModel
    critic_model: Critic
    dataset: LatentClips
    levels: Sequence[float]
    showing: Showing
    roll: ClipRollout = roll_clip
    name: str = "adversarial"
    players: Mapping[str, Player] = field(init=False)

    def __post_init__(self) -> None:
        self.players = {
            "critic": Player("critic", self.critic_model, self.config.critic_optimizer),
            "generator": Player("generator", self.generator_model, self.config.generator_optimizer),
        }

    def turns(self, step: int) -> Sequence[str]:
        """The critic, then the generator; before the first step the critic has its head start."""
        first = self.config.head_start if step == 0 else 0
        return ("critic",) * (first + self.config.critic_updates) + ("generator",)

    def loss(self, turn: Turn, batch: ClipBatch, noise: Draws) -> Loss:
        """Eq. 8 and 10 for the critic, Eq. 9 for the generator, each on a fresh rollout (Eq. 7)."""
        self.let_critic_learn(turn.player == "critic")
        if turn.player == "critic":
            with torch.no_grad():
                fake = self.rolled(batch, noise)
            return self._critic_loss(batch, fake, noise)
        return self.generator_loss(batch, self.rolled(batch, noise), noise)

    def rolled(self, batch: ClipBatch, noise: Draws) -> Tensor:
        """The generator's clips of a batch's images and prompts (Eq. 7)."""
        return roll_batch(self.roll, self.generator_model, batch, self.levels, noise)

    def let_critic_learn(self, on: bool) -> None:
        """Whether passes record gradient for the critic's weights.

        It holds until the next turn: with gradient checkpointing the backward repeats the forward, and
        must find the weights as the forward did.
        """
        for parameter in self.players["critic"].parameters.values():
            parameter.requires_grad_(on)

    def _noising(self, clip: Tensor, noise: Draws) -> Noising:
        low, high = self.config.t_range
        level = low + (high - low) * shift_t(noise.uniform(len(clip), 1).to(clip), self.config.shift)
        return Noising(noise.normal(clip), level.expand(-1, clip.shape[2]))

    def _critic_loss(self, batch: ClipBatch, fake: Tensor, noise: Draws) -> Loss:
        """Eq. 8 + lambda Eq. 10; the perturbation is added to the NOISED clips, at the same tau."""
        eps, t = self._noising(fake, noise)
        delta = self.config.consistency_sigma * noise.normal(fake)
        logits, reg = {}, {}
        for name, clip in (("real", batch.latents), ("fake", fake)):
            noised = add_noise(clip, eps, t)
            logits[name] = self.critic_model(noised, t, batch.text)
            reg[name] = consistency(logits[name], self.critic_model(noised + delta, t, batch.text))
        game = critic_loss(logits["real"], logits["fake"])
        value = game + self.config.consistency_weight * (reg["real"] + reg["fake"])
        health = critic_health(logits["real"].detach(), logits["fake"].detach(), t)
        regularisers = {f"consistency_{name}": float(r.detach()) for name, r in reg.items()}
        return Loss(value, {"game": float(game.detach()), **regularisers, **health})

    def generator_loss(self, batch: ClipBatch, fake: Tensor, noise: Draws) -> Loss:
        """Eq. 9 of a rolled-out clip; the critic's own weights take no gradient from it (``let_critic_learn``)."""
        eps, t = self._noising(fake, noise)
        logit = self.critic_model(add_noise(fake, eps, t), t, batch.text)
        return Loss(generator_loss(logit), {"logit": float(logit.detach().mean())})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Roll the student out on held-out images and measure the clips."""
        return self.showing.student(self.generator_model, samples / f"step-{step:06d}.mp4")

    def merit(self, measured: Mapping[str, float]) -> float | None:
        """Motion times pictures."""
        return merit(measured)

    def export(self, folder: Path) -> Path:
        """Save the averaged student."""
        with self.players["generator"].averaged():
            save_transformer(self.generator_model, folder / "student")
        return folder / "student"


def critic_health(real: Tensor, fake: Tensor, t: Tensor) -> dict[str, float]:
    """Whether the critic tells clips apart: logits, their gap, accuracy overall and by noise level."""
    right = torch.stack([real > 0, fake < 0]).float()
    accuracy = right.reshape(2, len(t), -1).mean(dim=(0, 2))
    return {
        "logit_real": float(real.mean()),
        "logit_fake": float(fake.mean()),
        "gap": float(real.mean() - fake.mean()),
        "accuracy": float(accuracy.mean()),
        **by_noise_level("accuracy", accuracy, t[:, 0]),
    }
