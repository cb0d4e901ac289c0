"""The replayed rollout: the plain one's clips and gradients, with the activations of one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lively import clip_of, lively, text_of
from ranks import on_ranks
from test_rollout import fixed_noise
from test_stages import InMemory, adversarial_stage, dmd_stage, joint_stage, stream
from torch import Tensor, nn

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.parallel.crew import Crew
from aad1.parallel.placement import ComputeConfig, grid_of, placed
from aad1.planning.ledger import META, without_contents
from aad1.rollout import ClipRollout, roll_clip, roll_clip_replayed
from aad1.stages.batches import ClipBatch
from aad1.training.loop import Turn

CHUNK, FRAMES = 2, 8  # the image, three chunks, and a shorter one; the window moves on
TWO_PASSES, THREE_PASSES = (1.0, 5 / 6), (1.0, 0.9, 0.5)
STAGES: dict[str, Callable[..., Any]] = {
    "stage II": dmd_stage,
    "stage III": adversarial_stage,
    "jointly": lambda levels: _with_levels(joint_stage(), levels),
}


def _with_levels(stage: Any, levels: tuple[float, ...]) -> Any:
    stage.game.levels = levels
    return stage


def student(**config: Any) -> CausalWanTransformer3DModel:
    return lively(**{"num_frames_per_block": CHUNK, "local_attn_size": 5, "sink_size": 1, **config})


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models' float32 islands are float64 as well."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return


def batches(dtype: torch.dtype) -> tuple[ClipBatch, ClipBatch]:
    """Two micro-batches; every clip has a prompt of its own."""
    held = InMemory(clip_of(FRAMES, batch=4).to(dtype), text_of(batch=4).to(dtype), kind=ClipBatch)
    return held.read([0, 1]), held.read([2, 3])


def game_of(stage: Any) -> Any:
    """The part that rolls out."""
    return getattr(stage, "game", stage)


def modules_of(stage: Any) -> dict[str, nn.Module]:
    game = game_of(stage)
    found = {"generator": game.generator_model, "critic": getattr(game, "critic_model", None)}
    if hasattr(stage, "scores"):
        found |= {"fake_score": stage.scores.fake_score, "teacher": stage.scores.teacher}
    return {name: module for name, module in found.items() if module is not None}


def learnt(stage: Any, given: tuple[ClipBatch, ...]) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of the generator's micro-batches, and the gradients they leave when they are added up in halves."""
    losses = []
    for micro, batch in enumerate(given):
        loss = stage.loss(Turn("generator", 0), batch, stream(micro)).value
        losses.append(float(loss.detach()))
        (loss / len(given)).backward()
    return losses, {
        f"{role}.{name}": parameter.grad
        for role, module in modules_of(stage).items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def compare(stage: Callable[[], Any], dtype: torch.dtype, tolerance: float, checkpointing: bool = False) -> None:
    found = {}
    for roll in (roll_clip, roll_clip_replayed):
        built, given = stage(), batches(dtype)
        for module in modules_of(built).values():
            module.to(dtype)
        if checkpointing:
            game_of(built).generator_model.enable_gradient_checkpointing()
        game_of(built).roll = roll
        found[roll] = learnt(built, given)
        assert all(tensor.grad is None for batch in given for tensor in batch)
    (losses, expected), (replayed, gradients) = found.values()
    assert losses == replayed  # as the clips are, to the bit
    assert gradients.keys() == expected.keys()
    assert all(name.startswith("generator.") for name in gradients)
    assert_near(gradients, expected, tolerance)


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """To so much of each tensor's largest entry."""
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES], ids=["1 pass", "2 passes"])
@pytest.mark.parametrize("build", STAGES.values(), ids=STAGES.keys())
def test_a_generator_learns_the_same(build: Callable[..., Any], levels: tuple[float, ...]) -> None:
    compare(lambda: build(levels=levels), torch.float64, 1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES, THREE_PASSES], ids=["1 pass", "2 passes", "3 passes"])
def test_a_replayed_pass_may_be_checkpointed(levels: tuple[float, ...]) -> None:
    compare(lambda: adversarial_stage(levels), torch.float64, 1e-12, checkpointing=True)


@pytest.mark.parametrize("build", STAGES.values(), ids=STAGES.keys())
def test_a_generator_learns_the_same_in_single_precision(build: Callable[..., Any]) -> None:
    compare(lambda: build(levels=(1.0,)), torch.float32, 1e-5)


@pytest.mark.parametrize("turn", ["fake_score", "critic"])
def test_the_others_are_shown_the_same_clips(turn: str) -> None:
    values = []
    for roll in (roll_clip, roll_clip_replayed):
        stage = joint_stage()
        stage.game.roll = stage.roll = roll
        values.append(stage.loss(Turn(turn, 0), batches(torch.float32)[0], stream()).value)
    assert torch.equal(*values)


# --- clips and passes ------------------------------------------------------------------------


def given_to(model: CausalWanTransformer3DModel, frames: int = FRAMES - 1) -> tuple[Any, ...]:
    return model, clip_of(1, batch=2), text_of(batch=2), clip_of(frames, batch=2, seed=11)


@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES, THREE_PASSES], ids=["1 pass", "2 passes", "3 passes"])
@pytest.mark.parametrize("enabled", [False, True], ids=["without gradient", "with gradient"])
def test_the_clip_is_the_plain_one_to_the_bit(levels: tuple[float, ...], enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        plain, replayed = (
            roll(*given_to(student()), levels=levels, renoise=fixed_noise()) for roll in (roll_clip, roll_clip_replayed)
        )
    assert torch.equal(plain, replayed)
    assert replayed.requires_grad is enabled


def passes(model: CausalWanTransformer3DModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called, and whether with gradient, from now on."""
    made: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        function = getattr(model, name)

        def noted(*given: Any, **options: Any) -> Any:
            made.append(f"{name}{' graded' if torch.is_grad_enabled() and name == 'forward' else ''}")
            return function(*given, **options)

        return noted

    for name in ("advance", "extend", "forward"):
        monkeypatch.setattr(model, name, noting(name))
    return made


def test_each_chunk_costs_a_context_and_a_pass_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student()
    made = passes(model, monkeypatch)
    clip = roll_clip_replayed(*given_to(model))
    assert made == ["extend", "forward"] * 4
    made.clear()
    clip.square().sum().backward()
    assert made == ["extend", "forward graded"] * 4


def test_without_gradient_there_is_nothing_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student()
    made = passes(model, monkeypatch)
    with torch.no_grad():
        roll_clip_replayed(*given_to(model))
    assert made == ["advance"] * 4


def test_a_frozen_generator_makes_a_clip_that_takes_no_gradient() -> None:
    assert not roll_clip_replayed(*given_to(student().requires_grad_(False))).requires_grad


@pytest.mark.parametrize("which", [1, 2, 3], ids=["image", "text", "noise"])
def test_what_is_not_a_weight_gets_no_gradient_in_silence(which: int) -> None:
    given = given_to(student())
    given[which].requires_grad_()
    with pytest.raises(ValueError, match="gives gradient to the weights alone"):
        roll_clip_replayed(*given)


# --- memory ----------------------------------------------------------------------------------


def peak(roll: ClipRollout, chunks: int) -> int:
    """Bytes at the peak of a rollout and its backward, beyond weights, gradients and a clip for each that is given."""
    with without_contents() as ledger:
        model = student(num_layers=1).to(META)
        image, text = torch.empty(1, 4, 1, 4, 4, device=META), torch.empty(1, 3, 8, device=META)
        noise = torch.empty(1, 4, CHUNK * chunks, 4, 4, device=META)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        ledger.claim("given", (image, text, noise, *model.parameters(), *(p.grad for p in model.parameters())))
        ledger.begin()
        clip = roll(model, image, text, noise, levels=(1.0,), renoise=torch.randn_like)
        clip.backward(torch.empty_like(clip))
        return ledger.peak.bytes["transient"] - 2 * clip.nbytes


def test_memory_does_not_grow_with_the_clip() -> None:
    """From where the window is full: three chunks."""
    plain, replayed = ({chunks: peak(roll, chunks) for chunks in (3, 6)} for roll in (roll_clip, roll_clip_replayed))
    assert plain[6] > 1.7 * plain[3]
    assert replayed[6] == replayed[3] < plain[3] / 2


# --- sharded over processes ------------------------------------------------------------------


def sharded_against_plain(levels: tuple[float, ...], **compute: Any) -> float:
    """The largest difference of replayed gradients on two ranks to the mean of all samples' plain ones, relatively."""
    config = ComputeConfig(**compute)
    crew = Crew(dist.get_rank(), dist.get_world_size(), control=dist.group.WORLD)
    placement = placed(config, grid_of(config, crew.ranks), crew, torch.device("cpu"))
    given = batches(torch.float64)[: placement.crew.groups]

    def build() -> Any:
        stage = adversarial_stage(levels)
        for module in modules_of(stage).values():
            module.double()
        return stage

    def gradients(stage: Any, group: int) -> dict[str, Tensor]:
        for again in range(2):
            stage.loss(Turn("generator", 0), given[group], stream(10 * group + again)).value.backward()
        return {name: p.grad for name, p in stage.generator_model.named_parameters()}

    plain = [gradients(build(), group) for group in range(len(given))]
    stage = build()
    placement.finish(stage.generator_model, "generator")
    placement.finish(stage.critic_model, "critic")
    stage.__post_init__()  # players of the sharded weights
    stage.roll = roll_clip_replayed
    found = {name: grad.full_tensor() for name, grad in gradients(stage, placement.crew.group).items()}
    expected = {name: sum(part[name] for part in plain) / len(plain) for name in found}
    assert all(p.grad is None for p in stage.critic_model.parameters())
    return max(float((found[name] - e).abs().max() / e.abs().max()) for name, e in expected.items())


def sharded_in_every_way() -> list[float]:
    Tensor.float = Tensor.double  # type: ignore[method-assign]  # the process ends with this
    return [
        sharded_against_plain((1.0,)),
        sharded_against_plain(TWO_PASSES, checkpointing=("generator",)),
        sharded_against_plain((1.0,), context=2),
    ]


def test_sharded_weights_learn_the_mean_over_the_ranks(tmp_path: Path) -> None:
    for differences in on_ranks(sharded_in_every_way, 2, tmp_path):
        assert max(differences) < 1e-6  # they are averaged in float32
