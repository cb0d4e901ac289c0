"""The cost of a deep model from two shallow ones: every cost is a + b L in the number of blocks L.

Each block adds the same operations and keeps the same tensors; so two depths give both numbers, in a fraction of the
time that forty blocks take. A peak is the largest of several such sums, not always the same one at every depth: it
comes out a little low where another one takes over (1.3 % at thirty blocks, docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from aad1.planning.costs import Manner, StageCost, stage_cost
from aad1.planning.published import Configs
from aad1.recipe import Recipe

SHALLOW = 4  # blocks from which on a peak is where it stays
DEFAULT_LAYERS = 40  # diffusers' own, for a config that does not say


def deep_stage_cost(recipe: Recipe, configs: Configs, name: str, manner: Manner) -> StageCost:
    """As ``stage_cost``, from two shallow models where that is less work."""
    whole = layers_of(configs)
    read = recipe.adversarial.critic.layers
    low = max(SHALLOW, len(read) + whole - 1 - max(read))
    if whole <= 2 * low + 1 or max(read) >= whole:
        return stage_cost(recipe, configs, name, manner)
    first, second = (stage_cost(*at_depth(recipe, configs, depth), name, manner) for depth in (low, low + 1))
    return along(first, second, whole - low)


def layers_of(configs: Configs) -> int:
    """The transformer's blocks."""
    return int(configs.transformer.get("num_layers", DEFAULT_LAYERS))


def at_depth(recipe: Recipe, configs: Configs, depth: int) -> tuple[Recipe, Configs]:
    """The same with ``depth`` blocks: the critic's last head as far from the end, the others anywhere below it."""
    read = recipe.adversarial.critic.layers
    last = depth - (layers_of(configs) - max(read))
    layers = (*range(len(read) - 1), last)
    critic = replace(recipe.adversarial.critic, layers=layers)
    shallow = replace(configs, transformer={**configs.transformer, "num_layers": depth})
    return replace(recipe, adversarial=replace(recipe.adversarial, critic=critic)), shallow


def along(first: Any, second: Any, steps: int) -> Any:
    """Go on from ``first`` by ``steps`` times the way to ``second``, number by number, however they are nested."""
    if isinstance(first, int):
        return first + (second - first) * steps
    if isinstance(first, Mapping):
        return {key: along(value, second[key], steps) for key, value in first.items()}
    if isinstance(first, tuple):
        return tuple(along(a, b, steps) for a, b in zip(first, second, strict=True))
    assert is_dataclass(first)
    names = [field.name for field in fields(first)]
    values = {name: along(getattr(first, name), getattr(second, name), steps) for name in names}
    return replace(first, **values)  # type: ignore[type-var]
