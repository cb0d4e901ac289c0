"""Low-rank adapters (LoRA): several roles over ONE frozen backbone, each with a few weights of its own.

    W x  ->  W x + (alpha / rank) B A x,      A [rank, in] random, B [out, rank] zero: a role begins as the backbone

(Hu et al. 2021, "LoRA", Eq. 3.) The layers are peft's. Roles hold the backbone's parameters themselves, not copies,
so teacher, fake score and critic together cost the memory of one transformer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch

from aad1.errors import UserError
from aad1.limits import Count, Positive
from aad1.models.causal_wan import CausalWanTransformer3DModel

# What a Wan block multiplies its tokens with: both attentions and the feed-forward.
TARGETS = r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """rank: of the update each adapted matrix learns; alpha: its scale is alpha / rank; dtype: of the frozen backbone
    (adapters are float32 whatever it is).
    """

    rank: Count
    alpha: Positive
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


def adapted(backbone: CausalWanTransformer3DModel, config: AdapterConfig) -> CausalWanTransformer3DModel:
    """A model of the backbone's own parameters, frozen, and new adapters around every matrix of its blocks.

    It computes what the backbone does until its adapters learn. ``backbone`` stays without adapters; its
    parameters no longer require gradient.

    Raises:
        UserError: when peft is not installed.
    """
    peft = _peft()
    model = sharing(backbone)
    lora = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=TARGETS, lora_dropout=0.0)
    peft.inject_adapter_in_model(lora, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


def sharing(backbone: CausalWanTransformer3DModel) -> CausalWanTransformer3DModel:
    """Another model of the same parameters: modules anew, tensors the same. What is hooked to one, the other lacks."""
    shared = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    return copy.deepcopy(backbone, shared)


def _peft() -> Any:
    try:
        import peft  # it takes seconds to import, and most runs have no adapters
    except ImportError:
        raise UserError('the recipe has a section `lora`, which needs peft: pip install "aad1[train]"') from None
    return peft
