"""The shape of a Wan model read off its weights, and checked against a config.json where there is one.

Weights are given as {library's name: shape}. What shapes do not tell (the width of an attention head, the VAE's
moments) is Wan's; a config that contradicts the weights is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from aad1.errors import UserError

HEAD_DIM = 128  # of every Wan transformer published
Shapes = Mapping[str, tuple[int, ...]]
NATIVE_KEYS = {  # of the transformer's config.json in the original layout
    "dim": lambda c: c["num_attention_heads"] * c["attention_head_dim"],
    "eps": lambda c: c["eps"],
    "ffn_dim": lambda c: c["ffn_dim"],
    "freq_dim": lambda c: c["freq_dim"],
    "in_dim": lambda c: c["in_channels"],
    "num_heads": lambda c: c["num_attention_heads"],
    "num_layers": lambda c: c["num_layers"],
    "out_dim": lambda c: c["out_channels"],
}


def transformer_config(shapes: Shapes, head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Arguments of ``WanTransformer3DModel`` for weights of these shapes.

    Raises:
        UserError: when a weight that tells the geometry is missing, or the width holds no whole number of heads.
    """
    (dim, channels, *patch), (outputs, _) = (
        _shape(shapes, "patch_embedding.weight", 5),
        _shape(shapes, "proj_out.weight"),
    )
    _, text_dim = _shape(shapes, "condition_embedder.text_embedder.linear_1.weight")
    _, freq_dim = _shape(shapes, "condition_embedder.time_embedder.linear_1.weight")
    ffn_dim, _ = _shape(shapes, "blocks.0.ffn.net.0.proj.weight")
    if head_dim < 1 or dim % head_dim or outputs % prod(patch):
        raise UserError(f"a width of {dim} is no multiple of the heads' {head_dim}; give the right --head-dim")
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": outputs // prod(patch),
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "eps": 1e-6,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of ``AutoencoderKLWan`` for a Wan 2.1 VAE whose weights have these shapes; raises as above."""
    width, latent = _shape(shapes, "encoder.conv_in.weight", 5)[0], _shape(shapes, "post_quant_conv.weight", 5)[0]
    if latent != 16:
        raise UserError(
            f"a VAE with {latent} latent channels is not Wan 2.1's, which has 16; use a folder in diffusers' layout"
        )
    return {"base_dim": width}


def text_config(shapes: Shapes) -> UMT5Config:
    """The config of a UMT5 encoder whose weights have these shapes; raises as above."""
    vocabulary, width = _shape(shapes, "shared.weight")
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = _shape(shapes, f"{attention}.relative_attention_bias.weight")
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=_shape(shapes, f"{attention}.q.weight")[0] // heads,
        d_ff=_shape(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        architectures=[UMT5EncoderModel.__name__],
    )


def _shape(shapes: Shapes, name: str, rank: int = 2) -> tuple[int, ...]:
    """The shape of one weight of so many dimensions."""
    if len(shapes.get(name, ())) != rank:
        found = f"has shape {list(shapes[name])}" if name in shapes else "is missing"
        raise UserError(f"'{name}' {found}: these are not the weights of a Wan model of this kind")
    return shapes[name]


def shapes_of(kind: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what a model with this config keeps in its file; nothing is allocated."""
    with torch.device("meta"):
        model = kind(config) if kind is UMT5EncoderModel else kind(**config)
    tied = getattr(kind, "_tied_weights_keys", None) or ()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def refuse_contradiction(where: str, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise UserError when a config.json says something else than the weights; in either codebase's keys."""
    native = {key: value(found) for key, value in NATIVE_KEYS.items()}
    for key, value in {**native, **found}.items():
        said = given.get(key, value)
        if (tuple(said) if isinstance(said, list) else said) != value:
            raise UserError(f"'{where}' says {key} {said}, but the weights have {value}; one of them is the wrong file")
