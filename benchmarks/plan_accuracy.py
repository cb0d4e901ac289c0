"""How far `aad1 plan` is from what is measured on real tensors: operations, bytes held, bytes at the peak.

    python benchmarks/plan_accuracy.py            # the embedded model, every turn of every stage
    python benchmarks/plan_accuracy.py --blocks   # blocks of the 1.3B's width, random weights

Measured: operations by torch's FlopCounterMode, bytes held by summing real tensors after an update, the peak by torch's
profiler, which logs what the allocator is asked for. Planned: the same turn on tensors without contents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from aad1.assembly import Assembly
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.parallel.placement import ROLES, Role
from aad1.planning.bare import BareFolder
from aad1.planning.costs import AVERAGE, NOWHERE, OPTIMIZER, WEIGHTS, Manner, owners_of, stage_cost
from aad1.planning.ledger import META, without_contents
from aad1.planning.published import Configs, configs_of
from aad1.recipe import Recipe, load_recipe
from aad1.stages.batches import ClipBatch, TrajectoryBatch
from aad1.stages.ode_init import OdeInitStage
from aad1.training.loop import Stage, Turn
from aad1.training.randomness import Draws, generator_for

MB = 1e6
aten = torch.ops.aten


class Row(NamedTuple):
    """One number, planned and measured."""

    what: str
    planned: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.planned / self.measured


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


CPU_ATTENTION = {  # of shapes; torch's table has the GPU's kernels alone
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def operations(run: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run()
    return float(counter.get_total_flops())


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes above those of the beginning that the allocator had handed out, by the profiler's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        run()
    live = peak = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


# --- the embedded model ------------------------------------------------------------------------


class RealAssembly(Assembly):
    """The true assembly, on a workspace that holds nothing: students begin as the teacher, batches are random."""

    def student(self, stage: str, role: Role | None = None) -> CausalWanTransformer3DModel:
        return self.teacher(role)

    def prompt(self, prompt: str) -> torch.Tensor:
        configs = configs_of(self.recipe.model)
        return torch.randn(1, configs.prompt_tokens, configs.text_encoder["d_model"])

    clips: Any = ()
    validation: Any = ()
    showing: Any = None

    def _ode_init(self) -> Stage:
        levels = self.recipe.trajectories.stored_levels
        return OdeInitStage(self.recipe.ode_init, self.teacher(), None, levels, None)  # type: ignore[arg-type]


def random_batch(stage: Stage, recipe: Recipe, configs: Configs, batch: int) -> Any:
    side = [length // 8 for length in recipe.data.size]
    clip = (configs.vae["z_dim"], 1 + (recipe.data.frames - 1) // 4, *side)
    text = torch.randn(batch, configs.prompt_tokens, configs.text_encoder["d_model"])
    if isinstance(stage, OdeInitStage):
        return TrajectoryBatch(torch.randn(batch, len(stage.levels), *clip), text)
    return ClipBatch(torch.randn(batch, *clip), text)


def embedded(recipe: Recipe, name: str, checkpointing: bool, batch: int) -> Iterator[Row]:
    """Every turn of a stage on the embedded model; gradients come with the backward."""
    configs = configs_of(recipe.model)
    manner = Manner(batch, accumulating=False, checkpointing=ROLES if checkpointing else (), foreach=False)
    planned = stage_cost(recipe, configs, name, manner)
    stage = RealAssembly(recipe, NOWHERE).stage(name)
    models = [m for owner in owners_of(stage).values() for m in owner.modules()]
    for model in models:
        if checkpointing and isinstance(model, CausalWanTransformer3DModel):
            model.enable_gradient_checkpointing()
    for player, found in planned.turns.items():

        def turn(player: str = player) -> None:
            read = random_batch(stage, recipe, configs, batch)
            stage.loss(Turn(player, 1), read, Draws(generator_for(0, name))).value.backward()

        label = f"{name}, {player}{', checkpointed' if checkpointing else ''}"
        yield Row(f"{label}: MFLOP", (found.forward + found.backward) / MB, operations(turn) / MB)
        _forget(stage)
        whole = found.transient + found.context + found.gradients
        yield Row(f"{label}: peak MB", whole / MB, peak_bytes(turn) / MB)
        stage.players[player].step(0.0)
    yield from held(name, planned, stage)


def _forget(stage: Stage) -> None:
    for player in stage.players.values():
        for parameter in player.parameters.values():
            parameter.grad = None


def held(name: str, planned: Any, stage: Stage) -> Iterator[Row]:
    """Bytes of the players' weights, optimizers and averages after an update."""
    players = stage.players.values()
    weights = [t for p in players for t in (*p.module.parameters(), *p.module.buffers())]
    moments = [v for p in players for o in p.optimizers for s in o.state.values() for v in s.values()]
    averages = [t for p in players for t in p.average.values()]
    for role, tensors in ((WEIGHTS, weights), (OPTIMIZER, moments), (AVERAGE, averages)):
        of_players = sum(
            size for (what, owner), size in planned.state.items() if what == role and owner in stage.players
        )
        yield Row(f"{name}: {role} MB", of_players / MB, sum(t.nbytes for t in tensors) / MB)


# --- blocks of the 1.3B ------------------------------------------------------------------------


def blocks(layers: int, frames: int, side: tuple[int, int], checkpointing: bool) -> Iterator[Row]:
    """Forward and backward of so many blocks of the published 1.3B's width on a small clip, and what is saved."""
    published = configs_of("Wan2.1-T2V-1.3B")
    configs = replace(published, transformer={**published.transformer, "num_layers": layers})
    shape, text = (1, 16, frames, *side), (1, 64, 4096)

    def run(model: Any, device: Any) -> Any:
        if checkpointing:
            model.enable_gradient_checkpointing()
        clip, t = torch.randn(shape, device=device), torch.full((1, frames), 0.5, device=device)
        return model(clip, t, torch.randn(text, device=device))

    with without_contents() as ledger:
        bare = BareFolder(NOWHERE.root, configs=configs).transformer(CausalWanTransformer3DModel)
        ledger.claim(WEIGHTS, (*bare.parameters(), *bare.buffers()))
        ledger.begin()
        out = run(bare, META)
        forward, saved = ledger.flops, ledger.live["transient"]
        out.square().mean().backward()
        total, peak = ledger.flops, ledger.peak.bytes["transient"]
    model = CausalWanTransformer3DModel.from_config(dict(configs.transformer))
    label = f"{layers} blocks of 1,536, {frames}x{side[0] // 2}x{side[1] // 2} tokens"
    label += ", checkpointed" if checkpointing else ""
    tokens = frames * side[0] * side[1] // 4
    yield Row(f"{label}: forward GFLOP, 2 P n + 4 n^2 d", forward / 1e9, analytic(model, tokens, text[1]) / 1e9)
    kept: list[Any] = []
    yield Row(f"{label}: saved MB", saved / MB, saved_bytes(lambda: kept.append(run(model, "cpu"))) / MB)
    kept.clear()

    def whole() -> None:
        run(model, "cpu").square().mean().backward()

    yield Row(f"{label}: GFLOP", total / 1e9, operations(whole) / 1e9)
    model.zero_grad()
    yield Row(f"{label}: peak MB, gradients included", peak / MB, peak_bytes(whole) / MB)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that are still handed out at the end, by the profiler's record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        run()
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def analytic(model: CausalWanTransformer3DModel, tokens: int, text: int) -> float:
    """2 x parameters x tokens, the text's keys and values by its own length, 4 n m d for each attention."""
    of_text = sum(p.numel() for b in model.blocks for n in ("to_k", "to_v") for p in getattr(b.attn2, n).parameters())
    of_blocks = sum(p.numel() for p in model.blocks.parameters()) - of_text
    ends = sum(p.numel() for part in (model.patch_embedding, model.proj_out) for p in part.parameters())
    embedder = sum(p.numel() for p in model.condition_embedder.text_embedder.parameters())
    width = model.config.num_attention_heads * model.config.attention_head_dim
    attention = 4 * width * tokens * (tokens + text) * len(model.blocks)
    return 2 * tokens * (of_blocks + ends) + 2 * text * (of_text + embedder) + attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", action="store_true", help="blocks of the 1.3B instead of the embedded model")
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    began = time.monotonic()
    print(f"{'':<66}{'planned':>12}{'measured':>12}{'ratio':>8}")
    for checkpointing in (False, True):
        sizes = ((2, 5, (16, 16)), (4, 3, (16, 16)))
        rows: list[Iterator[Row]] = [blocks(*size, checkpointing) for size in sizes]
        if not given.blocks:
            recipe, stages = load_recipe("tiny"), ("ode_init", "dmd_warmup", "adversarial")
            rows = [embedded(recipe, name, checkpointing, given.batch) for name in stages]
        for row in (row for part in rows for row in part):
            print(f"{row.what:<66}{row.planned:>12.2f}{row.measured:>12.2f}{row.ratio:>8.3f}", flush=True)
    print(f"{time.monotonic() - began:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
