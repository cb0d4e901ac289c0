"""Stage I: the causal student learns to jump to the end of the teacher's trajectories (Eq. 3).

Diffusion Forcing: every chunk draws its own noise level from the few levels used downstream, so the
context a chunk sees is noisy too; the image frame is clean and carries no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from aad1.errors import UserError
from aad1.flow import grid_index, x0_from_v
from aad1.limits import Decay
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_transformer
from aad1.models.context import chunk_slices
from aad1.objectives.ode import ode_regression
from aad1.stages.base import PlainStage
from aad1.stages.batches import Trajectories, TrajectoryBatch
from aad1.stages.showing import Showing
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.motion_guard import merit
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class OdeInitConfig(LoopConfig):
    """clean_context: the share of chunks that are given clean (t = 0, no loss), as a stream's past is."""

    optimizer: OptimizerConfig
    clean_context: Decay = 0.0


@dataclass
class OdeInitStage(PlainStage):
    """The generator is the only player; ``levels``: the noise levels of the stored points, falling, last 0."""

    config: OdeInitConfig
    generator: CausalWanTransformer3DModel
    dataset: Trajectories
    levels: Sequence[float]
    showing: Showing
    name: str = "ode_init"
    players: Mapping[str, Player] = field(init=False)

    def __post_init__(self) -> None:
        if self.levels[-1] != 0:
            raise ValueError(f"trajectories must end at t = 0; their levels are {self.levels}")
        self.players = {"generator": Player("generator", self.generator, self.config.optimizer)}

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("generator",)

    def loss(self, turn: Turn, batch: TrajectoryBatch, noise: Draws) -> Loss:
        """E || x_t - t v(x_t, t) - x_end ||^2, every chunk at its own level."""
        x0 = batch.points[:, -1]
        index = self._draw_levels(len(x0), x0.shape[2], noise).to(x0.device)
        t = torch.tensor(self.levels, device=x0.device, dtype=x0.dtype)[index]
        x_t = gather_points(batch.points, index)
        v = self.generator(x_t, t, batch.text, visibility="block_causal")
        return Loss(ode_regression(x0_from_v(x_t, v, t), x0, (t > 0).to(x0)), {})

    def _draw_levels(self, batch: int, frames: int, noise: Draws) -> Tensor:
        """Which stored level each frame takes, [batch, frames]: one a chunk, the last (clean) for the image."""
        last = len(self.levels) - 1
        index = torch.full((batch, frames), last)
        for chunk in chunk_slices(frames, self.generator.config.num_frames_per_block)[1:]:
            level = noise.below(last, batch, 1)
            clean = noise.uniform(batch, 1) < self.config.clean_context
            index[:, chunk] = torch.where(clean, last, level)
        return index

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Roll the student out on held-out images and measure the clips."""
        return self.showing.student(self.generator, samples / f"step-{step:06d}.mp4")

    def merit(self, measured: Mapping[str, float]) -> float | None:
        """Motion times pictures."""
        return merit(measured)

    def export(self, folder: Path) -> Path:
        """Save the averaged student."""
        with self.players["generator"].averaged():
            save_transformer(self.generator, folder / "student")
        return folder / "student"


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Each frame at its own level: [batch, levels, channels, frames, h, w] -> [batch, channels, frames, h, w]."""
    batch, _, channels, frames, height, width = points.shape
    where = index[:, None, None, :, None, None].expand(batch, 1, channels, frames, height, width)
    return points.gather(1, where).squeeze(1)


def check_levels(stored: Sequence[float], wanted: Sequence[float]) -> None:
    """Raise UserError when a level used downstream is not among the stored trajectory's levels."""
    missing = [level for level in wanted if grid_index(stored, level) is None]
    if missing:
        raise UserError(
            f"the trajectories hold t = {_listed(stored)}, the recipe trains at t = {_listed(wanted)}; "
            f"missing {_listed(missing)}: delete them and run `aad1 prepare trajectories` again, or give another -o"
        )


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:.4f}" for level in levels)
