"""What a model is like before its weights are here: the configs of its folder, or of a published model of that name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aad1.errors import UserError
from aad1.models.checkpoint_io import ASSETS
from aad1.models.text import MAX_PROMPT_TOKENS

Config = Mapping[str, Any]
PARTS = ("transformer", "vae", "text_encoder")
HIDDEN = "_"  # keys that say who wrote a config

UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
}
VAE_2_1: Config = {"base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
VAE_2_2: Config = {
    **VAE_2_1,
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def _transformer(heads: int, ffn_dim: int, layers: int, channels: int = 16) -> Config:
    """Widths and depth as published with the weights (Wan-AI on the hub); the rest is diffusers' default."""
    widths = {"num_attention_heads": heads, "ffn_dim": ffn_dim, "num_layers": layers}
    return {**widths, "in_channels": channels, "out_channels": channels, "text_dim": UMT5_XXL["d_model"]}


MODELS: dict[str, tuple[Config, Config]] = {
    "Wan2.1-T2V-1.3B": (_transformer(12, 8960, 30), VAE_2_1),
    "Wan2.1-T2V-14B": (_transformer(40, 13824, 40), VAE_2_1),
    "Wan2.2-TI2V-5B": (_transformer(24, 14336, 30, channels=48), VAE_2_2),
}


@dataclass(frozen=True)
class Configs:
    """The configs of a model's parts, where they are from, and how many tokens an embedded prompt has."""

    transformer: Config
    vae: Config
    text_encoder: Config
    source: str
    prompt_tokens: int = MAX_PROMPT_TOKENS


def configs_of(model: str) -> Configs:
    """The configs of a recipe's ``model``: of its folder where there is one, else those published under its name.

    Raises:
        UserError: when the folder lacks a config, or there is neither folder nor published name.
    """
    folder = Path(model) if Path(model).exists() or "/" in model else ASSETS / model
    if folder.exists():
        transformer, vae, text = (_read(folder, f"{part}/config.json") for part in PARTS)
        tokens = _read(folder, "tokenizer/tokenizer_config.json").get("model_max_length", MAX_PROMPT_TOKENS)
        return Configs(transformer, vae, text, f"the configs in {folder}", min(int(tokens), MAX_PROMPT_TOKENS))
    for name, (transformer, vae) in MODELS.items():
        if name.lower() in model.lower():
            return Configs(transformer, vae, UMT5_XXL, f"the published configs of {name} ({model} is not there)")
    raise UserError(
        f"'{model}' is neither a folder nor a published model whose configs are known ({', '.join(MODELS)}); "
        "give --model a Wan folder (its config.json files are enough), or a path with such a name in it"
    )


def _read(folder: Path, name: str) -> Config:
    path = folder / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error)
        raise UserError(
            f"cannot plan with '{folder}': {name} cannot be read ({reason}); give a Wan folder in diffusers' layout "
            "(its weights are not needed) or the name of a published model"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"'{path}' does not hold a JSON object; download it again")
    return {key: value for key, value in found.items() if not key.startswith(HIDDEN)}
