"""What one stage costs on one device: its true turns, evaluation and updates, run without contents.

Bytes are of one micro-batch at a time; operations count a multiply-add as two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.parallel.placement import Role
from aad1.planning.bare import BareAssembly
from aad1.planning.ledger import TRANSIENT, Ledger, cast, without_contents
from aad1.planning.published import Configs
from aad1.recipe import Recipe
from aad1.training.loop import Stage, Turn
from aad1.training.memory import AVERAGE, GRADIENTS, OPTIMIZER, WEIGHTS, owners_of, tensors_in
from aad1.training.player import Player
from aad1.training.randomness import Draws, generator_for
from aad1.workspace import Workspace

Precision = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT, CONTEXT = "kept", "context"
COMPUTING = "computing"  # what weights are cast to for a pass: sharding gathers that block by block
MAKING, DECODING = "samples", "decoding"  # the two parts of an evaluation
NOWHERE = Workspace(Path("plan"))  # nothing is read or written
LATER = 1  # a step after the first, in which there is no head start


@dataclass(frozen=True)
class Manner:
    """How a stage computes, beyond what its recipe says.

    batch: samples of a micro-batch; accumulating: whether gradients are there before the backward; checkpointing: roles
    whose blocks are computed again in the backward instead of kept; precision: of weights and activations in a pass
    (masters, gradients and optimizer are float32); foreach: the optimizer updates all weights at once, as torch does on
    a GPU.
    """

    batch: int
    accumulating: bool = True
    checkpointing: tuple[Role, ...] = ()
    precision: Precision = "float32"
    foreach: bool = True


@dataclass(frozen=True)
class Pass:
    """One kind of work: floating-point operations, and bytes by role at its peak, state aside."""

    forward: int
    backward: int
    transient: int
    context: int
    gradients: int


@dataclass(frozen=True)
class StageCost:
    """A stage's state, its turns, and what an update needs for a moment.

    state: bytes held all through, by role and owner; parameters: how many each owner has, and how many of them learn;
    turns: one micro-batch of each player; rounds: how many turns each player takes in the whole stage; update: a
    player's moment of stepping; block, outside: bytes of a network's largest block and of what stands outside its
    blocks, as they compute: what sharding has to gather.
    """

    state: Mapping[tuple[str, str], int]
    parameters: Mapping[str, tuple[int, int]]
    turns: Mapping[str, Pass]
    rounds: Mapping[str, int]
    update: Mapping[str, int]
    block: int
    outside: int

    def held(self, role: str) -> int:
        """Bytes of this role, of all owners."""
        return sum(size for (what, _), size in self.state.items() if what == role)


def stage_cost(recipe: Recipe, configs: Configs, name: str, manner: Manner) -> StageCost:
    """Build a stage without contents and run each kind of turn once.

    Raises:
        UserError: when the recipe and the configs do not fit.
    """
    assembly = BareAssembly(recipe, NOWHERE, configs=configs)
    with without_contents() as ledger:
        stage = assembly.stage(name)
        owners = owners_of(stage)
        update = {player: _update(ledger, stage.players[player], manner.foreach) for player in stage.players}
        state, parameters = _state(ledger, stage, owners), _parameters(owners)
        _as_it_computes(ledger, owners, manner)
        turns = {turn: _turn(ledger, stage, turn, manner) for turn in dict.fromkeys(stage.turns(LATER))}
        block, outside = _gathered(owners)
    steps = range(vars(recipe)[name].steps)
    rounds = Counter(turn for step in steps for turn in stage.turns(step))
    return StageCost(state, parameters, turns, rounds, update, block, outside)


def _update(ledger: Ledger, player: Player, foreach: bool) -> int:
    """Bytes that a player's update needs for a moment."""
    for optimizer in player.optimizers:
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = foreach
    for parameter in player.parameters.values():
        parameter.grad = torch.empty_like(parameter)
    ledger.begin()
    before = ledger.live.total()
    player.step(0.0)
    return ledger.peak.total - before


def _state(ledger: Ledger, stage: Stage, owners: Mapping[str, nn.Module]) -> dict[tuple[str, str], int]:
    """Bytes that are held all through, by role and owner; a storage that owners share counts for the first."""
    found: dict[tuple[str, str], int] = {}

    def claim(role: str, owner: str, tensors: Sequence[Tensor]) -> None:
        before = ledger.live[f"{role}:{owner}"]
        fresh = [t for t in tensors if ledger.role_of(t) == TRANSIENT]
        ledger.claim(f"{role}:{owner}", fresh)
        if size := ledger.live[f"{role}:{owner}"] - before:
            found[role, owner] = size

    for name, module in owners.items():
        claim(WEIGHTS, name, list(_tensors_of([module])))
    for name, player in stage.players.items():
        claim(OPTIMIZER, name, [v for o in player.optimizers for s in o.state.values() for v in tensors_in(s)])
        claim(AVERAGE, name, list(player.average.values()))
    claim(KEPT, stage.name, list(tensors_in(stage.state_dict())))
    return found


def _tensors_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    return (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))


def _parameters(owners: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """How many parameters each owner has, and how many of them learn."""
    counts = {}
    for name, module in owners.items():
        sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
        counts[name] = sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)
    return counts


def _as_it_computes(ledger: Ledger, owners: Mapping[str, nn.Module], manner: Manner) -> None:
    """Precision, checkpointing, and whose keys and values are context."""
    for name, module in owners.items():
        for model in _transformers(module):
            if manner.precision != "float32":  # as they are: a frozen backbone may be of half precision itself
                cast(module, DTYPES[manner.precision])
                ledger.claim(COMPUTING, module.parameters())
            if name in manner.checkpointing:
                model.enable_gradient_checkpointing()
            _claim_contexts(ledger, model)


def _transformers(module: nn.Module) -> Iterator[CausalWanTransformer3DModel]:
    return (part for part in module.modules() if isinstance(part, CausalWanTransformer3DModel))


def _gathered(owners: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Bytes of the largest block of any network, and the most that one has outside its blocks."""
    blocks, outside = [], []
    for module in owners.values():
        for model in _transformers(module):
            sizes = [_bytes(block) for block in model.blocks]
            blocks.append(max(sizes))
            outside.append(_bytes(module) - sum(sizes))
    return max(blocks), max(outside)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _claim_contexts(ledger: Ledger, model: CausalWanTransformer3DModel) -> None:
    """Count what a model's passes write into a context as such."""

    def claiming(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            written = write(*args, **kwargs)
            context = written[1] if isinstance(written, tuple) else written
            ledger.claim(CONTEXT, (*context.keys, *context.values))
            return written

        return call

    for name in ("extend", "advance"):
        setattr(model, name, claiming(getattr(model, name)))


def _turn(ledger: Ledger, stage: Stage, name: str, manner: Manner) -> Pass:
    """One player's micro-batch: forward, backward."""
    player = stage.players[name]
    if manner.accumulating:
        for parameter in player.parameters.values():
            parameter.grad = torch.empty_like(parameter)
        ledger.claim(GRADIENTS, (p.grad for p in player.parameters.values()))
    ledger.begin()
    batch = stage.dataset.read(range(manner.batch))
    with _gradients_claimed(ledger, player):
        loss = stage.loss(Turn(name, LATER), batch, Draws(generator_for(0, stage.name))).value
        forward = ledger.flops
        loss.backward()
    found = _pass(ledger, forward)
    for parameter in player.parameters.values():
        parameter.grad = None
    return found


@contextmanager
def _gradients_claimed(ledger: Ledger, player: Player) -> Iterator[None]:
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p: ledger.claim(GRADIENTS, [p.grad]))
        for parameter in player.parameters.values()
    ]
    yield
    for hook in hooks:
        hook.remove()


def evaluation_cost(recipe: Recipe, configs: Configs, precision: Precision, clips: int) -> dict[str, Pass]:
    """The two parts of an evaluation: held-out clips made by a student all together, then decoded one by one."""
    shown = replace(recipe, showing=replace(recipe.showing, clips=clips))
    assembly = BareAssembly(shown, NOWHERE, configs=configs)
    with without_contents() as ledger, torch.no_grad():
        student = assembly.student("")
        cast(student, DTYPES[precision])  # it learns, so it is float32 where nothing is cast
        _claim_contexts(ledger, student)
        ledger.claim(WEIGHTS, _tensors_of([student, assembly.vae]))
        ledger.begin()
        assembly.showing.student(student, NOWHERE.root)
        made = _pass(ledger, ledger.flops)
        ledger.begin()
        assembly.showing.decode()
        return {MAKING: made, DECODING: _pass(ledger, ledger.flops)}


def _pass(ledger: Ledger, forward: int) -> Pass:
    """What the ledger has found since it began."""
    peak = ledger.peak.bytes
    return Pass(forward, ledger.flops - forward, peak[TRANSIENT], peak[CONTEXT], peak[GRADIENTS])
