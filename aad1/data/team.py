"""Several processes at one job: ranks that torchrun started, or helpers of our own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType

from aad1.errors import UserError
from aad1.runtime import keep_freed_memory

TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


@dataclass(frozen=True)
class Team:
    """This process's place: ``rank`` of ``ranks`` of the run that is named ``run``.

    local: its number on its machine, where there are ``local_ranks``.

    The leader of a team is its rank 0, or a process outside that started the ranks and is none of them (rank None).
    """

    rank: int | None = 0
    ranks: int = 1
    run: str = ""
    local: int = 0
    local_ranks: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process looks after the store and shows the progress."""
        return not self.rank


ALONE = Team()


def torchrun_team(environment: Mapping[str, str] = os.environ) -> Team:
    """The place that torchrun (or another launcher with its variables) gave this process; ALONE without one."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return ALONE
    run = ":".join(environment.get(name, "") for name in TORCHRUN)
    rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local, local_ranks = (
        int(environment.get(name, else_)) for name, else_ in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", ranks))
    )
    return Team(rank, ranks, run, local, local_ranks)


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process anew after another had failed: what it does, it goes on with."""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@dataclass(frozen=True)
class Fallen:
    """A helper that ended before its work."""

    rank: int
    reason: str


class Helpers:
    """``ranks`` processes that each call ``target(team)``, begun by ``start`` and ended when the block is left."""

    def __init__(self, target: Callable[[Team], None], ranks: int) -> None:
        self.target, self.ranks, self.run = target, ranks, uuid.uuid4().hex
        self._processes: list[SpawnProcess] = []
        self._said: list[Connection] = []
        self._fallen: dict[int, Fallen] = {}

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self._processes:
            if kind is not None:
                process.terminate()
        for process in self._processes:
            process.join()

    def start(self) -> None:
        """Start the processes."""
        context = multiprocessing.get_context("spawn")
        for rank in range(self.ranks):
            receive, send = context.Pipe(duplex=False)
            team = Team(rank, self.ranks, self.run, rank, self.ranks)
            process = context.Process(target=_serve, args=(self.target, team, send), daemon=True)
            process.start()
            send.close()
            self._processes.append(process)
            self._said.append(receive)

    def working(self) -> bool:
        """Whether any is still at work."""
        return any(process.is_alive() for process in self._processes)

    def newly_fallen(self) -> list[Fallen]:
        """Helpers that have failed since this was last asked."""
        new = []
        for rank, process in enumerate(self._processes):
            if rank not in self._fallen and process.exitcode:
                self._fallen[rank] = Fallen(rank, self._reason(rank, process.exitcode))
                new.append(self._fallen[rank])
        return new

    @property
    def fallen(self) -> list[Fallen]:
        """All helpers that failed, as far as has been asked."""
        return [self._fallen[rank] for rank in sorted(self._fallen)]

    def _reason(self, rank: int, code: int) -> str:
        try:
            if self._said[rank].poll():
                return str(self._said[rank].recv())
        except EOFError:
            pass
        return f"it was killed by signal {-code} (out of memory?)" if code < 0 else f"it ended with code {code}"


def _serve(target: Callable[[Team], None], team: Team, say: Connection) -> None:
    """One helper's life; Ctrl-C is the leader's to hear, who ends its helpers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    try:
        target(team)
    except UserError as error:
        say.send(str(error))
        sys.exit(2)
    except Exception as error:
        say.send(f"internal error ({type(error).__name__}: {error})")
        sys.exit(1)


def require_leader() -> None:
    """End this process if it helps one that is no more: a killed leader shall not leave its helpers at work."""
    leader = multiprocessing.parent_process()
    if leader is not None and not leader.is_alive():
        sys.exit(1)
