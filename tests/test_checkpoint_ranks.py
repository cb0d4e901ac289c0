"""Checkpoints of several processes: any number reads what any number wrote; one's errors are everyone's; kills."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from test_loop import (
    ADAM,
    HIDDEN,
    MUON,
    WIDTH,
    assert_identical,
    flip_a_bit,
    network,
    steps_kept,
)
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from aad1.errors import UserError
from aad1.parallel.crew import ALONE, Crew
from aad1.training import checkpoint, tensor_files
from aad1.training.checkpoint import Checkpoints, last_whole
from aad1.training.loop import CHECKPOINTS
from aad1.training.player import Player
from aad1.training.tensor_files import parted

PLAYERS = {"one": ADAM, "two": MUON}


def crew_here() -> Crew:
    if not dist.is_initialized():
        return ALONE
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return Crew(rank, ranks, rank, ranks, dist.new_group(backend="gloo"))


def sharded_players(mesh: tuple[int, int] | None, width: int = HIDDEN) -> dict[str, Player]:
    """An AdamW player with an average and a Muon player, spread over (replicate, shard) ranks, or whole."""
    players = {}
    for index, (name, config) in enumerate(PLAYERS.items()):
        module = network(index, width)
        if mesh is not None:
            fully_shard(module, mesh=init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")))
        players[name] = Player(name, module, config)
    return players


def fill(players: dict[str, Player], seed: int) -> None:
    """Every tensor of the players' states becomes random, by its name alone: the same on any number of ranks."""
    for index, (_, whole) in enumerate(sorted(tensors_of(players).items())):
        value = torch.randn(whole.shape, generator=torch.Generator().manual_seed(seed * 1000 + index))
        if isinstance(whole, DTensor):
            value = distribute_tensor(value, whole.device_mesh, whole.placements)
        with torch.no_grad():
            whole.copy_(value)
    for player in players.values():
        player.updates = seed
        for optimizer in player.optimizers:
            for slots in optimizer.state.values():
                if "step" in slots:
                    slots["step"].fill_(seed)


def state_of(players: dict[str, Player]) -> dict[str, Any]:
    return {"players": {name: player.state_dict() for name, player in players.items()}}


def tensors_of(players: dict[str, Player]) -> dict[str, Tensor]:
    return parted(state_of(players))[1]


def whole_values(players: dict[str, Player]) -> dict[str, Any]:
    """All of the players' state, every tensor whole and as a list: tensors do not outlive the process they are of."""
    values, tensors = parted(state_of(players))
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    return {"values": values, **{name: tensor.tolist() for name, tensor in whole.items()}}


def write_and_tell(folder: Path, mesh: tuple[int, int] | None, width: int) -> dict[str, Any]:
    players = sharded_players(mesh, width)
    fill(players, 7)
    before = whole_values(players)
    saved = Checkpoints(folder, 2, crew_here())
    saved.save(3, state_of(players))
    fill(players, 8)  # what is written is of the moment of the call
    saved.wait()
    saved.close()
    return before


def read_and_tell(folder: Path, mesh: tuple[int, int] | None, width: int) -> dict[str, Any]:
    players = sharded_players(mesh, width)
    crew = crew_here()
    found = last_whole(folder, crew)
    assert found is not None
    state = found.into(state_of(players))
    for name, player in players.items():
        player.load_state_dict(state["players"][name])
    return whole_values(players)


@pytest.mark.parametrize(
    ("wrote", "reads"),
    [((1, 2), None), ((1, 2), (2, 2)), (None, (1, 2)), ((2, 2), (1, 3))],
    ids=["2 to 1", "2 to 4", "1 to 2", "4 to 3"],
)
def test_any_number_of_ranks_reads_what_any_number_wrote(
    tmp_path: Path, wrote: tuple[int, int] | None, reads: tuple[int, int] | None
) -> None:
    folder, width = tmp_path / "checkpoints", HIDDEN + 1  # divides by no number of ranks

    def on(mesh: tuple[int, int] | None, function: Any) -> Any:
        if mesh is None:
            return function(folder, None, width)
        found = on_ranks(function, mesh[0] * mesh[1], tmp_path, folder, mesh, width)
        for other in found[1:]:
            assert_identical(other, found[0])
        return found[0]

    written, read = on(wrote, write_and_tell), on(reads, read_and_tell)
    assert_identical(read, written)
    names = set(written)
    assert {"players/one/average/2.weight", "players/one/optimizers/0/2.weight/exp_avg"} <= names
    assert "players/two/optimizers/1/0.weight/momentum" in names
    assert written["values"]["players"]["one"]["optimizers"]["0"]["2.weight"]["step"] == 7


# --- what goes wrong on one is everyone's ----------------------------------------------------


def troubles(folder: Path) -> None:
    crew = crew_here()
    players = sharded_players((1, 2))
    saved = Checkpoints(folder, 2, crew)
    saved.save(1, state_of(players))
    saved.wait()
    _full_disk_on_one(saved, players)
    assert steps_kept(folder.parent) == [1]
    until = time.monotonic() + 30  # the leader's thread may still be removing what was written
    while list(folder.glob(".*")):
        assert time.monotonic() < until
        time.sleep(0.01)
    saved.save(2, state_of(players))
    saved.wait()
    if crew.leads:
        flip_a_bit(folder / "step-00000002", "__1_0.distcp")
    crew.meet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = saved.last()
    assert found is not None
    assert found.step == 1
    said = [str(w.message) for w in caught if "unreadable" in str(w.message)]
    assert len(said) == (1 if crew.leads else 0), said
    narrow = sharded_players((1, 2), HIDDEN + 1)
    with pytest.raises(UserError, match=r"of another model: players/one/average/0\.bias is \[16\] float32 there and"):
        found.into(state_of(narrow))
    saved.close()


def _full_disk_on_one(saved: Checkpoints, players: dict[str, Player]) -> None:
    """The disk of rank 1 is full at each of the moments when it writes; both ranks say so, at the same poll."""

    def full() -> None:
        if saved.crew.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((tensor_files._Writer, "write_data"), (checkpoint, "sync")):
        whole = getattr(owner, name)

        def spoilt(*given: Any, whole: Any = whole, **named: Any) -> Any:
            full()
            return whole(*given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, spoilt)
            saved.save(9, state_of(players))
            with pytest.raises(UserError, match=r"cannot write the checkpoint .*step-00000009: No space left") as said:
                _poll_until_it_fails(saved)
        assert len(set(saved.crew.gather(str(said.value)))) == 1


def _poll_until_it_fails(saved: Checkpoints) -> None:
    """As a loop does; a rank that raised at another poll than the others would leave them in the barrier."""
    for _ in range(10_000):
        saved.poll()
        dist.barrier()


def test_what_goes_wrong_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    on_ranks(troubles, 2, tmp_path, tmp_path / CHECKPOINTS)


# --- kills -----------------------------------------------------------------------------------

STEPS = 5


def train(folder: Path, victim: int | None = None, operation: int = 0) -> dict[str, Any]:
    """Train two ranks from the last checkpoint, save every step; ``victim`` dies at an operation on files.

    Returns the state at the end and, beside it, that of a run that was never stopped.
    """
    crew = crew_here()
    if victim == crew.rank:
        die_at(operation)
    saved = Checkpoints(folder, 2, crew)
    players, begun = sharded_players((1, 2)), 0
    found = saved.last()
    if found is not None:
        state, begun = found.into(state_of(players)), found.step
        for name, player in players.items():
            player.load_state_dict(state["players"][name])
    for step in range(begun, STEPS):
        learn(players, step)
        saved.save(step + 1, state_of(players))
        saved.poll()
    saved.wait()
    saved.close()
    unbroken = sharded_players((1, 2))
    for step in range(STEPS):
        learn(unbroken, step)
    return {"resumed": whole_values(players), "unbroken": whole_values(unbroken), "begun": begun}


def learn(players: dict[str, Player], step: int) -> None:
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(step))
    for player in players.values():
        player.module(x).square().mean().backward()
        for optimizer in player.optimizers[:1]:  # AdamW, which takes sharded parameters as they are
            optimizer.step()
            optimizer.zero_grad()
        player.module.zero_grad()
        player.updates += 1


def die_at(operation: int) -> None:
    """Kill this process at an operation on files of its checkpoints, counted from 0."""
    left = iter(range(operation, -1, -1))

    def tick() -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            tick()
            found = function(*arguments, **options)
            tick()
            return found

        setattr(owner, name, call)

    for owner, name in (
        (os, "fsync"),
        (checkpoint, "sync"),
        (tensor_files._Writer, "write_data"),
        (Path, "write_text"),
        (Path, "rename"),
        (checkpoint.shutil, "rmtree"),
    ):
        ticking(owner, name)


def test_a_rank_killed_while_saving_costs_a_checkpoint_at_most(tmp_path: Path) -> None:
    folder, rng = tmp_path / CHECKPOINTS, random.Random(0)
    for victim in (0, 1, 0):
        with pytest.raises(AssertionError, match=r"died|[Cc]onnection"):
            on_ranks(train, 2, tmp_path, folder, victim, rng.randrange(3, 20))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what is in place is always whole
            last_whole(folder)
    for found in on_ranks(train, 2, tmp_path, folder):
        assert found["begun"] > 0
        assert_identical(found["resumed"], found["unbroken"])
    assert steps_kept(tmp_path)[-1] == STEPS
    assert not list(folder.glob(".*"))
