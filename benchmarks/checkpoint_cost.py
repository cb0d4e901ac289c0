"""What saving costs the training loop: with the writing in a thread, and waited for, beside no saving at all.

    python benchmarks/checkpoint_cost.py --folder /some/disk/saving [--stage dmd_warmup] [--batch 16] [--every 2]

Recipe tiny's stage with its true players, on random clips. Blocks of ``--every`` steps with one save each take turns
with blocks without, so that a busy machine is busy for all of them; medians of a block's wall time and of the time
that all threads of this process were computing. Beside them what a save takes by itself: how long it holds the loop
up, and for how long the thread that writes computes; their sum as a share of the training's computing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from plan_accuracy import RealAssembly, random_batch

from aad1.planning.costs import NOWHERE
from aad1.planning.published import configs_of
from aad1.progress import Progress
from aad1.recipe import load_recipe
from aad1.stopwatch import Stopwatch, clock_of, running
from aad1.training import checkpoint
from aad1.training.loop import Run
from aad1.training.speed import UNKNOWN, Speed

WRITTEN: list[float] = []  # seconds that the thread which writes was computing, a save
ALONE, BESIDE, WAITED = MODES = ("no saving", "a thread writes", "waited for")


class RandomClips:
    """As many clips as it takes, all the same."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 10_000

    def read(self, indices: Sequence[int]) -> Any:
        return self.batch


def run_of(stage_name: str, batch: int | None, threads: int | None, folder: Path) -> Run:
    """A run of a stage of recipe tiny that saves and evaluates when it is told to."""
    recipe = load_recipe("tiny")
    recipe = replace(recipe, threads=threads or recipe.threads)
    stage = RealAssembly(recipe, NOWHERE).stage(stage_name)
    config = replace(vars(recipe)[stage_name], steps=10**6, evaluate_every=0, save_every=0)
    config = replace(config, batch=batch or config.batch)
    stage.dataset = RandomClips(random_batch(stage, recipe, configs_of(recipe.model), config.batch))
    return Run(stage, config, folder, seed=0)


class Block(NamedTuple):
    """Seconds: of wall, of all threads' computing, that a save held the loop up, that the writing thread computed."""

    wall: float
    computed: float
    held: float
    written: float


def block(run: Run, bar: Progress, steps: int, mode: str) -> Block:
    """So many steps, the first of them with a save; what is still being written at the end is waited for."""
    WRITTEN.clear()
    began, computed, held = time.perf_counter(), time.process_time(), 0.0
    for step in range(steps):
        run._one_step(None, bar)
        if step == 0 and mode != ALONE:
            asked = time.perf_counter()
            run.save()
            if mode == WAITED:
                run.checkpoints.wait()
            held = time.perf_counter() - asked
        run.checkpoints.poll()
    run.checkpoints.wait()
    return Block(time.perf_counter() - began, time.process_time() - computed, held, sum(WRITTEN))


def timed(write: Callable[..., None]) -> Callable[..., None]:
    def call(*given: Any) -> None:
        began = time.thread_time()
        write(*given)
        WRITTEN.append(time.thread_time() - began)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to save; must not exist")
    parser.add_argument("--stage", choices=("ode_init", "dmd_warmup", "adversarial"), default="dmd_warmup")
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--threads", type=int, help="default: the recipe's")
    parser.add_argument("--every", type=int, default=2, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    usual = vars(load_recipe("tiny"))[arguments.stage].save_every
    checkpoint._write = timed(checkpoint._write)
    run = run_of(arguments.stage, arguments.batch, arguments.threads, arguments.folder)
    found: dict[str, list[Block]] = {mode: [] for mode in MODES}
    try:
        cpu = torch.device("cpu")
        with Progress(arguments.stage, 1, unit="step", shown=False) as bar, running(Stopwatch(clock_of(cpu))) as watch:
            run.speed = Speed(run.stage, run.crew, watch, cpu, UNKNOWN)
            block(run, bar, 1, WAITED)  # first touches of everything
            for round in range(arguments.rounds):
                for mode in MODES[round % 3 :] + MODES[: round % 3]:
                    found[mode].append(block(run, bar, arguments.every, mode))
        last = max(arguments.folder.glob("checkpoints/step-*"))
        size = sum(file.stat().st_size for file in last.iterdir())
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    print(f"{arguments.stage}: a checkpoint is {size / 1e6:.1f} MB; medians of {arguments.rounds} blocks")
    middle = {
        mode: Block(*(statistics.median(column) for column in zip(*rows, strict=True))) for mode, rows in found.items()
    }
    plain = middle[ALONE]
    print(
        f"a step: {plain.wall / arguments.every:.3f} s of wall, {plain.computed / arguments.every:.3f} s of computing"
    )
    for mode in MODES[1:]:
        now = middle[mode]
        own = (now.held + now.written * (mode == BESIDE)) / (plain.computed / arguments.every)  # steps
        wall, computed = (100 * (one / other - 1) for one, other in ((now.wall, plain.wall), (now[1], plain.computed)))
        print(
            f"{mode}: a save holds the loop for {now.held:.3f} s, its thread computes {now.written:.3f} s: "
            f"{100 * own / arguments.every:.1f} % every {arguments.every} steps, {100 * own / usual:.2f} % every "
            f"{usual}; blocks took {wall:+.1f} % of wall, {computed:+.1f} % of computing"
        )


if __name__ == "__main__":
    main()
