"""aad1 plan: what it counts on tensors without contents is what real ones cost, and what it makes of that."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aad1.cli import main
from aad1.errors import UserError
from aad1.parallel.placement import ComputeConfig
from aad1.planning import Costs, Memory, Scenario, configs_of, machine_of, make_plan, remedies
from aad1.planning.costs import DECODING, MAKING, Manner, Pass, stage_cost
from aad1.planning.depth import along, at_depth, deep_stage_cost
from aad1.planning.ledger import META, TRANSIENT, without_contents
from aad1.planning.spread import Spread, Work, share_of
from aad1.recipe import Recipe, load_recipe

ACCURACY = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "plan_accuracy.py"))
SIZE = ("--data.frames", "5", "--data.size", "[32,32]", "--data.fps", "8", "--showing.clips", "2", "--data.batch", "2")
CHUNKS = ("--student.num_frames_per_block", "1", "--trajectories.batch", "2", "--adversarial.critic.layers", "[0,1]")
BATCHES = ("--ode_init.batch", "2", "--dmd_warmup.batch", "2", "--adversarial.batch", "2")
SMALL = (*SIZE, *CHUNKS, *BATCHES)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def small(tiny_folder: Path) -> Make:
    """The embedded recipe for the smallest model, on clips of two latent frames, two at a time."""
    return lambda *overrides: load_recipe("tiny", ("--model", str(tiny_folder), *SMALL, *overrides))


@pytest.fixture(scope="module")
def scenario(small: Make) -> Make:
    """A scenario of that recipe."""

    def make(recipe: Recipe | None = None, gpus: int = 1, parallel: int = 1, memory: float = 80) -> Scenario:
        recipe = recipe or small()
        recipe = replace(recipe, compute=replace(recipe.compute, context=parallel))
        return Scenario(recipe, configs_of(recipe.model), machine_of("h100", gpus, recipe.compute, memory, None, 0.4))

    return make


@pytest.fixture(scope="module")
def costs() -> Costs:
    """What is found out once is there for all tests."""
    return Costs()


# --- the ledger ------------------------------------------------------------------------------


def test_a_storage_counts_once_from_its_creation_to_its_end() -> None:
    with without_contents() as ledger:
        x = torch.empty(10, 10, device=META)
        view = x[2:].t()
        assert ledger.live[TRANSIENT] == 400
        ledger.claim("weights", [view])
        assert (ledger.live["weights"], ledger.live[TRANSIENT]) == (400, 0)
        y = x + 1
        del x
        assert ledger.live.total() == 800
        del view
        assert (ledger.live["weights"], ledger.live[TRANSIENT]) == (0, 400)
        assert ledger.peak.total == 800
        ledger.begin()
        assert ledger.peak.total == y.nbytes


def test_attention_is_the_fused_kernel_which_keeps_no_scores() -> None:
    with without_contents() as ledger:
        q, k, v = (torch.empty(1, 2, n, 8, device=META, requires_grad=True) for n in (512, 256, 256))
        ledger.begin()
        out = F.scaled_dot_product_attention(q, k, v)
        assert ledger.flops == 4 * 2 * 512 * 256 * 8
        assert ledger.peak.bytes[TRANSIENT] < 2 * 512 * 256 * 4, "the scores alone would take this"
        out.sum().backward()
        assert ledger.flops == 14 * 2 * 512 * 256 * 8


# --- planned and measured --------------------------------------------------------------------


def within(rows: Any) -> None:
    """Every row's numbers agree to a tenth."""
    found = list(rows)
    assert found
    assert [row for row in found if not 0.9 < row.ratio < 1.1] == []


@pytest.mark.parametrize(
    ("stage", "checkpointing"),
    [("dmd_warmup", False), ("adversarial", True)],
)
def test_what_is_planned_is_what_a_stage_takes(small: Make, stage: str, checkpointing: bool) -> None:
    recipe = small("--data.frames", "9")  # so that the second chunk has a context
    within(ACCURACY["embedded"](recipe, stage, checkpointing, batch=2))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_planned_is_what_blocks_of_the_published_width_take(checkpointing: bool) -> None:
    within(ACCURACY["blocks"](1, 2, (8, 8), checkpointing))


def test_a_deep_model_costs_what_two_shallow_ones_say(small: Make) -> None:
    recipe = small("--adversarial.critic.layers", "[3,9]")
    configs = configs_of(recipe.model)
    configs = replace(configs, transformer={**configs.transformer, "num_layers": 10})
    manner = Manner(batch=2)
    whole, shallow = (find(recipe, configs, "ode_init", manner) for find in (stage_cost, deep_stage_cost))
    assert (whole.state, whole.parameters, whole.rounds) == (shallow.state, shallow.parameters, shallow.rounds)
    for name, turn in whole.turns.items():
        other = shallow.turns[name]
        assert (turn.forward, turn.backward, turn.gradients) == (other.forward, other.backward, other.gradients)
        assert other.transient + other.context == pytest.approx(turn.transient + turn.context, rel=0.03)


def test_a_shallow_critic_reads_as_far_from_its_end() -> None:
    recipe = load_recipe("wan2.1-14b")
    for layers, expected in (((19, 29, 39), (0, 1, 3)), ((10, 37), (0, 1))):
        critic = replace(recipe.adversarial.critic, layers=layers)
        told = replace(recipe, adversarial=replace(recipe.adversarial, critic=critic))
        shallow, configs = at_depth(told, configs_of(recipe.model), 4)
        assert (shallow.adversarial.critic.layers, configs.transformer["num_layers"]) == (expected, 4)


def test_numbers_go_on_along_a_line_however_they_are_nested() -> None:
    first, second = ({"a": (1, 2)}, {"a": (3, 2)})
    assert along(first, second, 3) == {"a": (7, 2)}


# --- roles -----------------------------------------------------------------------------------


def test_a_shared_backbone_is_counted_once(small: Make) -> None:
    recipe = small("--lora", "{rank: 4, alpha: 4, dtype: float32}")
    cost = stage_cost(recipe, configs_of(recipe.model), "dmd_warmup", Manner(2))
    whole = cost.parameters["teacher"][0]
    assert ("weights", "teacher") not in cost.state, "its parameters are the fake score's"
    every, learning = cost.parameters["fake_score"]
    assert every - learning == whole
    assert cost.state["optimizer", "fake_score"] == pytest.approx(8 * learning, rel=0.01)
    assert cost.state["weights", "fake_score"] == pytest.approx(4 * every, rel=0.1)  # and what is no parameter
    halved = stage_cost(small("--lora", "{rank: 4, alpha: 4}"), configs_of(recipe.model), "dmd_warmup", Manner(2))
    saved = cost.state["weights", "fake_score"] - halved.state["weights", "fake_score"]
    assert saved == pytest.approx(2 * whole, rel=0.2), "a frozen backbone of bfloat16 stays that"
    assert halved.turns["fake_score"].transient != cost.turns["fake_score"].transient, "in its passes too"


def test_every_byte_of_a_stage_has_a_role(small: Make) -> None:
    recipe = small()
    cost = stage_cost(recipe, configs_of(recipe.model), "dmd_warmup", Manner(2))
    generator = cost.parameters["generator"][1] * 4
    assert {what for what, _ in cost.state} == {"weights", "optimizer", "average", "kept"}
    assert cost.state["average", "generator"] == cost.state["kept", "dmd_warmup"] == generator
    assert cost.state["optimizer", "generator"] == pytest.approx(2 * generator, rel=0.001)
    assert all(turn.gradients == generator for turn in cost.turns.values())
    assert set(cost.parameters) == {"fake_score", "generator", "teacher", "vae"}


def test_half_precision_halves_what_a_pass_keeps_and_not_what_is_held(small: Make) -> None:
    recipe = small()
    full, half = (
        stage_cost(recipe, configs_of(recipe.model), "ode_init", Manner(2, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    assert full.state == half.state
    for name, turn in full.turns.items():
        assert 0.4 < half.turns[name].transient / turn.transient < 0.85
        assert half.turns[name].forward == turn.forward
    assert half.block < 0.55 * full.block


# --- a machine -------------------------------------------------------------------------------


def test_the_global_batch_is_spread_over_groups(small: Make) -> None:
    config = replace(small().adversarial, batch=4, accumulate=8)
    expected = {(1, 1): (4, 8), (8, 1): (4, 1), (16, 1): (2, 1), (16, 8): (4, 4), (32, 1): (1, 1)}
    for (gpus, parallel), share in expected.items():
        machine = machine_of("h100", gpus, ComputeConfig(context=parallel), None, None, 1)
        assert tuple(vars(share_of(config, machine)).values()) == share


def test_more_gpus_divide_state_and_time_and_context_parallelism_divides_activations(small: Make) -> None:
    config, manner = replace(small().adversarial, accumulate=16), Manner(2)
    cost = stage_cost(small(), configs_of(small().model), "adversarial", manner)
    nothing = dict.fromkeys((MAKING, DECODING), Pass(0, 0, 0, 0, 0))

    def critic(gpus: int, parallel: int) -> Work:
        machine = machine_of("h100", gpus, ComputeConfig(context=parallel), None, None, 0.4)
        section = Spread(cost, nothing, config, machine, manner, clips=1).section("adversarial")
        return next(work for work in section.works if work.name == "critic")

    one, four, together = critic(1, 1), critic(4, 1), critic(4, 4)
    for role in ("weights", "optimizer", "average", "gradients"):
        assert vars(four.memory)[role] == pytest.approx(vars(one.memory)[role] / 4)
    assert four.memory.activations == one.memory.activations
    assert together.memory.activations == pytest.approx(one.memory.activations / 4)
    assert four.seconds == pytest.approx(one.seconds / 4) == pytest.approx(together.seconds)
    assert one.memory.gathered == 0 < four.memory.gathered
    turns = cost.rounds["critic"] * 16 * (cost.turns["critic"].forward + cost.turns["critic"].backward)
    assert one.seconds == pytest.approx(turns / (67e12 * 0.4))


def test_a_plan_that_does_not_fit_says_what_to_change(small: Make, scenario: Make, costs: Costs) -> None:
    recipe = small("--adversarial.batch", "128")
    roomy = make_plan(scenario(recipe), costs)
    assert roomy.fits
    (checkpointed,) = (section.peak.memory.total for section in roomy.others if section.name == "adversarial")
    between = (checkpointed + roomy.worst.peak.memory.total) / 2
    tight = make_plan(scenario(recipe, memory=between / 1e9), costs)
    assert not tight.fits
    (cure,) = remedies(tight, costs)
    assert cure.words == "--compute.checkpointing [generator,fake_score,critic,teacher]"
    assert cure.plan.worst.peak.memory.total <= between
    assert cure.plan.stages[-1].seconds > tight.stages[-1].seconds, "blocks are computed twice"


def test_the_memory_of_a_rank_is_the_sum_of_its_roles() -> None:
    assert Memory(weights=1, context=2, kept=3).total == 6


# --- configs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"), [("Wan2.1-T2V-1.3B", 1419), ("Wan2.1-T2V-14B", 14288), ("Wan2.2-TI2V-5B", 5000)]
)
def test_published_models_have_their_published_size(name: str, millions: int) -> None:
    from aad1.planning.bare import BareFolder

    folder = BareFolder(Path(name), configs=configs_of(f"somewhere/{name}-Diffusers"))
    with without_contents():
        from diffusers import WanTransformer3DModel

        found = sum(p.numel() for p in folder.transformer(WanTransformer3DModel).parameters()) / 1e6
        assert found == pytest.approx(millions, rel=0.001)
        assert sum(p.numel() for p in folder.vae().parameters()) > 1e8


def test_a_folder_s_own_configs_come_first(tiny_folder: Path) -> None:
    found = configs_of(str(tiny_folder))
    assert found.transformer["num_layers"] == 2
    assert str(tiny_folder) in found.source
    assert "published" in configs_of("./Wan2.1-T2V-14B-Diffusers").source


# --- the command -----------------------------------------------------------------------------


def test_the_command_prints_a_plan_and_writes_it(
    tiny_folder: Path,
    costs: Costs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aad1.cli.planning.Costs", lambda done: costs)
    words = ["plan", "tiny", "--model", str(tiny_folder), *SMALL, "--json", str(tmp_path / "plan.json")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "fits: needs" in out
    assert "adversarial" in out
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"]
    assert [s["name"] for s in written["sections"]][-3:] == ["ode_init", "dmd_warmup", "adversarial"]
    needs = written["worst"]["bytes"] / 1e9
    assert main([*words, "--gpu-memory", str(0.99 * needs)]) == 3
    assert "does not fit: needs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan", "tinny"], "did you mean 'tiny'"),
        (["plan", "tiny", "--gpus", "6", "--compute.context", "4"], "do not make 6 processes"),
        (
            ["plan", "tiny", "--gpus", "6", "--compute.context", "6"],
            "the model's 4 heads; allowed: 1, 2, 4",
        ),
        (["plan", "tiny", "--efficiency", "0"], "above 0"),
        (["plan", "tiny", "--efficiency", "nan"], "above 0"),
        (["plan", "tiny", "--gpu", "h1000"], "did you mean 'h100'"),
        (["plan", "tiny", "--gpu-memory", "0"], "above 0"),
        (["plan", "tiny", "--model", "no_such_model"], "Wan2.1-T2V-14B"),
        (["plan", "tiny", "--data.size", "[66, 64]"], "multiples of 8"),
        (["plan", "tiny", "--data.size", "[72, 64]"], "multiple of 16"),
        (["plan", "tiny", "--ode_init.stepz", "9"], "did you mean 'steps'"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error
    assert len(error) < 500


@pytest.mark.parametrize("spoil", ["missing", "no json", "a list"])
def test_a_folder_that_is_none_is_refused(spoil: str, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    texts = {"missing": None, "no json": "{", "a list": "[]"}
    if (text := texts[spoil]) is not None:
        (tmp_path / "transformer" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"transformer/config\.json"):
        configs_of(str(tmp_path))
