"""Networks whose passes, and whose waiting for other processes, a stopwatch is told of.

All of it is hooks from outside. FSDP waits before a forward (for weights), before a backward (for weights) and after it
(for the gradients of a block before); its own hooks stand between two of ours. What it waits for at the very end
of a backward counts to the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.distributed.fsdp import FSDPModule
from torch.utils import _pytree as pytree

from aad1.models.causal_wan import CausalWanBlock
from aad1.stopwatch import COMMUNICATION, enter, leave, timed


def watch_passes(module: nn.Module, phase: str, methods: Sequence[str]) -> None:
    """Count the passes of a network to ``phase``: its calls, those of ``methods``, and blocks that a backward repeats.

    Where it is split, it already is.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            _watch_waits(part)
        if part is module or isinstance(part, CausalWanBlock):
            part.register_forward_pre_hook(_entering(phase), prepend=True)
            # A backward that repeats a block leaves it by an exception as soon as it has what it needs.
            part.register_forward_hook(_leaving, always_call=True)
    for name in methods:
        setattr(module, name, _timed(getattr(module, name), phase, waits=isinstance(module, FSDPModule)))


def told_apart(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that FSDP is to wrap, so that its waiting before counts and what is computed then does not."""

    @wraps(method)
    def computes(*given: Any, **named: Any) -> Any:
        leave()
        try:
            return method(*given, **named)
        finally:
            enter(COMMUNICATION)

    return computes


def _timed(method: Callable[..., Any], phase: str, waits: bool) -> Callable[..., Any]:
    @wraps(method)
    def called(*given: Any, **named: Any) -> Any:
        with timed(phase), timed(COMMUNICATION if waits else phase):
            return method(*given, **named)

    return called


def _entering(phase: str) -> Callable[..., None]:
    return lambda *_: enter(phase)


def _leaving(*_: Any) -> None:
    leave()


def _watch_waits(module: nn.Module) -> None:
    """Put hooks of ours before and after each of FSDP's."""
    known: set[Node] = set()

    def before_forward(_: nn.Module, given: Any, named: Any) -> None:
        enter(COMMUNICATION)
        known.update(_nodes((given, named)))

    def after_waiting(_: nn.Module, given: Any, named: Any) -> None:
        leave()
        for node in _nodes((given, named)) - known:  # FSDP's own, behind which a block's gradients are complete
            node.register_prehook(_entering(COMMUNICATION))
            node.register_hook(_leaving)
        known.clear()

    module.register_forward_pre_hook(before_forward, prepend=True, with_kwargs=True)
    module.register_forward_pre_hook(after_waiting, with_kwargs=True)
    module.register_forward_hook(lambda _, __, out: _hook_all(out, _entering(COMMUNICATION)), prepend=True)
    module.register_forward_hook(lambda _, __, out: _hook_all(out, _leaving))


def _hook_all(output: Any, hook: Callable[..., None]) -> None:
    """Call ``hook`` when the gradient of an output is there, in the order of registration."""
    for tensor in _graded(output):
        tensor.register_hook(hook)


def _graded(values: Any) -> Iterator[Tensor]:
    return (v for v in pytree.tree_leaves(values) if isinstance(v, Tensor) and v.requires_grad)


def _nodes(values: Any) -> set[Node]:
    """Which functions made these tensors."""
    if not torch.is_grad_enabled():
        return set()
    return {tensor.grad_fn for tensor in _graded(values) if tensor.grad_fn is not None}
