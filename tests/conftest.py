"""Tiny random models, built once a session; no test reaches the network."""

from __future__ import annotations

import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import started_browser
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from aad1.data.world import vocabulary
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_pipeline_folder, save_transformer
from aad1.models.text import build_tiny_text

TINY_TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep remembered hashes out of the user's home."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def build_tiny_vae(seed: int = 0, **config: Any) -> AutoencoderKLWan:
    """A frozen random AutoencoderKLWan with 16 channels and Wan 2.1's factors (4, 8)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_dim": 16, **config}
        return AutoencoderKLWan(**settings).eval().requires_grad_(False)


def build_tiny_transformer(cls: type = WanTransformer3DModel, seed: int = 0, **config: Any) -> Any:
    """A random Wan transformer of two layers, as ``cls`` and with any config entry overridden."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**{**TINY_TRANSFORMER, **config}).eval()


@pytest.fixture(scope="session")
def tiny_vae() -> AutoencoderKLWan:
    return build_tiny_vae()


@pytest.fixture(scope="session")
def tiny_text() -> tuple[Any, UMT5EncoderModel]:
    """(tokenizer, encoder), random weights."""
    return build_tiny_text(vocabulary(), seed=0)


def with_student(folder: Path, path: Path, size: tuple[int, int]) -> Path:
    """A copy of a Wan folder at ``path``, and in it a student of random weights for pictures of this size."""
    shutil.copytree(folder, path)
    save_transformer(build_tiny_transformer(CausalWanTransformer3DModel, seed=3, size=size), path / "student")
    return path


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_vae: AutoencoderKLWan, tiny_text: tuple[Any, UMT5EncoderModel]
) -> Path:
    """A complete Wan folder of random weights; read it, do not write into it."""
    tokenizer, encoder = tiny_text
    path = tmp_path_factory.mktemp("wan") / "tiny"
    save_pipeline_folder(
        path, transformer=build_tiny_transformer(), vae=tiny_vae, tokenizer=tokenizer, text_encoder=encoder
    )
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, or a skip that says what is missing."""
    with started_browser() as started:
        yield started
