"""A player: a module with its optimizer, learning-rate schedule, clipping and moving average.

Every network that learns in a stage (generator, fake score, critic) is one player; the loop gives it
its turn. Weights are fp32 masters: at the method's learning rates an Adam step changes almost no
entry of a bf16 weight, so training would silently stand still.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aad1.errors import UserError
from aad1.limits import Decay, Natural, Weight
from aad1.training.muon import Muon, is_matrix

SPIKE_MEMORY = 32  # accepted norms whose median is the usual one
SPIKE_FEWEST = 8  # so many are needed to say what is usual
SPIKE_ROW = 8  # spikes in a row are no spikes
CHANGELESS_DTYPES = (torch.bfloat16, torch.float16)
STEP = "step"  # how many updates Adam has made of a parameter


@dataclass(frozen=True)
class OptimizerConfig:
    """How one player learns.

    lr: learning rate; lr_overrides: {parameter-name prefix: its own rate}; clip: gradient norm at
    which gradients are scaled down (0 = never); warmup: updates of linear warm-up; schedule: what
    follows it, down to zero at the stage's last step; ema: decay of the moving average over the weights after
    each update (0 = none); skip_above: an update whose gradient norm is so many times the median of the last ones is
    skipped (0 = none is); muon_lr: rate of Muon for matrices and convolutions, the rest and what has
    an override staying with AdamW (0 = AdamW for all).
    """

    lr: Weight
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Weight = 0.0
    clip: Weight = 1.0
    warmup: Natural = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    ema: Decay = 0.0
    skip_above: Weight = 0.0
    muon_lr: Weight = 0.0
    lr_overrides: Mapping[str, Weight] = field(default_factory=dict)


@dataclass
class Spikes:
    """Which gradient norms stand out from those before: ``accepted`` are the last that did not.

    count: those that did; row: how many of them came last.
    """

    accepted: list[float] = field(default_factory=list)
    count: int = 0
    row: int = 0

    def take(self, norm: float, above: float) -> bool:
        """Whether a norm stands out; the norm is that of all processes, so all say the same.

        Raises FloatingPointError when too many do in a row: the norms are others now, or the weights are broken.
        """
        usual = (median(self.accepted) if len(self.accepted) >= SPIKE_FEWEST else 0.0) or inf
        if norm <= above * usual:
            self.accepted = [*self.accepted, norm][-SPIKE_MEMORY:]
            self.row = 0
            return False
        self.count += 1
        self.row += 1
        if self.row == SPIKE_ROW:
            raise FloatingPointError(
                f"gradient norm is {norm:.3g}, and for {SPIKE_ROW} updates in a row more than skip_above {above:g} "
                f"times {usual:.3g}, the median of the {len(self.accepted)} before; if that is sound, raise skip_above"
            )
        return True


class Player:
    """One learning module and all that its updates need.

    Raises UserError when the module holds trainable half-precision weights.
    """

    def __init__(self, name: str, module: nn.Module, config: OptimizerConfig) -> None:
        self.name, self.module, self.config = name, module, config
        self.updates = 0
        self.spikes = Spikes()
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        _refuse_half_precision(name, self.parameters)
        self.optimizers = _optimizers(self.parameters, config)
        for optimizer in self.optimizers:
            _begin(optimizer)
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if config.ema else {}

    def step(self, progress: float) -> dict[str, float]:
        """Apply the accumulated gradients; ``progress`` in [0, 1) is how far the stage has come.

        Returns the gradient norm before clipping, the learning rate and, where spikes are skipped, how many were. A
        spike changes nothing but that number. Weights are not touched either by a norm that is not finite or by one
        that is the last of too many spikes in a row: those raise FloatingPointError.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip or float("inf")))
        if norm != norm or norm == float("inf"):
            raise FloatingPointError(f"gradient norm of {self.name} is {norm}")
        scale = self._rate_scale(progress)
        made = {"grad_norm": norm, "lr": self.config.lr * scale}
        if self.config.skip_above:
            skipped = self.spikes.take(norm, self.config.skip_above)
            made["skipped"] = float(self.spikes.count)
            if skipped:
                self._drop_gradients()
                return made
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            optimizer.step()
        self._drop_gradients()
        self.updates += 1
        self._update_average()
        return made

    def _drop_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _rate_scale(self, progress: float) -> float:
        warm = min(1.0, (self.updates + 1) / self.config.warmup) if self.config.warmup else 1.0
        if self.config.schedule == "linear":
            return warm * (1 - progress)
        if self.config.schedule == "cosine":
            return warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64))))
        return warm

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.average:
            return
        # Weights n updates old count ema^n, and those of before the first update nothing: a short stage's average is
        # of what the stage made.
        share = (1 - self.config.ema) / (1 - self.config.ema**self.updates)
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the module holds the moving average (if it keeps one); afterwards its own weights."""
        own = {n: p.detach().clone() for n, p in self.parameters.items()} if self.average else {}
        self.assign(self.average)
        try:
            yield
        finally:
            self.assign(own)

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Copy these values, by parameter name, into the module."""
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizers by parameter, average and update count: all that a bit-identical resume needs.

        The tensors are the player's own: who fills them in place has loaded them. Rates and betas are the config's.
        """
        return {
            "parameters": {n: p.detach() for n, p in self.parameters.items()},
            "optimizers": {str(index): self._memory(optimizer) for index, optimizer in enumerate(self.optimizers)},
            "average": self.average,
            "updates": self.updates,
            "spikes": asdict(self.spikes),
        }

    def _memory(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor | float]]:
        """What an optimizer remembers of each of its parameters; Adam's ``step`` as a number."""
        held = {n: optimizer.state[p] for n, p in self.parameters.items() if p in optimizer.state}
        return {n: {slot: float(v) if slot == STEP else v for slot, v in slots.items()} for n, slots in held.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that ``state_dict`` gave, here or in another process."""
        self.assign(state["parameters"])
        for index, optimizer in enumerate(self.optimizers):
            for name, slots in state["optimizers"].get(str(index), {}).items():
                own = optimizer.state[self.parameters[name]]
                for slot, value in slots.items():
                    own[slot].fill_(value) if slot == STEP else own[slot].copy_(value)
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.updates = int(state["updates"])
        self.spikes = Spikes(**state["spikes"])


def _refuse_half_precision(name: str, parameters: Mapping[str, Tensor]) -> None:
    for parameter, value in parameters.items():
        if value.dtype in CHANGELESS_DTYPES:
            raise UserError(
                f"{name}.{parameter} is {value.dtype}: half-precision weights do not change at these learning rates; "
                "load the model in float32"
            )


def _optimizers(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and beside it Muon for the matrices when the config gives it a rate."""
    own_rate = tuple(config.lr_overrides)  # is AdamW's
    matrices = {n: p for n, p in parameters.items() if config.muon_lr and is_matrix(p) and not n.startswith(own_rate)}
    rest = {n: p for n, p in parameters.items() if n not in matrices}
    adamw = torch.optim.AdamW(_parameter_groups(rest, config), betas=config.betas, weight_decay=config.weight_decay)
    if not matrices:
        return [adamw]
    muon = Muon(list(matrices.values()), config.muon_lr, config.weight_decay)
    muon.param_groups[0]["base_lr"] = config.muon_lr
    return [adamw, muon]


def _begin(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that the first update would make, so that there is something to load a checkpoint into."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        slots = ("momentum",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
        state: dict[str, Tensor] = {slot: torch.zeros_like(parameter) for slot in slots}
        if not isinstance(optimizer, Muon):
            state[STEP] = torch.tensor(0.0, dtype=torch.float32)
        optimizer.state[parameter] = state


def _parameter_groups(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    """One optimizer group for each override (the longest prefix wins) and one for the rest."""
    groups: dict[str | None, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        prefix = max((p for p in config.lr_overrides if name.startswith(p)), key=len, default=None)
        groups.setdefault(prefix, []).append(parameter)
    if unused := sorted(set(config.lr_overrides) - set(groups)):
        parts = sorted({name.split(".")[0] for name in parameters})
        raise UserError(
            f"lr_overrides names no parameter: {', '.join(unused)}; parameters begin with {', '.join(parts)}"
        )
    rates = {prefix: config.lr if prefix is None else config.lr_overrides[prefix] for prefix in groups}
    return [{"params": members, "lr": rates[p], "base_lr": rates[p]} for p, members in groups.items()]
