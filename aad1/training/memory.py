"""What the networks of a stage hold in memory, by whose it is and what it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from aad1.runtime import peak_memory
from aad1.training.player import Player

WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGE = "weights", "gradients", "optimizer", "average"


class Playing(Protocol):
    """A stage, as far as it has players."""

    players: Mapping[str, Player]


def owners_of(stage: Playing) -> dict[str, nn.Module]:
    """The networks of a stage by name: its players', then whatever other modules it holds."""
    owners = {name: player.module for name, player in stage.players.items()}
    seen = {id(module) for module in owners.values()}
    for name, module in _modules(stage, ""):
        if id(module) not in seen:
            seen.add(id(module))
            owners[name] = module
    return owners


def _modules(thing: Any, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a stage and the dataclasses in it hold, under the names of their fields."""
    if isinstance(thing, nn.Module):
        yield name, thing
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field, value in vars(thing).items():
            yield from _modules(value, field)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a mapping, to any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)


def held(stage: Playing) -> dict[str, int]:
    """Bytes of this process by "OWNER/WHAT", wherever they lie; what several owners share counts for the first."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def claim(owner: str, what: str, tensors: Iterable[Tensor]) -> None:
        size = sum(storage.nbytes() for storage in _fresh(tensors, seen))
        if size:
            found[f"{owner}/{what}"] = size

    for owner, module in owners_of(stage).items():
        claim(owner, WEIGHTS, (*module.parameters(), *module.buffers()))
    for owner, player in stage.players.items():
        claim(owner, OPTIMIZER, (t for o in player.optimizers for state in o.state.values() for t in tensors_in(state)))
        claim(owner, AVERAGE, player.average.values())
    return found


def gradients_of(player: Player) -> int:
    """Bytes of a player's gradients as they are now."""
    gradients = (p.grad for p in player.parameters.values() if p.grad is not None)
    return sum(storage.nbytes() for storage in _fresh(gradients, set()))


def _fresh(tensors: Iterable[Tensor], seen: set[int]) -> Iterator[torch.UntypedStorage]:
    """Storages of this process that were not seen before, each once however many tensors look at it."""
    for tensor in tensors:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage


def peak(device: torch.device) -> int:
    """Bytes that a GPU has held at most for this process; without one, that the process has held."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
