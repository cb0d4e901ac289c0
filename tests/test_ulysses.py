"""Ulysses context parallelism: what ranks compute together, a part of every frame each, is what one computes whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from lively import CHANNELS, lively, normal, text_of
from ranks import on_ranks
from torch import Tensor, nn

from aad1.errors import UserError
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.context import Context
from aad1.models.critic import Critic
from aad1.models.layout import WHOLE
from aad1.parallel.crew import Crew
from aad1.parallel.placement import ComputeConfig, Grid, placed
from aad1.parallel.ulysses import Ulysses, check_context_parallel, dealt, spread_sequences
from aad1.rollout import roll_clip

FRAMES, BATCH = 9, 2
SPAN = {"num_frames_per_block": 2, "local_attn_size": 5, "sink_size": 1}
Run = Callable[[Any, Tensor, Tensor], Tensor]  # of (model, latents, text)


class Found(NamedTuple):
    """What a run gave: the output and the gradients of latents, text and weights."""

    output: Tensor
    latents: Tensor
    shared: dict[str, Tensor]


def build(heads: int) -> CausalWanTransformer3DModel:
    return lively(num_attention_heads=heads, **SPAN).requires_grad_(True)


def critic_of(heads: int, **kind: Any) -> Critic:
    torch.manual_seed(0)
    return Critic(build(heads), (1, 0), **kind)


def clip(size: tuple[int, int], seed: int = 1) -> Tensor:
    return normal(BATCH, CHANNELS, FRAMES, *size, seed=seed)


def levels(latents: Tensor) -> Tensor:
    return torch.linspace(0.1, 0.9, BATCH * FRAMES).reshape(BATCH, FRAMES).type_as(latents)


# --- what is run -----------------------------------------------------------------------------


def full(model: Any, latents: Tensor, text: Tensor) -> Tensor:
    return model(latents, levels(latents), text)


def block_causal(model: Any, latents: Tensor, text: Tensor) -> Tensor:
    return model(latents, levels(latents), text, visibility="block_causal")


def rolled(*passes: float) -> Run:
    """Four chunks over a context that drops frames; with one pass by ``extend``, with more by ``advance``."""

    def run(model: Any, latents: Tensor, text: Tensor) -> Tensor:
        image, noise = latents[:, :, :1], latents[:, :, 1:]
        again = normal(*noise[:, :, :2].shape, seed=5).type_as(noise)
        return roll_clip(model, image, text, noise, levels=passes, renoise=lambda _: again)

    return run


def judged_rollout(models: Any, latents: Tensor, text: Tensor) -> Tensor:
    """What a generator learns from a critic."""
    generator, critic = models
    return judged(critic, rolled(1.0)(generator, latents, text), text)


def judged(critic: Any, latents: Tensor, text: Tensor) -> Tensor:
    return critic(latents, levels(latents), text)


def checkpointed(run: Run) -> Run:
    def more(model: Any, latents: Tensor, text: Tensor) -> Tensor:
        getattr(model, "backbone", model).enable_gradient_checkpointing()
        return run(model, latents, text)

    return more


RUNS: dict[str, tuple[Callable[[int], nn.Module], Run]] = {
    "full": (build, full),
    "block_causal": (build, block_causal),
    "rollout": (build, rolled(1.0)),
    "rollout of two passes": (build, rolled(1.0, 0.5)),
    "checkpointed": (build, checkpointed(block_causal)),
    "checkpointed rollout": (build, checkpointed(rolled(1.0))),
    "critic": (lambda heads: critic_of(heads, queries=3), judged),
    "causal critic": (lambda heads: critic_of(heads, visibility="block_causal"), judged),
    "critic of frames": (lambda heads: critic_of(heads, granularity="frame", queries=2), judged),
    "checkpointed critic": (critic_of, checkpointed(judged)),
    "generator before a critic": (lambda heads: nn.ModuleList([build(heads), critic_of(heads)]), judged_rollout),
}


# --- equal to one process ---------------------------------------------------------------------


def graded(model: nn.Module, run: Run, latents: Tensor, text: Tensor) -> Found:
    """The output, and gradients of a sum of it in which every number has a weight of its own."""
    model.zero_grad()
    latents, text = latents.clone().requires_grad_(), text.clone().requires_grad_()
    output = run(model, latents, text)
    (output * normal(*output.shape, seed=8).type_as(output)).sum().backward()
    shared = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Found(output.detach(), latents.grad, {**shared, "text": text.grad})  # type: ignore[arg-type, dict-item]


def averaged(shared: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean over all ranks."""
    flat = torch.cat([gradient.flatten() for gradient in shared.values()])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in shared.values()])
    return {name: part.view_as(shared[name]) for name, part in zip(shared, parts, strict=True)}


def errors(found: Found, expected: Found) -> dict[str, float]:
    """The largest error of each relative to its largest number, or for gradients that are next to none to all's."""
    assert found.shared.keys() == expected.shared.keys()
    floor = 1e-3 * max(float(g.abs().max()) for g in expected.shared.values())
    pairs = {name: (found.shared[name], expected.shared[name]) for name in expected.shared}
    pairs |= {"output": (found.output, expected.output), "latents": (found.latents, expected.latents)}
    return {n: float((a - b).abs().max() / max(float(b.abs().max()), floor)) for n, (a, b) in pairs.items()}


@contextmanager
def throughout(dtype: torch.dtype) -> Iterator[None]:
    """Where the forward asks for float32, for precision, it gets float64 if that is the type of all else."""
    if dtype != torch.float64:
        yield
        return
    with patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def worst(size: tuple[int, int], heads: int, dtype: torch.dtype, names: tuple[str, ...]) -> dict[str, float]:
    """For each run the worst of its errors, with the name of what it is of; whole first, then spread over all ranks."""
    said = {}
    for name in names:
        make, run = RUNS[name]
        model, latents, text = make(heads).to(dtype), clip(size).to(dtype), text_of(BATCH).to(dtype)
        with throughout(dtype):
            expected = graded(model, run, latents, text)
            spread_sequences(model, dist.group.WORLD)  # type: ignore[arg-type]
            found = graded(model, run, latents, text)
        of, error = max(
            errors(found._replace(shared=averaged(found.shared)), expected).items(), key=lambda pair: pair[1]
        )
        said[f"{name}: {of}"] = error
    return said


@pytest.mark.parametrize(
    ("ranks", "size", "heads", "dtype", "limit", "names"),
    [
        (4, (4, 6), 4, torch.float64, 1e-12, tuple(RUNS)),
        (2, (4, 6), 2, torch.float64, 1e-12, ("full", "checkpointed rollout", "critic of frames")),
        (4, (6, 6), 4, torch.float32, 5e-5, ("block_causal", "rollout", "critic")),
        (3, (4, 4), 6, torch.float32, 5e-5, ("full", "rollout of two passes", "causal critic")),
    ],
    ids=["6 tokens on 4", "6 tokens on 2", "9 tokens on 4", "4 tokens on 3"],
)
def test_outputs_and_gradients_are_those_of_one_process(
    tmp_path: Path,
    ranks: int,
    size: tuple[int, int],
    heads: int,
    dtype: torch.dtype,
    limit: float,
    names: tuple[str, ...],
) -> None:
    for said in on_ranks(worst, ranks, tmp_path, size, heads, dtype, names):
        assert len(said) == len(names)
        assert not {what: error for what, error in said.items() if not error < limit}


def of_two_samples(split: bool, name: str) -> float:
    """Two groups of two ranks have a clip each, with weights of their own or split over all four ranks by FSDP.

    The mean over all ranks is the mean of the clips' gradients.
    """
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    own, (make, run) = dist.get_rank() % 2, RUNS[name]
    model, clips, text = make(2).double(), [clip((4, 6), seed).double() for seed in (1, 2)], text_of(BATCH).double()
    with throughout(torch.float64):
        alone = [graded(model, run, latents, text) for latents in clips]
        if split:
            crew = Crew(dist.get_rank(), 4, control=dist.group.WORLD)
            placed(ComputeConfig(), Grid(1, 4, 1), crew, torch.device("cpu")).finish(model, "critic")
        spread_sequences(model, groups[own])  # type: ignore[arg-type]
        found = graded(model, run, clips[own], text)
    weights = {n: cast(Any, g).full_tensor() if split else g for n, g in found.shared.items() if n != "text"}
    found = found._replace(shared=weights if split else averaged(weights))
    means = {n: (alone[0].shared[n] + alone[1].shared[n]) / 2 for n in weights}
    return max(errors(found, alone[own]._replace(shared=means)).values())


@pytest.mark.parametrize(
    ("split", "name"), [(False, "block_causal"), (True, "checkpointed rollout"), (True, "checkpointed critic")]
)
def test_groups_work_on_samples_of_their_own(tmp_path: Path, split: bool, name: str) -> None:
    limit = 1e-6 if split else 1e-12  # FSDP is told to add up gradients in float32
    assert max(on_ranks(of_two_samples, 4, tmp_path, split, name)) < limit


def compiled_and_in_half_precision() -> tuple[float, float, float]:
    """How far compiled blocks are from plain ones, and bfloat16 from float32: spread, whole."""
    model, latents, text = build(4), clip((6, 6)), text_of(BATCH)
    exact = graded(model, block_causal, latents, text)
    whole = graded(build(4).bfloat16(), block_causal, latents.bfloat16(), text.bfloat16())
    spread_sequences(model, dist.group.WORLD)  # type: ignore[arg-type]
    model.compile_blocks(backend="eager")
    compiled = graded(model, block_causal, latents, text)

    half = build(4).bfloat16()
    spread_sequences(half, dist.group.WORLD)  # type: ignore[arg-type]
    found = graded(half, block_causal, latents.bfloat16(), text.bfloat16())
    assert {found.output.dtype, *(g.dtype for g in found.shared.values())} == {torch.bfloat16}
    apart = [float((f.output - exact.output).norm() / exact.output.norm()) for f in (found, whole)]
    return max(errors(compiled._replace(shared=averaged(compiled.shared)), exact).values()), apart[0], apart[1]


def test_compiled_blocks_and_half_precision(tmp_path: Path) -> None:
    for compiled, spread, whole in on_ranks(compiled_and_in_half_precision, 2, tmp_path):
        assert compiled < 5e-5
        assert spread < 1.2 * whole < 0.3


# --- who holds what ---------------------------------------------------------------------------


class Held(NamedTuple):
    """Shapes that one of four ranks has, and what does not come back as it went."""

    features: tuple[int, ...]
    keys: tuple[int, ...]
    wrong: list[str]


def held() -> Held:
    model, rank = build(4).requires_grad_(False), dist.get_rank()
    assert model.layout is WHOLE
    layout = Ulysses(dist.group.WORLD)  # type: ignore[arg-type]
    whole = normal(3, 6, BATCH, FRAMES, 4, 5).permute(2, 3, 1, 4, 5, 0)[..., :2].flatten(4)  # awkward in memory
    parts = layout.split(whole)
    (read,) = layout.to_heads(parts, tokens=6)
    checks = {
        "parts": torch.equal(parts, whole[:, :, [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)][rank]]),
        "heads": torch.equal(read, whole[:, :, :, rank : rank + 1]),
        "join": torch.equal(layout.join(parts, 6), whole),
        "tokens": torch.equal(layout.to_tokens(read), parts),
        "many": all(map(torch.equal, layout.to_heads(parts, 2 * parts, tokens=6), (read, 2 * read))),
        "apart": len({x.untyped_storage().data_ptr() for x in layout.to_heads(parts, parts, tokens=6)}) == 2,
    }
    spread_sequences(model, layout.group)
    (features,) = model.features(clip((4, 6)), levels(clip((4, 6))), text_of(BATCH), [1], "full")
    context = model.extend(Context(), clip((4, 6))[:, :, :1], text_of(BATCH))
    return Held(features.shape, context.keys[0].shape, [name for name, right in checks.items() if not right])


def test_a_rank_has_its_tokens_of_all_heads_and_all_tokens_of_its_heads(tmp_path: Path) -> None:
    for rank, found in enumerate(on_ranks(held, 4, tmp_path)):
        assert found == ((BATCH, FRAMES, 2 if rank < 2 else 1, 48), (BATCH, 1, 6, 1, 12), [])


# --- what cannot be spread --------------------------------------------------------------------


@pytest.mark.parametrize(("count", "ranks", "sizes"), [(6, 4, [2, 2, 1, 1]), (9, 3, [3, 3, 3]), (2, 3, [1, 1, 0])])
def test_tokens_are_dealt_evenly(count: int, ranks: int, sizes: list[int]) -> None:
    assert dealt(count, ranks) == sizes


@pytest.mark.parametrize(
    ("heads", "tokens", "ranks", "said"),
    [
        (12, 100, 8, r"over 8 ranks does not divide the model's 12 heads; allowed: 1, 2, 3, 4, 6, 12$"),
        (12, 4, 6, r"over 6 ranks is more than the 4 tokens of a latent frame; allowed: 1, 2, 3, 4$"),
        (12, 4, 5, r"over 5 ranks does not divide the model's 12 heads; allowed: 1, 2, 3, 4$"),
    ],
)
def test_groups_that_heads_or_tokens_do_not_go_into_are_refused(heads: int, tokens: int, ranks: int, said: str) -> None:
    with pytest.raises(UserError, match=f"^context parallelism {said}"):
        check_context_parallel(heads, tokens, ranks)
    check_context_parallel(heads, tokens, 4)
