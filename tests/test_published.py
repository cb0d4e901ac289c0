"""The published Wan configurations: our forward is diffusers', and a conversion of their shapes is planned whole.

Widths are the published ones, depth and pictures small; the memory of the 14B width allows one layer.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from test_vae import build_vae
from torch import Tensor
from transformers import UMT5Config

from aad1.flow import TIMESTEP_SCALE
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder, save_pipeline_folder, save_transformer
from aad1.models.conversion import KINDS, Terms, plan
from aad1.models.geometry import shapes_of
from aad1.models.vae import decode_video, encode_video, geometry
from aad1.models.weights import Stored
from aad1.planning.published import MODELS, UMT5_XXL, VAE_2_2

PUBLISHED = {name: dict(transformer) for name, (transformer, _) in MODELS.items()}
PARAMETERS = {"Wan2.1-T2V-1.3B": 1.42e9, "Wan2.1-T2V-14B": 14.29e9, "Wan2.2-TI2V-5B": 5.0e9}
names = pytest.mark.parametrize("name", PUBLISHED)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, **config: Any) -> CausalWanTransformer3DModel:
    """Random weights of that width, drawn in pieces; the tables and gains vary, so that all of them show."""
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**{**PUBLISHED[name], **config})
    weightless = CausalWanTransformer3DModel(**{**PUBLISHED[name], **config, "num_layers": 0})  # its rotary table
    model.to_empty(device="cpu").requires_grad_(False)
    model.rope = weightless.rope
    stream = torch.Generator().manual_seed(0)
    for key, weight in model.named_parameters():
        spread = prod(weight.shape[1:]) ** -0.5 if weight.ndim > 1 else 0.2
        weight.uniform_(generator=stream).sub_(0.5).mul_(12**0.5 * (1.0 if "table" in key else spread))
        if "norm" in key and key.endswith("weight"):
            weight += 1
    return model.eval()


def difference(ours: CausalWanTransformer3DModel, stock: WanTransformer3DModel) -> float:
    """Largest, over a clip of three frames with a level each, and over one level for the whole clip."""
    channels = ours.config.in_channels
    latents, text, t = normal(1, channels, 3, 4, 4, seed=1), normal(1, 5, 4096, seed=2), torch.tensor([[0.0, 0.4, 0.9]])
    tokens = (t * TIMESTEP_SCALE).repeat_interleave(4, dim=1)
    with torch.inference_mode():
        expected = stock(latents, tokens, text).sample
        assert expected.std() > 0.3
        per_frame = ours(latents, t, text) - expected
        whole = ours(latents, torch.full((1, 3), 0.7), text) - stock(latents, torch.tensor([700.0]), text).sample
    return max(per_frame.abs().max().item(), whole.abs().max().item())


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "14B" in n else n for n in PUBLISHED])
def test_full_visibility_is_diffusers_forward_at_the_published_width(name: str) -> None:
    ours = build(name, num_layers=1 if "14B" in name else 2)
    with torch.device("meta"):
        stock = WanTransformer3DModel(**{**PUBLISHED[name], "num_layers": ours.config.num_layers})
    stock.load_state_dict(ours.state_dict(), assign=True)
    stock.rope = ours.rope
    assert difference(ours, stock.eval()) < 1e-5


@names
def test_the_plan_of_a_conversion_holds_every_tensor(name: str) -> None:
    """Names, shapes and bytes of the whole published depth, both ways, without a weight."""
    kind = KINDS["transformer"]
    shapes = shapes_of(WanTransformer3DModel, PUBLISHED[name])
    table = kind.native(shapes)
    native = {table[key]: Stored(Path("x.pth"), table[key], shape, torch.float32) for key, shape in shapes.items()}
    there = plan("transformer", native, Terms(dtype=torch.bfloat16))
    expected = {
        "patch_size": (1, 2, 2),
        "attention_head_dim": 128,
        "text_dim": 4096,
        "freq_dim": 256,
        **PUBLISHED[name],
    }
    assert expected.items() <= there.config.items()
    assert {key: made.shape for key, made in there.tensors.items()} == shapes
    count = sum(map(prod, shapes.values()))
    assert count == pytest.approx(PARAMETERS[name], rel=0.01)
    assert (there.report.matched, there.report.bytes) == (len(shapes), 2 * count)
    stored = {key: Stored(Path("x.safetensors"), key, shape, torch.bfloat16) for key, shape in shapes.items()}
    back = plan("transformer", stored, Terms()).native()
    assert {key: made.shape for key, made in back.items()} == {key: one.shape for key, one in native.items()}


def test_the_plan_of_the_published_vae_and_text_encoder() -> None:
    umt5 = UMT5Config(**UMT5_XXL)
    for part, config, count in (("vae", {}, 126.9e6), ("text_encoder", umt5, 5.68e9)):
        kind = KINDS[part]
        shapes = shapes_of(kind.cls, config)
        table = kind.native(shapes)
        found = {table[n]: Stored(Path("x.pth"), table[n], shape, torch.bfloat16) for n, shape in shapes.items()}
        made = plan(part, found, Terms())
        assert {key: one.shape for key, one in made.tensors.items()} == shapes
        assert sum(map(prod, shapes.values())) == pytest.approx(count, rel=0.01)


# --- Wan 2.2 TI2V 5B: a 48-channel VAE of patches, and a level a token ------------------------


@pytest.fixture
def narrow_5b(tmp_path: Path, tiny_text: Any) -> Path:
    """A folder with the 5B model's structure, narrow: 4 latent channels instead of 48."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=64,
        ffn_dim=64,
        num_layers=2,
    )
    tokenizer, encoder = tiny_text
    folder = tmp_path / "5b"
    save_pipeline_folder(
        folder, transformer=transformer, vae=build_vae("patched"), tokenizer=tokenizer, text_encoder=encoder
    )
    return folder


def test_a_folder_of_that_kind_opens_and_says_that_levels_are_per_token(narrow_5b: Path) -> None:
    assert '"expand_timesteps": true' in (narrow_5b / "model_index.json").read_text()
    folder = open_folder(narrow_5b)
    vae, ours = folder.vae(), folder.transformer(CausalWanTransformer3DModel)
    assert (geometry(vae).spatial, geometry(vae).temporal) == (16, 4)
    frames = normal(1, 3, 5, 64, 64, seed=3).clamp(-1, 1)
    latents = encode_video(vae, frames)
    assert latents.shape == (1, 4, 2, 4, 4)
    assert decode_video(vae, latents).shape == frames.shape
    stock = WanTransformer3DModel.from_pretrained(narrow_5b / "transformer")
    t, text = torch.tensor([[0.0, 0.8]]), normal(1, 5, 64, seed=4)
    with torch.inference_mode():
        expected = stock(latents, (t * TIMESTEP_SCALE).repeat_interleave(4, dim=1), text).sample
        assert (ours(latents, t, text) - expected).abs().max() < 1e-5


def test_the_published_vae_of_that_kind_has_48_channels_of_16_pixels() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLWan(**VAE_2_2)
    assert (geometry(vae).temporal, geometry(vae).spatial, geometry(vae).channels) == (4, 16, 48)


# --- and again after load -> save -> load -----------------------------------------------------


def test_parity_outlives_our_folders(tmp_path: Path) -> None:
    name = "Wan2.1-T2V-1.3B"
    save_transformer(build(name, num_layers=1), tmp_path / "one", as_stock=True)
    loaded = CausalWanTransformer3DModel.from_pretrained(tmp_path / "one")
    save_transformer(loaded, tmp_path / "two", as_stock=True)
    stock = WanTransformer3DModel.from_pretrained(tmp_path / "two")
    assert difference(loaded, stock) < 1e-5
