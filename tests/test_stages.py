"""The stages: each turn teaches its own player and nobody else, on the data that its equation names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import build_tiny_vae
from lively import CHANNELS, clip_of, lively, normal, text_of
from test_loop import Crash, assert_identical, last_state
from torch import Tensor, nn

from aad1.data.world import vocabulary
from aad1.errors import UserError
from aad1.flow import shifted_levels
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.context import Visibility, chunk_slices
from aad1.models.critic import Critic, Granularity
from aad1.models.text import build_tiny_text
from aad1.models.vae import Geometry, geometry
from aad1.rollout import roll_clip
from aad1.stages import vae as vae_stage
from aad1.stages.adversarial import AdversarialConfig, AdversarialStage, CriticConfig, critic_health
from aad1.stages.batches import ClipBatch, TrajectoryBatch
from aad1.stages.dmd_warmup import DmdWarmupConfig, DmdWarmupStage, ScoreDistillation
from aad1.stages.joint import JointStage
from aad1.stages.ode_init import OdeInitConfig, OdeInitStage, check_levels, gather_points
from aad1.stages.teacher import Lesson, TeacherConfig, TeacherStage
from aad1.stages.text import TextConfig, TextStage
from aad1.stages.vae import VaeConfig, VaeStage, anchors
from aad1.training import metrics
from aad1.training.loop import Run, Turn
from aad1.training.motion_guard import GuardConfig, MotionGuard
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws

CHUNK, FRAMES, BATCH = 2, 5, 2
ADAM = OptimizerConfig(lr=1e-3)
LEVELS = (*shifted_levels((1.0, 0.75, 0.5, 0.25), 5.0), 0.0)
TAU = (0.4, 0.7)
VISIBILITIES: tuple[Visibility, ...] = ("full", "block_causal")
GRANULARITIES: tuple[Granularity, ...] = ("clip", "frame")


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes seconds to import."""
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)


class InMemory:
    """A dataset of ready tensors."""

    def __init__(self, *tensors: Tensor, kind: Callable[..., Any]) -> None:
        self.tensors, self.kind = tensors, kind

    def __len__(self) -> int:
        return len(self.tensors[0])

    def read(self, indices: Sequence[int]) -> Any:
        return self.kind(*(tensor[list(indices)] for tensor in self.tensors))


class NothingToShow:
    """In place of held-out samples: the motion of real clips, always."""

    def student(self, generator: nn.Module, path: Path) -> dict[str, float]:
        return {"rho": 1.0, "kappa": 1.0}

    teacher = student


def clips() -> InMemory:
    return InMemory(clip_of(FRAMES, batch=4), text_of(batch=4), kind=ClipBatch)


def trajectories(count: int = 4, frames: int = FRAMES) -> InMemory:
    points = normal(count, len(LEVELS), CHANNELS, frames, 4, 4, seed=1)
    return InMemory(points, text_of(batch=count), kind=TrajectoryBatch)


def model(seed: int) -> CausalWanTransformer3DModel:
    return lively(seed=seed, num_frames_per_block=CHUNK, local_attn_size=5, sink_size=1)


def guard() -> MotionGuard:
    return MotionGuard(GuardConfig())


def teacher_stage(**config: Any) -> TeacherStage:
    settings = TeacherConfig(**{"steps": 2, "batch": BATCH, "optimizer": ADAM, **config})
    return TeacherStage(settings, model(0), clips(), text_of(1, seed=9), NothingToShow())  # type: ignore[arg-type]


def ode_stage(frames: int = FRAMES, **config: Any) -> OdeInitStage:
    settings = OdeInitConfig(**{"steps": 2, "batch": BATCH, "optimizer": ADAM, **config})
    return OdeInitStage(settings, model(1), trajectories(frames=frames), LEVELS, NothingToShow())  # type: ignore[arg-type]


def dmd_stage(levels: tuple[float, ...] = (1.0,), **config: Any) -> DmdWarmupStage:
    settings = DmdWarmupConfig(
        **{"steps": 2, "batch": BATCH, "generator_optimizer": ADAM, "fake_score_optimizer": ADAM, **config}
    )
    negative = text_of(1, seed=9)
    return DmdWarmupStage(
        settings,
        model(1),
        ScoreDistillation(settings, model(2), model(0), negative),
        clips(),
        levels,
        NothingToShow(),
        guard(),
    )  # type: ignore[arg-type]


def adversarial_stage(levels: tuple[float, ...] = (1.0,), kind: CriticConfig | None = None, **config: Any) -> Any:
    kind = kind or CriticConfig(layers=(0, 1))
    settings = AdversarialConfig(
        **{
            "steps": 2,
            "batch": BATCH,
            "critic": kind,
            "generator_optimizer": ADAM,
            "critic_optimizer": ADAM,
            "t_range": TAU,
            **config,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critic = Critic(model(2), kind.layers, visibility=kind.visibility, granularity=kind.granularity)
    return AdversarialStage(settings, model(1), critic, clips(), levels, NothingToShow())  # type: ignore[arg-type]


def joint_stage(weight: float = 1.0) -> JointStage:
    return JointStage(adversarial_stage(dmd_weight=weight), dmd_stage().scores)


def stream(seed: int = 5) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def batch_of(stage: Any) -> Any:
    return stage.dataset.read(range(BATCH))


# --- who learns ------------------------------------------------------------------------------


def models_of(stage: Any) -> dict[str, nn.Module]:
    """Every module of a stage, and of the parts it is made of, by its field."""
    parts = [getattr(stage, name) for name in ("scores", "game") if hasattr(stage, name)]
    own = {name: value for name, value in vars(stage).items() if isinstance(value, nn.Module)}
    return own | {name: value for part in parts for name, value in models_of(part).items()}


UNREAD = ("backbone.scale_shift_table", "backbone.proj_out")  # the critic reads hidden states, not velocities

ROUTES = {
    "teacher": (teacher_stage, "teacher", "teacher"),
    "stage I": (ode_stage, "generator", "generator"),
    "stage II, fake score": (dmd_stage, "fake_score", "fake_score"),
    "stage II, generator": (dmd_stage, "generator", "generator_model"),
    "stage III, critic": (adversarial_stage, "critic", "critic_model"),
    "stage III, generator": (adversarial_stage, "generator", "generator_model"),
    "jointly, fake score": (joint_stage, "fake_score", "fake_score"),
    "jointly, critic": (joint_stage, "critic", "critic_model"),
    "jointly, generator": (joint_stage, "generator", "generator_model"),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
@pytest.mark.parametrize(("build", "turn", "learner"), list(ROUTES.values()), ids=list(ROUTES))
def test_a_turn_teaches_its_own_player_and_nobody_else(
    build: Callable[[], Any], turn: str, learner: str, checkpointing: bool
) -> None:
    stage = build()
    for module in models_of(stage).values():
        backbone = getattr(module, "backbone", module)
        if checkpointing:
            backbone.enable_gradient_checkpointing()
    for other in stage.players:  # the turns before must leave nothing behind either
        stage.loss(Turn(other, 0), batch_of(stage), stream())
    stage.loss(Turn(turn, 0), batch_of(stage), stream()).value.backward()
    for field, module in models_of(stage).items():
        gradients = {name: p.grad for name, p in module.named_parameters() if not name.startswith(UNREAD)}
        if field == learner:
            assert [name for name, g in gradients.items() if g is None or not g.any()] == []
        else:
            assert [name for name, g in gradients.items() if g is not None] == []
    owned = {id(p) for p in stage.players[turn].parameters.values()}
    assert owned == {id(p) for p in models_of(stage)[learner].parameters()}


@pytest.mark.parametrize("build", [dmd_stage, adversarial_stage])
def test_one_step_of_the_loop_moves_the_players_and_leaves_the_teacher(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    stage = build(steps=1)
    before = {name: {n: p.clone() for n, p in m.named_parameters()} for name, m in models_of(stage).items()}
    Run(stage, stage.config, tmp_path / "run", seed=0).train()
    for name, module in models_of(stage).items():
        moved = [n for n, p in module.named_parameters() if not torch.equal(p, before[name][n])]
        assert bool(moved) is (name != "teacher")
    counts = {name: player.updates for name, player in stage.players.items()}
    assert counts == ({"fake_score": 5, "generator": 1} if build is dmd_stage else {"critic": 1, "generator": 1})


def test_the_joint_loss_is_equation_9_plus_weighted_equation_6() -> None:
    values = {}
    for weight in (0.0, 1.0, 3.0):
        stage = joint_stage(weight)
        values[weight] = float(stage.loss(Turn("generator", 0), batch_of(stage), stream()).value.detach())
    alone = adversarial_stage()
    assert values[0.0] == float(alone.loss(Turn("generator", 0), batch_of(alone), stream()).value.detach())
    assert values[3.0] - values[0.0] == pytest.approx(3 * (values[1.0] - values[0.0]), rel=1e-3)
    assert values[1.0] > values[0.0]


def test_the_order_of_the_turns() -> None:
    assert list(joint_stage().turns(0)) == ["fake_score"] * 5 + ["critic", "generator"]
    assert list(teacher_stage().turns(0)) == ["teacher"]
    assert list(ode_stage().turns(7)) == ["generator"]
    assert list(dmd_stage().turns(0)) == ["fake_score"] * 5 + ["generator"]
    assert list(dmd_stage(fake_score_updates=2).turns(3)) == ["fake_score"] * 2 + ["generator"]
    assert list(adversarial_stage().turns(0)) == ["critic", "generator"]
    ahead = adversarial_stage(head_start=3, critic_updates=2)
    assert list(ahead.turns(0)) == ["critic"] * 5 + ["generator"]
    assert list(ahead.turns(1)) == ["critic"] * 2 + ["generator"]


class Fading(NothingToShow):
    """In place of held-out samples: motion that was given beforehand, one value an evaluation."""

    def __init__(self, *rho: float) -> None:
        self.rho = list(rho)

    def student(self, generator: nn.Module, path: Path) -> dict[str, float]:
        return {"rho": self.rho.pop(0), "kappa": 1.0}


def exported_at(stage: DmdWarmupStage, folder: Path) -> float:
    """Which of ``fade``'s marks the exported student has."""
    student = CausalWanTransformer3DModel.from_pretrained(stage.export(folder))
    return float(next(iter(student.parameters())).detach().flatten()[0])


def fade(stage: DmdWarmupStage, *rho: float) -> list[str | None]:
    """Evaluate once for each rho, with weights marked 1, 2, ...; what the stage says about stopping."""
    stage.showing = Fading(*rho)  # type: ignore[assignment]
    said = []
    for mark in range(1, len(rho) + 1):
        with torch.no_grad():
            next(iter(stage.generator_model.parameters())).fill_(mark)
        stage.evaluate(mark, Path())
        said.append(stage.stop_reason())
    return said


@pytest.mark.parametrize("patience", [1, 2])
def test_stage_ii_exports_the_last_student_whose_motion_held(patience: int, tmp_path: Path) -> None:
    stage = dmd_stage()
    stage.guard = MotionGuard(GuardConfig(min_rho=0.8, min_kappa=0.5, patience=patience))
    said = fade(stage, 1.0, 0.9, *[0.7] * patience)
    assert said[:-1] == [None] * (patience + 1)
    assert "rho of held-out rollouts is 0.70" in str(said[-1])
    assert exported_at(stage, tmp_path / "a") == 2
    resumed = dmd_stage()
    resumed.load_state_dict(stage.state_dict())
    assert exported_at(resumed, tmp_path / "b") == 2


def test_stage_ii_whose_motion_never_held_exports_the_student_it_began_with(tmp_path: Path) -> None:
    stage = dmd_stage()
    with torch.no_grad():
        next(iter(stage.generator_model.parameters())).fill_(5)
    stage.__post_init__()
    stage.guard = MotionGuard(GuardConfig(min_rho=0.8))
    assert "rho of held-out rollouts" in str(fade(stage, 0.7)[0])
    assert exported_at(stage, tmp_path) == 5


AVERAGED = OptimizerConfig(lr=1e-3, ema=0.9)
EXPORTS: dict[str, Callable[[], Any]] = {
    "teacher": lambda: teacher_stage(optimizer=AVERAGED),
    "stage I": lambda: ode_stage(optimizer=AVERAGED),
    "stage II, never evaluated": lambda: dmd_stage(generator_optimizer=AVERAGED),
    "stage III": lambda: adversarial_stage(generator_optimizer=AVERAGED),
}


@pytest.mark.parametrize("build", EXPORTS.values(), ids=EXPORTS.keys())
def test_a_stage_exports_its_average(build: Callable[[], Any], tmp_path: Path) -> None:
    stage = build()
    (player,) = [player for name, player in stage.players.items() if name in ("teacher", "generator")]
    name, own = next((n, p.detach().clone()) for n, p in player.parameters.items())
    player.average[name].fill_(7)
    assert (CausalWanTransformer3DModel.from_pretrained(stage.export(tmp_path)).get_parameter(name) == 7).all()
    assert torch.equal(player.parameters[name], own)


# --- as the loop runs them -------------------------------------------------------------------


def noise_of_content(_: Draws, like: Tensor) -> Tensor:
    """In place of noise: the same for a sample whatever its batch."""
    return 1.4 * (40 * like.detach()).cos()


def one_level(_: Draws, *shape: int) -> Tensor:
    """In place of uniform numbers: the same for a sample whatever its batch."""
    return torch.full(shape, 0.4)


def gradients(build: Callable[..., Any], folder: Path, **config: Any) -> dict[str, Tensor]:
    """What one step of the loop gives each player to descend; nothing moves."""
    found: dict[str, Tensor] = {}

    def note(player: Player, progress: float) -> dict[str, float]:
        parts = [p.grad.flatten() for p in player.parameters.values() if p.grad is not None]
        found[player.name] = torch.cat(parts)
        player.module.zero_grad(set_to_none=True)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Player, "step", note)
        stage = build(steps=1, **config)
        Run(stage, stage.config, folder, seed=0).train()
    return found


@pytest.mark.parametrize("build", [dmd_stage, adversarial_stage])
def test_micro_batches_of_a_stage_equal_one_batch(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Draws, "normal", noise_of_content)
    monkeypatch.setattr(Draws, "uniform", one_level)
    whole = gradients(build, tmp_path / "1", batch=4, accumulate=1)
    parts = gradients(build, tmp_path / "4", batch=1, accumulate=4)
    assert whole.keys() == parts.keys() == {*build().players}
    for name, gradient in whole.items():
        scale = float(gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(parts[name], gradient, atol=1e-4 * scale, rtol=1e-3)


def crash_at(stage: Any, where: Turn) -> Any:
    """The stage, failing when this turn comes."""
    loss = stage.loss

    def failing(turn: Turn, batch: Any, noise: Draws) -> Any:
        if turn == where:
            raise Crash
        return loss(turn, batch, noise)

    stage.loss = failing
    return stage


LONG = {"steps": 4, "batch": 1, "accumulate": 2, "save_every": 1, "evaluate_every": 2, "log_every": 1}
RUNS: dict[str, tuple[Callable[[], Any], str]] = {
    "teacher": (
        lambda: teacher_stage(**LONG, optimizer=AVERAGED, curriculum=(Lesson(steps=3, frames=3),)),
        "teacher",
    ),
    "stage II": (lambda: dmd_stage(**LONG, generator_optimizer=AVERAGED, fake_score_updates=2), "generator"),
    "stage III": (lambda: adversarial_stage(**LONG, generator_optimizer=AVERAGED, head_start=1), "generator"),
}


@pytest.mark.parametrize(("build", "player"), RUNS.values(), ids=RUNS.keys())
def test_a_run_broken_inside_a_step_resumes_bit_for_bit(build: Callable[[], Any], player: str, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    stage = build()
    Run(stage, stage.config, unbroken, seed=0).train()
    with pytest.raises(Crash):
        Run(crash_at(build(), Turn(player, 2)), stage.config, broken, seed=0).train()
    Run(build(), stage.config, broken, seed=0, resume=True).train()
    assert_identical(last_state(broken), last_state(unbroken))
    assert (broken / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    made, expected = (next((folder / "final").rglob("*.safetensors")) for folder in (broken, unbroken))
    assert made.read_bytes() == expected.read_bytes()


# --- what the networks were given ------------------------------------------------------------


class Call(NamedTuple):
    """One forward of a network."""

    latents: Tensor
    t: Tensor
    text: Tensor
    options: Mapping[str, Any]
    output: Tensor


def record(module: nn.Module) -> list[Call]:
    """Note what every forward of ``module`` is given and gives, from now on."""
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any], output: Tensor) -> None:
        calls.append(Call(*(a.detach().clone() for a in args), options, output.detach().clone()))

    module.register_forward_hook(note, with_kwargs=True)
    return calls


def rolled(stage: Any, noise: Draws) -> Tensor:
    """The clip that a turn of this stage rolls out first."""
    batch = batch_of(stage)
    start = noise.normal(batch.latents[:, :, 1:])
    return roll_clip(
        stage.generator_model,
        batch.latents[:, :, :1],
        batch.text,
        start,
        levels=stage.levels,
        renoise=noise.normal,
    )


def noise_in(noised: Tensor, clip: Tensor, t: Tensor) -> Tensor:
    """Solve x_t = (1 - t) x0 + t eps for eps."""
    level = t[:, None, :, None, None]
    return (noised - (1 - level) * clip) / level


def assert_one_level_a_clip(t: Tensor, low: float, high: float) -> None:
    assert t.shape == (BATCH, FRAMES)
    assert torch.equal(t, t[:, :1].expand(-1, FRAMES))
    assert t.min() >= low
    assert t.max() <= high
    assert len(t[:, 0].unique()) == BATCH


def assert_standard_normal(x: Tensor) -> None:
    assert abs(float(x.mean())) < 0.12
    assert abs(float(x.std()) - 1) < 0.12


def test_the_teacher_learns_the_velocity_of_one_level_a_clip() -> None:
    stage, batch = teacher_stage(text_dropout=0.0), clips().read(range(BATCH))
    calls = record(stage.teacher)
    loss = stage.loss(Turn("teacher", 0), batch, stream())
    (call,) = calls
    assert call.options.get("visibility", "full") == "full"
    assert_one_level_a_clip(call.t, 0, 1)
    eps = noise_in(call.latents, batch.latents, call.t)
    assert_standard_normal(eps)
    expected = (call.output - (eps - batch.latents)).square().mean()
    torch.testing.assert_close(loss.value.detach(), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(call.text, batch.text)


def test_dropped_text_is_the_empty_prompt_for_the_whole_clip() -> None:
    stage, batch = teacher_stage(text_dropout=0.5), clips().read(range(BATCH))
    calls = record(stage.teacher)
    for seed in range(12):
        stage.loss(Turn("teacher", 0), batch, stream(seed))
    kept = [torch.equal(call.text[i], batch.text[i]) for call in calls for i in range(BATCH)]
    dropped = [torch.equal(call.text[i], stage.empty_text[0]) for call in calls for i in range(BATCH)]
    assert all(a != b for a, b in zip(kept, dropped, strict=True))
    assert 4 < sum(dropped) < 20


# --- text and autoencoder --------------------------------------------------------------------


def vae_training() -> tuple[VaeStage, nn.Module]:
    vae = build_tiny_vae().to("meta")
    return VaeStage(VaeConfig(steps=1, batch=1, optimizer=ADAM, window=16, frames=5), vae), vae


def text_training() -> tuple[TextStage, nn.Module]:
    tokenizer, encoder = build_tiny_text(vocabulary())
    config = TextConfig(steps=1, batch=1, optimizer=ADAM, captions=4, validation=4)
    return TextStage(config, tokenizer, encoder.to("meta")), encoder


class Reached(Exception):
    """The module was called."""


@pytest.mark.parametrize("build", [vae_training, text_training])
def test_what_a_stage_makes_itself_goes_to_its_modules_device(
    build: Callable[[], tuple[Any, nn.Module]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Batches, held-out clips or captions, clips for statistics, and read-out heads, with a module on "meta"."""
    monkeypatch.setattr(vae_stage, "VALIDATION_CLIPS", 1)
    (stage, module), given = build(), []

    def reached(*tensors: Tensor) -> None:
        given.append({tensor.device.type for tensor in tensors})
        raise Reached

    monkeypatch.setattr(module, "encode" if build is vae_training else "forward", reached)
    for act in (
        lambda: stage.loss(Turn(stage.name, 0), stage.dataset.read([0]), stream()),
        lambda: stage.evaluate(0, tmp_path),
        lambda: stage.export(tmp_path),
    ):
        with pytest.raises(Reached):
            act()
    assert given == [{"meta"}] * 3
    (player,) = stage.players.values()
    assert {p.device.type for p in player.parameters.values()} == {"meta"}


def test_anchors_are_the_mean_colours_of_the_quarters_of_each_latent_pixel() -> None:
    frames = normal(2, 3, 9, 16, 24, seed=4)
    found = anchors(frames, Geometry(temporal=4, spatial=8, channels=16))
    assert found.shape == (2, 12, 3, 2, 3)
    groups = [slice(0, 1), slice(1, 5), slice(5, 9)]
    for colour, quarter, time, row, column in itertools.product(range(3), range(4), range(3), range(2), range(3)):
        top, left = 8 * row + 4 * (quarter // 2), 8 * column + 4 * (quarter % 2)
        expected = frames[:, colour, groups[time], top : top + 4, left : left + 4].mean(dim=(1, 2, 3))
        torch.testing.assert_close(found[:, 4 * colour + quarter, time, row, column], expected)


def test_the_first_channels_are_drawn_to_their_anchors() -> None:
    vae = build_tiny_vae(z_dim=16)
    config = VaeConfig(steps=1, batch=1, optimizer=ADAM, window=16, frames=5, anchor_weight=2.0)
    stage = VaeStage(config, vae)
    plain = VaeStage(replace(config, anchor_weight=0.0), vae)
    batch = stage.dataset.read([0])
    more, less = (s.loss(Turn("vae", 0), batch, stream()) for s in (stage, plain))
    shape = geometry(vae)
    distance = (vae.encode(batch).latent_dist.mode()[:, :12] - anchors(batch, shape)).square().mean()
    torch.testing.assert_close(more.value - less.value, 2 * distance)


def test_the_teachers_levels_are_shifted_as_the_lesson_says_and_then_the_section() -> None:
    lesson = Lesson(steps=1, shift=8.0)
    drawn = []
    for stage, step in (
        (teacher_stage(shift=1.0), 0),
        *[(teacher_stage(shift=3.0, curriculum=(lesson,)), i) for i in (0, 1)],
    ):
        calls = record(stage.teacher)
        stage.loss(Turn("teacher", step), batch_of(stage), stream())
        drawn.append(calls[0].t)
    u, first, later = drawn
    torch.testing.assert_close(first, 8 * u / (1 + 7 * u))
    torch.testing.assert_close(later, 3 * u / (1 + 2 * u))


def test_the_teachers_loss_is_logged_by_noise_level_without_the_image() -> None:
    stage, expected = teacher_stage(text_dropout=0.0), {}
    batch, calls = stage.dataset.read(range(4)), record(stage.teacher)
    loss = stage.loss(Turn("teacher", 0), batch, stream(7))
    (call,) = calls
    errors = (call.output - (noise_in(call.latents, batch.latents, call.t) - batch.latents))[:, :, 1:].square()
    bands = (3 * call.t[:, 0]).long()
    for band, name in enumerate(("low", "middle", "high")):
        if (bands == band).any():
            expected[f"loss_t_{name}"] = float(errors[bands == band].mean())
    assert len(expected) > 1
    assert loss.metrics == pytest.approx(expected, rel=1e-3)


# --- stage I ---------------------------------------------------------------------------------


def levels_drawn(call: Call) -> Tensor:
    """Which stored level each frame was given, [batch, frames]; raises when it is none of them."""
    distance = (call.t[:, :, None] - torch.tensor(LEVELS)).abs()
    assert distance.amin(dim=2).max() < 1e-6
    return distance.argmin(dim=2)


def test_stage_i_feeds_the_stored_points_of_the_levels_it_drew() -> None:
    stage = ode_stage(frames=8, clean_context=0.3)  # image, three chunks of two, a last one of one
    batch, calls, drawn = batch_of(stage), record(stage.generator), set()
    for seed in range(12):
        loss = stage.loss(Turn("generator", 0), batch, stream(seed))
        call = calls[-1]
        index = levels_drawn(call)
        assert call.options["visibility"] == "block_causal"
        assert torch.equal(call.text, batch.text)
        assert (index[:, 0] == len(LEVELS) - 1).all()  # the image is clean
        errors = []
        for sample in range(BATCH):
            for own in chunk_slices(8, CHUNK):
                assert len(index[sample, own].unique()) == 1
                drawn.add((own.start, int(index[sample, own.start])))
            for frame in range(8):
                level = int(index[sample, frame])
                assert torch.equal(call.latents[sample, :, frame], batch.points[sample, level, :, frame])
                if level < len(LEVELS) - 1:
                    x0 = call.latents[sample, :, frame] - LEVELS[level] * call.output[sample, :, frame]
                    errors.append((x0 - batch.points[sample, -1, :, frame]).square().mean())
        torch.testing.assert_close(loss.value.detach(), torch.stack(errors).sum() / (BATCH * 8))
    assert drawn == {(0, 4), *((start, level) for start in (1, 3, 5, 7) for level in range(5))}


def test_without_clean_context_every_chunk_is_noisy() -> None:
    stage = ode_stage()
    calls = record(stage.generator)
    for seed in range(12):
        stage.loss(Turn("generator", 0), batch_of(stage), stream(seed))
    indices = torch.cat([levels_drawn(call) for call in calls])
    assert (indices[:, 1:] < len(LEVELS) - 1).all()
    assert (indices[:, 1] != indices[:, 3]).any()  # chunks draw their own levels


def test_a_batch_with_all_chunks_clean_teaches_nothing_and_breaks_nothing() -> None:
    stage = ode_stage(clean_context=1.0)
    loss = stage.loss(Turn("generator", 0), batch_of(stage), stream()).value
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in stage.generator.parameters())


def test_gather_points_takes_each_frame_at_its_level() -> None:
    points, index = normal(2, 3, 1, 4, 2, 2), torch.tensor([[2, 0, 0, 1], [2, 1, 1, 0]])
    found = gather_points(points, index)
    for sample in range(2):
        for frame in range(4):
            assert torch.equal(found[sample, :, frame], points[sample, index[sample, frame], :, frame])


def test_levels_that_are_not_stored_are_refused() -> None:
    check_levels(LEVELS, (1.0, 5 / 6))
    with pytest.raises(UserError, match=r"missing 0\.7500.*prepare trajectories"):
        check_levels(LEVELS, (1.0, 0.75))
    with pytest.raises(ValueError, match="must end at t = 0"):
        OdeInitStage(OdeInitConfig(steps=1, batch=1, optimizer=ADAM), model(1), trajectories(), LEVELS[:-1], None)  # type: ignore[arg-type]


# --- stage II --------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 5 / 6)], ids=["1 pass", "2 passes"])
def test_the_fake_score_learns_the_velocity_of_the_students_own_clips(levels: tuple[float, ...]) -> None:
    stage, noise = dmd_stage(levels), stream()
    calls = record(stage.scores.fake_score)
    loss = stage.loss(Turn("fake_score", 0), batch_of(stage), stream())
    with torch.no_grad():
        clip = rolled(stage, noise)
    (call,) = calls
    assert call.options.get("visibility", "full") == "full"
    assert_one_level_a_clip(call.t, 0.02, 0.98)
    eps = noise_in(call.latents, clip, call.t)
    assert_standard_normal(eps)
    expected = (call.output - (eps - clip)).square().mean()
    torch.testing.assert_close(loss.value.detach(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 5 / 6)], ids=["1 pass", "2 passes"])
def test_the_generators_gradient_is_equation_6(levels: tuple[float, ...]) -> None:
    """All the way to the weights: (x0_fake - x0_real) / mean|x - x0_real| against d clip / d weights."""
    stage = dmd_stage(levels, guidance=4.0)
    batch, weights = batch_of(stage), list(stage.generator_model.parameters())
    teacher_calls, fake_calls = record(stage.scores.teacher), record(stage.scores.fake_score)
    loss = stage.loss(Turn("generator", 0), batch, stream())
    found = torch.autograd.grad(loss.value, weights)

    clip = rolled(stage, stream())
    cond, uncond, (fake,) = *teacher_calls, fake_calls
    assert torch.equal(cond.text, batch.text)
    assert torch.equal(uncond.text, stage.scores.negative_text.expand_as(batch.text))
    for call in (cond, uncond, fake):
        assert call.options.get("visibility", "full") == "full"
        assert torch.equal(call.latents, fake.latents)
        assert torch.equal(call.t, fake.t)
    assert_one_level_a_clip(fake.t, 0.02, 0.98)
    assert_standard_normal(noise_in(fake.latents, clip.detach(), fake.t))
    t = fake.t[:, None, :, None, None]
    real = fake.latents - t * (cond.output + 3 * (cond.output - uncond.output))
    gradient = (fake.latents - t * fake.output) - real
    for sample in range(BATCH):
        gradient[sample] /= (clip[sample] - real[sample]).abs().mean().detach()
    expected = torch.autograd.grad((clip * gradient).sum() / clip.numel(), weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-3)


def test_both_scores_are_given_the_image_clean_when_the_recipe_says_so() -> None:
    stage, batch = dmd_stage(clean_image=True, guidance=4.0), batch_of(dmd_stage())
    seen = [record(stage.scores.teacher), record(stage.scores.fake_score)]
    for player in ("generator", "fake_score"):
        stage.loss(Turn(player, 0), batch, stream())
    calls = [call for network in seen for call in network]
    assert len(calls) == 4  # the teacher twice, for guidance, and the fake score in both turns
    for call in calls:
        assert torch.equal(call.latents[:, :, :1], batch.latents[:, :, :1])
        assert not call.t[:, 0].any()
        assert (call.t[:, 1:] > 0).all()


def test_the_teacher_learns_to_follow_a_clean_image() -> None:
    stage, batch = teacher_stage(clean_image=1.0, text_dropout=0.0), clips().read(range(BATCH))
    calls = record(stage.teacher)
    loss = stage.loss(Turn("teacher", 0), batch, stream())
    (call,) = calls
    assert torch.equal(call.latents[:, :, :1], batch.latents[:, :, :1])
    assert not call.t[:, 0].any()
    eps = noise_in(call.latents[:, :, 1:], batch.latents[:, :, 1:], call.t[:, 1:])
    errors = (call.output[:, :, 1:] - (eps - batch.latents[:, :, 1:])).square()
    torch.testing.assert_close(loss.value.detach(), errors.sum() / batch.latents.numel(), atol=1e-3, rtol=1e-3)


def test_the_teacher_learns_from_the_first_frames_of_a_clip() -> None:
    stage, batch = teacher_stage(frames=3, text_dropout=0.0), clips().read(range(BATCH))
    calls = record(stage.teacher)
    loss = stage.loss(Turn("teacher", 0), batch, stream())
    (call,) = calls
    x0 = batch.latents[:, :, :3]
    eps = noise_in(call.latents, x0, call.t)
    torch.testing.assert_close(loss.value.detach(), (call.output - (eps - x0)).square().mean(), atol=1e-3, rtol=1e-3)


def test_a_curriculum_goes_from_lesson_to_lesson_and_then_on_as_the_section_says() -> None:
    lessons = (Lesson(steps=2, frames=2, clean_image=1.0), Lesson(steps=3, frames=3))
    stage = teacher_stage(curriculum=lessons, steps=10)
    calls = record(stage.teacher)
    for step in range(7):
        stage.loss(Turn("teacher", step), clips().read(range(BATCH)), stream())
    assert [call.t.shape[1] for call in calls] == [2, 2, 3, 3, 3, FRAMES, FRAMES]
    assert [bool(call.t[:, 0].any()) for call in calls] == [False, False, True, True, True, True, True]


def test_noise_levels_are_shifted_and_clamped() -> None:
    stage = dmd_stage()
    calls = record(stage.scores.fake_score)
    clip, text = clip_of(FRAMES, batch=64), text_of(batch=64)
    stage.scores.fake_score_loss(clip, text, stream())
    drawn = calls[0].t[:, 0]
    assert drawn.min() >= 0.02
    assert drawn.max() <= 0.98
    assert abs(float(drawn.median()) - 5 / 6) < 0.08  # the median of U[0, 1], shifted by 5


def test_a_level_inside_the_range_of_stage_ii_stays_as_it_was_drawn() -> None:
    drawn = [
        dmd_stage(t_range=span).scores._noised(clip_of(FRAMES, batch=64), stream())[2] for span in ((0, 1), (0.6, 0.9))
    ]
    assert 0.6 < drawn[1].median() < 0.9
    assert torch.equal(drawn[1], drawn[0].clamp(0.6, 0.9))


# --- stage III -------------------------------------------------------------------------------

KINDS = [CriticConfig(layers=(0, 1), visibility=v, granularity=g) for v in VISIBILITIES for g in GRANULARITIES]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.visibility}, {kind.granularity}")


@every_kind
def test_the_critics_loss_is_equations_8_and_10(kind: CriticConfig) -> None:
    stage = adversarial_stage(kind=kind, consistency_weight=20.0, consistency_sigma=0.05)
    batch, calls = batch_of(stage), record(stage.critic_model)
    loss = stage.loss(Turn("critic", 0), batch, stream())
    with torch.no_grad():
        fake_clip = rolled(stage, stream())
    real, real_moved, fake, fake_moved = calls
    assert_one_level_a_clip(real.t, *TAU)
    for call in calls:
        assert torch.equal(call.t, real.t)
        assert torch.equal(call.text, batch.text)
    # one noise for both, and neither clip is shown clean
    eps = noise_in(real.latents, batch.latents, real.t)
    assert_standard_normal(eps)
    torch.testing.assert_close(noise_in(fake.latents, fake_clip, fake.t), eps, atol=1e-4, rtol=1e-4)
    # the perturbation is of the noised clip: its spread is sigma whatever tau
    for plain, moved in ((real, real_moved), (fake, fake_moved)):
        assert_standard_normal((moved.latents - plain.latents) / 0.05)
    assert float((eps * (real_moved.latents - real.latents)).mean().abs()) < 0.01
    softplus = nn.functional.softplus
    game = softplus(-real.output).mean() + softplus(fake.output).mean()
    reg = (real.output - real_moved.output).square().mean() + (fake.output - fake_moved.output).square().mean()
    torch.testing.assert_close(loss.value.detach(), game + 20 * reg)


@every_kind
@pytest.mark.parametrize("levels", [(1.0,), (1.0, 5 / 6)], ids=["1 pass", "2 passes"])
def test_the_generators_loss_is_equation_9(kind: CriticConfig, levels: tuple[float, ...]) -> None:
    """Its gradient too, against the equation over a rollout of our own."""
    stage = adversarial_stage(levels, kind=kind)
    batch, calls = batch_of(stage), record(stage.critic_model)
    weights = list(stage.generator_model.parameters())
    loss = stage.loss(Turn("generator", 0), batch, stream())
    found = torch.autograd.grad(loss.value, weights)
    (call,) = calls
    clip = rolled(stage, stream())
    assert_one_level_a_clip(call.t, *TAU)
    eps = noise_in(call.latents, clip.detach(), call.t)
    assert_standard_normal(eps)
    t = call.t[:, None, :, None, None]
    expected = -torch.sigmoid(stage.critic_model((1 - t) * clip + t * eps, call.t, batch.text)).log().mean()
    torch.testing.assert_close(loss.value, expected, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(found, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3 * float(theirs.abs().max()) + 1e-7, rtol=1e-2)


def test_the_generator_descends_towards_the_critics_approval() -> None:
    stage = adversarial_stage()
    before = stage.loss(Turn("generator", 0), batch_of(stage), stream())
    before.value.backward()
    with torch.no_grad():
        for weight in stage.generator_model.parameters():
            weight -= 1e-4 * weight.grad / weight.grad.norm()
    assert stage.loss(Turn("generator", 0), batch_of(stage), stream()).metrics["logit"] > before.metrics["logit"]


def test_the_critic_is_frozen_for_the_generator_and_free_again() -> None:
    stage = adversarial_stage()
    for turn in ("critic", "generator", "critic"):
        stage.loss(Turn(turn, 0), batch_of(stage), stream()).value.backward()
        graded = any(p.grad is not None for p in stage.critic_model.parameters())
        assert graded is (turn == "critic")
        stage.critic_model.zero_grad(set_to_none=True)


def test_tau_is_uniform_over_its_range() -> None:
    stage = adversarial_stage(t_range=(0.0, 1.0))
    t = stage._noising(clip_of(FRAMES, batch=400), stream()).t[:, 0]
    quarters = torch.histc(t, bins=4, min=0, max=1)
    assert quarters.min() > 70


def test_tau_is_shifted_inside_its_range() -> None:
    settings: list[dict[str, float]] = [{}, {"shift": 5.0}]
    plain, shifted = (adversarial_stage(**more)._noising(clip_of(FRAMES, batch=9), stream()).t for more in settings)
    low, high = TAU
    u = (plain - low) / (high - low)
    torch.testing.assert_close(shifted, low + (high - low) * 5 * u / (1 + 4 * u))


@pytest.mark.parametrize("logits", [(3,), (3, FRAMES)], ids=["one logit a clip", "one a frame"])
def test_the_critics_health_counts_right_answers_by_noise_level(logits: tuple[int, ...]) -> None:
    real, fake = (
        torch.tensor(x)[(...,) + (None,) * (len(logits) - 1)].expand(logits) for x in ([2.0, -1, -3], [-3.0, -2, 1])
    )
    t = torch.tensor([0.1, 0.5, 0.9])[:, None].expand(3, FRAMES)
    assert critic_health(real, fake, t) == pytest.approx(
        {
            "logit_real": -2 / 3,
            "logit_fake": -4 / 3,
            "gap": 2 / 3,
            "accuracy": 0.5,
            "accuracy_t_low": 1,
            "accuracy_t_middle": 0.5,
            "accuracy_t_high": 0,
        }
    )


def test_turns_depend_on_their_noise_alone() -> None:
    for build, turn in ((dmd_stage, "generator"), (adversarial_stage, "critic"), (adversarial_stage, "generator")):
        values = [build().loss(Turn(turn, 0), clips().read(range(BATCH)), stream(seed)).value for seed in (5, 5, 6)]
        assert values[0] == values[1] != values[2]
