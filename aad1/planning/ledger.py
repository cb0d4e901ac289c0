"""What a computation costs, found by running it on tensors without contents: operations, and bytes live at its peak.

Tensors of torch's meta device have the shapes, dtypes and lifetimes of real ones, so the true code runs on them and
autograd keeps for the backward what it would keep. Attention is the fused kernel, which saves queries, keys, values,
output and one number a row, not the scores. What a kernel uses inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from aad1.training.operations import operations_of

aten = torch.ops.aten
META = torch.device("meta")  # where tensors have no contents
TRANSIENT = "transient"  # what nobody has laid claim to: activations and temporaries


class Peak(NamedTuple):
    """Bytes by role at the moment when most were live in all."""

    bytes: Counter[str]

    @property
    def total(self) -> int:
        """All roles together."""
        return self.bytes.total()


class Ledger(TorchDispatchMode):
    """Counts floating-point operations (two a multiply-add) and live bytes by role of what runs under it.

    A storage counts once however many tensors look at it, from its creation until the last of them is gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.live: Counter[str] = Counter()
        self.peak = Peak(Counter())
        self._held: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0 if args[0].is_floating_point() else 1  # a number for the log
        if func is aten.index.Tensor and args[0].is_meta and args[1][0].dtype == torch.bool:
            return _all_of(*args)
        out = func(*args, **(kwargs or {}))
        self.flops += operations_of(func, args, kwargs or {}, out)
        self.claim(TRANSIENT, pytree.tree_leaves(out), anew=False)
        return out

    def claim(self, role: str, values: Iterable[Any], anew: bool = True) -> None:
        """Count the storages of these tensors under ``role``; ``anew``: also those that had a role."""
        for value in values:
            if isinstance(value, Tensor):
                self._claim(role, value.untyped_storage(), anew)

    def _claim(self, role: str, storage: Any, anew: bool) -> None:
        entry = self._held.get(storage)
        if entry is None:
            entry = self._held[storage] = [role, storage.nbytes()]
            weakref.finalize(storage, self._free, entry)
        elif anew:
            self._free(entry)
            entry[0] = role
        else:
            return
        self.live[role] += entry[1]
        if self.live.total() > self.peak.total:
            self.peak = Peak(self.live.copy())

    def _free(self, entry: list[Any]) -> None:
        self.live[entry[0]] -= entry[1]

    def role_of(self, tensor: Tensor) -> str | None:
        """What a tensor's storage counts as."""
        entry = self._held.get(tensor.untyped_storage())
        return entry[0] if entry else None

    def begin(self) -> None:
        """Count operations and the peak from here on."""
        self.flops, self.peak = 0, Peak(self.live.copy())


def _all_of(x: Tensor, indices: list[Tensor]) -> Tensor:
    """What a mask picks out, as if it picked everything: no contents, no choice."""
    (mask,) = indices
    return x.new_empty((mask.numel(), *x.shape[mask.ndim :]))


def _fused_attention(*args: Any, **kwargs: Any) -> Tensor:
    """Attention by the fused kernel, as on a real device; on the meta device torch composes it from products."""
    return aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module's parameters another type, but for those that diffusers keeps in float32 as it loads them."""
    kept = {name for part in module.modules() for name in getattr(part, "_keep_in_fp32_modules", None) or ()}
    for name, parameter in module.named_parameters():
        if not kept & {*name.split(".")}:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def without_contents() -> Iterator[Ledger]:
    """Inside, the ledger is kept of all that is computed, on tensors of the meta device."""
    # A function mode would not reach what checkpointing computes again in the backward.
    with patch.object(F, "scaled_dot_product_attention", _fused_attention), Ledger() as ledger:
        yield ledger
