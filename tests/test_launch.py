"""What processes must have alike before the first step, and that one of them says on one line what is not."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import on_ranks
from torch.distributed import TCPStore

from aad1.assembly import Assembly
from aad1.cli import last_word, main
from aad1.data.team import Team
from aad1.parallel.crew import Crew, SharedError
from aad1.parallel.launch import require_alike, require_shared, software
from aad1.parallel.placement import Placement
from aad1.recipe import load_recipe
from aad1.workspace import Workspace


def said(act: object, *given: object) -> str:
    """What is refused on this rank; every rank calls it."""
    crew = Crew(dist.get_rank(), dist.get_world_size(), control=dist.group.WORLD)
    try:
        act(crew, *given)  # type: ignore[operator]
    except SharedError as error:
        return str(error)
    return ""


def compared() -> list[str]:
    rank = dist.get_rank()
    facts = [{"code": "a", "recipe": "b"}, {"code": "a", "recipe": "c" if rank == 1 else "b"}]
    return [said(require_alike, values) for values in (*facts, software())]


def looked_without_room(folder: Path) -> str:
    if dist.get_rank() == 1:
        touch = Path.touch

        def refused(path: Path) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        Path.touch = refused  # type: ignore[assignment, method-assign]
        try:
            return said(require_shared, folder)
        finally:
            Path.touch = touch  # type: ignore[method-assign]
    return said(require_shared, folder)


def test_a_folder_that_a_rank_cannot_write_is_refused(tmp_path: Path) -> None:
    heard = on_ranks(looked_without_room, 2, tmp_path, tmp_path / "out")
    assert heard[0] == heard[1]
    assert heard[0].startswith(f"rank 1 of 2: cannot write {tmp_path}/out: Read-only file system")
    assert list((tmp_path / "out").iterdir()) == [], "the probes are gone"


def test_ranks_with_another_recipe_are_named(tmp_path: Path) -> None:
    for heard in on_ranks(compared, 3, tmp_path):
        assert heard == ["", "rank 1 of 3 has another recipe than rank 0 (c, not b); give every process the same", ""]


def looked(folders: tuple[Path, Path]) -> str:
    return said(require_shared, folders[dist.get_rank()])


@pytest.mark.parametrize("own", ["out", "elsewhere"])
def test_a_folder_that_a_rank_does_not_share_is_refused(tmp_path: Path, own: str) -> None:
    heard = on_ranks(looked, 2, tmp_path, (tmp_path / "out", tmp_path / own))
    refusal = f"rank 1 of 2 does not see what rank 0 writes into {tmp_path}/out; give the same -o everywhere"
    assert all(one.startswith(refusal) if own == "elsewhere" else one == "" for one in heard), heard
    assert list((tmp_path / "out").iterdir()) == [], "the probe is gone"


def unwritable(folder: Path) -> str:
    return said(require_shared, folder / "file" / "below")


def test_a_folder_that_the_leader_cannot_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first, second = on_ranks(unwritable, 2, tmp_path, tmp_path)
    assert first == second
    assert "file" in first
    assert "Errno" not in first


def commanded(port: int, start: int, words: list[str]) -> tuple[int, str]:
    """Exit code of a command on one of the processes of a torchrun's start, whose store has this port; what it says.

    In ``words``, RANK is its rank.
    """
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": str(start),
    }
    last_word.LAST_WORD = 0.1  # torchrun would end it after that
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([word.replace("RANK", os.environ["RANK"]) for word in words])
    return code, said.getvalue()


SMALL = ["--data.clips", "4", "--data.validation", "1", "--trajectories.count", "2"]


def refusals(folder: Path, *words: str, starts: int = 1) -> list[str]:
    """What two processes say that a torchrun starts so often; all must refuse."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    given = ["distill", "--recipe", "tiny", "-o", str(folder / "out"), *SMALL, *words]
    lines: list[str] = []
    for start in range(starts):
        found = on_ranks(commanded, 2, folder, store.port, start, given, join=False)
        assert [code for code, _ in found] == [2, 2], found
        lines += [line for _, said in found for line in said.splitlines()]
    return lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--compute.context", "3"], "x context 3 do not make 2 processes"),
        (["--ode_init.batch", "1", "--ode_init.accumulate", "3"], "cannot be dealt to 2 groups"),
        (["--ode_init.steps", "1RANK"], "aad1: rank 1 of 2 has another ode_init.steps than rank 0 (11, not 10)"),
        (["--profile", "1:1RANK"], "aad1: rank 1 of 2 has another --profile than rank 0 (1:11, not 1:10)"),
        (["--profile", "never"], "aad1: --profile never"),
        (["--install"], "comes with the package and is not written to"),
        (
            ["--trajectories.steps", "4", "--trajectories.levels", "[1.0,0.3123]"],
            "4 Euler steps at shift 5.0 do not pass",
        ),
        (["--ode_init.step", "3"], "aad1: unknown recipe key 'ode_init.step'"),
    ],
)
def test_one_rank_says_on_one_line_what_is_refused(words: list[str], told: str, tmp_path: Path) -> None:
    (line,) = refusals(tmp_path, *words)
    assert told in line
    assert not list((tmp_path / "out").glob("*")), "nothing was made before it was refused"


def test_a_restart_does_not_go_on_with_a_run_that_was_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "ode_init" / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    lines = refusals(tmp_path, starts=2)
    assert len(lines) == 2, "one at each start"
    for line in lines:
        assert line.endswith(f"{tmp_path}/out/ode_init holds a run at step 7; add --resume, or choose another folder")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["ode_init", "checkpoints", "step-00000007"]


def test_one_process_alone_fills_no_larger_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ode_init", "--recipe", "tiny", "-o", str(tmp_path), "--compute.context", "2"]) == 2
    assert "do not make 1 processes" in capsys.readouterr().err


def prepared_late(folder: Path, model: Path) -> bool:
    """Prepare clips that are there already, rank 1 coming long after rank 0."""
    rank = dist.get_rank()
    crew = Crew(rank, 2, control=dist.group.WORLD)
    small = ["--data.clips", "2", "--data.validation", "1", "--data.frames", "5", "--model", str(model)]
    assembly = Assembly(
        load_recipe("tiny", small), Workspace(folder), Team(rank, 2, "run", rank, 2), Placement(crew=crew)
    )
    for late in (False, True):
        if late and rank == 1:
            time.sleep(1.5)
        assembly.prepare_clips()
    return True


def test_a_process_that_comes_late_to_a_finished_store_does_not_wait_for_ever(
    tmp_path: Path, tiny_folder: Path
) -> None:
    assert on_ranks(prepared_late, 2, tmp_path, tmp_path / "run", tiny_folder, limit=120) == [True, True]
