"""What is loaded is what the libraries load, whatever the type; and it costs the model plus a shard."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tiny_transformer, build_tiny_vae
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from aad1.models import weights
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import bundled
from aad1.models.loading import whole_model

PARTS = [
    (CausalWanTransformer3DModel, "student"),
    (WanTransformer3DModel, "transformer"),
    (AutoencoderKLWan, "vae"),
    (UMT5EncoderModel, "text_encoder"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("cls", "part"), PARTS, ids=[part for _, part in PARTS])
def test_a_part_is_what_the_library_loads(cls: Any, part: str, dtype: torch.dtype) -> None:
    path = bundled("tiny") / part
    ours = whole_model(cls, path, dtype, "cpu")
    theirs = cls.from_pretrained(path, **{"dtype" if cls is UMT5EncoderModel else "torch_dtype": dtype})
    for tensors in ("state_dict", "named_parameters", "named_buffers"):
        mine, others = (dict(getattr(model, tensors)()) for model in (ours, theirs))
        assert mine.keys() == others.keys()
        for name, tensor in mine.items():
            assert (tensor.dtype, tensor.requires_grad) == (others[name].dtype, others[name].requires_grad), name
            assert torch.equal(tensor, others[name]), name
    assert (ours.dtype, ours.training) == (theirs.dtype, False)


def mapped(folder: Path) -> set[str]:
    """Names of the files in a folder that this process has mapped."""
    gc.collect()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if str(folder) in line}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no account of mapped files here")
def test_a_cast_lets_go_of_every_shard_it_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tiny_transformer().save_pretrained(tmp_path, max_shard_size="30KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    monkeypatch.setattr(weights, "MAPPED", 20_000)
    most = 0

    class Watched(weights.Reader):
        def __call__(self, stored: weights.Stored) -> torch.Tensor:
            nonlocal most
            tensor = super().__call__(stored)
            most = max(most, len(mapped(tmp_path)))
            return tensor

    monkeypatch.setattr("aad1.models.loading.Reader", Watched)
    model = whole_model(WanTransformer3DModel, tmp_path, torch.bfloat16, "cpu")
    assert 1 <= most <= 2
    assert not mapped(tmp_path)
    assert {
        name for name, p in model.named_parameters() if p.dtype == torch.float32
    }  # those kept in float32 are copies


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    build_tiny_vae().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"base_dim": 4', '"base_dim": 8'))
    with pytest.raises(Exception, match=r"has shape .* but its config.json wants"):
        whole_model(AutoencoderKLWan, tmp_path, torch.float32, "cpu")
