"""Joining the processes of a run: a process group, and what all must have alike before the first step."""

from __future__ import annotations

import hashlib
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from aad1.data.team import Team
from aad1.errors import UserError
from aad1.files import write_errors
from aad1.parallel.crew import Crew, LostProcess, SharedError
from aad1.parallel.meeting import Store, meet
from aad1.parallel.placement import ComputeConfig, Placement, grid_of, placed
from aad1.parallel.speaking import RUN, first_of_all
from aad1.parallel.watch import LATER, watched

PACKAGE = Path(__file__).parents[1]
LONGEST_WAIT = timedelta(days=7)  # for messages: others wait while the leader embeds captions or decodes samples
STORE_ANSWERS = timedelta(seconds=30)
LOST = "lost"  # key of the store: who is first to see that another process is lost
REASON = 160  # characters of what a collective says of a loss
ALONE_TOO = "bfloat16"  # a precision whose float32 masters FSDP keeps, so one process is split over itself


@contextmanager
def joined(config: ComputeConfig, team: Team, device: torch.device) -> Iterator[Placement]:
    """Join the processes of ``team`` for as long as the block lasts; yields this one's placement.

    Several watch over each other meanwhile (``watched``).

    Raises:
        UserError: when they do not fill the grid that ``config`` wants; SharedError where there are several.
        LostProcess: when another one has ended.
    """
    alone = team.ranks == 1
    if alone and config.precision != ALONE_TOO:
        grid_of(config, 1)
        yield Placement(config, device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    if alone:
        with _group(device, config, HashStore(), 0, 1) as crew:
            yield placed(config, grid_of(config, 1), crew, device)
        return
    rank, ranks = team.rank or 0, team.ranks
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None  # of others the parent may leave
    store, notes = _stores(rank, ranks, config.timeout)
    RUN.set(notes)
    with (
        _losses_told(notes, rank),
        _group(device, config, store, rank, ranks) as crew,
        watched(crew.where, rank, ranks, notes, config.timeout, launcher),
    ):
        grid = crew.agree(lambda: grid_of(config, ranks))
        yield placed(config, grid, crew, device)


@contextmanager
def _group(device: torch.device, config: ComputeConfig, store: Any, rank: int, ranks: int) -> Iterator[Crew]:
    """A default process group for as long as the block lasts, and a crew with a group for its messages."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(seconds=LATER * config.timeout),
        store=store,
        rank=rank,
        world_size=ranks,
    )
    try:
        yield Crew(rank, ranks, control=dist.new_group(backend="gloo", timeout=LONGEST_WAIT))
    finally:
        dist.destroy_process_group()


def _stores(rank: int, ranks: int, patience: float) -> tuple[Any, Store]:
    """Where the launcher lets the processes meet: for the process group, and by a connection of its own for the watch.

    Both are empty at the start. Raises UserError when not all come within ``patience`` seconds.
    """
    try:
        shared, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=LATER * patience)))
    except dist.DistError as error:
        raise UserError(
            f"rank {rank} of {ranks} has not met the others in {LATER * patience:g} s; check MASTER_ADDR, MASTER_PORT, "
            "and that every machine has started"
        ) from error
    start = meet(shared, rank, ranks, patience)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    own = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=STORE_ANSWERS)
    return PrefixStore(f"{start}/group", shared), PrefixStore(f"{start}/watch", own)


@contextmanager
def _losses_told(store: Store, rank: int) -> Iterator[None]:
    """What the loss of a process looks like to the others becomes LostProcess."""
    try:
        yield
    except RuntimeError as error:
        if not _of_a_lost_process(error):
            raise
        seen = " ".join(str(error).split())[:REASON]
        raise LostProcess(first_of_all(store, LOST, otherwise=rank == 0), seen) from error


def _of_a_lost_process(error: RuntimeError) -> bool:
    """Whether a collective failed because a peer has gone; gloo says so in words alone."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def require_alike(crew: Crew, facts: Mapping[str, str]) -> None:
    """Raise SharedError unless every process has the leader's ``facts``, each named and told in a word or a hash."""
    leaders, *others = crew.gather(dict(facts))
    for rank, found in enumerate(others, 1):
        for name in {**leaders, **found}:
            theirs, ours = found.get(name, "nothing"), leaders.get(name, "nothing")
            if theirs != ours:
                raise SharedError(
                    f"rank {rank} of {crew.ranks} has another {name} than rank 0 ({theirs}, not {ours}); "
                    "give every process the same"
                )


def require_shared(crew: Crew, folder: Path) -> None:
    """Raise SharedError unless every process sees what the leader writes into ``folder``, which it makes.

    Raises:
        UserError: when a process cannot write there, as SharedError.
    """
    if crew.ranks == 1:
        return
    probe = folder / crew.tell(f".seen-{uuid.uuid4().hex}")
    own = probe.with_name(f"{probe.name}-{crew.rank}")

    def write(file: Path) -> None:
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file.touch()

    crew.agree(lambda: write(probe) if crew.leads else None)
    blind = [rank for rank, sees in enumerate(crew.gather(os.path.exists(probe))) if not sees]
    try:
        crew.agree(lambda: write(own) if not blind else None)
    finally:
        own.unlink(missing_ok=True)
        if crew.leads:
            probe.unlink()
    if blind:
        raise SharedError(
            f"rank {', '.join(map(str, blind))} of {crew.ranks} does not see what rank 0 writes into "
            f"{crew.tell(folder.resolve())}; give the same -o everywhere, a folder that all machines share"
        )


@cache
def software() -> dict[str, str]:
    """What a process computes with: Python, torch, diffusers, and a hash of this package's code."""
    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "code of aad1": code.hexdigest()[:12],
    }
