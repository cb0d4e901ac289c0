"""Where the time goes, what is computed and what is held: phases add up, work counts once, bytes are all there."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from test_loop import CONFIG, Crash, ToyStage, crash_at
from test_parallel import STAGES, placement_of
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from aad1 import stopwatch
from aad1.errors import UserError
from aad1.parallel.crew import ALONE, Crew
from aad1.parallel.placement import HERE, ComputeConfig, Placement
from aad1.planning.costs import LATER, Manner, _turn
from aad1.planning.ledger import META, without_contents
from aad1.stages.batches import tokens_of
from aad1.stopwatch import (
    BACKWARD,
    COMMUNICATION,
    CRITIC,
    DATA,
    EVALUATION,
    OTHER,
    PASSES,
    ROLLOUT,
    SCORE,
    UPDATE,
    Stopwatch,
    running,
    timed,
    unwatched,
)
from aad1.training import gpus, metrics
from aad1.training.loop import Run
from aad1.training.memory import owners_of
from aad1.training.metrics import read_metrics
from aad1.training.operations import Operations
from aad1.training.profiling import Profiling, Window, window_of
from aad1.training.speed import Done, Scale, Speed, shown

BATCH = {"batch": 2, "accumulate": 2}


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)


class Ticking:
    """A clock that is moved by hand, whose moments have passed only as far as ``read``."""

    def __init__(self) -> None:
        self.time, self.read, self.waited = 0.0, math.inf, 0

    def now(self) -> float:
        return self.time

    def passed(self, moment: float) -> bool:
        return moment <= self.read

    def between(self, before: float, after: float) -> float:
        self.waited += after > self.read
        return after - before


class Tracing(Stopwatch):
    """Remembers in which phases it was."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.seen: Counter[tuple[str, ...]] = Counter()

    def enter(self, phase: str) -> None:
        super().enter(phase)
        self.seen[self.stack] += 1

    @property
    def stack(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._phases)


# --- phases ----------------------------------------------------------------------------------


def test_every_moment_counts_once_to_the_innermost_phase() -> None:
    clock = Ticking()
    with running(Stopwatch(clock)) as watch:
        clock.time += 1
        with timed(BACKWARD):
            clock.time += 2
            with timed(ROLLOUT), timed(ROLLOUT):
                clock.time += 4
                with timed(COMMUNICATION):
                    clock.time += 8
            clock.time += 16
        with timed(EVALUATION):
            with timed(ROLLOUT):
                clock.time += 32
            clock.time += 64
        taken = watch.take()
        assert taken == {OTHER: 1, BACKWARD: 18, ROLLOUT: 4, COMMUNICATION: 8, EVALUATION: 96}
        assert sum(taken.values()) == clock.time
        with timed(DATA):
            clock.time += 3
            assert watch.take() == {OTHER: 0, DATA: 3}
            clock.time += 5
        assert watch.take()[DATA] == 5


def test_an_error_ends_the_phases_it_leaves() -> None:
    clock = Ticking()
    with running(Stopwatch(clock)) as watch:
        with pytest.raises(ZeroDivisionError), timed(DATA), timed(UPDATE):
            raise ZeroDivisionError
        clock.time += 1
        assert watch.take()[OTHER] == 1
    with timed(DATA):  # nobody counts
        clock.time += 1


def test_a_thread_beside_the_run_is_not_told_of() -> None:
    clock = Ticking()

    def beside() -> None:
        with timed(DATA):
            clock.time += 1

    with running(Stopwatch(clock)) as watch, ThreadPoolExecutor(1, initializer=unwatched) as pool:
        pool.submit(beside).result()
        with ThreadPoolExecutor(1) as other:  # such as a backward's
            other.submit(beside).result()
        assert watch.take() == {OTHER: 1, DATA: 1}


def test_a_clock_that_runs_behind_is_not_waited_for_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "UNREAD", 3)
    clock = Ticking()
    clock.read = 5
    with running(Stopwatch(clock)) as watch:
        for _ in range(10):
            with timed(DATA):
                clock.time += 1
        assert clock.waited == 0
        assert watch.take() == {OTHER: 0, DATA: 10}
        assert clock.waited > 0


# --- networks --------------------------------------------------------------------------------


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tracing]]:
    """The stopwatches of all runs within."""
    made: list[Tracing] = []

    def tracing(clock: Any) -> Tracing:
        made.append(Tracing(clock))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr("aad1.training.loop.Stopwatch", tracing)
        yield made


def run_of(name: str, placement: Placement, folder: Path, **given: Any) -> Run:
    stage = STAGES[name](placement, **BATCH)
    run = Run(stage, replace(stage.config, steps=1), folder, seed=0, crew=placement.crew, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", lambda run: None)
        patch.setattr(type(stage), "export", lambda stage, folder: folder)
        run.train()
    return run


def test_passes_count_to_their_network_also_when_a_backward_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(monkeypatch) as (watches):
        run_of("II", HERE, tmp_path / "II")
        run_of("III", Placement(ComputeConfig(checkpointing=("critic",))), tmp_path / "III")
    two, three = (watch.seen for watch in watches)
    assert {(OTHER, ROLLOUT), (OTHER, SCORE), (OTHER, DATA), (OTHER, BACKWARD), (OTHER, UPDATE)} <= two.keys()
    assert not any(BACKWARD in stack and PASSES & {*stack} for stack in two)
    assert not any(CRITIC in stack for stack in two)
    assert (OTHER, BACKWARD, CRITIC) in three
    assert (OTHER, CRITIC) in three
    assert (OTHER, BACKWARD, ROLLOUT) not in three
    assert not any(SCORE in stack for stack in three)
    assert all(watch.stack == (OTHER,) for watch in watches)


class Listening(TorchDispatchMode):
    """Notes in which phase every collective is called."""

    def __init__(self, watch: Tracing, heard: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.watch, self.heard = watch, heard

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.heard[func.__name__.partition(".")[0], self.watch.stack[-1]] += 1
        return func(*args, **(kwargs or {}))


def seen_on_ranks(folder: Path, jobs: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Run each stage as it is placed; what its stopwatch and its speed had to say."""
    metrics._tensorboard = lambda folder, step: None
    found = []
    for index, (name, compute) in enumerate(jobs):
        heard: Counter[tuple[str, str]] = Counter()
        loss = Run._turn

        def listened(
            run: Run, index: int, name: str, heard: Counter[tuple[str, str]] = heard, turn: Any = loss
        ) -> dict[str, float]:
            with Listening(run.speed.watch, heard):  # type: ignore[arg-type]
                return turn(run, index, name)

        placement, where = placement_of(**compute), folder / str(index)
        with pytest.MonkeyPatch.context() as patch, traced(patch):
            patch.setattr(Run, "_turn", listened)
            run = run_of(name, placement, where)
        memory = {key: value for key, value in run.speed.row_of_memory().items() if key != "memory/peak"}
        rows = read_metrics(where / "speed.jsonl") if placement.crew.leads else []
        operations, groups = list(run.speed.kinds.values()), placement.crew.groups
        found.append({"heard": heard, "operations": operations, "rows": rows, "memory": memory, "groups": groups})
    return found


def test_waiting_for_others_is_communication_and_work_is_shared(tmp_path: Path) -> None:
    jobs: list[Any] = [("II", {"shard": 2, "checkpointing": ("generator",)}), ("III", {"context": 2})]
    found = on_ranks(seen_on_ranks, 2, tmp_path, tmp_path, jobs)
    on_one = {name: run_of(name, HERE, tmp_path / name) for name in ("II", "III")}
    for (name, compute), *made in zip(jobs, *found, strict=True):
        where, alone = f"{name} {compute}", on_one[name]
        whole = list(alone.speed.kinds.values())
        for one in made:
            collectives = {kind for kind, _ in one["heard"]}
            assert {"_allgather_base_", "_reduce_scatter_base_"} <= collectives, where
            assert ("alltoall_base_" in collectives) == ("context" in compute), where
            outside = {key: count for key, count in one["heard"].items() if key[1] != COMMUNICATION}
            # The norm of all gradients, and what FSDP does after the whole backward.
            assert {phase for _, phase in outside} <= {UPDATE, BACKWARD}, where
            late = {kind: count for (kind, phase), count in outside.items() if phase == BACKWARD}
            assert late.keys() <= {"_reduce_scatter_base_", "allreduce_"}, where
            turns = sum(len(alone.stage.turns(step)) for step in range(alone.config.steps))
            backwards = turns * len(alone.pieces) // one["groups"]
            assert late["_reduce_scatter_base_"] == 2 * backwards, where  # of the root, and of what embeds noise levels
            assert one["heard"]["_reduce_scatter_base_", COMMUNICATION] >= 2 * backwards, where  # of two blocks
        together = [sum(parts) for parts in zip(*(one["operations"] for one in made), strict=True)]
        if "context" in compute:  # each rank has half of the tokens, and all of the text
            assert all(1 < both / one < 1.5 for both, one in zip(together, whole, strict=True)), where
        else:
            assert together == [2 * one for one in whole], where  # of one micro-batch of each
        row = made[0]["rows"][-1]
        assert row["speed/slowest_rank"] in (0, 1)
        assert 0 < row["speed/slowest_rank_seconds"] <= row["speed/step_seconds"] * 2
        halves = [sum(size for key, size in one["memory"].items() if key.endswith("weights")) for one in made]
        full = sum(size for key, size in alone.speed.row_of_memory().items() if key.endswith("weights"))
        assert halves[0] == halves[1] == pytest.approx(full / 2, rel=0.05), where


# --- operations ------------------------------------------------------------------------------


class OnMeta:
    """A dataset without contents."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def read(self, indices: Any) -> Any:
        return pytree.tree_map(lambda leaf: leaf.to(META), self.dataset.read([0] * len(indices)))


@pytest.mark.parametrize("name", STAGES)
def test_operations_of_a_turn_are_those_of_the_plan(name: str, tmp_path: Path) -> None:
    repeating: Any = ComputeConfig(checkpointing=("generator", "critic", "fake_score"))
    ways = ComputeConfig(), repeating, ComputeConfig(replay=True)
    found = [run_of(name, Placement(compute), tmp_path / str(index)) for index, compute in enumerate(ways)]
    counted = [{player: count for (player, _), count in run.speed.kinds.items()} for run in found]
    assert counted[0] == counted[1] == counted[2], "what is computed again is no operation of the model"
    stage = STAGES[name](HERE, **BATCH)
    for module in owners_of(stage).values():
        module.to(META)
    stage.dataset = OnMeta(stage.dataset)
    if hasattr(stage, "scores"):
        stage.scores.negative_text = stage.scores.negative_text.to(META)
    for player in stage.players.values():
        player.parameters = {n: p for n, p in player.module.named_parameters() if p.requires_grad}
    with without_contents() as ledger:
        planned = {player: _turn(ledger, stage, player, Manner(batch=BATCH["batch"])) for player in stage.turns(LATER)}
    assert counted[0] == {player: one.forward + one.backward for player, one in planned.items()}


def test_operations_are_those_that_torch_counts() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as expected:
        layers(x).sum().backward()
    watch = Stopwatch(Ticking())
    with running(watch), Operations(watch) as counted:
        with timed(BACKWARD), timed(CRITIC):
            layers(x)
        assert counted.count == 0
        layers(x).sum().backward()
    assert counted.count == expected.get_total_flops() > 0


def test_a_compiled_network_counts_as_one_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_of("I", HERE, tmp_path / "plain").speed.kinds
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, backend: compile_with(f, backend="aot_eager"))
    compiled = run_of("I", Placement(ComputeConfig(compile=("generator",))), tmp_path / "compiled")
    assert compiled.speed.kinds == plain


# --- speed -----------------------------------------------------------------------------------


class Two(Crew):
    """Of two ranks that share each sample, the other's word is given."""

    def gather(self, value: Any) -> Any:
        return [value, Done(4, 40, 1000, 9.0, 70)]


def speed(crew: Crew, scale: Scale) -> tuple[Speed, Ticking]:
    clock, stage = Ticking(), ToyStage()
    return Speed(stage, crew, Stopwatch(clock), torch.device("cpu"), scale), clock


def test_rates_are_of_all_processes_and_of_the_time_in_which_it_trains() -> None:
    made, clock = speed(Two(ranks=2, groups=1), Scale(peak=100.0, tokens=len))
    for _ in range(2):
        with running(made.watch):
            with made.micro_batch("one", torch.zeros(10), 2), timed(ROLLOUT):
                torch.zeros(5, 10) @ torch.zeros(10, 1)
                clock.time += 4
            with timed(EVALUATION):
                clock.time += 100
        made.stepped()
    row = made.row(with_memory=False)
    assert row == {
        "speed/step_seconds": 104,
        "speed/clips_per_s": 4 / 8,
        "speed/tokens_per_s": (20 + 40) / 2 / 8,
        "speed/tflops_per_s": (200 + 1000) / 8 / 1e12,
        "speed/mfu": (200 + 1000) / 8 / (2 * 100),
        "speed/slowest_rank": 1,
        "speed/slowest_rank_seconds": 4.5,
        "time/rollout": 4,
        "time/evaluation": 100,
        "time/other": 0,
    }
    assert shown(row) == {"clips/s": 0.5, "MFU": "75%"}


def test_no_utilisation_is_claimed_of_a_device_that_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, clock = speed(ALONE, Scale())
    clock.time += 1
    made.stepped()
    assert not {"speed/mfu", "speed/tokens_per_s", "speed/slowest_rank"} & made.row(with_memory=False).keys()
    assert gpus.peak_rate(torch.device("cpu"), "float32") is None
    for name, rate in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", None), ("NVIDIA H200 NVL", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert gpus.peak_rate(torch.device("cuda"), "bfloat16") == rate


def test_tokens_are_a_clips_patches() -> None:
    stage = STAGES["I"](HERE, **BATCH)
    points = stage.dataset.read([0, 1])
    batch, _, _, frames, height, width = points.points.shape
    assert tokens_of((1, 2, 2), points) == batch * frames * height // 2 * width // 2
    clips = STAGES["III"](HERE, **BATCH).dataset.read([0, 1, 2])
    assert tokens_of((1, 2, 2), clips) == clips.latents[:, 0, :, ::2, ::2].numel()


# --- memory ----------------------------------------------------------------------------------


def test_memory_by_owner_is_the_sum_of_its_bytes(tmp_path: Path) -> None:
    run = run_of("II", HERE, tmp_path)
    row = read_metrics(tmp_path / "speed.jsonl")[0]
    stage: Any = run.stage
    for name, module in (("generator", stage.generator_model), ("fake_score", stage.scores.fake_score)):
        size = sum(p.nbytes for p in module.parameters())
        buffers = sum(b.nbytes for b in module.buffers())
        player = run.stage.players[name]
        assert row[f"memory/{name}/weights"] == size + buffers
        assert row[f"memory/{name}/gradients"] == size
        steps = 4 * len(player.parameters)  # a number of Adam's beside each weight's two averages
        assert row[f"memory/{name}/optimizer"] == 2 * size + steps
        assert row.get(f"memory/{name}/average", 0) == (size if player.average else 0)
    assert row["memory/teacher/weights"] == row["memory/fake_score/weights"]
    assert not any(key.startswith("memory/teacher/") and "weights" not in key for key in row)
    assert row["memory/peak"] > sum(value for key, value in row.items() if key.startswith("memory/generator"))


# --- a run's log -----------------------------------------------------------------------------


def run(folder: Path, stage: ToyStage | None = None, resume: bool = False, **given: Any) -> list[dict[str, float]]:
    config = replace(CONFIG, log_every=2)
    Run(stage or ToyStage(), config, folder, seed=1, resume=resume, **given).train()
    return read_metrics(folder / "speed.jsonl")


def test_rows_are_where_metrics_are_and_their_times_add_up(tmp_path: Path) -> None:
    rows = run(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 4, 5, 6, 8, 10, 12]
    for row in rows:
        times = {key: value for key, value in row.items() if key.startswith("time/")}
        assert sum(times.values()) == pytest.approx(row["speed/step_seconds"])
        assert {"time/data", "time/backward", "time/update", "time/other"} <= times.keys()
    assert [row["step"] for row in rows if "memory/peak" in row] == [1, 5, 10, 12]
    assert [row["step"] for row in rows if "time/evaluation" in row] == [5, 10, 12]
    assert [row["step"] for row in rows if "time/saving" in row] == [4, 6, 10, 12]


def test_a_resumed_run_drops_the_rows_of_the_steps_it_repeats(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(before=crash_at(8, "one")))
    before = read_metrics(tmp_path / "speed.jsonl")
    assert [row["step"] for row in before] == [1, 2, 4, 5, 6, 8]
    after = run(tmp_path, resume=True)
    assert [row["step"] for row in after] == [1, 2, 4, 5, 6, 7, 8, 10, 12], "a checkpoint at 6, and a first step"
    assert after[:5] == before[:5]


# --- the profiler ----------------------------------------------------------------------------


def test_a_profile_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(tmp_path, profile=Window(3, 4))
    assert [row["step"] for row in rows if "time/profiling" in row] == [4]
    trace, table = tmp_path / "profile" / "step-3-4.rank-0.json.gz", tmp_path / "profile" / "step-3-4.rank-0.txt"
    told = capsys.readouterr().err
    assert f"profile of steps 3 to 4: {trace}" in told
    assert str(table) in told
    with gzip.open(trace, "rt") as file:
        names = Counter(event.get("name") for event in json.load(file)["traceEvents"])
    turns = 2 + 3  # of a step with an even number, and of one with an odd one
    assert names["backward"] == names["data"] == turns * CONFIG.accumulate
    assert names["update"] == turns
    assert names["aten::addmm"] > 0
    assert "aten::addmm" in table.read_text()


def test_a_run_that_stops_inside_the_window_leaves_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(before=crash_at(8, "one")), profile=Window(8, 30))
    assert [path.name for path in (tmp_path / "profile").glob("*.gz")] == ["step-8-8.rank-0.json.gz"]
    said: list[str] = []
    Profiling(Window(3, 8), 8, tmp_path, 0, Stopwatch(Ticking()), said.append)
    assert said == ["--profile 3:8: no effect, the run is at step 8"]


@pytest.mark.parametrize("text", ["", "3", "3:", "0:2", "5:4", "a:b", "1:2:3", "-1:4"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"^--profile {text}: give FIRST:LAST"):
        window_of(text)


def test_a_window_has_to_lie_in_the_stage() -> None:
    window_of("3:7").require_within("ode_init", 7)
    with pytest.raises(UserError, match="--profile 3:7: ode_init has 6 steps; give steps up to 6"):
        Window(3, 7).require_within("ode_init", 6)
