"""Where a recipe's results lie: one folder, one subfolder a step of the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aad1.models.checkpoint_io import bundled

ASSETS = ("text", "vae", "teacher")
DISTILLATION = ("ode_init", "dmd_warmup", "adversarial")
STAGES = (*ASSETS, *DISTILLATION)


@dataclass(frozen=True)
class Workspace:
    """The folder given with ``-o`` and what is in it."""

    root: Path

    @property
    def clips(self) -> Path:
        """Latent store of the training clips."""
        return self.root / "clips"

    @property
    def validation(self) -> Path:
        """Latent store of the held-out clips."""
        return self.root / "validation"

    @property
    def trajectories(self) -> Path:
        """Store of the teacher's trajectories."""
        return self.root / "trajectories"

    @property
    def text_cache(self) -> Path:
        """Embedded prompts by content."""
        return self.root / "text_cache"

    def run(self, stage: str) -> Path:
        """One stage's run: checkpoints, metrics, samples."""
        return self.root / stage

    def student(self, stage: str) -> Path:
        """The student that a distillation stage exported."""
        return self.run(stage) / "final" / "student"


def model_path(model: str) -> Path:
    """A folder given by path, or the name of a bundled one."""
    return Path(model) if Path(model).is_dir() or "/" in model else bundled(model)
