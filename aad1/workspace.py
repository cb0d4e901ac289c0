"""Where a recipe's results lie: one folder, one subfolder a step of the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aad1.models.checkpoint_io import bundled
from aad1.models.hub import fetch_wan_folder, is_hub_name

ASSETS = ("text", "vae", "teacher", "state_encoder")
DISTILLATION = ("ode_init", "dmd_warmup", "adversarial")
STAGES = (*ASSETS, *DISTILLATION)


@dataclass(frozen=True)
class Workspace:
    """The folder given with ``-o`` and what is in it; parts that several runs share may lie ``elsewhere``."""

    root: Path
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    @property
    def clips(self) -> Path:
        """Latent store of the training clips."""
        return self.place("clips")

    @property
    def validation(self) -> Path:
        """Latent store of the held-out clips."""
        return self.place("validation")

    @property
    def trajectories(self) -> Path:
        """Store of the teacher's trajectories."""
        return self.place("trajectories")

    @property
    def text_cache(self) -> Path:
        """Embedded prompts by content."""
        return self.place("text_cache")

    def run(self, stage: str) -> Path:
        """One stage's run: checkpoints, metrics, samples."""
        return self.place(stage)

    def place(self, part: str) -> Path:
        """Where a part of it lies: a folder of its name here, if not elsewhere."""
        return self.elsewhere.get(part, self.root / part)

    def student(self, stage: str) -> Path:
        """The student that a distillation stage exported."""
        return self.run(stage) / "final" / "student"


def model_path(model: str) -> Path:
    """A folder given by path, the name of a bundled one, or OWNER/NAME on the Hugging Face hub, which is fetched.

    Raises:
        UserError: when there is none of that name.
    """
    if Path(model).is_dir() or "/" not in model:
        return Path(model) if Path(model).is_dir() else bundled(model)
    return fetch_wan_folder(model) if is_hub_name(model) else Path(model)
