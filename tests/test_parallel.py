"""Stages on many processes: the same samples and noise, the same losses, gradients and weights as on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lively import lively, text_of
from numpy.typing import NDArray
from ranks import on_ranks
from test_stages import ADAM, AVERAGED, LEVELS, TAU, NothingToShow, clips, guard, trajectories
from torch import Tensor
from torch.distributed.tensor import DTensor

from aad1.data.team import ALONE as TEAM_OF_ONE
from aad1.errors import UserError
from aad1.models.adapters import AdapterConfig, adapted, sharing
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.critic import Critic
from aad1.parallel.crew import Crew
from aad1.parallel.launch import joined
from aad1.parallel.placement import HERE, ComputeConfig, Grid, Placement, Role, grid_of, placed
from aad1.rollout import ClipRollout, roll_clip, roll_clip_replayed
from aad1.stages.adversarial import AdversarialConfig, AdversarialStage, CriticConfig
from aad1.stages.dmd_warmup import DmdWarmupConfig, DmdWarmupStage, ScoreDistillation
from aad1.stages.ode_init import OdeInitConfig, OdeInitStage
from aad1.training import metrics
from aad1.training.loop import Run
from aad1.training.metrics import read_metrics
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws
from aad1.training.share import Piece, pieces

Arrays = dict[str, NDArray[np.float32]]

HEADS = 4
RELATIVE = 1e-5
CLIPPED = OptimizerConfig(lr=1e-3, betas=(0.0, 0.99), weight_decay=0.01, clip=0.5, ema=0.9)
LOOP: dict[str, Any] = {"steps": 1, "log_every": 1}


def network(seed: int) -> Any:
    return lively(seed=seed, num_frames_per_block=2, local_attn_size=5, sink_size=1, num_attention_heads=HEADS)


def model(seed: int, placement: Placement, role: Role) -> Any:
    return placement.finish(network(seed).requires_grad_(role != "teacher"), role)


def roll(placement: Placement) -> ClipRollout:
    return roll_clip_replayed if placement.config.replay else roll_clip


def ode_stage(placement: Placement, **config: Any) -> OdeInitStage:
    settings = OdeInitConfig(**LOOP | config, optimizer=CLIPPED, clean_context=0.3)
    generator = model(1, placement, "generator")
    return OdeInitStage(settings, generator, trajectories(), LEVELS, NothingToShow())  # type: ignore[arg-type]


def scores_of(placement: Placement, adapters: bool) -> tuple[Any, Any]:
    """Fake score and teacher: networks of their own, or one backbone."""
    if not adapters:
        return model(2, placement, "fake_score"), model(0, placement, "teacher")
    backbone = network(0).requires_grad_(False)
    torch.manual_seed(0)
    learning = adapted(backbone, AdapterConfig(rank=2, alpha=2.0, dtype="float32"))
    return placement.finish(learning, "fake_score"), placement.finish(sharing(backbone), "teacher", whole=True)


def dmd_stage(placement: Placement, adapters: bool = False, **config: Any) -> DmdWarmupStage:
    settings = DmdWarmupConfig(
        **LOOP | config, generator_optimizer=CLIPPED, fake_score_optimizer=ADAM, fake_score_updates=2
    )
    generator = model(1, placement, "generator")
    fake_score, teacher = scores_of(placement, adapters)
    scores = ScoreDistillation(settings, fake_score, teacher, text_of(1, seed=9))
    shown: Any = NothingToShow()
    return DmdWarmupStage(settings, generator, scores, clips(), (1.0, 0.5), shown, guard(), roll=roll(placement))  # type: ignore[arg-type]


def adversarial_stage(placement: Placement, **config: Any) -> AdversarialStage:
    kind = CriticConfig(layers=(0, 1))
    settings = AdversarialConfig(
        **LOOP | config, critic=kind, generator_optimizer=AVERAGED, critic_optimizer=CLIPPED, t_range=TAU
    )
    torch.manual_seed(0)
    critic = placement.finish(Critic(network(2), kind.layers), "critic")
    shown: Any = NothingToShow()
    generator = model(1, placement, "generator")
    return AdversarialStage(settings, generator, critic, clips(), (1.0,), shown, roll=roll(placement))  # type: ignore[arg-type]


STAGES: dict[str, Callable[..., Any]] = {
    "I": ode_stage,
    "II": dmd_stage,
    "II with adapters": partial(dmd_stage, adapters=True),
    "III": adversarial_stage,
}


def whole(tensor: Tensor) -> NDArray[np.float32]:
    """All of it, as what can be sent to another process."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().numpy()


@contextmanager
def noting(found: Arrays) -> Iterator[None]:
    """Within, the first gradients that each player has to descend are noted, whole."""
    step = Player.step

    def noted(player: Player, progress: float) -> dict[str, float]:
        for name, parameter in player.parameters.items():
            if parameter.grad is not None:
                found.setdefault(f"{player.updates} {player.name} {name}", whole(parameter.grad))
        return step(player, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "step", noted)
        patch.setattr(metrics, "_tensorboard", lambda folder, step: None)
        yield


def trained(name: str, placement: Placement, folder: Path, **config: Any) -> dict[str, Any]:
    """A step of a stage: losses, and gradients of every turn; later turns see the updates of those before."""
    gradients: Arrays = {}
    stage = STAGES[name](placement, **config)
    run = Run(stage, stage.config, folder, seed=0, crew=placement.crew)
    with noting(gradients), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", lambda run: None)
        patch.setattr(type(stage), "export", lambda stage, folder: folder)
        run.train()
    rows = read_metrics(folder / "metrics.jsonl") if placement.crew.leads else []
    return {"gradients": gradients, "rows": rows}


def placement_of(**config: Any) -> Placement:
    settings = ComputeConfig(**config)
    ranks = dist.get_world_size()
    crew = Crew(dist.get_rank(), ranks, control=dist.group.WORLD)
    return placed(settings, grid_of(settings, ranks), crew, torch.device("cpu"))


def trained_on_ranks(folder: Path, jobs: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each job: a stage, how it is placed, and its batch."""
    made = [
        trained(name, placement_of(**compute), folder / str(index), **batch)
        for index, (name, compute, batch) in enumerate(jobs)
    ]
    return made if dist.get_rank() == 0 else []


def assert_alike(found: Arrays, expected: Arrays, where: str) -> None:
    """Within RELATIVE of the largest value of a tensor, or of a hundredth of the largest of all its player's.

    For some are nothing but rounding: softmax does not feel the bias of its keys.
    """
    assert found.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, values in expected.items():
        player = name.rpartition(" ")[0]
        largest[player] = max(largest.get(player, 0.0), float(np.abs(values).max()))
    for name, values in expected.items():
        scale = max(float(np.abs(values).max()), largest[name.rpartition(" ")[0]] / 100)
        error = float(np.abs(found[name] - values).max()) / scale
        assert error <= RELATIVE, f"{where}: {name} is {error:.1e} off"


BATCHES = {
    "I": {"batch": 4},
    "II": {"batch": 2, "accumulate": 2},
    "II with adapters": {"batch": 2, "accumulate": 2},
    "III": {"batch": 1, "accumulate": 4},
}
METHOD = ("I", "II", "III")
JOBS: dict[int, list[tuple[Sequence[str], dict[str, Any]]]] = {
    2: [
        (METHOD, {"shard": 2}),
        (METHOD, {"context": 2}),
        (("III",), {"replicate": 2}),
        (("II", "III"), {"checkpointing": ("generator", "critic"), "replay": True}),
        (("II with adapters",), {"shard": 2}),
        (("II with adapters",), {"context": 2}),
    ],
    4: [
        (METHOD, {"shard": 4}),
        (METHOD, {"context": 4}),
        (METHOD, {"shard": 2, "context": 2, "replay": True}),
        (("II",), {"replicate": 2, "shard": 2}),
    ],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {name: trained(name, HERE, tmp_path_factory.mktemp("one"), **batch) for name, batch in BATCHES.items()}
    torch.set_num_threads(threads)
    return made


@pytest.mark.parametrize("ranks", JOBS)
def test_stages_compute_on_many_processes_what_they_do_on_one(
    ranks: int, tmp_path: Path, alone: dict[str, dict[str, Any]]
) -> None:
    jobs = [(name, compute, BATCHES[name]) for names, compute in JOBS[ranks] for name in names]
    found, *_ = on_ranks(trained_on_ranks, ranks, tmp_path, tmp_path, jobs)
    for (name, compute, _), made in zip(jobs, found, strict=True):
        where = f"stage {name}, {compute}"
        assert_alike(made["gradients"], alone[name]["gradients"], f"{where}, gradients")
        for row, expected in zip(made["rows"], alone[name]["rows"], strict=True):
            for key in (key for key in expected if "loss" in key or "norm" in key):
                assert row[key] == pytest.approx(expected[key], rel=RELATIVE), f"{where}: {key}"


def test_micro_batches_that_are_shared_out_equal_one_large_batch(
    tmp_path: Path,
) -> None:
    """One rank has each micro-batch whole, two have halves of it, or every other one."""
    ways = ({"batch": 4, "accumulate": 1}, {"batch": 2, "accumulate": 2}, {"batch": 1, "accumulate": 4})
    jobs = [("III", {"shard": 2}, way) for way in ways]
    found, *_ = on_ranks(trained_on_ranks, 2, tmp_path, tmp_path, jobs)
    for way, made in zip(ways, found, strict=True):
        assert_alike(made["gradients"], trained("III", HERE, tmp_path / str(way), **way)["gradients"], str(way))


# --- compiled blocks -------------------------------------------------------------------------


def steps_compiled(folder: Path, compiled: bool) -> tuple[list[float], int]:
    """Losses of three steps of stage I on split weights, and how many graphs of blocks have run."""
    ran = [0]

    def counting(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            ran[0] += 1
            return graph.forward(*given)

        return run

    with pytest.MonkeyPatch.context() as patch:
        compile_blocks = CausalWanTransformer3DModel.compile_blocks
        patch.setattr(CausalWanTransformer3DModel, "compile_blocks", lambda model: compile_blocks(model, counting))  # type: ignore[arg-type]
        roles: dict[str, Any] = {"compile": ("generator",), "checkpointing": ("generator",)}
        placement = placement_of(shard=2, **(roles if compiled else {}))
        made = trained("I", placement, folder / str(compiled), batch=2, steps=3)
    return [row["generator/loss"] for row in made["rows"]], ran[0]


def compiled_and_plain(folder: Path) -> tuple[Any, Any]:
    return steps_compiled(folder, compiled=True), steps_compiled(folder, compiled=False)


def test_compiled_blocks_run_in_a_training_and_compute_the_same(tmp_path: Path) -> None:
    found = on_ranks(compiled_and_plain, 2, tmp_path, tmp_path)
    (losses, _), (expected, _) = found[0]
    assert len(losses) == 3
    assert losses == pytest.approx(expected, rel=RELATIVE)
    for (_, compiled), (_, plain) in found:
        assert compiled >= 4, "two blocks, in all steps but the first, in which operations are counted"
        assert plain == 0


# --- shares ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "accumulate", "groups"), [(1, 8, 4), (4, 2, 2), (4, 2, 4), (4, 2, 8), (6, 1, 3)])
def test_every_sample_is_worked_on_once(batch: int, accumulate: int, groups: int) -> None:
    shares = [pieces(batch, accumulate, group, groups) for group in range(groups)]
    assert len({len(share) for share in shares}) == len({piece.size for share in shares for piece in share}) == 1
    samples = [(p.micro, p.first + i) for share in shares for p in share for i in range(p.size)]
    assert samples == [(micro, row) for micro in range(accumulate) for row in range(batch)]


def test_one_process_has_all() -> None:
    assert pieces(3, 2, 0, 1) == [Piece(0, 0, 3), Piece(1, 0, 3)]


@pytest.mark.parametrize(("batch", "accumulate", "groups"), [(1, 3, 2), (3, 2, 3), (2, 2, 8)])
def test_what_cannot_be_dealt_is_refused_with_what_can(batch: int, accumulate: int, groups: int) -> None:
    with pytest.raises(
        UserError, match=rf"{accumulate} micro-batches of {batch} .* {groups} groups.*with these, 1, "
    ) as error:
        pieces(batch, accumulate, 0, groups)
    fitting = str(error.value).partition("with these, ")[2].partition(" groups")[0]
    for number in map(int, fitting.split(", ")):
        pieces(batch, accumulate, 0, number)


def test_a_sample_draws_the_same_whoever_works_on_it() -> None:
    def draws(first: int, count: int) -> tuple[Tensor, ...]:
        noise = Draws(torch.Generator().manual_seed(3), 4, first)
        like = torch.empty(count, 2, 3, dtype=torch.float64)
        return noise.uniform(count, 1), noise.normal(like), noise.below(9, count, 2), noise.normal(like)

    everything = draws(0, 4)
    for first, count in ((0, 2), (2, 2), (3, 1)):
        for part, every in zip(draws(first, count), everything, strict=True):
            assert torch.equal(part, every[first : first + count])
    assert torch.equal(Draws(torch.Generator().manual_seed(3)).uniform(4, 1), everything[0])


# --- grids -----------------------------------------------------------------------------------


def test_processes_that_are_left_split_weights() -> None:
    assert grid_of(ComputeConfig(), 8) == Grid(1, 8, 1)
    assert grid_of(ComputeConfig(replicate=2, context=2), 8) == Grid(2, 2, 2)
    assert grid_of(ComputeConfig(replicate=2, shard=2, context=2), 8) == Grid(2, 2, 2)


@pytest.mark.parametrize(
    ("config", "ranks"),
    [({"context": 2}, 1), ({"context": 3}, 8), ({"shard": 3}, 8), ({"replicate": 4, "context": 4}, 8)],
)
def test_a_grid_that_does_not_fit_is_refused_with_what_would(config: dict[str, int], ranks: int) -> None:
    with pytest.raises(UserError, match=rf"do not make {ranks} processes; .* be one of 1") as error:
        grid_of(ComputeConfig(**config), ranks)
    for product in map(int, str(error.value).rpartition("one of ")[2].split(", ")):
        assert grid_of(ComputeConfig(context=product), ranks).context == product


# --- half precision --------------------------------------------------------------------------


def test_one_process_alone_computes_in_bfloat16_with_float32_weights(
    tmp_path: Path, alone: dict[str, dict[str, Any]]
) -> None:
    with joined(ComputeConfig(precision="bfloat16"), TEAM_OF_ONE, torch.device("cpu")) as placement:
        made = {name: trained(name, placement, tmp_path / name, **BATCHES[name]) for name in METHOD}
        critic = placement.finish(Critic(network(2), (0, 1)), "critic")
        logits = critic(clips().tensors[0], torch.full((4, 5), 0.5), text_of(4))
    assert logits.dtype == torch.float32, "Eq. 10 is of small differences of logits"
    for name, found in made.items():
        row, expected = found["rows"][-1], alone[name]["rows"][-1]
        losses = [key for key in expected if key.endswith("/loss")]
        assert losses
        for key in losses:
            assert row[key] == pytest.approx(expected[key], rel=0.1), f"stage {name}: {key}"
            assert row[key] != expected[key], "something was computed in another precision"
        assert all(gradient.dtype == np.float32 for gradient in found["gradients"].values())
