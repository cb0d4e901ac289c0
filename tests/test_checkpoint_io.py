"""Wan folders are checked, written whole, hashed by content, and load in stock diffusers."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tiny_transformer
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file

from aad1.errors import UserError
from aad1.models import checkpoint_io
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import (
    bundled,
    folder_hash,
    open_folder,
    save_component,
    save_pipeline_folder,
    save_transformer,
    whole_folder,
)
from aad1.models.vae import decode_video, encode_video


class StudentWanTransformer3DModel(WanTransformer3DModel):
    """A subclass with one config entry of its own, as a student has."""

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 2,
        attention_head_dim: int = 16,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 64,
        freq_dim: int = 32,
        ffn_dim: int = 64,
        num_layers: int = 2,
        rope_max_seq_len: int = 64,
        sink_size: int = 1,
    ) -> None:
        super().__init__(
            patch_size,
            num_attention_heads,
            attention_head_dim,
            in_channels,
            out_channels,
            text_dim,
            freq_dim,
            ffn_dim,
            num_layers,
            rope_max_seq_len=rope_max_seq_len,
        )


def same_weights(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 0.0) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.allclose(x, y, rtol=tolerance, atol=tolerance) for (m, x), (n, y) in pairs)


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_stock_pipeline_loads_and_samples(tiny_folder: Path) -> None:
    pipe = WanPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        "a red disc moves right fast",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        max_sequence_length=32,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).frames
    assert frames.shape == (1, 5, 3, 32, 32)
    assert bool(torch.isfinite(frames).all())
    assert type(pipe.transformer) is WanTransformer3DModel
    assert pipe.scheduler.config.flow_shift == 3.0


def test_parts_load_as_saved(tiny_folder: Path, tiny_vae: Any, tiny_text: Any) -> None:
    folder = open_folder(tiny_folder)
    assert same_weights(folder.transformer(WanTransformer3DModel), build_tiny_transformer())
    vae = folder.vae()
    assert same_weights(vae, tiny_vae)
    assert not any(p.requires_grad for p in vae.parameters())
    assert same_weights(folder.text().encoder, tiny_text[1])


def test_dtype_is_the_callers_choice(tiny_folder: Path) -> None:
    folder = replace(open_folder(tiny_folder), dtype=torch.bfloat16)
    assert folder.transformer(WanTransformer3DModel).dtype == torch.bfloat16
    latents = encode_video(folder.vae(), torch.zeros(1, 3, 5, 16, 16))
    assert latents.dtype == torch.bfloat16
    assert decode_video(folder.vae(), latents).shape == (1, 3, 5, 16, 16)
    assert folder.text().embed(["a red disc"]).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_loads_as_float32(
    tmp_path: Path, tiny_vae: Any, tiny_text: Any, dtype: torch.dtype
) -> None:
    transformer = build_tiny_transformer()
    folder = save_pipeline_folder(
        tmp_path / "half",
        transformer=transformer,
        vae=tiny_vae,
        tokenizer=tiny_text[0],
        text_encoder=tiny_text[1],
        dtype=dtype,
    )
    assert transformer.dtype == torch.float32
    for file in folder.path.glob("*/*.safetensors"):
        assert {t.dtype for t in load_file(file).values()} == {dtype}
        assert file.stat().st_mode == (file.parent / "config.json").stat().st_mode
    loaded = folder.transformer(WanTransformer3DModel)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert same_weights(loaded, transformer, tolerance=1e-2)
    assert {p.dtype for p in folder.text().encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in folder.vae().parameters()} == {torch.float32}
    stock = WanPipeline.from_pretrained(folder.path)
    assert {stock.transformer.dtype, stock.vae.dtype, stock.text_encoder.dtype} == {torch.float32}


def test_a_student_lies_beside_the_teacher(copy: Path) -> None:
    student = build_tiny_transformer(StudentWanTransformer3DModel, seed=5, sink_size=3)
    save_transformer(student, copy / "student_a")
    folder = open_folder(copy)
    shutil.copytree(copy / "student_a", copy / ".student_b.partial-1")
    assert folder.transformers == ("student_a", "transformer")
    assert json.loads((copy / "student_a" / "config.json").read_text())["_class_name"] == "StudentWanTransformer3DModel"
    again = folder.transformer(StudentWanTransformer3DModel, "student_a")
    assert again.config.sink_size == 3
    assert same_weights(again, student)
    assert folder.transformer(StudentWanTransformer3DModel, "student_a", sink_size=2).config.sink_size == 2
    assert same_weights(folder.transformer(StudentWanTransformer3DModel), build_tiny_transformer())
    with pytest.raises(UserError, match=r"no transformer 'studentb'; did you mean 'student_a'"):
        folder.transformer(StudentWanTransformer3DModel, "studentb")


def test_as_stock_leaves_nothing_that_diffusers_does_not_know(tmp_path: Path) -> None:
    student = build_tiny_transformer(StudentWanTransformer3DModel, sink_size=3)
    save_transformer(student, tmp_path / "out", as_stock=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel"
    assert "sink_size" not in config
    assert same_weights(WanTransformer3DModel.from_pretrained(tmp_path / "out"), student)


def test_a_config_does_not_tell_where_its_weights_were_read(tmp_path: Path) -> None:
    save_transformer(build_tiny_transformer(), tmp_path / "here")
    again = WanTransformer3DModel.from_pretrained(tmp_path / "here")
    assert "_name_or_path" in again.config
    save_transformer(again, tmp_path / "there")
    assert (tmp_path / "there" / "config.json").read_text() == (tmp_path / "here" / "config.json").read_text()


def test_students_may_not_take_a_parts_name(tmp_path: Path, tiny_vae: Any, tiny_text: Any) -> None:
    model = build_tiny_transformer()
    with pytest.raises(UserError, match="vae"):
        save_pipeline_folder(
            tmp_path / "x",
            transformer=model,
            vae=tiny_vae,
            tokenizer=tiny_text[0],
            text_encoder=tiny_text[1],
            students={"vae": model},
        )


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_folder(tmp_path / "a") as fresh:
        (fresh / "old").touch()

    def fail() -> None:
        with whole_folder(tmp_path / "a") as fresh:
            (fresh / "new").touch()
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["old"]
    with whole_folder(tmp_path / "a") as fresh:
        (fresh / "new").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["new"]
    refuse_renames(monkeypatch, ".a.partial-")  # the rename fails after the old folder was set aside
    with pytest.raises(OSError, match="partial"), whole_folder(tmp_path / "a"):
        pass
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 1


def refuse_renames(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    replace_file = os.replace

    def replace_others(source: Path, target: Path) -> None:
        if source.name.startswith(prefix):
            raise OSError(f"cannot rename {source}")
        replace_file(source, target)

    monkeypatch.setattr(checkpoint_io.os, "replace", replace_others)


def test_a_part_that_a_killed_write_set_aside_is_put_back(copy: Path) -> None:
    before = folder_hash(copy / "vae")
    (copy / "vae").rename(copy / ".vae.stale-1234")  # killed between the two renames
    (copy / ".vae.partial-1234").mkdir()
    shutil.copytree(copy / "transformer", copy / ".transformer.stale-5678")  # killed after them
    assert open_folder(copy).path == copy
    assert folder_hash(copy / "vae") == before
    assert not list(copy.glob(".*.stale-*"))


def test_the_next_write_removes_what_a_killed_one_had_begun(tmp_path: Path) -> None:
    (tmp_path / ".a.partial-1234").mkdir()
    (tmp_path / ".b.partial-1234").mkdir()
    with whole_folder(tmp_path / "a") as fresh:
        (fresh / "new").touch()
    assert {p.name for p in tmp_path.iterdir()} == {"a", ".b.partial-1234"}


@pytest.mark.parametrize(
    ("layers", "message"), [(1, "unexpected, such as blocks.1."), (3, "missing, such as blocks.2.")]
)
def test_a_config_that_does_not_fit_its_weights_is_refused(copy: Path, layers: int, message: str) -> None:
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": layers}))
    with pytest.raises(UserError, match=message):
        open_folder(copy).transformer(CausalWanTransformer3DModel)


def test_the_next_write_keeps_what_a_killed_one_set_aside(tmp_path: Path) -> None:
    (tmp_path / ".a.stale-1234").mkdir()
    (tmp_path / ".a.stale-1234" / "old").touch()
    with pytest.raises(RuntimeError, match="disk full"), whole_folder(tmp_path / "a"):
        raise RuntimeError("disk full")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["old"]


def test_a_folder_is_flushed_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(checkpoint_io, "sync", lambda path: order.append(path.name.partition(".partial")[0]))
    rename = os.replace
    monkeypatch.setattr(checkpoint_io.os, "replace", lambda *paths: (order.append("rename"), rename(*paths)))
    with whole_folder(tmp_path / "a") as fresh:
        (fresh / "weights").touch()
    assert order == ["weights", ".a", "rename", tmp_path.name]


def test_hash_follows_the_content_not_the_place(tiny_folder: Path, copy: Path) -> None:
    assert folder_hash(copy / "vae") == folder_hash(tiny_folder / "vae")
    edit(copy / "vae" / "config.json", _diffusers_version="0.0.0", _name_or_path="elsewhere")
    assert folder_hash(copy / "vae") == folder_hash(tiny_folder / "vae")
    edit(copy / "vae" / "config.json", latents_mean=[1.0] * 16)
    assert folder_hash(copy / "vae") != folder_hash(tiny_folder / "vae")
    before = folder_hash(copy / "transformer")
    save_component(build_tiny_transformer(seed=9), copy / "transformer")
    assert folder_hash(copy / "transformer") != before


def test_weights_are_hashed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder_hash(copy / "vae")
    monkeypatch.setattr(checkpoint_io, "_read_and_hash", lambda file: pytest.fail("read twice"))
    assert folder_hash(copy / "vae") == first


def test_text_cache_outlives_the_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    first = open_folder(tiny_folder).text(tmp_path).embed(["a red disc"])
    text = open_folder(tiny_folder).text(tmp_path)
    text._load = lambda: pytest.fail("the encoder was loaded although the prompt is cached")
    torch.testing.assert_close(text.embed(["a red disc"]), first)


def test_what_is_missing_is_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no model_index\.json"):
        open_folder(copy / "vae")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in vae"):
        open_folder(copy)
    shutil.rmtree(copy / "tokenizer")
    shutil.rmtree(copy / "vae")
    with pytest.raises(UserError, match="lacks vae, tokenizer"):
        open_folder(copy)


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "allowed: WanPipeline"),
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "two transformers"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; allowed: AutoencoderKLWan"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "allowed: UMT5EncoderModel"),
        ("transformer/config.json", {"in_channels": 36}, "must be equal, but are 36 and 16"),
        ("transformer/config.json", {"text_dim": 4096}, "must be equal, but are 4096 and 64"),
    ],
)
def test_what_is_not_supported_is_named(copy: Path, file: str, entries: dict[str, Any], message: str) -> None:
    edit(copy / file, **entries)
    with pytest.raises(UserError, match=message):
        open_folder(copy)


def test_a_torn_config_is_named(copy: Path) -> None:
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*vae.config\.json"):
        open_folder(copy)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_full_memory_is_not_blamed_on_the_weights(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(WanTransformer3DModel, "to", full)
    with pytest.raises(error):
        open_folder(tiny_folder).transformer(WanTransformer3DModel)


def test_unknown_bundled_model_is_refused() -> None:
    with pytest.raises(UserError, match="no bundled model is named 'huge', and there is no such folder"):
        bundled("huge")
