"""What has to be done, and what each thing needs: a stage is trained once for all the recipes that agree on it.

A stage's folder is named after a hash of every recipe value it depends on, those of the stages before it included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from aad1.assembly import Assembly
from aad1.models.checkpoint_io import folder_hash
from aad1.recipe import Recipe, load_recipe, without_defaults
from aad1.reproduction.experiments import FOLDER, Condition
from aad1.workspace import Workspace, model_path

DATA = ("clips", "trajectories")
DIGITS = 8  # of a hash in a folder's name


@dataclass(frozen=True)
class Task:
    """A step of one recipe: data, a stage, or (with a condition) the measuring of its student.

    values: what was given on the command line over the recipe's own.
    """

    name: str
    recipe: str
    seed: int
    step: str
    values: tuple[str, ...] = ()
    condition: Condition | None = field(default=None, compare=False)
    needs: tuple[Task, ...] = ()

    def load(self) -> Recipe:
        """Its recipe, with its seed."""
        return _recipe(self.recipe, self.seed, self.values)

    def assembly(self, root: Path) -> Assembly:
        """What runs it: it works in its own folder and finds what it needs in others'."""
        places: dict[str, Path] = {}
        for task in (self, *self.all_needs()):
            parts = ("clips", "validation") if task.step == "clips" else (task.step,)
            places |= {part: root / task.name / part for part in parts}
        recipe = self.load()
        if self.condition is not None:
            changed: dict[str, Any] = dict(self.condition.student)
            recipe = replace(recipe, student=replace(recipe.student, **changed))
        return Assembly(recipe, Workspace(root / self.name, places))

    def all_needs(self) -> list[Task]:
        """Everything before it, first things first."""
        found: dict[str, Task] = {}
        for task in self.needs:
            found |= {t.name: t for t in (*task.all_needs(), task)}
        return list(found.values())


def tasks_for(condition: Condition, seed: int, values: Sequence[str] = ()) -> Task:
    """The measuring of a condition, with all that it needs behind it."""
    seed = seed if condition.trained else 0
    clips = _task("clips", condition, seed, values, ())
    if not condition.trained:
        needs: tuple[Task, ...] = ()
    else:
        recipe = _recipe(condition.recipe, seed, tuple(values))
        before = _task("trajectories", condition, seed, values, (clips,))
        chain = {"ode_init": (_task("ode_init", condition, seed, values, (clips, before)))}
        if condition.stage == "dmd_warmup" or recipe.adversarial.begins_with == "dmd_warmup":
            chain["dmd_warmup"] = _task("dmd_warmup", condition, seed, values, (clips, chain["ode_init"]))
        if condition.stage == "adversarial":
            start = chain[recipe.adversarial.begins_with]
            chain["adversarial"] = _task("adversarial", condition, seed, values, (clips, start))
        needs = (chain[condition.stage],)
    return Task(condition.piece(seed), condition.recipe, seed, "measure", tuple(values), condition, needs)


@cache
def _recipe(name: str, seed: int, values: tuple[str, ...]) -> Recipe:
    """Read once: every condition asks for its own at every step before it."""
    return load_recipe(f"{FOLDER}/{name}", [*values, "--seed", str(seed)])


def _task(step: str, condition: Condition, seed: int, values: Sequence[str], needs: tuple[Task, ...]) -> Task:
    name = f"{step}-{key_of(step, _recipe(condition.recipe, seed, tuple(values)))[:DIGITS]}"
    return Task(name, condition.recipe, seed, step, tuple(values), needs=needs)


def key_of(step: str, recipe: Recipe) -> str:
    """A hash of the recipe's values that decide what ``step`` makes, and of the model it starts from.

    Values that are their defaults are left out, so that a key which recipes learn later changes no hash.
    """
    stated = without_defaults(recipe)
    values = {name: stated.get(name) for name in ("threads", "data", "showing", "negative_prompt")}
    model = model_path(recipe.model)
    parts = {part: folder_hash(model / part) for part in ("vae", "text_encoder", "transformer")}
    own = _own(step, stated, recipe)
    return hashlib.sha256(json.dumps([values, parts, own], sort_keys=True).encode()).hexdigest()


def _own(step: str, values: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The sections that ``step`` and those before it read."""
    warmed = recipe.adversarial.begins_with == "dmd_warmup" or recipe.adversarial.dmd_weight > 0
    sections: dict[str, Iterable[str]] = {
        "clips": (),
        "trajectories": ("seed", "trajectories"),
        "ode_init": ("ode_init",),
        "dmd_warmup": ("dmd_warmup", "guard"),
        "adversarial": ("adversarial",),
    }
    order = list(sections)[: list(sections).index(step) + 1]
    read = [s for name in order if name != "dmd_warmup" or step == name or warmed for s in sections[name]]
    student = dict(values["student"])
    if step == "ode_init":
        student.pop("passes", None)  # it trains at every level; passes are for its samples alone
    return {name: values.get(name) for name in read} | ({} if step in DATA else {"student": student})
