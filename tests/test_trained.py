"""Students out of sharded models and out of checkpoints: byte for byte what one process writes of the whole model."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from aad1.assembly import student_config
from aad1.cli import main
from aad1.errors import UserError
from aad1.exporting.trained import write_trained
from aad1.models import saving
from aad1.models.causal_wan import CausalWanBlock, CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder, save_transformer
from aad1.parallel.crew import ALONE, Crew
from aad1.recipe import Recipe, as_dict, load_recipe
from aad1.record import RECIPE
from aad1.training.checkpoint import Checkpoints
from aad1.training.loop import CHECKPOINTS
from aad1.training.player import OptimizerConfig, Player

SMALL = 60_000  # bytes of a file: several files
WITH_AVERAGE = OptimizerConfig(lr=1e-3, ema=0.9)


def recipe_of(wan: Path) -> Recipe:
    return replace(load_recipe("tiny"), model=str(wan))


def student_of(wan: Path) -> CausalWanTransformer3DModel:
    return open_folder(wan).transformer(CausalWanTransformer3DModel, **student_config(recipe_of(wan)))


def moved(player: Player) -> Player:
    """The average apart from the weights, both with numbers of their own."""
    for number, (name, parameter) in enumerate(player.parameters.items()):
        with torch.no_grad():
            parameter += number
            if player.average:
                player.average[name] -= number
    return player


def save_run(run: Path, player: Player, crew: Crew = ALONE) -> None:
    """Checkpoints of step 1, the best, and 2, whose average is another."""
    saved = Checkpoints(run / CHECKPOINTS, 1, crew)
    saved.consider(1, 0.9, {"rho": 0.9})
    for step in (1, 2):
        saved.save(step, {"players": {"generator": player.state_dict()}})
        saved.wait()
        for average in player.average.values():
            average *= 2
    saved.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run of one process, and beside it the students that it had at steps 1 and 2."""
    folder = tmp_path_factory.mktemp("trained") / "adversarial"
    folder.mkdir()
    (folder / RECIPE).write_text(yaml.safe_dump(as_dict(recipe_of(tiny_folder))))
    player = moved(Player("generator", student_of(tiny_folder), WITH_AVERAGE))
    with player.averaged():
        save_transformer(player.module, folder / "1", file_bytes=SMALL)
    save_run(folder, player)
    for average in player.average.values():
        average /= 2
    with player.averaged():
        save_transformer(player.module, folder / "2", file_bytes=SMALL)
    return folder


@pytest.mark.parametrize(("which", "step"), [("best", 1), (1, 1), ("last", 2), (2, 2)])
def test_a_checkpoint_becomes_the_student_it_holds(run: Path, tmp_path: Path, which: Any, step: int) -> None:
    made = write_trained(run, which, tmp_path / "student", file_bytes=SMALL)
    assert files_of(made) == files_of(run / str(step))
    assert len(list(made.glob("*.safetensors"))) > 2


def test_without_an_average_it_is_the_generator_itself(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    player = moved(Player("generator", student_of(tiny_folder), OptimizerConfig(lr=1e-3)))
    save_transformer(player.module, tmp_path / "expected")
    (tmp_path / RECIPE).write_bytes((run / RECIPE).read_bytes())
    save_run(tmp_path, player)
    assert files_of(write_trained(tmp_path, "last", tmp_path / "made")) == files_of(tmp_path / "expected")


# --- several processes -----------------------------------------------------------------------


def save_on_ranks(wan: Path, out: Path, run: Path) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = student_of(wan)
    mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("replicate", "shard"))
    for block in model.modules():
        if isinstance(block, CausalWanBlock):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    player = moved(Player("generator", model, WITH_AVERAGE))
    with player.averaged():
        save_transformer(model, out / "sharded", file_bytes=SMALL)
        save_transformer(model, out / "half", dtype=torch.bfloat16, as_stock=True)
        dist.barrier()
        _on_a_full_disk(model, out, rank)
    save_run(run, player, Crew(rank, ranks, rank, ranks, dist.new_group(backend="gloo")))


def _on_a_full_disk(model: CausalWanTransformer3DModel, out: Path, rank: int) -> None:
    """Only the leader writes and says so; the other is not left waiting for its parts, as the barrier shows."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name, said in (
        (saving, "save_file", "cannot write weights into .*: .*No space left"),
        (Path, "mkdir", "No space left"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, full)
            if rank == 0:
                with pytest.raises((UserError, OSError), match=said):
                    save_transformer(model, out / "sharded", file_bytes=SMALL)
            else:
                save_transformer(model, out / "sharded", file_bytes=SMALL)
        dist.barrier()


def test_a_sharded_model_is_saved_as_a_whole_one(tmp_path: Path, tiny_folder: Path, run: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECIPE).write_bytes((run / RECIPE).read_bytes())
    on_ranks(save_on_ranks, 2, tmp_path, tiny_folder, tmp_path, tmp_path / "run")
    assert files_of(tmp_path / "sharded") == files_of(run / "1")
    whole = moved(Player("generator", student_of(tiny_folder), WITH_AVERAGE))
    with whole.averaged():
        save_transformer(whole.module, tmp_path / "expected", dtype=torch.bfloat16, as_stock=True)
    assert files_of(tmp_path / "half") == files_of(tmp_path / "expected")
    assert files_of(write_trained(tmp_path / "run", "best", tmp_path / "made", file_bytes=SMALL)) == files_of(run / "1")


# --- the command -----------------------------------------------------------------------------


def test_export_takes_a_run(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    assert main(["export", str(run), "--checkpoint", "best", "-o", str(tmp_path / "out")]) == 0
    write_trained(run, 1, tmp_path / "student")
    words = ["export", "--model", str(tiny_folder), "--student", str(tmp_path / "student"), "-o", str(tmp_path / "as")]
    assert main(words) == 0
    trees = [{f.relative_to(tmp_path / o): f.read_bytes() for f in (tmp_path / o).rglob("*.*")} for o in ("out", "as")]
    assert trees[0] == trees[1]
    assert not list(tmp_path.glob(".student-*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{run}", "--checkpoint", "bset"), "--checkpoint bset: allowed are last, best and a step"),
        (("{run}", "--checkpoint", "7"), "no checkpoint of step 7; there are 1, 2"),
        (("{run}", "--student", "other"), "a run and --student are two students"),
        (("--checkpoint", "best"), "--checkpoint is of a run: name its folder"),
        (("{run}/final",), "is no run: it has no recipe.yaml"),
        (("{run}", "--model", "tiny"), "is of another model than"),
    ],
)
def test_mistakes_get_one_line(
    words: Sequence[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(word.format(run=run) for word in words), "-o", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("aad1: ")]
    assert said in line
    assert not list(tmp_path.iterdir())
