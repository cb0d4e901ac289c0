"""The command that prepares: several processes, other shapes, captions; what it says when it is stopped or refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aad1.assembly import Assembly, for_team
from aad1.cli import main
from aad1.data.blocks import StoreWriter
from aad1.data.latents import LatentStore
from aad1.data.media import VideoWriter
from aad1.data.store import blocks_on_disk
from aad1.data.team import Team
from aad1.errors import UserError
from aad1.models.text import TextEncoder
from aad1.recipe import load_recipe
from aad1.training.metrics import read_metrics
from aad1.workspace import Workspace

COMMON = [
    *("--threads=1", "--device=cpu", "--data.frames=5", "--data.clips=40", "--data.validation=2", "--data.batch=3"),
    *("--trajectories.count=5", "--trajectories.batch=2", "--trajectories.steps=4", "--showing.clips=1"),
]


@pytest.fixture
def options(tiny_folder: Path) -> Callable[..., list[str]]:
    def to(root: Path, *more: str) -> list[str]:
        return [*COMMON, "--model", str(tiny_folder), "-o", str(root), *more]

    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_ranks_make_the_bytes_of_one_process(options: Callable[..., list[str]], tmp_path: Path) -> None:
    """Two ranks, here in two threads: they meet through files alone."""
    recipe = load_recipe("tiny", options(tmp_path)[:-2])
    ranks = [Assembly(recipe, Workspace(tmp_path / "two"), Team(rank, 2, "run", rank, 2)) for rank in range(2)]
    for what in ("clips", "trajectories"):
        assert main(["prepare", what, *options(tmp_path / "one")]) == 0
        with ThreadPoolExecutor() as threads:
            list(threads.map(methodcaller(f"prepare_{what}"), ranks))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(LatentStore(tmp_path / "two" / "clips")) == 40


def test_captions_are_embedded_once_and_for_all(
    options: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prepare", "clips", *options(tmp_path)]) == 0

    def refuse(self: TextEncoder, texts: list[str]) -> list[Tensor]:
        raise AssertionError(f"{texts} are not in the cache")

    monkeypatch.setattr(TextEncoder, "_encode", refuse)
    assert main(["prepare", "clips", *options(tmp_path)]) == 0
    assert main(["prepare", "trajectories", *options(tmp_path)]) == 0
    one_step = ["--ode_init.steps=1", "--ode_init.batch=1", "--data.frames=5", "--student.num_frames_per_block=1"]
    assert main(["train", "ode_init", *options(tmp_path, *one_step)]) == 0


def write_videos(folder: Path, sizes: list[tuple[int, int]]) -> None:
    for index, (height, width) in enumerate(sizes):
        with VideoWriter(folder / f"{index:02d}.mp4", fps=16) as writer:
            shades = np.arange(5, dtype=np.uint8)[:, None, None, None] * 20 + index
            writer.write(np.broadcast_to(shades, (5, height, width, 3)).copy())
        (folder / f"{index:02d}.txt").write_text("a red disc")


def test_clips_of_three_shapes_are_prepared_denoised_and_learnt_from(
    options: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Held-out clips have the main size; a step of training has clips of one shape."""
    write_videos(tmp_path / "videos", [(64, 64), (40, 80), (80, 40), (64, 60), (33, 70), (90, 40), (70, 64)])
    shapes = ["--data.buckets=[[64, 64], [32, 64], [64, 32]]", "--data.source", str(tmp_path / "videos")]
    small = [f"--{s}.{k}=1" for s in ("teacher", "ode_init") for k in ("steps", "evaluate_every")]
    chosen = options(tmp_path / "run", *shapes, *small, "--teacher.batch=2", "--ode_init.batch=2", "--ode_init.steps=3")
    chosen += ["--student.num_frames_per_block=1", "--data.validation=1"]
    for what in ("clips", "trajectories"):
        assert main(["prepare", what, *chosen]) == 0
    assert LatentStore(tmp_path / "run" / "clips").buckets.tolist() == [1, 2, 0, 1, 2, 0]
    assert LatentStore(tmp_path / "run" / "validation").manifest.buckets == ((64, 64),)
    assert LatentStore(tmp_path / "run" / "trajectories").buckets.tolist() == [1, 2, 0, 1, 2]
    for stage in ("teacher", "ode_init"):
        assert main(["train", stage, *chosen]) == 0
    assert read_metrics(tmp_path / "run" / "ode_init" / "metrics.jsonl")[-1]["step"] == 3


# --- mistakes ---------------------------------------------------------------------------------


def refused(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    capfd.readouterr()
    assert main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert len(line) < 500
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes=0"], "--processes 0: use 1 or more"),
        (["--data.buckets=[[32, 64]]"], "buckets must differ and hold size [64, 64], not be [[32, 64]]"),
        (["--data.buckets=[[64, 64], [64, 64]]"], "buckets must differ"),
        (["--data.buckets=[[64, 64], [33, 64]]"], "64x33 does not fit the VAE"),
        (["--data.buckets=[[64, 64], [24, 64]]"], "64x24 does not fit the transformer"),
        (["--data.buckets=[[64, 64], [32]]"], "data.buckets"),
    ],
)
def test_impossible_wishes(
    words: list[str],
    message: str,
    options: Callable[..., list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capfd, ["prepare", "clips", *options(tmp_path / "run", *words)])
    assert not (tmp_path / "run").exists()


def test_processes_are_torchruns_or_ours(
    options: Callable[..., list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    line = refused(capfd, ["prepare", "clips", *options(tmp_path, "--processes=2")])
    assert "torchrun has started 2 already" in line


def test_a_store_in_use_is_left_alone(
    options: Callable[..., list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aad1.data.claim.PATIENCE", 0.0)
    assembly = Assembly(load_recipe("tiny", options(tmp_path)[:-2]), Workspace(tmp_path))
    held_out = assembly.works("clips")[1]
    with StoreWriter(held_out.folder, held_out.manifest, held_out.sources, block=held_out.block):
        line = refused(capfd, ["prepare", "clips", *options(tmp_path)])
    assert f"another run is working on the store {tmp_path / 'validation'}" in line


def test_gpus_and_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, second = load_recipe("tiny", ["--threads=0"]), Team(1, 4, "", 1, 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert for_team(recipe, Team()) == recipe
    assert (for_team(recipe, second).threads, for_team(recipe, second).device) == (2, "auto")
    assert for_team(load_recipe("tiny", ["--threads=3"]), second).threads == 3  # a CPU's last bits depend on it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert for_team(recipe, second).device == "cuda:1"
    assert for_team(load_recipe("tiny", ["--device=cpu"]), second).device == "cpu"
    for wrong, team in ((recipe, Team(2, 4, "", 2, 4)), (load_recipe("tiny", ["--device=cuda:1"]), second)):
        with pytest.raises(UserError, match=r"4 processes on device .* there are 2; use device auto"):
            for_team(wrong, team)


def test_ctrl_c_ends_all_processes_and_keeps_their_blocks(options: Callable[..., list[str]], tmp_path: Path) -> None:
    words = options(tmp_path / "run", "--data.clips=4000", "--processes=2")
    command = [sys.executable, "-m", "aad1", "prepare", "clips", *words]
    process: Any = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    end = time.monotonic() + 60
    while not {0, 1} <= {number % 2 for number in _blocks(tmp_path / "run" / "clips")}:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "aad1: interrupted; what was finished is kept: the same command goes on"
    assert "Traceback" not in err
    assert len(LatentStore(tmp_path / "run" / "clips", unfinished=True)) > 0
    while _anyone_left(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def _blocks(folder: Path) -> list[int]:
    return blocks_on_disk(folder) if folder.exists() else []


def _anyone_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
