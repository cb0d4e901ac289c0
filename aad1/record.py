"""What is kept beside a run: the recipe and the inputs it was begun with, which it may go on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aad1.errors import UserError
from aad1.files import write_atomic
from aad1.workspace import STAGES

RECIPE, INPUTS = "recipe.yaml", "inputs.yaml"
CLIPS, COUNT = "clips", "clip count"
RESUMABLE = {  # values of its own section that a run that goes on may change
    "steps",
    "log_every",
    "evaluate_every",
    "save_every",
    "keep",
    "lr",
    "lr_overrides",
    "muon_lr",
    "skip_above",
}
CHANGES_RESULTS = ("compute.precision",)  # the rest of that section may change too


@dataclass(frozen=True)
class Record:
    """What is kept beside the run in ``folder``."""

    folder: Path

    def write(self, recipe: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """Keep what a run begins with: its recipe, and hashes of its inputs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, content in ((RECIPE, recipe), (INPUTS, inputs)):
            write_atomic(self.folder / file, yaml.safe_dump(dict(content), sort_keys=False).encode())

    def require_alike(self, recipe: dict[str, Any], inputs: Mapping[str, str], stage: str) -> None:
        """Raise UserError unless the run was begun with these inputs, and this recipe but for RESUMABLE."""
        begun_with, held = (_read_mapping(self.folder / file) for file in (RECIPE, INPUTS))
        if begun_with and (differs := _first_difference(begun_with, recipe, stage)):
            raise UserError(f"{self.folder} was begun with another recipe: {differs}; use the same, or another -o")
        if changed := [what for what, now in inputs.items() if held.get(what, now) != now]:
            raise UserError(
                f"{self.folder} was begun with another {', '.join(changed)}; to train anew delete that folder and "
                "those of later stages, or choose another -o"
            )

    def require_clips(self, now: Callable[[int], Mapping[str, Any]]) -> None:
        """Raise UserError unless the clips that the run was begun with are there; more may have come.

        now: what would be kept of the first so many clips.
        """
        held = _read_mapping(self.folder / INPUTS)
        if CLIPS in held and held[CLIPS] != now(held[COUNT])[CLIPS]:
            raise UserError(
                f"{self.folder} was begun with other clips; put those back, or to train anew delete that folder and "
                "those of later stages, or choose another -o"
            )


def _read_mapping(path: Path) -> dict[str, Any]:
    """What was kept beside a run; empty where nothing was."""
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged; put that of this run back, or choose another -o")
    return values


def _first_difference(old: dict[str, Any], new: dict[str, Any], stage: str) -> str | None:
    """The first value of this stage's section, or of what all stages share, that is not as it was."""
    shared = {key for key in new if key not in STAGES and key not in ("device", "new", "showing")}
    for section in (stage, *sorted(shared)):
        before, after = (leaves(values, section) for values in (old.get(section), new[section]))
        if section == "compute":  # the rest of it changes what things cost, not what they are
            before, after = ({key: leaves.get(key, "") for key in CHANGES_RESULTS} for leaves in (before, after))
        for key in sorted(before.keys() | after.keys()):
            resumable = section == stage and RESUMABLE & {*key.split(".")} and _same_optimizer(before, after, key)
            if not resumable and before.get(key) != after.get(key):
                return f"{key} was {before.get(key, 'not given')}, is {after.get(key, 'not given')}"
    return None


def _same_optimizer(before: dict[str, str], after: dict[str, str], key: str) -> bool:
    """Whether the optimizer's groups stay as they were: rates may change, but not which parameters have one."""
    old, new = before.get(key), after.get(key)
    return old is not None and new is not None and (not key.endswith("muon_lr") or (float(old) > 0) == (float(new) > 0))


def leaves(value: Any, path: str) -> dict[str, str]:
    """Every value below ``path`` as JSON, by its key."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in leaves(part, f"{path}.{name}").items()}
    return {path: json.dumps(value)}
