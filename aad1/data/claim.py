"""Who works on a store: one run at a time, of any number of processes, which agree on their shares through a file.

The run's leader holds a lock on ``folder/.lock`` for as long as it lives; its text is the plan. The system drops
the lock with the process, however that ends, so a killed run blocks nobody.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from aad1.data.team import require_leader
from aad1.errors import UserError
from aad1.files import locked, locked_within, write_errors

LOCK = ".lock"
PATIENCE = 2.0  # seconds: a follower that looks at the lock holds it for an instant
PAUSE = 0.1  # seconds between looks for a plan


@dataclass(frozen=True)
class Plan:
    """What a run has to do: which blocks, of how many source items each, of how many in all."""

    run: str
    block: int
    items: int
    blocks: tuple[int, ...]

    def share(self, rank: int, ranks: int) -> tuple[int, ...]:
        """The blocks that one of the run's processes makes."""
        return self.blocks[rank::ranks]

    def range_of(self, number: int) -> range:
        """The source items of a block."""
        return range(number * self.block, min((number + 1) * self.block, self.items))


class Claim:
    """The leader's hold on a store. Raises UserError when another run has it."""

    def __init__(self, folder: Path) -> None:
        with write_errors(folder / LOCK):
            self._file = (folder / LOCK).open("a+", encoding="utf-8")
        if not locked_within(self._file, PATIENCE):
            self._file.close()
            raise UserError(
                f"another run is working on the store {folder}; wait for it or stop it, "
                "or use --processes to have several at once"
            )
        self._file.truncate(0)  # the plan of a run that was killed

    def publish(self, plan: Plan) -> None:
        """Tell the run's other processes what there is to do."""
        with write_errors(Path(self._file.name)):
            self._file.seek(0)
            self._file.truncate(0)
            self._file.write(json.dumps(asdict(plan)))
            self._file.flush()

    def release(self) -> None:
        """Let others work on the store."""
        self._file.truncate(0)
        self._file.close()


def read_plan(folder: Path, run: str) -> Plan | None:
    """The plan of this run, None where its leader has not come so far."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as file:
            if locked(file):
                return None  # nobody leads: what it says is left from a run that was killed
            facts = json.load(file)
        plan = Plan(**(facts | {"blocks": tuple(facts["blocks"])}))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return plan if plan.run == run else None


def await_plan(folder: Path, run: str) -> Plan:
    """Wait until the run's leader has published its plan for this store."""
    while (plan := read_plan(folder, run)) is None:
        require_leader()
        time.sleep(PAUSE)
    return plan
