"""Any number of processes fill one store; killed anywhere they lose what each was at, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from aad1.data.blocks import Clip
from aad1.data.claim import Claim, Plan, read_plan
from aad1.data.filling import Work, fill, follow
from aad1.data.latents import LatentStore
from aad1.data.store import Manifest, Skip, blocks_on_disk
from aad1.data.team import ALONE, Helpers, Team, torchrun_team
from aad1.errors import UserError

ITEMS, BLOCK = 43, 2
BLOCKS = -(-ITEMS // BLOCK)
MANIFEST = Manifest("latents", "toy", 16.0, (8, 8), 5)
BROKEN = 7
FORK = multiprocessing.get_context("fork")


def make(wanted: Sequence[range], *, log: Path, pause: float) -> Iterator[list[Clip | Skip]]:
    """Items that hold their position; every block that is begun is noted, with who began it."""
    for block in wanted:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {block.start // BLOCK}\n")
        time.sleep(pause)
        yield [_item(position) for position in block]


def _item(position: int) -> Clip | Skip:
    if position == BROKEN:
        return Skip(position, f"s{position}", "it is torn")
    return Clip({"latents": torch.full((2, 3), float(position))}, {"source": f"s{position}", "caption": "c"})


def work(root: Path, name: str = "store", pause: float = 0.0) -> Work:
    sources = [f"s{position}" for position in range(ITEMS)]
    return Work(root / name, MANIFEST, sources, BLOCK, partial(make, log=root / "log", pause=pause))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def unbroken(tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "alone").mkdir()
    (summary,) = fill([work(tmp_path / "alone")], "filling")
    assert (summary.count, len(summary.skipped)) == (ITEMS - 1, 1)
    return contents(tmp_path / "alone" / "store")


# --- ranks ------------------------------------------------------------------------------------


def take_part(works: Sequence[Work], team: Team) -> None:
    """One rank's life, as torchrun would start it."""
    follow(works, team) if team.rank else fill(works, "filling", team=team)


def started(works: Sequence[Work], ranks: int) -> list[multiprocessing.process.BaseProcess]:
    teams = [Team(rank, ranks, "run", rank, ranks) for rank in range(ranks)]
    processes = [FORK.Process(target=take_part, args=(works, team)) for team in reversed(teams)]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize("ranks", [2, 3, BLOCKS + 3])
def test_ranks_share_two_stores_and_each_block_is_made_once(
    ranks: int, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for process in started([work(tmp_path, "a"), work(tmp_path, "b")], ranks):
        process.join(60)
        assert process.exitcode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == unbroken
    begun = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(number) for _, number in begun) == sorted([*range(BLOCKS)] * 2)
    assert len({pid for pid, _ in begun}) == min(ranks, BLOCKS)


def test_a_slow_leader_does_its_own_share_and_no_more(unbroken: dict[str, bytes], tmp_path: Path) -> None:
    """The other rank has long finished the second store when the leader comes to it."""
    follower = FORK.Process(target=take_part, args=([work(tmp_path, "a"), work(tmp_path, "b")], Team(1, 2, "run")))
    follower.start()
    take_part([work(tmp_path, "a", pause=0.03), work(tmp_path, "b", pause=0.03)], Team(0, 2, "run"))
    follower.join(60)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == unbroken
    assert len((tmp_path / "log").read_text().splitlines()) == 2 * BLOCKS


def test_killed_anywhere_the_ranks_lose_no_more_than_a_block_each(unbroken: dict[str, bytes], tmp_path: Path) -> None:
    """Killed at random moments by SIGKILL, and gone on with by another number of ranks, over and over."""
    chance, kills = random.Random(3), 0
    while len(blocks := _blocks(tmp_path / "store")) < BLOCKS:
        (tmp_path / "log").unlink(missing_ok=True)
        ranks = chance.randint(1, 4)
        processes = started([work(tmp_path, pause=0.03)], ranks)
        time.sleep(chance.uniform(0.02, 0.15))
        for process in chance.sample(processes, ranks):
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join(60)
        kills += 1
        lost = _begun(tmp_path / "log") - set(_blocks(tmp_path / "store"))
        assert len(lost) <= ranks
        assert set(blocks) <= set(_blocks(tmp_path / "store"))
    assert kills >= 4
    fill([work(tmp_path)], "filling")
    assert contents(tmp_path / "store") == unbroken


def _blocks(folder: Path) -> list[int]:
    return blocks_on_disk(folder) if folder.exists() else []


def _begun(log: Path) -> set[int]:
    return {int(line.split()[1]) for line in log.read_text().splitlines()} if log.exists() else set()


def test_a_plan_counts_while_its_leader_lives(tmp_path: Path) -> None:
    plan = Plan("run 1", 2, 43, (0, 4, 5))
    assert read_plan(tmp_path, "run 1") is None
    claim = Claim(tmp_path)
    assert read_plan(tmp_path, "run 1") is None
    claim.publish(plan)
    assert read_plan(tmp_path, "run 1") == plan
    assert read_plan(tmp_path, "run 2") is None
    left = (tmp_path / ".lock").read_bytes()
    claim.release()
    (tmp_path / ".lock").write_bytes(left)  # as a killed leader leaves it
    assert read_plan(tmp_path, "run 1") is None
    assert [plan.share(rank, 2) for rank in (0, 1)] == [(0, 5), (4,)]
    assert plan.range_of(21) == range(42, 43)


def test_torchruns_variables_say_who_this_is() -> None:
    assert torchrun_team({}) is ALONE
    assert torchrun_team({"RANK": "3"}) is ALONE
    given = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_PORT": "29500"}
    team = torchrun_team(given)
    assert (team.rank, team.ranks, team.local, team.local_ranks, team.leads) == (9, 16, 1, 8, False)
    assert team.run != torchrun_team(given | {"TORCHELASTIC_RESTART_COUNT": "1"}).run
    assert torchrun_team(given | {"RANK": "0"}).leads


# --- helpers ----------------------------------------------------------------------------------


HARMS = ("", "killed", "full", "fault")


def help_out(root: Path, pause: float, harms: Sequence[str], team: Team) -> None:
    """A helper's life, which comes to its own kind of harm at its third block."""
    one = work(root, pause=pause)
    harmed = partial(_harmed, one, harms[team.rank or 0])
    follow([Work(one.folder, MANIFEST, one.sources, BLOCK, harmed)], team)


def _harmed(one: Work, harm: str, wanted: Sequence[range]) -> Iterator[Sequence[Clip | Skip]]:
    for number, items in enumerate(one.make(wanted)):
        if number == 2 and harm == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2 and harm == "full":
            raise UserError("cannot write it: the disk is full; free some space")
        if number == 2 and harm == "fault":
            raise ZeroDivisionError("a fault of ours")
        yield items


def test_helpers_that_fail_cost_their_own_blocks(
    unbroken: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=r"10 blocks of 2 clips are missing \(9, .*3 of 4 processes failed \(it was killed"
    ):
        fill([work(tmp_path)], "filling", helpers=Helpers(partial(help_out, tmp_path, 0.0, HARMS), 4))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("process ")]
    assert sorted(said) == [
        "process 1 of 4 failed: it was killed by signal 9 (out of memory?)",
        "process 2 of 4 failed: cannot write it: the disk is full; free some space",
        "process 3 of 4 failed: internal error (ZeroDivisionError: a fault of ours)",
    ]
    assert _blocks(tmp_path / "store") == sorted([*range(0, BLOCKS, 4), 1, 5, 2, 6, 3, 7])
    fill([work(tmp_path)], "filling")
    assert contents(tmp_path / "store") == unbroken


def test_helpers_are_not_started_for_nothing(tmp_path: Path) -> None:
    fill([work(tmp_path)], "filling")
    helpers = Helpers(partial(help_out, tmp_path, 0.0, HARMS), 2)
    fill([work(tmp_path)], "filling", helpers=helpers)
    assert not helpers.working()
    assert len(LatentStore(tmp_path / "store")) == ITEMS - 1


def lead_slowly(root: Path) -> None:
    fill([work(root)], "filling", helpers=Helpers(partial(help_out, root, 0.3, ("", "")), 2))


def test_a_killed_leader_takes_its_helpers_along(tmp_path: Path) -> None:
    leader = multiprocessing.get_context("spawn").Process(target=lead_slowly, args=(tmp_path,))
    leader.start()
    _until(lambda: len(_pids(tmp_path / "log")) == 2)
    leader.kill()
    leader.join()
    _until(lambda: not any(_lives(pid) for pid in _pids(tmp_path / "log")))
    assert len(_blocks(tmp_path / "store")) < BLOCKS


def _pids(log: Path) -> set[int]:
    return {int(line.split()[0]) for line in log.read_text().splitlines()} if log.exists() else set()


def _lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def _until(true: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
