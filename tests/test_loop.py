"""The loop: accumulation, bit-identical resume after any stop, checkpoints that survive kills, plain errors."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import multiprocessing.forkserver as forkserver
import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo  # the first optimizer step would import it, in every process
from torch import Tensor, nn

from aad1.data.order import Sampler
from aad1.errors import UserError
from aad1.training import checkpoint, loop, metrics, tensor_files
from aad1.training.checkpoint import Checkpoints, find, last_whole
from aad1.training.loop import CHECKPOINTS, Interrupted, LoopConfig, Loss, Preempted, Run, Turn
from aad1.training.metrics import MetricsLog, read_metrics
from aad1.training.motion_guard import GuardConfig, MotionGuard, merit
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws, generator_for

WIDTH, HIDDEN = 6, 16  # enough for Muon to take the matrices
CONFIG = LoopConfig(steps=12, batch=3, accumulate=2, log_every=1, evaluate_every=5, save_every=3)
ADAM = OptimizerConfig(lr=1e-2, betas=(0.5, 0.9), weight_decay=0.1, warmup=3, schedule="cosine", ema=0.9)
MUON = OptimizerConfig(lr=1e-2, schedule="linear", muon_lr=2e-2, lr_overrides={"2": 1e-3})
TOLERANCE = 1e-6


class ToyBatch(NamedTuple):
    x: Tensor
    y: Tensor


class ToyData:
    """Points of a fixed linear map; 20 of them, so that a run crosses several epochs."""

    def __len__(self) -> int:
        return 20

    def read(self, indices: Sequence[int]) -> ToyBatch:
        x = torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(i)) for i in indices])
        return ToyBatch(x, x.roll(1, dims=1) * 2)


def network(seed: int, width: int = HIDDEN) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(WIDTH, width), nn.Tanh(), nn.Linear(width, WIDTH))


@dataclass
class ToyStage:
    """Two players on one regression; it calls ``before`` ahead of every loss, with the turn."""

    before: Callable[[Turn], None] = lambda turn: None
    noisy: bool = True
    width: int = HIDDEN
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=lambda: {"one": ADAM, "two": MUON})
    stop_at: int | None = None
    name: str = "toy"
    seen: int = 0

    def __post_init__(self) -> None:
        self.players = {
            name: Player(name, network(index, self.width), config)
            for index, (name, config) in enumerate(self.optimizers.items())
        }
        self.dataset = ToyData()

    def turns(self, step: int) -> Sequence[str]:
        return ("one", "one", "two")[-len(self.players) - 1 :] if step % 2 else tuple(self.players)

    def loss(self, turn: Turn, batch: ToyBatch, noise: Draws) -> Loss:
        self.before(turn)
        self.seen += 1
        eps = noise.normal(batch.x) if self.noisy else torch.zeros_like(batch.x)
        error = self.players[turn.player].module(batch.x + 0.1 * eps) - batch.y
        return Loss(error.square().mean(), {"error": float(error.detach().abs().mean())})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        samples.mkdir(parents=True, exist_ok=True)
        (samples / f"{step}.txt").write_text("a picture")
        return {name: total(player.parameters) for name, player in self.players.items()}

    def merit(self, measured: Mapping[str, float]) -> float | None:
        return None

    def stop_reason(self) -> str | None:
        return "enough" if self.stop_at is not None and self.seen >= self.stop_at else None

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def export(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        with self.players["one"].averaged():
            torch.save(self.players["one"].module.state_dict(), folder / "toy.pt")
        return folder


def total(parameters: Mapping[str, Tensor]) -> float:
    return float(sum(p.detach().double().sum() for p in parameters.values()))


def run(folder: Path, stage: ToyStage | None = None, resume: bool = False, **changes: Any) -> Run:
    made = Run(stage or ToyStage(), replace(CONFIG, **changes), folder, seed=1, resume=resume)
    made.train()
    return made


def last_state(folder: Path) -> dict[str, Any]:
    """Values and tensors of the last checkpoint, the tensors by the names they have in the files."""
    found = last_whole(folder / CHECKPOINTS)
    assert found is not None
    tensors = {
        name: torch.empty(kind.shape, dtype=kind.dtype) for name, kind in tensor_files.kinds_in(found.path).items()
    }
    tensor_files.read_into(found.path, tensors)
    return {"values": found.values, **tensors}


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / CHECKPOINTS).glob("step-*"))


def assert_identical(a: Any, b: Any, where: str = "state") -> None:
    """Bit for bit, to any depth."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_identical(*pair, f"{where}[{index}]")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Checkpoint (weights, averages, optimizers, sampler, stage), metrics and export of two runs are equal."""
    assert_identical(last_state(a), last_state(b))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert_identical(*(torch.load(f / "final" / "toy.pt", weights_only=True) for f in (a, b)))
    assert steps_kept(a) == steps_kept(b)


@pytest.fixture(autouse=True)
def _no_board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes seconds to import; one test looks at it."""
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_tensorboard", lambda folder, step: None)
        run(folder)
    return folder


# --- accumulation ----------------------------------------------------------------------------


def test_micro_batches_equal_one_big_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: dict[str, list[Tensor]] = {}
    step = Player.step

    def recorded(player: Player, progress: float) -> dict[str, float]:
        found = torch.cat([p.grad.flatten() for p in player.parameters.values() if p.grad is not None])
        gradients.setdefault(folder.name, []).append(found)
        return step(player, progress)

    monkeypatch.setattr(Player, "step", recorded)
    weights, losses = [], []
    for batch, accumulate in ((8, 1), (4, 2), (2, 4), (1, 8)):
        folder = tmp_path / str(batch)
        stage = ToyStage(noisy=False)
        run(folder, stage, batch=batch, accumulate=accumulate, steps=5)
        weights.append(torch.cat([p.flatten() for s in stage.players.values() for p in s.parameters.values()]))
        losses.append([(row["one/loss"], row["two/error"]) for row in read_metrics(folder / "metrics.jsonl")])
    for other, rows in zip(weights[1:], losses[1:], strict=True):
        torch.testing.assert_close(other, weights[0], atol=1e-5, rtol=1e-5)
        assert torch.tensor(rows) == pytest.approx(torch.tensor(losses[0]), rel=1e-5)
    for name in ("4", "2", "1"):
        for one, big in zip(gradients[name], gradients["8"], strict=True):
            torch.testing.assert_close(one, big, atol=TOLERANCE, rtol=1e-4)


def test_a_turn_moves_its_own_player_alone(tmp_path: Path) -> None:
    before = {name: dict(network(i).named_parameters()) for i, name in enumerate(("one", "two"))}
    stage = ToyStage(optimizers={"one": ADAM, "two": MUON})
    stage.turns = lambda step: ("two",)  # type: ignore[method-assign]
    run(tmp_path, stage, steps=2)
    for name, player in stage.players.items():
        same = [torch.equal(before[name][key], value) for key, value in player.parameters.items()]
        assert all(same) if name == "one" else not any(same)


# --- resume ----------------------------------------------------------------------------------


class Crash(Exception):
    pass


def crash_at(step: int, player: str) -> Callable[[Turn], None]:
    def before(turn: Turn) -> None:
        if (turn.step, turn.player) == (step, player):
            raise Crash

    return before


def interrupt_at(step: int, number: int = signal.SIGINT, times: int = 1) -> Callable[[Turn], None]:
    """Send the signal at the first ``times`` turns of a step."""
    left = [number] * times

    def before(turn: Turn) -> None:
        if turn.step == step and left:
            os.kill(os.getpid(), left.pop())

    return before


@pytest.mark.parametrize("step", [0, 1, 3, 4, 6, 8, 11])
def test_a_crashed_run_resumes_bit_for_bit(tmp_path: Path, unbroken: Path, step: int) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(step, "two")))
    found = last_whole(tmp_path / CHECKPOINTS)
    assert (found.step if found else 0) == step // 3 * 3
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize(("step", "number"), [(0, signal.SIGINT), (5, signal.SIGTERM), (11, signal.SIGINT)])
def test_an_interrupted_run_saves_and_resumes_bit_for_bit(
    tmp_path: Path, unbroken: Path, step: int, number: int
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=rf"saved at step {step + 1} in {tmp_path}.*--resume"):
        run(tmp_path, ToyStage(interrupt_at(step, number)))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert steps_kept(tmp_path)[-1] == step + 1
    run(tmp_path, resume=True)
    state = last_state(tmp_path)
    assert_identical(state, last_state(unbroken))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()


def test_a_signal_while_the_last_checkpoint_is_written_is_heard(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a distillation would go on with its next stage."""
    wait = Checkpoints.wait

    def interrupted(checkpoints: Checkpoints) -> None:
        wait(checkpoints)
        if steps_kept(tmp_path)[-1:] == [12]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "wait", interrupted)
    with pytest.raises(Preempted, match="saved at step 12"):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.2)
    refusals: list[Turn] = []

    def another(turn: Turn) -> None:
        if turn == ("one", 5):
            with pytest.raises(UserError, match=f"another run is working in {tmp_path}; wait for it or stop it"):
                run(tmp_path, resume=True)
            refusals.append(turn)

    run(tmp_path, ToyStage(another))
    assert refusals
    assert_same_run(tmp_path, unbroken)


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    strays = [tmp_path / CHECKPOINTS / name for name in ("step-foo", "step-7", "step-5x", "step-²")]
    for stray in strays:
        stray.mkdir()
    (tmp_path / CHECKPOINTS / "step-00000099").touch()
    run(tmp_path, resume=True)
    assert all(stray.is_dir() for stray in strays)
    assert find(tmp_path / CHECKPOINTS, "last").step == 12


def test_a_damaged_note_of_the_best_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    for content in ("{}", "no JSON"):
        (tmp_path / CHECKPOINTS / "best.json").write_text(content)
        with pytest.raises(UserError, match=r"best.json is damaged .*; take the last one, or a step"):
            find(tmp_path / CHECKPOINTS, "best")


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at once"):
        run(tmp_path, ToyStage(interrupt_at(4, times=2)))
    assert steps_kept(tmp_path)[-1] == 3
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_an_unreadable_run_is_not_trained_over(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    truncate(tmp_path / CHECKPOINTS / "step-00000003")
    with pytest.raises(UserError, match="holds a run at step 3; add --resume"):
        run(tmp_path)


def test_many_stops_in_one_run(tmp_path: Path, unbroken: Path) -> None:
    for step in (2, 4, 7, 10):
        with pytest.raises(Crash):
            run(tmp_path, ToyStage(crash_at(step, "one")), resume=True)
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_a_finished_run_is_exported_again_and_not_trained(tmp_path: Path, unbroken: Path) -> None:
    run(tmp_path)
    (tmp_path / "final" / "toy.pt").unlink()
    run(tmp_path, ToyStage(crash_at(12, "one")), resume=True)
    assert_same_run(tmp_path, unbroken)


def test_more_steps_go_on_from_the_end(tmp_path: Path) -> None:
    constant = {"one": replace(ADAM, schedule="constant"), "two": replace(MUON, schedule="constant")}
    run(tmp_path / "a", ToyStage(optimizers=constant), steps=6, evaluate_every=0)
    stage = ToyStage(optimizers=constant)
    again = Run(stage, replace(CONFIG, steps=8, evaluate_every=0), tmp_path / "a", seed=1, resume=True)
    again.train()
    run(tmp_path / "b", ToyStage(optimizers=constant), steps=8, evaluate_every=0)
    assert_identical(last_state(tmp_path / "a"), last_state(tmp_path / "b"))


def test_a_stage_that_stops_early_stays_stopped(tmp_path: Path) -> None:
    stopped = run(tmp_path, ToyStage(stop_at=20))
    assert stopped.finished
    assert 0 < stopped.step < CONFIG.steps
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == stopped.step
    again = run(tmp_path, ToyStage(crash_at(stopped.step, "one"), stop_at=20), resume=True)
    assert again.step == stopped.step


def test_a_changed_learning_rate_holds_after_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(4, "one")))
    lower = {"one": replace(ADAM, lr=1e-4, schedule="constant"), "two": replace(MUON, lr_overrides={"2": 5e-4})}
    stage = ToyStage(optimizers=lower)
    run(tmp_path, stage, resume=True)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["one/lr"] == 1e-4
    assert [g["lr"] for g in stage.players["one"].optimizers[0].param_groups] == [1e-4]
    scale = 1 - 11 / 12
    assert stage.players["two"].optimizers[0].param_groups[-1]["lr"] == pytest.approx(5e-4 * scale)


# --- runs that may not be begun ----------------------------------------------------------------


def test_a_folder_with_a_run_needs_resume(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.raises(UserError, match=r"holds a run at step 3; add --resume, or choose another folder"):
        run(tmp_path)


def test_resume_begins_where_there_is_nothing_yet(tmp_path: Path, unbroken: Path) -> None:
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_another_stages_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.raises(UserError, match="another stage's run"):
        run(tmp_path, ToyStage(optimizers={"one": ADAM}), resume=True)


# --- checkpoints -----------------------------------------------------------------------------


TENSORS = "__0_0.distcp"


def truncate(path: Path) -> None:
    state = path / TENSORS
    state.write_bytes(state.read_bytes()[:1000])


def flip_a_bit(path: Path, file: str = TENSORS) -> None:
    data = bytearray((path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file).write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated state": truncate,
    "flipped bit": flip_a_bit,
    "flipped bit of the tensors' places": lambda path: flip_a_bit(path, ".metadata"),
    "another digit in the meta": lambda path: (path / "meta.json").write_text(
        (path / "meta.json").read_text().replace('"updates": 9', '"updates": 8')
    ),
    "no state": lambda path: (path / TENSORS).unlink(),
    "no places": lambda path: (path / ".metadata").unlink(),
    "no meta": lambda path: (path / "meta.json").unlink(),
    "half a meta": lambda path: (path / "meta.json").write_text('{"format": 2, "st'),
    "a meta of another kind": lambda path: (path / "meta.json").write_text("[1]"),
    "empty meta": lambda path: (path / "meta.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_torn_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, unbroken: Path, damage: Callable[[Path], object]
) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(10, "one")))
    assert steps_kept(tmp_path) == [6, 9]
    damage(tmp_path / CHECKPOINTS / "step-00000009")
    with pytest.warns(UserWarning, match=r"skipping the unreadable checkpoint .*step-00000009"):
        run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_when_every_checkpoint_is_torn_the_user_is_told(tmp_path: Path) -> None:
    run(tmp_path, steps=6)
    for path in (tmp_path / CHECKPOINTS).iterdir():
        truncate(path)
    with pytest.warns(UserWarning, match="unreadable"), pytest.raises(UserError, match="no readable checkpoint"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    run(tmp_path, save_every=2, keep=keep)
    assert steps_kept(tmp_path) == [2, 4, 6, 8, 10, 12][-keep:]
    assert not list((tmp_path / CHECKPOINTS).glob(".*"))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_torn_later_checkpoint_never_costs_a_new_one(tmp_path: Path, keep: int) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(10, "one")))
    truncate(tmp_path / CHECKPOINTS / "step-00000009")
    with pytest.warns(UserWarning, match="unreadable"), pytest.raises(Interrupted):
        run(tmp_path, ToyStage(interrupt_at(6)), resume=True, keep=keep)
    assert steps_kept(tmp_path) == [6, 7][-keep:]


def test_debris_of_a_killed_save_is_cleared(tmp_path: Path) -> None:
    debris = tmp_path / CHECKPOINTS / ".writing-00000002" / TENSORS
    debris.parent.mkdir(parents=True)
    debris.write_bytes(b"half")
    run(tmp_path, steps=3)
    assert [p.name for p in (tmp_path / CHECKPOINTS).iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("format", [3, 99])
def test_a_checkpoint_of_another_format_is_not_guessed_at(tmp_path: Path, format: int) -> None:
    run(tmp_path, steps=3)
    meta = tmp_path / CHECKPOINTS / "step-00000003" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": format}))
    with pytest.raises(UserError, match=f"format {format}; this version reads 4: go on with the version that wrote"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": HIDDEN + 1}, r"players/one/average/0\.bias is \[16\] float32 there and \[17\] float32 here"),
        ({"optimizers": {"one": replace(ADAM, ema=0.0), "two": MUON}}, r"it holds players/one/average/0\.bias, which"),
        ({"optimizers": {"one": ADAM, "two": ADAM}}, r"it lacks players/two/average/0\.bias \[16\] float32"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    run(tmp_path, steps=3)
    with pytest.raises(UserError, match=f"step-00000003 is of another model: {said}") as error:
        run(tmp_path, ToyStage(**changed), resume=True)
    assert "\n" not in str(error.value)


def test_reading_runs_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    """torch unpickles ``.metadata`` with whatever it names."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "boom",)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(pickle.UnpicklingError, match="does not belong there"):
        tensor_files.kinds_in(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="does not belong there"):
        tensor_files.read_into(tmp_path, {"a": torch.zeros(2)})
    assert not (tmp_path / "boom").exists()


def test_a_state_may_change_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved is of the moment of the call; the memory of the copies serves the next save too."""
    begun, go, places = threading.Event(), threading.Event(), []

    def slow(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
        places.append(tensors["a/b"].data_ptr())
        begun.set()
        assert go.wait(60)
        write(folder, tensors, group)

    write = checkpoint.write_spread
    monkeypatch.setattr(checkpoint, "write_spread", slow)
    saved = Checkpoints(tmp_path, keep=5)
    state = {"a": {"b": torch.arange(4.0), "list": [1, (2, 3)]}, "n": 1}
    saved.save(1, state)
    assert begun.wait(60)
    saved.poll()
    state["a"]["b"] += 10  # type: ignore[index]
    go.set()
    saved.save(2, state | {"n": 2})
    saved.wait()
    saved.close()
    for step, shift in ((1, 0), (2, 10)):
        found = find(tmp_path, step).into({"a": {"b": torch.zeros(4)}})
        assert found["a"]["b"].tolist() == [shift + i for i in range(4)]
        assert (found["n"], found["a"]["list"]) == (step, [1, [2, 3]])
    assert places[0] == places[1]


# --- the best --------------------------------------------------------------------------------


@dataclass
class JudgedStage(ToyStage):
    """Its third evaluation is the best, though not the highest number that was measured."""

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        return {"rho": {2: 0.5, 4: math.nan, 6: 0.9, 8: 0.8, 10: 0.9}.get(step, 3.0), "kappa": 1.0}

    def merit(self, measured: Mapping[str, float]) -> float | None:
        return merit(measured)


def judged(folder: Path, stage: ToyStage | None = None, resume: bool = False) -> Run:
    return run(folder, stage or JudgedStage(), resume, evaluate_every=2, save_every=5, keep=1)


def test_the_best_checkpoint_stays_and_a_resumed_run_remembers_it(tmp_path: Path) -> None:
    judged(tmp_path / "unbroken")
    with pytest.raises(Crash):
        judged(tmp_path / "broken", JudgedStage(crash_at(7, "one")))
    assert steps_kept(tmp_path / "broken") == [6]
    (tmp_path / "broken" / CHECKPOINTS / "best.json").unlink()  # as if killed before it was written
    judged(tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")
    for folder in (tmp_path / "broken", tmp_path / "unbroken"):
        assert steps_kept(folder) == [6, 12]
        best = json.loads((folder / CHECKPOINTS / "best.json").read_text())
        assert best == {"step": 6, "merit": 0.9, "measured": {"rho": 0.9, "kappa": 1.0}}
        assert find(folder / CHECKPOINTS, "best").step == 6
        assert find(folder / CHECKPOINTS, "last").step == find(folder / CHECKPOINTS, 12).step == 12


def test_a_best_checkpoint_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        judged(tmp_path, JudgedStage(crash_at(11, "one")))
    assert steps_kept(tmp_path) == [6, 10]
    shutil.rmtree(tmp_path / CHECKPOINTS / "step-00000006")
    resumed = Run(JudgedStage(), replace(CONFIG, evaluate_every=2, save_every=5, keep=1), tmp_path, 1, resume=True)
    resumed.train()
    assert resumed.checkpoints.best is not None
    assert resumed.checkpoints.best.step == 12


def test_what_is_asked_for_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable checkpoint in .*; give the folder of a run"):
        find(tmp_path, "last")
    run(tmp_path, steps=6)
    with pytest.raises(UserError, match=r"has no best.json: .*take the last one"):
        find(tmp_path / CHECKPOINTS, "best")
    with pytest.raises(UserError, match="no checkpoint of step 5; there are 3, 6"):
        find(tmp_path / CHECKPOINTS, 5)
    truncate(tmp_path / CHECKPOINTS / "step-00000003")
    with pytest.raises(UserError, match=r"step-00000003 is not readable: .* does not match its digest; take another"):
        find(tmp_path / CHECKPOINTS, 3)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"rho": 1.0, "kappa": 1.0}, 1.0),
        ({"rho": 0.5, "kappa": 0.8}, 0.4),
        ({"rho": 2.0, "kappa": 1.7}, 0.5),
        ({"rho": 0.0, "kappa": 1.0}, 0.0),
        ({"rho": 0.5, "kappa": 1.0, "grid": 2.0}, 0.25),
        ({"rho": 1.0, "kappa": 1.0, "grid": 0.7}, 1.0),
        ({"rho": 0.5, "kappa": 1.0, "quality": 60.0, "presence": 0.5, "grid": 9.0}, 0.15),
        ({"rho": 1.0, "kappa": math.nan}, None),
        ({"rho": 1.0}, None),
        ({}, None),
    ],
    ids=str,
)
def test_merit_is_motion_times_pictures(measured: dict[str, float], expected: float | None) -> None:
    assert merit(measured) == (None if expected is None else pytest.approx(expected))


# --- a full disk -----------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write_spread", "sync", "rename", "meta"])
def test_a_full_disk_while_saving(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(7, "one")))
    with monkeypatch.context() as patch:
        if where == "meta":
            whole = Path.write_text
            patch.setattr(Path, "write_text", lambda p, t: full() if p.name == "meta.json" else whole(p, t))
        else:
            patch.setattr(Path if where == "rename" else checkpoint, where, full)
        stage = ToyStage()
        stage.evaluate = lambda step, samples: {}  # type: ignore[method-assign]
        with pytest.raises(UserError, match=r"cannot write the checkpoint .*step-00000009: No space left.*free some"):
            run(tmp_path, stage, resume=True)
    assert steps_kept(tmp_path) == [3, 6]
    assert not list((tmp_path / CHECKPOINTS).glob(".*"))
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_a_save_that_fails_is_told_within_a_step_and_not_hours_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_spread", full)
    stage = ToyStage(lambda turn: time.sleep(0.2))
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*step-00000003: No space left"):
        run(tmp_path, stage, evaluate_every=0, steps=1000)
    assert stage.seen <= 5 * 3 * CONFIG.accumulate


def test_a_disk_that_really_takes_no_more(tmp_path: Path) -> None:
    """torch.save itself says RuntimeError "unexpected pos" then."""
    stage = ToyStage(width=40_000, optimizers={"one": OptimizerConfig(lr=1e-3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint.*File too large"):
            run(tmp_path, stage, steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / CHECKPOINTS).iterdir())


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    log = MetricsLog(tmp_path, 0)
    log._file.close()
    log._file = Path("/dev/full").open("w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left"):
        log.write(1, {"loss": 1.0})
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left"):
        log.close()


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_an_output_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("x")
    folder = tmp_path / "a file" if place == "a file" else tmp_path / "a file" / "run"
    with pytest.raises(UserError, match="cannot write"):
        run(folder)


# --- kills -----------------------------------------------------------------------------------


def train_and_be_killed(folder: Path, config: LoopConfig, at: int | None) -> None:
    """In a process of its own; ``at``: kill it at this file operation of its checkpoints, counted from 0."""
    torch.set_num_threads(1)
    metrics._tensorboard = lambda folder, step: None
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if at is not None:
        die_at(at)
    Run(ToyStage(lambda turn: time.sleep(0.002)), config, folder, seed=1, resume=True).train()


def die_at(operation: int) -> None:
    """Make this process kill itself in its checkpoints: before, amid or after writing, syncing, renaming, removing."""
    left = iter(range(operation, -1, -1))

    def tick() -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tick()
            found = function(*arguments, **options)
            tick()
            return found

        return call

    def write_in_halves(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
        tick()
        write(folder, tensors, group)
        path = folder / TENSORS
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        tick()
        path.write_bytes(data)

    write = checkpoint.write_spread
    checkpoint.write_spread = write_in_halves
    checkpoint.sync = ticking(checkpoint.sync)
    checkpoint.shutil.rmtree = ticking(checkpoint.shutil.rmtree)
    Path.rename = ticking(Path.rename)  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def processes() -> Any:
    """Fresh processes without the imports' seconds: they are forks of a server that has made them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()
    return context


def test_killed_at_any_moment_it_resumes_bit_for_bit(tmp_path: Path, unbroken: Path, processes: Any) -> None:
    rng = random.Random(0)
    for kill in (True, True, True, True, True, False):
        child = processes.Process(target=train_and_be_killed, args=(tmp_path, CONFIG, None))
        child.start()
        child.join(rng.uniform(0.05, 0.4) if kill else 120)
        child.kill()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
    assert child.exitcode == 0
    assert_same_run(tmp_path, unbroken)


def test_killed_at_every_step_of_saving_it_resumes_bit_for_bit(tmp_path: Path, processes: Any) -> None:
    config = replace(CONFIG, steps=2, save_every=1, keep=1, accumulate=1, evaluate_every=0)
    Run(ToyStage(), config, tmp_path / "unbroken", seed=1).train()
    exits = []
    for operation in range(40):
        child = processes.Process(target=train_and_be_killed, args=(tmp_path / "killed", config, operation))
        child.start()
        child.join(120)
        exits.append(child.exitcode)
        if child.exitcode == 0:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what is in place is always whole
            found = last_whole(tmp_path / "killed" / CHECKPOINTS)
        assert found is not None or operation < 14, "a checkpoint was lost"
    assert exits[-1] == 0
    assert set(exits[:-1]) == {-signal.SIGKILL}
    assert len(exits) > 12
    # Killed between the last rename and the removal of what it replaces, one more checkpoint may stay.
    assert steps_kept(tmp_path / "killed") in ([2], [1, 2])
    shutil.rmtree(tmp_path / "killed" / CHECKPOINTS / "step-00000001", ignore_errors=True)
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


# --- divergence ------------------------------------------------------------------------------


def spoil(stage: ToyStage, step: int, value: float, gradient_only: bool = False) -> ToyStage:
    """From ``step`` on the loss (or only its gradient) of player two is ``value``."""
    honest = stage.loss

    def loss(turn: Turn, batch: ToyBatch, noise: Draws) -> Loss:
        found = honest(turn, batch, noise)
        if turn != ("two", step):
            return found
        if gradient_only:
            found.value.register_hook(lambda gradient: gradient * value)
            return found
        return Loss(found.value * value, found.metrics)

    stage.loss = loss  # type: ignore[method-assign]
    return stage


def test_a_number_that_some_micro_batches_lack_is_averaged_over_the_others(tmp_path: Path) -> None:
    stage = ToyStage()
    found, calls = stage.loss, count()

    def loss(turn: Turn, batch: ToyBatch, noise: Draws) -> Loss:
        value, metrics = found(turn, batch, noise)
        return Loss(value, metrics | ({"rare": 3.0} if next(calls) % 2 else {}))

    stage.loss = loss  # type: ignore[method-assign]
    run(tmp_path, stage, accumulate=4, steps=2)
    assert [row["two/rare"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3.0, 3.0]


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverges_stops_before_it_spoils_anything(
    tmp_path: Path, unbroken: Path, value: float, gradient_only: bool
) -> None:
    stage = spoil(ToyStage(), 8, value, gradient_only)
    with pytest.raises(UserError, match=r"toy diverged at step 8 \(two: .*(nan|inf).*lower the learning rate") as error:
        run(tmp_path, stage)
    assert "\n" not in str(error.value)
    batches = torch.load(tmp_path / "diverged-step-00000008.pt", weights_only=True)
    assert len(batches) == (2 if gradient_only else 1)  # any micro-batch of the turn can have spoilt its gradient
    assert all(set(batch) == {"x", "y"} and batch["x"].shape == (3, WIDTH) for batch in batches)
    assert steps_kept(tmp_path) == [3, 6]
    assert all(p.isfinite().all() for player in stage.players.values() for p in player.parameters.values())
    run(tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_divergence_on_a_full_disk_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_tensors", full)
    with pytest.raises(UserError, match=r"diverged at step 1 .*could not be saved .No space left"):
        run(tmp_path, spoil(ToyStage(), 1, math.nan))


# --- players ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pure_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"generator\.0\.weight is torch.*load the model in float32"):
        Player("generator", network(0).to(dtype), OptimizerConfig(lr=2e-6))


def test_frozen_half_precision_is_no_ones_business() -> None:
    module = nn.ModuleDict({"base": network(0).bfloat16().requires_grad_(False), "head": nn.Linear(2, 2)})
    assert set(Player("critic", module, ADAM).parameters) == {"head.weight", "head.bias"}


def take_steps(player: Player, count: int, of: int) -> list[dict[str, float]]:
    found = []
    for step in range(count):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(step))
        player.module(x).square().sum().backward()
        found.append(player.step(step / of))
    return found


@pytest.mark.parametrize("optimizer", [ADAM, replace(MUON, ema=0.98)], ids=["adam", "muon"])
def test_the_average_equals_one_by_hand(optimizer: OptimizerConfig) -> None:
    player = Player("p", network(0), optimizer)
    after: list[dict[str, Tensor]] = []
    for _ in range(30):
        take_steps(player, 1, of=100)
        after.append({n: p.detach().clone().double() for n, p in player.parameters.items()})
    weights = [optimizer.ema**age for age in reversed(range(len(after)))]
    for name, average in player.average.items():
        by_hand = sum((w * made[name] for w, made in zip(weights, after, strict=True)), torch.zeros(())) / sum(weights)
        torch.testing.assert_close(average.double(), by_hand, atol=1e-6, rtol=1e-5)
    own = {n: p.detach().clone() for n, p in player.parameters.items()}
    with player.averaged():
        assert_identical(dict(player.module.named_parameters()), player.average)
    assert_identical(dict(player.module.named_parameters()), own)


def test_evaluation_sees_the_averaged_weights(tmp_path: Path) -> None:
    stage = ToyStage()
    run(tmp_path, stage)
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert row["eval/one"] == total(stage.players["one"].average)
    assert row["eval/one"] != total(stage.players["one"].parameters)
    assert row["eval/two"] == total(stage.players["two"].parameters)  # it keeps no average
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["10.txt", "12.txt", "5.txt"]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, lambda k: 1.0),
        ("constant", 4, lambda k: min(1, (k + 1) / 4)),
        ("linear", 0, lambda k: 1 - k / 8),
        ("linear", 2, lambda k: min(1, (k + 1) / 2) * (1 - k / 8)),
        ("cosine", 0, lambda k: (1 + math.cos(math.pi * k / 8)) / 2),
    ],
)
def test_learning_rate_schedules(schedule: Any, warmup: int, expected: Callable[[int], float]) -> None:
    config = OptimizerConfig(lr=3e-3, schedule=schedule, warmup=warmup, lr_overrides={"2": 1e-3}, muon_lr=2e-2)
    player = Player("p", network(0), config)
    for k in range(8):
        found = take_steps(player, 1, of=1)[0] if k == 0 else None
        if k:
            player.module(torch.ones(1, WIDTH)).sum().backward()
            found = player.step(k / 8)
        assert found is not None
        assert found["lr"] == pytest.approx(3e-3 * expected(k))
        rates = [group["lr"] for optimizer in player.optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([rate * expected(k) for rate in (3e-3, 1e-3, 2e-2)])


def test_overrides_move_their_own_parameters() -> None:
    config = OptimizerConfig(lr=1e-2, betas=(0.0, 0.999), lr_overrides={"2": 1e-3, "2.bias": 1e-4})
    module = network(0)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    take_steps(Player("p", module, config), 1, of=1)
    for name, rate in {"0.weight": 1e-2, "0.bias": 1e-2, "2.weight": 1e-3, "2.bias": 1e-4}.items():
        moved = (dict(module.named_parameters())[name].detach() - before[name]).abs().max()
        assert float(moved) == pytest.approx(rate, rel=1e-2)


@pytest.mark.parametrize("names", [("backbon",), ("0", "nothing.here")])
def test_an_override_that_matches_nothing_is_refused(names: tuple[str, ...]) -> None:
    config = OptimizerConfig(lr=1e-2, lr_overrides=dict.fromkeys(names, 1e-3))
    with pytest.raises(UserError, match=rf"lr_overrides names no parameter: {names[-1]}"):
        Player("p", network(0), config)


def test_clipping_scales_the_gradient_and_reports_its_norm() -> None:
    for clip in (0.0, 1e-3):
        player = Player("p", network(0), OptimizerConfig(lr=0.0, clip=clip))
        x = torch.ones(2, WIDTH)
        player.module(x).square().sum().backward()
        norm = torch.cat([p.grad.flatten() for p in player.parameters.values() if p.grad is not None]).norm()
        kept: list[float] = []
        player.optimizers[0].register_step_pre_hook(
            lambda optimizer, *_, kept=kept: kept.append(
                float(torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]).norm())
            )
        )
        assert player.step(0)["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        assert kept[0] == pytest.approx(clip or float(norm), rel=1e-2)


# --- metrics ---------------------------------------------------------------------------------


def test_metrics_after_the_last_checkpoint_are_cut_on_resume(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(8, "one")))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 9))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "one/lo')  # a line torn by the kill
    run(tmp_path, ToyStage(), resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()


def test_metrics_of_a_run_killed_before_its_first_checkpoint_are_cut(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(2, "one")))
    run(tmp_path)
    assert_same_run(tmp_path, unbroken)


def test_what_is_logged_when(tmp_path: Path) -> None:
    run(tmp_path, log_every=4, evaluate_every=5)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics.jsonl")}
    assert sorted(rows) == [4, 5, 8, 10, 12]
    assert [step for step, row in rows.items() if "eval/one" in row] == [5, 10, 12]
    wanted = {"one/loss", "one/error", "one/grad_norm", "one/lr", "two/loss"}
    assert all(wanted <= row.keys() for row in rows.values())


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Crash):
        run(tmp_path, ToyStage(crash_at(5, "one")))
    run(tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [event.step for event in events.Scalars("one/loss")] == [row["step"] for row in rows]
    assert [event.value for event in events.Scalars("one/loss")] == pytest.approx([row["one/loss"] for row in rows])


# --- randomness ------------------------------------------------------------------------------


def test_streams_are_stable() -> None:
    drawn = torch.randint(2**31, (3,), generator=generator_for(0, "ode_init", 0, 7, 1, 2)).tolist()
    assert drawn == [181206130, 605197012, 141954427]
    again = generator_for(0, "ode_init", 0, 7, 1, 2)
    torch.randn(10)  # the global stream has no part in it
    assert torch.randint(2**31, (3,), generator=again).tolist() == drawn


def test_streams_are_distinct() -> None:
    places = [
        (seed, stage, *position)
        for seed in (0, 1)
        for stage in ("ode_init", "adversarial")
        for position in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 5, 1), (0, 1, 5))
    ]
    drawn = {tuple(torch.randint(2**31, (2,), generator=generator_for(*place)).tolist()) for place in places}
    assert len(drawn) == len(places)


def test_every_micro_batch_has_its_own_noise_and_data(tmp_path: Path) -> None:
    drawn: list[tuple[float, float]] = []
    stage = ToyStage()

    def loss(turn: Turn, batch: ToyBatch, noise: Draws) -> Loss:
        drawn.append((float(noise.uniform(1)), float(batch.x.sum())))
        value = stage.players[turn.player].module(batch.x).square().mean()
        return Loss(value, {})

    stage.loss = loss  # type: ignore[method-assign]
    run(tmp_path, stage, steps=4)
    noises, _ = zip(*drawn, strict=True)
    assert len(set(noises)) == len(drawn)
    data = Sampler(20, seed=1)
    expected = [float(ToyData().read(data.next(CONFIG.batch)).x.sum()) for _ in drawn]
    assert [x for _, x in drawn] == pytest.approx(expected)


# --- the guard -------------------------------------------------------------------------------


def test_the_guard_waits_for_its_patience_and_names_what_fell() -> None:
    guard = MotionGuard(GuardConfig(min_rho=0.8, min_kappa=0.5, patience=2))
    for step, (rho, kappa) in enumerate([(1.0, 0.9), (0.7, 0.9), (0.9, 0.9), (0.7, 0.9)]):
        guard.observe(step, {"rho": rho, "kappa": kappa})
        assert guard.stop_reason() is None
    guard.observe(5, {"rho": 0.75, "kappa": 0.9})
    assert "rho of held-out rollouts is 0.75, below 0.80" in str(guard.stop_reason())


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        ({"rho": 0.8, "kappa": 0.5}, True),
        ({"rho": 0.7, "kappa": 0.9}, False),
        ({"rho": 0.9, "kappa": 0.4}, False),
        ({"rho": 0.9}, False),
        ({"kappa": 0.9}, False),
        ({"rho": 0.9, "kappa": math.nan}, False),
        ({"rho": math.nan, "kappa": 0.9}, False),
    ],
    ids=str,
)
def test_motion_holds_while_both_measures_are_there_and_above_their_limits(
    measured: dict[str, float], holds: bool
) -> None:
    guard = MotionGuard(GuardConfig(min_rho=0.8, min_kappa=0.5))
    guard.observe(1, {"rho": 1.0, "kappa": 1.0})
    assert guard.holds
    guard.observe(2, measured)
    assert guard.holds is holds


@pytest.mark.parametrize("absent", ["rho", "kappa"])
def test_a_measure_that_is_absent_has_fallen(absent: str) -> None:
    guard = MotionGuard(GuardConfig(min_rho=0.8, min_kappa=0.5))
    guard.observe(1, {name: 1.0 for name in ("rho", "kappa") if name != absent})
    assert f"{absent} of held-out rollouts is 0.00" in str(guard.stop_reason())
    guard.observe(2, {"rho": 1.0, "kappa": 1.0, absent: math.nan})
    assert f"{absent} of held-out rollouts is 0.00" in str(guard.stop_reason())


def test_a_guard_without_limits_never_stops() -> None:
    guard = MotionGuard(GuardConfig())
    guard.observe(0, {})
    assert guard.stop_reason() is None


def test_the_loop_module_holds_no_equation() -> None:
    assert not {"flow", "objectives"} & set(vars(loop))
