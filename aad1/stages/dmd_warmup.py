"""Stage II: distribution-matching warm-up (Eq. 4 to 6), stopped early on the motion of its rollouts.

The student rolls out over its OWN outputs; the clip is noised to one random level; the gradient is
the difference of the fake score's and the guided teacher's clean estimates. The fake score follows
the student with several updates for each of the student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aad1.flow import add_noise, shift_t, with_clean_image, x0_from_v
from aad1.limits import Count, LevelInterval, Number, Positive
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_transformer
from aad1.objectives.dmd import dmd_gradient, dmd_surrogate
from aad1.objectives.flow_matching import flow_matching
from aad1.rollout import ClipRollout, roll_clip
from aad1.stages.batches import ClipBatch, LatentClips, roll_batch
from aad1.stages.showing import Showing
from aad1.teacher_sampling import guided_velocity
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.motion_guard import MotionGuard, merit
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class DmdWarmupConfig(LoopConfig):
    """fake_score_updates: a generator update; t_range: where tau is clamped after the shift;
    clean_image: both scores are given the image clean, for a teacher trained with teacher.clean_image.
    """

    generator_optimizer: OptimizerConfig
    fake_score_optimizer: OptimizerConfig
    fake_score_updates: Count = 5
    guidance: Number = 4.0
    shift: Positive = 5.0
    t_range: LevelInterval = (0.02, 0.98)
    clean_image: bool = False


@dataclass
class ScoreDistillation:
    """The two scores and their losses. The teacher is frozen; negative_text: [1, length, dim]."""

    config: DmdWarmupConfig
    fake_score: CausalWanTransformer3DModel
    teacher: CausalWanTransformer3DModel
    negative_text: Tensor

    def __post_init__(self) -> None:
        self.teacher.requires_grad_(False)

    def fake_score_loss(self, clip: Tensor, text: Tensor, noise: Draws) -> Loss:
        """Eq. 5: flow matching on generated clips."""
        x_t, eps, t = self._noised(clip, noise)
        return Loss(flow_matching(self.fake_score(x_t, t, text), clip, eps, t), {})

    def generator_loss(self, clip: Tensor, text: Tensor, noise: Draws) -> Loss:
        """Eq. 6 through its surrogate: d loss / d clip is the difference of the two scores."""
        with torch.no_grad():
            x_t, _, t = self._noised(clip.detach(), noise)
            negative = self.negative_text.to(text).expand_as(text)
            v_real = guided_velocity(self.teacher, x_t, t, text, negative, self.config.guidance)
            v_fake = self.fake_score(x_t, t, text)
            gradient = dmd_gradient(clip.detach(), x0_from_v(x_t, v_real, t), x0_from_v(x_t, v_fake, t))
        return Loss(dmd_surrogate(clip, gradient), {"dmd_gradient": float(gradient.abs().mean())})

    def _noised(self, clip: Tensor, noise: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The whole clip (or all but its image) at one random level a sample: x_tau, its noise, tau [batch, frames]."""
        eps = noise.normal(clip)
        level = shift_t(noise.uniform(len(clip), 1).to(clip), self.config.shift).clamp(*self.config.t_range)
        t = level.expand(-1, clip.shape[2])
        t = with_clean_image(t) if self.config.clean_image else t
        return add_noise(clip, eps, t), eps, t


@dataclass
class DmdWarmupStage:
    """Players: generator and fake score. roll: how the generator's clips are rolled out."""

    config: DmdWarmupConfig
    generator_model: CausalWanTransformer3DModel
    scores: ScoreDistillation
    dataset: LatentClips
    levels: Sequence[float]
    showing: Showing
    guard: MotionGuard
    roll: ClipRollout = roll_clip
    name: str = "dmd_warmup"
    players: Mapping[str, Player] = field(init=False)
    kept: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.players = {
            "fake_score": Player("fake_score", self.scores.fake_score, self.config.fake_score_optimizer),
            "generator": Player("generator", self.generator_model, self.config.generator_optimizer),
        }
        self.kept = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.players["generator"].parameters.items()}

    def turns(self, step: int) -> Sequence[str]:
        """The fake score several times, then the generator once."""
        return ("fake_score",) * self.config.fake_score_updates + ("generator",)

    def loss(self, turn: Turn, batch: ClipBatch, noise: Draws) -> Loss:
        """Eq. 5 for the fake score, Eq. 6 for the generator, each on a fresh rollout (Eq. 4)."""
        if turn.player == "fake_score":
            with torch.no_grad():
                clip = self._rolled(batch, noise)
            return self.scores.fake_score_loss(clip, batch.text, noise)
        return self.scores.generator_loss(self._rolled(batch, noise), batch.text, noise)

    def _rolled(self, batch: ClipBatch, noise: Draws) -> Tensor:
        return roll_batch(self.roll, self.generator_model, batch, self.levels, noise)

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Roll the student out on held-out images; while its motion holds, these weights are the ones to keep.

        Should it never hold, those that the stage began with are.
        """
        measured = self.showing.student(self.generator_model, samples / f"step-{step:06d}.mp4")
        self.guard.observe(step, measured)
        if self.guard.holds:
            self.kept = self._weights()
        return measured

    def merit(self, measured: Mapping[str, float]) -> float | None:
        """Motion times pictures."""
        return merit(measured)

    def stop_reason(self) -> str | None:
        """The guard's word: prolonged distribution matching leads to motion collapse."""
        return self.guard.stop_reason()

    def state_dict(self) -> dict[str, Any]:
        """What the guard has seen, and the weights of the last evaluation that it let pass."""
        return {"guard": self.guard.history, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        self.guard.history = list(state["guard"])
        self.kept = dict(state["kept"])

    def export(self, folder: Path) -> Path:
        """Save the averaged student as it was when its motion last held; without an evaluation, as it is."""
        with self.players["generator"].averaged():
            if self.guard.history:
                self.players["generator"].assign(self.kept)
            save_transformer(self.generator_model, folder / "student")
        return folder / "student"
