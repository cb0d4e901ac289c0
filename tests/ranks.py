"""Run a function on several processes that make up one gloo world: what a cluster does, on a laptop."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = ["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo", "aad1.assembly"]


def on_ranks(
    function: Callable[..., Any], ranks: int, folder: Path, *given: Any, limit: float = 240, join: bool = True
) -> list[Any]:
    """What ``function(*given)`` returns on each of ``ranks`` processes, by rank, inside a default gloo process group.

    ``function`` is of a module that can be imported; without ``join`` it begins without a process group. Raises
    AssertionError with the traceback of the first rank that failed, and when they take longer than ``limit`` seconds.
    """
    context = _context()
    meeting = folder / f"meeting-{uuid.uuid4().hex}" if join else None
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(target=_one, args=(function, given, rank, ranks, meeting, send), daemon=True)
        for rank, (_, send) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        return _results([receive for receive, _ in pipes], time.monotonic() + limit)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here = str(Path(__file__).parent)
    if here not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    forkserver.ensure_running()
    return context


def _results(pipes: list[Any], until: float) -> list[Any]:
    """All ranks' results; the first failure ends the waiting, for the others wait for the one that failed."""
    found: dict[int, Any] = {}
    while len(found) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in found}
        ready = multiprocessing.connection.wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
        assert ready, f"ranks {sorted(waiting.values())} of {len(pipes)} did not answer in time"
        for pipe in ready:
            rank = waiting[pipe]
            try:
                failed, found[rank] = pipe.recv()
            except EOFError:
                raise AssertionError(f"rank {rank} died") from None
            assert not failed, f"rank {rank}:\n{found[rank]}"
    return [found[rank] for rank in range(len(pipes))]


def _one(
    function: Callable[..., Any], given: tuple[Any, ...], rank: int, ranks: int, meeting: Path | None, send: Any
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    try:
        if meeting is not None:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
            )
        result = function(*given)
        if meeting is not None:
            dist.barrier()
        send.send((False, result))
    except BaseException:
        send.send((True, traceback.format_exc()))
