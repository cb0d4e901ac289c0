"""How many floating-point operations something takes: two a multiply-add, of matrix products, convolutions, attention.

Attention's backward counts five products for the forward's two: a fused kernel does not keep the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from aad1.stopwatch import Stopwatch

aten = torch.ops.aten


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """The scores once more, then the gradients of scores, queries, keys and values: five products for two."""
    return sdpa_flop_count(query.shape, key.shape, value.shape) * 5 // 2


# What torch's own table lacks: attention's kernels for a CPU.
FORMULAS: dict[Any, Any] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def operations_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Of one call of an ATen operator; nothing for those that are not counted."""
    formula = FORMULAS.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0


class Operations(TorchDispatchMode):
    """Counts what runs under it, but for what a network computes a second time for a backward, as ``watch`` is told."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch, self.count = watch, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.watch.repeats:
            self.count += operations_of(func, args, kwargs or {}, out)
        return out
