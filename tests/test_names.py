"""Native and library names of Wan's parameters: complete, one to one, and those of the installed libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tiny_transformer
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from transformers import UMT5Config, UMT5EncoderModel

from aad1.errors import UserError
from aad1.models.names import native_names, native_text_names, native_vae_names
from aad1.models.released import save_self_forcing


def on_meta(cls: Any, *arguments: Any, **config: Any) -> Any:
    with torch.device("meta"):
        return cls(*arguments, **config)


@pytest.mark.parametrize("layers", [1, 30, 40])
def test_a_transformer_has_every_original_name_once(layers: int) -> None:
    names = on_meta(WanTransformer3DModel, num_layers=layers).state_dict().keys()
    table = native_names(names)
    assert list(table) == list(names)
    assert len(set(table.values())) == len(names) == 27 * layers + 15
    assert convert_wan_transformer_to_diffusers({native: name for name, native in table.items()}) == {
        n: n for n in names
    }
    assert table["blocks.0.norm2.weight"] == "blocks.0.norm3.weight"  # the two are exchanged between the codebases
    assert table["scale_shift_table"] == "head.modulation"


def test_a_vae_has_every_original_name_once() -> None:
    names = on_meta(AutoencoderKLWan).state_dict().keys()
    table = native_vae_names(names)
    assert len(set(table.values())) == len(names) == 194
    assert convert_wan_vae_to_diffusers({native: name for name, native in table.items()}) == {n: n for n in names}
    assert table["decoder.up_blocks.1.resnets.0.conv_shortcut.weight"] == "decoder.upsamples.4.shortcut.weight"


def test_a_text_encoder_has_every_original_name_once() -> None:
    config = UMT5Config(d_model=8, d_ff=16, d_kv=4, num_layers=24, num_heads=2, vocab_size=32)
    names = [name for name in on_meta(UMT5EncoderModel, config).state_dict() if "embed_tokens" not in name]
    table = native_text_names(names)
    assert len(set(table.values())) == len(names) == 242
    assert table["encoder.block.3.layer.1.DenseReluDense.wi_0.weight"] == "blocks.3.ffn.gate.0.weight"


@pytest.mark.parametrize(
    ("find", "names"),
    [
        (native_names, [*build_tiny_transformer().state_dict(), "blocks.0.attn2.add_k_proj.weight"]),
        (native_vae_names, ["encoder.conv_in.weight", "encoder.norm.weight"]),
        (native_text_names, ["shared.weight", "decoder.block.0.weight"]),
    ],
)
def test_a_parameter_without_an_original_name_is_an_error(find: Any, names: list[str]) -> None:
    with pytest.raises(ValueError, match="1 parameters have no native name, such as"):
        find(names)


def test_a_generator_is_written_as_self_forcing_has_it(tmp_path: Path) -> None:
    model = build_tiny_transformer()
    save_self_forcing(model, tmp_path / "out" / "generator.pt")
    found = torch.load(tmp_path / "out" / "generator.pt", weights_only=True)
    assert found.keys() == {"generator", "generator_ema"}
    assert all(name.startswith("model.") for name in found["generator"])
    bare = {name.removeprefix("model."): tensor for name, tensor in found["generator_ema"].items()}
    again = convert_wan_transformer_to_diffusers(bare)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    size = (tmp_path / "out" / "generator.pt").stat().st_size
    assert size < 1.5 * sum(p.numel() * 4 for p in model.parameters()) + 100_000  # the two entries share their tensors


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        save_self_forcing(build_tiny_transformer(), tmp_path / "generator.pt")
    assert not list(tmp_path.iterdir())
