"""What a computation costs, found by running it on tensors without contents: operations, and bytes live at its peak.

Shapes, dtypes and lifetimes of fake tensors (``torch._subclasses.fake_tensor``) are those of real ones, and so are the
kernels that are chosen: attention is the fused one, which keeps queries, keys, values, output and one number a row.
What a kernel uses inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
TRANSIENT = "transient"  # what nobody has laid claim to: activations and temporaries


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
        if func is torch.ops.prim.device.default:
            return func(*args)
        if func in (aten.item.default, aten._local_scalar_dense.default):
            return 1.0 if args[0].is_floating_point() else 1  # a number for the log
        if func is aten.index.Tensor and args[1][0].dtype == torch.bool:
            return _all_of(*args)
        if func is aten.mkldnn_convolution.default:  # a kernel of a CPU that wants to see the numbers
            func, args = aten.convolution.default, _plain_convolution(*args)
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
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


def recast(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module's floating-point parameters another type, where ``Module.to`` cannot: it swaps tensors."""
    for parameter in module.parameters():
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def _stays(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
    return module


def _plain_convolution(x: Tensor, weight: Tensor, bias: Any, padding: Any, stride: Any, dilation: Any, groups: int) -> Any:
    return x, weight, bias, stride, padding, dilation, False, [0] * len(padding), groups


@contextmanager
def without_contents() -> Iterator[Ledger]:
    """Inside, tensors have shapes, dtypes and lifetimes but no contents, and the ledger is kept.

    ``Module.to`` does nothing there: everything is on the one device already (use ``recast`` for a dtype).
    """
    with patch.object(nn.Module, "to", _stays), FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        yield ledger
