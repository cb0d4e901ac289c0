"""Losses that are no numbers and gradients that stand out: nothing of them reaches the weights, on any process."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from test_loop import ADAM, MUON, Crash, ToyStage, assert_identical, assert_same_run, crash_at, network, run, steps_kept
from test_parallel import CLIPPED, ode_stage, placement_of, whole
from torch import Tensor

from aad1.errors import UserError
from aad1.parallel.crew import SharedError
from aad1.training import metrics
from aad1.training.loop import Run, Turn
from aad1.training.metrics import read_metrics
from aad1.training.player import SPIKE_FEWEST, SPIKE_MEMORY, SPIKE_ROW, OptimizerConfig, Player, Spikes

ABOVE = 4.0
WARY = {"one": replace(ADAM, skip_above=ABOVE), "two": replace(MUON, skip_above=ABOVE)}


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)


# --- which norms stand out -------------------------------------------------------------------


def test_a_spike_is_what_stands_above_the_median_of_the_last_accepted() -> None:
    norms = np.exp(np.random.default_rng(0).normal(0, 1.2, 300))
    spikes, accepted, skipped = Spikes(), [], 0
    for norm in norms.tolist():
        usual = statistics.median(accepted[-SPIKE_MEMORY:]) if len(accepted) >= SPIKE_FEWEST else None
        expected = usual is not None and norm > ABOVE * usual
        skipped += expected
        if not expected:
            accepted.append(norm)
        assert spikes.take(norm, ABOVE) is expected
    assert 5 < skipped == spikes.count
    assert len(spikes.accepted) == SPIKE_MEMORY


def test_spikes_in_a_row_are_none() -> None:
    spikes = Spikes([1.0] * SPIKE_MEMORY)
    for _ in range(2):
        assert [spikes.take(9.0, ABOVE) for _ in range(SPIKE_ROW - 1)] == [True] * (SPIKE_ROW - 1)
        assert not spikes.take(ABOVE, ABOVE)  # one that does not stand out ends a row
    for _ in range(SPIKE_ROW - 1):
        spikes.take(9.0, ABOVE)
    with pytest.raises(
        FloatingPointError, match="norm is 9, and for 8 updates in a row more than skip_above 4 times 1"
    ):
        spikes.take(9.0, ABOVE)


def test_norms_of_zero_say_nothing_of_what_is_usual() -> None:
    spikes = Spikes([0.0] * SPIKE_MEMORY)
    assert not spikes.take(1.0, ABOVE)


# --- what a skipped update leaves ------------------------------------------------------------


def stepped(player: Player, scale: float) -> dict[str, float]:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(player.updates))
    (scale * player.module(x).square().mean()).backward()
    return player.step(0.5)


@pytest.mark.parametrize("config", WARY.values(), ids=WARY)
def test_a_skipped_update_changes_nothing(config: OptimizerConfig) -> None:
    player = Player("one", network(0), config)
    for _ in range(SPIKE_FEWEST):
        assert stepped(player, 1.0)["skipped"] == 0
    before = copy.deepcopy(player.state_dict())
    made = stepped(player, 1000.0)
    assert made["skipped"] == 1
    assert made["grad_norm"] > ABOVE * max(before["spikes"]["accepted"])
    after = player.state_dict()
    assert after.pop("spikes") == before.pop("spikes") | {"count": 1, "row": 1}
    assert_identical(after, before)
    assert all(p.grad is None for p in player.parameters.values())
    assert stepped(player, 1.0)["skipped"] == 1
    assert player.updates == SPIKE_FEWEST + 1


def test_without_a_limit_nothing_is_skipped_or_counted() -> None:
    player = Player("one", network(0), ADAM)
    for _ in range(SPIKE_FEWEST):
        stepped(player, 1.0)
    assert "skipped" not in stepped(player, 1000.0)
    assert player.updates == SPIKE_FEWEST + 1


# --- in a run --------------------------------------------------------------------------------


def spiked(steps: Sequence[int], before: Callable[[Turn], None] = lambda turn: None) -> ToyStage:
    """A stage whose losses are a thousandfold in these steps."""
    stage = ToyStage(before, optimizers=WARY)
    loss = stage.loss

    def scaled(turn: Turn, batch: Any, noise: Any) -> Any:
        made = loss(turn, batch, noise)
        return made._replace(value=made.value * (1000 if turn.step in steps else 1))

    stage.loss = scaled  # type: ignore[method-assign]
    return stage


def test_a_run_goes_over_a_spike_and_a_resumed_one_remembers_what_is_usual(tmp_path: Path) -> None:
    run(tmp_path / "unbroken", spiked([10]))
    rows = read_metrics(tmp_path / "unbroken" / "metrics.jsonl")
    assert [row["two/skipped"] for row in rows] == [0] * 10 + [1, 1]
    assert rows[10]["two/grad_norm"] > 100 * rows[9]["two/grad_norm"]
    with pytest.raises(Crash):
        run(tmp_path / "broken", spiked([10], crash_at(10, "one")))
    run(tmp_path / "broken", spiked([10]), resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def test_a_run_whose_norms_stay_high_stops_and_says_so(tmp_path: Path) -> None:
    stage = spiked(range(9, 1000))
    with pytest.raises(
        UserError, match=r"toy diverged at step \d+ \(\w+: gradient norm is .*8 updates in a row"
    ) as said:
        run(tmp_path, stage, steps=40)
    assert "raise skip_above" in str(said.value)
    assert "\n" not in str(said.value)
    (saved,) = tmp_path.glob("diverged-step-*.pt")
    assert str(saved) in str(said.value)


# --- on several processes --------------------------------------------------------------------


def trained_into_trouble(folder: Path, spoil: Callable[[Tensor, int, int], Tensor], steps: int) -> dict[str, Any]:
    """A sharded stage I whose losses ``spoil`` changes, by rank and step: weights before each step, how it ended."""
    placement = placement_of(shard=2)
    stage = ode_stage(placement, batch=4, save_every=1)
    stage.players["generator"].config = replace(CLIPPED, skip_above=ABOVE)
    stage.export = lambda folder: folder  # type: ignore[method-assign]
    loss, weights = stage.loss, []
    rank = placement.crew.rank

    def spoilt(turn: Turn, batch: Any, noise: Any) -> Any:
        weights.append([whole(p) for p in stage.players["generator"].parameters.values()])
        made = loss(turn, batch, noise)
        return made._replace(value=spoil(made.value, rank, turn.step))

    stage.loss = spoilt  # type: ignore[method-assign]
    metrics._tensorboard = lambda folder, step: None
    run = Run(stage, replace(stage.config, steps=steps), folder, seed=0, crew=placement.crew)
    said = None
    try:
        run.train()
    except SharedError as error:
        said = str(error)
    weights.append([whole(p) for p in stage.players["generator"].parameters.values()])
    return {"said": said, "step": run.step, "weights": weights, "spikes": stage.players["generator"].spikes}


def nan_on_one(value: Tensor, rank: int, step: int) -> Tensor:
    return value * torch.nan if rank == 1 and step == 2 else value


def spike_on_one(value: Tensor, rank: int, step: int) -> Tensor:
    return value * 1e4 if rank == 1 and step == SPIKE_FEWEST + 1 else value


def both_troubles(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        trained_into_trouble(folder / "nan", nan_on_one, 4),
        trained_into_trouble(folder / "spike", spike_on_one, SPIKE_FEWEST + 3),
    )


def test_trouble_on_one_of_two_processes_is_kept_from_the_weights_of_both(tmp_path: Path) -> None:
    found = on_ranks(both_troubles, 2, tmp_path, tmp_path)
    nan, spike = [made[0] for made in found], [made[1] for made in found]
    assert nan[0]["said"] == nan[1]["said"]
    (saved,) = (tmp_path / "nan").glob("diverged-*")
    assert saved.name == "diverged-step-00000002-rank-1.pt"
    assert nan[0]["said"].startswith(
        "rank 1 of 2: ode_init diverged at step 2 (generator: loss is nan); the batch is in"
    )
    batch = torch.load(saved, weights_only=True)
    assert [len(part["text"]) for part in batch] == [2]  # this rank's half of the four
    for made in nan:
        assert made["step"] == 2
        assert_unchanged(made["weights"], [2])
    assert steps_kept(tmp_path / "nan")[-1] == 2
    for made in spike:
        assert made["said"] is None
        assert made["spikes"].count == 1
        assert_unchanged(made["weights"], [SPIKE_FEWEST + 1])
    assert spike[0]["spikes"] == spike[1]["spikes"]


def assert_unchanged(weights: list[list[np.ndarray]], steps: Sequence[int]) -> None:
    """The weights differ from step to step but over these."""
    for step, (before, after) in enumerate(pairwise(weights)):
        same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert same is (step in steps), f"step {step}"
