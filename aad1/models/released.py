"""Generators as the projects of the Self Forcing family publish them: entries, wrappers, adapters, settings.

A file holds ``generator`` and often ``generator_ema``, their names behind the marks of FSDP, checkpointing, compiling
or peft; or pairs of low-rank matrices (LoRA) that are merged into the weights they belong to: W + alpha / rank * B A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from aad1.errors import UserError
from aad1.files import write_whole
from aad1.flow import shifted_levels
from aad1.models.names import native_names
from aad1.models.weights import Made, Stored

GROUPS = ("generator_ema", "generator", "generator_lora", "model", "state_dict", "module")  # best first
STUDENTS = GROUPS[:3]
WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|base_layer)\.")
PREFIXES = ("module.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.", "generator.")
ADAPTER = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up|alpha)(?:\.default)?(?:\.weight)?")
DOWN, UP = ("lora_A", "lora_down"), ("lora_B", "lora_up")

LEVELS = shifted_levels((1.0, 0.75, 0.5, 0.25), 5.0)
KNOWN: dict[str, dict[str, Any]] = {  # each project's own inference config
    "aad1": {"num_frames_per_block": 4, "local_attn_size": 9, "sink_size": 1, "passes": (1.0,)},
    "self-forcing": {"num_frames_per_block": 3, "local_attn_size": -1, "sink_size": 0, "passes": LEVELS},
    "causal-forcing": {"num_frames_per_block": 3, "local_attn_size": -1, "sink_size": 0, "passes": LEVELS},
    "reward-forcing": {"num_frames_per_block": 3, "local_attn_size": 9, "sink_size": 3, "passes": LEVELS},
    "causvid": {"num_frames_per_block": 3, "local_attn_size": -1, "sink_size": 0, "passes": (1.0, 0.757, 0.522)},
}


def unwrapped(found: Mapping[str, Stored]) -> dict[str, Stored]:
    """The same tensors by the names that the bare model gives them.

    Raises:
        UserError: when two of them would have one name.
    """
    clean: dict[str, Stored] = {}
    for stored in found.values():
        name = WRAPPERS.sub("", stored.name)
        while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
            name = name.removeprefix(prefix)
        if name in clean:
            raise UserError(
                f"'{stored.file}' holds '{name}' twice, as '{clean[name].name}' and as '{stored.name}'; "
                "keep one of the two models in it"
            )
        clean[name] = stored
    return clean


# --- adapters --------------------------------------------------------------------------------


class Adapters:
    """The low-rank pairs among tensors: {layer: its ``down``, ``up`` and perhaps ``alpha``}."""

    def __init__(self, found: Mapping[str, Stored], alpha: float | None = None) -> None:
        self.layers: dict[str, dict[str, Stored]] = {}
        self.names: set[str] = set()
        for name, stored in found.items():
            if match := ADAPTER.fullmatch(name):
                part = "down" if match[2] in DOWN else "up" if match[2] in UP else "alpha"
                self.layers.setdefault(match[1], {})[part] = stored
                self.names.add(name)
        self._alpha = alpha
        for layer, parts in self.layers.items():
            self._check(layer, parts)

    def _check(self, layer: str, parts: dict[str, Stored]) -> None:
        if not {"down", "up"} <= parts.keys():
            raise UserError(f"the adapter of '{layer}' is half there: it has only {', '.join(parts)}")
        down, up = parts["down"], parts["up"]
        if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
            raise UserError(
                f"the adapter of '{layer}' does not fit together: {list(up.shape)} times {list(down.shape)}"
            )
        if "alpha" not in parts and self._alpha is None:
            self._alpha = _configured_alpha(down.file)

    def merged(self, layer: str, weight: Made) -> Made:
        """The layer's weight with its adapter in it.

        Raises:
            UserError: when the two do not fit.
        """
        parts = self.layers[layer]
        down, up = parts["down"], parts["up"]
        if weight.shape != (up.shape[0], down.shape[1]):
            raise UserError(
                f"the adapter of '{layer}' is for another model: it changes {up.shape[0]} x {down.shape[1]}, "
                f"and the weight is {' x '.join(map(str, weight.shape))}"
            )
        scale = None if "alpha" in parts else (self._alpha or 0.0) / down.shape[0]
        extra = (parts["alpha"],) if "alpha" in parts else ()
        return Made((*weight.sources, up, down, *extra), weight.dtype, partial(_merge, scale=scale))


def _merge(weight: Tensor, up: Tensor, down: Tensor, alpha: Tensor | None = None, *, scale: float | None) -> Tensor:
    """W + alpha / rank * B A, in float32."""
    if scale is None and alpha is not None:
        scale = float(alpha) / down.shape[0]
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale or 0.0)


def _configured_alpha(file: Path) -> float:
    """``lora_alpha`` of peft's config beside an adapter."""
    try:
        return float(json.loads((file.parent / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"])
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"'{file}' holds low-rank adapters without their alpha, and no adapter_config.json lies beside it; "
            "give --lora-alpha (LongLive's is 256, peft's own default 8)"
        ) from None


# --- writing ---------------------------------------------------------------------------------


def save_self_forcing(model: WanTransformer3DModel, path: Path) -> None:
    """Write a .pt that Self Forcing, CausVid and LongLive load: ``generator`` and ``generator_ema``, native names.

    Both entries are the same tensors, stored once; the file appears whole or not at all.

    Raises:
        UserError: when the disk is full or the place is not writable.
    """
    weights = model.state_dict()
    generator = {f"model.{native}": weights[name].detach() for name, native in native_names(weights).items()}
    with write_whole(path) as fresh:
        torch.save({"generator": generator, "generator_ema": dict(generator)}, fresh)
