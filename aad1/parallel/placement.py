"""How a stage's networks are placed on the processes that train them: split up, checkpointed, compiled.

    replicate x shard x context = ranks

Weights, gradients and optimizer states are split over shard x context ranks and kept ``replicate`` times (FSDP2, block
by block); ``context`` ranks share every sample's tokens (Ulysses). Gradients are means over all ranks. What is
computed stays the same, but for rounding.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from aad1.errors import UserError
from aad1.limits import Count, Natural, Positive
from aad1.models.causal_wan import CausalWanBlock, CausalWanTransformer3DModel
from aad1.models.critic import Critic
from aad1.parallel.crew import ALONE, Crew
from aad1.parallel.passes import told_apart, watch_passes
from aad1.parallel.ulysses import spread_sequences
from aad1.stopwatch import CRITIC, ROLLOUT, SCORE

Role = Literal["generator", "fake_score", "critic", "teacher"]
ROLES: tuple[Role, ...] = get_args(Role)
ALSO_CALLED = ("extend", "advance")  # methods that compute as ``forward`` does
PHASE_OF: dict[Role, str] = {"generator": ROLLOUT, "teacher": SCORE, "fake_score": SCORE, "critic": CRITIC}


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How it is computed: over which ranks, in which precision; what for memory's sake is computed twice.

    replicate, shard, context: their product is the number of processes (shard 0: as many as are left); precision: of
    the passes (weights that learn stay float32); checkpointing: roles whose backward recomputes each block; replay: a
    rollout's backward runs its chunks again, so that only one's activations are held at a time; compile: roles whose
    blocks go through torch.compile; timeout: seconds that a process may wait for another.
    """

    replicate: Count = 1
    shard: Natural = 0
    context: Count = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: tuple[Role, ...] = ()
    replay: bool = False
    compile: tuple[Role, ...] = ()
    timeout: Positive = 1800.0


class Grid(NamedTuple):
    """Ranks by what they are for."""

    replicate: int
    shard: int
    context: int


def grid_of(config: ComputeConfig, ranks: int) -> Grid:
    """The grid of this many ranks; raises UserError when they do not fill one."""
    given = config.replicate * config.context
    shard = config.shard or max(1, ranks // given)
    if given * shard != ranks:
        wanted = f"compute.replicate {config.replicate} x shard {config.shard or 'any'} x context {config.context}"
        fitting = [n for n in range(1, ranks + 1) if ranks % n == 0]
        raise UserError(
            f"{wanted} do not make {ranks} processes; leave compute.shard 0 and let replicate x context be one of "
            f"{', '.join(map(str, fitting))}"
        )
    return Grid(config.replicate, shard, config.context)


@dataclass(frozen=True)
class Placement:
    """A crew, how its ranks are arranged, and what is done to a network before it trains.

    shards: the mesh (replicate, shard x context), None where nothing is split; context: the ranks that share a sample.
    """

    config: ComputeConfig = field(default_factory=ComputeConfig)
    crew: Crew = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shards: DeviceMesh | None = None
    context: dist.ProcessGroup | None = None

    def split_blocks(self, model: nn.Module) -> None:
        """Split the blocks of a transformer over the ranks, those that are not yet.

        It is done before weights are read where they can be read in parts, so that no rank holds them all.
        """
        for block in model.modules():
            if isinstance(block, CausalWanBlock) and not isinstance(block, FSDPModule):
                self._split(block)

    def finish(self, module: nn.Module, role: Role, whole: bool = False) -> Any:
        """Make a role's complete network ready to train; returns it. whole: leave weights that other roles hold too."""
        for transformer in module.modules():
            if isinstance(transformer, CausalWanTransformer3DModel):
                if role in self.config.checkpointing:
                    transformer.enable_gradient_checkpointing()
                if role in self.config.compile:
                    transformer.compile_blocks()
        if self.context is not None:
            spread_sequences(module, self.context)
        if self.shards is not None and not whole:
            # Keys, values and logits leave as views, which nobody changes in place.
            warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
            self.split_blocks(module)
            for part in _precise_parts(module):
                self._split(part, precise=True)
            self._split(module)
            for name in _also_called(module):
                setattr(module, name, told_apart(getattr(module, name)))
                register_fsdp_forward_method(module, name)
        watch_passes(module, PHASE_OF[role], _also_called(module))
        return module

    def _split(self, module: nn.Module, precise: bool = False) -> None:
        if self.shards is None:
            return
        frozen = {p for p in module.parameters() if not p.requires_grad}
        learns = any(p.requires_grad for p in module.parameters())
        half = torch.bfloat16 if self.config.precision == "bfloat16" and not precise else None
        # Weights are freed after every forward, the root's too: a rollout without gradient has no backward to do it,
        # and the next one would read what the optimizer has changed meanwhile. What a network needs in float32
        # (levels, modulation) it casts itself.
        fully_shard(
            module,
            mesh=self.shards,
            reshard_after_forward=True,
            mp_policy=MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False),
            ignored_params=frozen if learns else None,  # of adapters: the backbone that several roles share stays whole
        )


HERE = Placement()


def _precise_parts(module: nn.Module) -> list[nn.Module]:
    """What computes in float32 in every precision: embedded noise levels, and how a critic makes a logit of features.

    Eq. 10 is of the square of small differences of logits, which bfloat16 would round away.
    """
    transformers = (part for part in module.modules() if isinstance(part, CausalWanTransformer3DModel))
    levels = [transformer.condition_embedder.time_embedder for transformer in transformers]
    return [*levels, *module.heads, module.norm, module.logit] if isinstance(module, Critic) else levels


def _also_called(module: nn.Module) -> list[str]:
    return [name for name in ALSO_CALLED if hasattr(module, name)]


def placed(config: ComputeConfig, grid: Grid, crew: Crew, device: torch.device) -> Placement:
    """The placement of a process of the default process group, whose ranks fill ``grid``."""
    kind = device.type
    shards = init_device_mesh(kind, (grid.replicate, grid.shard * grid.context), mesh_dim_names=("replicate", "shard"))
    groups = grid.replicate * grid.shard
    context = None
    if grid.context > 1:
        samples = init_device_mesh(kind, (groups, grid.context), mesh_dim_names=("group", "context"))
        context = samples.get_group("context")
    crew = replace(crew, group=crew.rank // grid.context, groups=groups)
    return Placement(config, crew, device, shards, context)
