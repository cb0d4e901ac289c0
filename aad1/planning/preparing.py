"""What comes before the stages: clips through the autoencoder, captions through the text encoder, trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.planning.bare import BareAssembly
from aad1.planning.costs import DTYPES, NOWHERE, Precision
from aad1.planning.depth import SHALLOW, along, layers_of
from aad1.planning.ledger import META, TRANSIENT, Ledger, cast, without_contents
from aad1.planning.published import Configs
from aad1.recipe import Recipe
from aad1.teacher_sampling import guided_velocity

CLIPS, CAPTIONS, TRAJECTORIES = "clips", "captions", "trajectories"
CAPTIONS_AT_ONCE = 32  # of models.text.TextEncoder


@dataclass(frozen=True)
class JobCost:
    """One network, without gradient, over many items.

    parameters, weights: of the network, in numbers and bytes; transient: bytes at the peak; operations: of one batch;
    batch, count: items at once and in all; stored: bytes on disk of all of them.
    """

    parameters: int
    weights: int
    transient: int
    operations: int
    batch: int
    count: int
    stored: int


def preparing_costs(recipe: Recipe, configs: Configs, precision: Precision) -> dict[str, JobCost]:
    """What `aad1 prepare` costs, by what it makes; the transformer computes in ``precision``, the rest in float32."""
    assembly = BareAssembly(recipe, NOWHERE, configs=configs)
    with without_contents():
        shape, stored = assembly.latent_shape, assembly.trajectories.bytes
    return {
        CLIPS: _clips(assembly),
        CAPTIONS: _captions(assembly),
        TRAJECTORIES: replace(_trajectories(recipe, configs, precision, shape), stored=stored),
    }


def _clips(assembly: BareAssembly) -> JobCost:
    data = assembly.recipe.data

    def encode(vae: nn.Module) -> Tensor:
        return assembly.encode(torch.empty(data.batch, 3, data.frames, *data.size, device=META))

    count = data.clips + data.validation
    cost = _cost(lambda: assembly.vae, encode, data.batch, count)
    with without_contents():
        stored = assembly.store("latents", (), torch.float32, count).bytes
    return replace(cost, stored=stored)


def _captions(assembly: BareAssembly) -> JobCost:
    data, tokens = assembly.recipe.data, assembly.configs.prompt_tokens

    def embed(encoder: nn.Module) -> Any:
        ids = torch.zeros(CAPTIONS_AT_ONCE, tokens, dtype=torch.int64, device=META)
        return encoder(ids, torch.ones_like(ids)).last_hidden_state

    count = data.clips + data.validation
    cost = _cost(assembly.bare_folder.text_encoder, embed, CAPTIONS_AT_ONCE, count)
    return replace(cost, stored=count * assembly.text.embed([""]).nbytes)


def _trajectories(recipe: Recipe, configs: Configs, precision: Precision, shape: tuple[int, ...]) -> JobCost:
    """The teacher's guided steps; a deep one from two shallow ones, for every block costs the same."""
    whole = layers_of(configs)
    if whole <= 2 * SHALLOW + 1:
        return _guided(recipe, configs, precision, shape)
    low, high = (
        _guided(recipe, replace(configs, transformer={**configs.transformer, "num_layers": n}), precision, shape)
        for n in (SHALLOW, SHALLOW + 1)
    )
    return along(low, high, whole - SHALLOW)


def _guided(recipe: Recipe, configs: Configs, precision: Precision, shape: tuple[int, ...]) -> JobCost:
    wanted, assembly = recipe.trajectories, BareAssembly(recipe, NOWHERE, configs=configs)

    def teacher() -> CausalWanTransformer3DModel:
        model = assembly.teacher()
        cast(model, DTYPES[precision])
        return model

    def step(model: Any) -> Tensor:
        latents = torch.empty(wanted.batch, *shape, device=META)
        t = latents.new_empty(wanted.batch, shape[1])
        text = assembly.text.embed([""] * wanted.batch)
        return guided_velocity(model, latents, t, text, text, wanted.guidance)

    cost = _cost(teacher, step, wanted.batch, wanted.count)
    return replace(cost, operations=cost.operations * wanted.steps)


def _cost(build: Callable[[], nn.Module], run: Callable[[nn.Module], Any], batch: int, count: int) -> JobCost:
    """What one batch costs."""
    with without_contents() as ledger, torch.no_grad():
        network = build()
        ledger.claim("weights", [*network.parameters(), *network.buffers()])
        ledger.begin()
        run(network)
        return _job(ledger, sum(p.numel() for p in network.parameters()), batch, count)


def _job(ledger: Ledger, parameters: int, batch: int, count: int) -> JobCost:
    found: Mapping[str, int] = ledger.peak.bytes
    return JobCost(parameters, found["weights"], found[TRANSIENT], ledger.flops, batch, count, stored=0)
