"""A player: a module with its optimizer, learning-rate schedule, clipping and moving average.

Every network that learns in a stage (generator, fake score, critic) is one player; the loop gives it
its turn. Weights are fp32 masters: at the method's learning rates an Adam step changes almost no
entry of a bf16 weight, so training would silently stand still.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aad1.errors import UserError

CHANGELESS_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class OptimizerConfig:
    """How one player learns.

    lr: learning rate; lr_overrides: {parameter-name prefix: its own rate}; clip: gradient norm at
    which gradients are scaled down (0 = never); warmup: updates of linear warm-up; schedule: what
    follows it, down to zero at the stage's last step; ema: decay of the moving average (0 = none).
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    ema: float = 0.0
    lr_overrides: Mapping[str, float] = field(default_factory=dict)


class Player:
    """One learning module and all that its updates need.

    Raises UserError when the module holds trainable half-precision weights.
    """

    def __init__(self, name: str, module: nn.Module, config: OptimizerConfig) -> None:
        self.name, self.module, self.config = name, module, config
        self.updates = 0
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        _refuse_half_precision(name, self.parameters)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.parameters, config), betas=config.betas, weight_decay=config.weight_decay
        )
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()} if config.ema else {}

    def step(self, progress: float) -> dict[str, float]:
        """Apply the accumulated gradients; ``progress`` in [0, 1) is how far the stage has come.

        Returns the gradient norm before clipping and the learning rate. The caller checks that the
        norm is finite before the weights are touched: a non-finite one raises FloatingPointError.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip or float("inf")))
        if norm != norm or norm == float("inf"):
            raise FloatingPointError(f"gradient norm of {self.name} is {norm}")
        scale = self._rate_scale(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self._update_average()
        return {"grad_norm": norm, "lr": self.config.lr * scale}

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
        # A young average follows closely, so that it is not dominated by the first weights.
        decay = min(self.config.ema, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the module holds the moving average (if it keeps one); afterwards its own weights."""
        own = {n: p.detach().clone() for n, p in self.parameters.items()} if self.average else {}
        self._assign(self.average)
        try:
            yield
        finally:
            self._assign(own)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, a forward records no gradient for this player's weights, only for its inputs."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, average and update count: all that a bit-identical resume needs."""
        return {
            "parameters": {n: p.detach() for n, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that ``state_dict`` gave."""
        self._assign(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.updates = int(state["updates"])


def _refuse_half_precision(name: str, parameters: Mapping[str, Tensor]) -> None:
    for parameter, value in parameters.items():
        if value.dtype in CHANGELESS_DTYPES:
            raise UserError(
                f"{name}.{parameter} is {value.dtype}: half-precision weights do not change at these learning rates; "
                "load the model in float32 (mixed precision keeps float32 masters)"
            )


def _parameter_groups(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    """One optimizer group a learning rate; every override must name something."""
    groups: dict[float, list[nn.Parameter]] = {}
    unused = set(config.lr_overrides)
    for name, parameter in parameters.items():
        prefix = next((p for p in config.lr_overrides if name.startswith(p)), None)
        unused.discard(prefix or "")
        groups.setdefault(config.lr_overrides[prefix] if prefix else config.lr, []).append(parameter)
    if unused:
        raise UserError(f"lr_overrides names no parameter: {', '.join(sorted(unused))}")
    return [{"params": members, "lr": lr, "base_lr": lr} for lr, members in groups.items()]
