"""Folders for serving engines: their names, as their code spells them, and the way back."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import with_student

from aad1.cli import main
from aad1.exporting.engines import write_fastvideo, write_sglang
from aad1.exporting.source import ExportSource, open_source
from aad1.exporting.writing import export
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder, save_transformer
from aad1.streaming import load_student

pytestmark = pytest.mark.filterwarnings("ignore:.* asserts at most")
WRITERS = pytest.mark.parametrize("write", [write_sglang, write_fastvideo])

# What the engines rename, as (diffusers' name, theirs), of block 0 and of what is outside; every other name stays.
# Facts of WanVideoArchConfig.param_names_mapping, the same table in both.
RENAMED = {
    "patch_embedding.": "patch_embedding.proj.",
    "condition_embedder.text_embedder.linear_1.": "condition_embedder.text_embedder.fc_in.",
    "condition_embedder.text_embedder.linear_2.": "condition_embedder.text_embedder.fc_out.",
    "condition_embedder.time_embedder.linear_1.": "condition_embedder.time_embedder.mlp.fc_in.",
    "condition_embedder.time_embedder.linear_2.": "condition_embedder.time_embedder.mlp.fc_out.",
    "condition_embedder.time_proj.": "condition_embedder.time_modulation.linear.",
    **{f"blocks.0.attn1.{part}.": f"blocks.0.{part}." for part in ("to_q", "to_k", "to_v", "norm_q", "norm_k")},
    "blocks.0.attn1.to_out.0.": "blocks.0.to_out.",
    "blocks.0.attn2.to_out.0.": "blocks.0.attn2.to_out.",
    "blocks.0.ffn.net.0.proj.": "blocks.0.ffn.fc_in.",
    "blocks.0.ffn.net.2.": "blocks.0.ffn.fc_out.",
    "blocks.0.norm2.": "blocks.0.self_attn_residual_norm.norm.",
}
PAIR = ("weight", "bias")
# The parameters of their module, of block 0 and of what is outside.
THEIRS = {
    *(f"patch_embedding.proj.{end}" for end in PAIR),
    *(f"condition_embedder.text_embedder.{part}.{end}" for part in ("fc_in", "fc_out") for end in PAIR),
    *(f"condition_embedder.time_embedder.mlp.{part}.{end}" for part in ("fc_in", "fc_out") for end in PAIR),
    *(f"condition_embedder.time_modulation.linear.{end}" for end in PAIR),
    *(f"blocks.0.{part}.{end}" for part in ("to_q", "to_k", "to_v", "to_out") for end in PAIR),
    *(f"blocks.0.attn2.{part}.{end}" for part in ("to_q", "to_k", "to_v", "to_out") for end in PAIR),
    *(f"blocks.0.{attn}{norm}.weight" for attn in ("", "attn2.") for norm in ("norm_q", "norm_k")),
    *(f"blocks.0.self_attn_residual_norm.norm.{end}" for end in PAIR),
    *(f"blocks.0.ffn.{part}.{end}" for part in ("fc_in", "fc_out") for end in PAIR),
    "blocks.0.scale_shift_table",
    *(f"proj_out.{end}" for end in PAIR),
    "scale_shift_table",
}


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> ExportSource:
    return open_source(str(with_student(tiny_folder, tmp_path / "model", (32, 32))), "student")


def of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_weight_is_one_of_theirs_and_none_of_theirs_is_left(source: ExportSource) -> None:
    names = {name for name in source.skeleton.state_dict() if not re.match(r"blocks\.[1-9]", name)}
    renamed = set()
    for name in names:
        fits = [ours for ours in RENAMED if name.startswith(ours)]
        assert len(fits) <= 1, name
        renamed.add(name.replace(fits[0], RENAMED[fits[0]]) if fits else name)
    assert renamed == THEIRS


@WRITERS
def test_classes_and_keys_are_the_engines(write: Any, source: ExportSource, tmp_path: Path) -> None:
    write(source, tmp_path / "out")
    index = of(tmp_path / "out" / "model_index.json")
    assert index["_class_name"] == "WanCausalDMDPipeline"
    assert index["transformer"] == ["diffusers", "CausalWanTransformer3DModel"]
    assert index["scheduler"] == ["diffusers", "SelfForcingFlowMatchScheduler"]
    config = of(tmp_path / "out" / "transformer" / "config.json")
    assert config["_class_name"] == "CausalWanTransformer3DModel"
    assert (config["num_frames_per_block"], config["sink_size"]) == (4, 1)
    assert config["local_attn_size"] == config["sliding_window_num_frames"] == 9 + 1  # they count the sink
    assert of(tmp_path / "out" / "scheduler" / "scheduler_config.json")["shift"] == 5.0


@WRITERS
def test_what_the_engine_cannot_do_stands_in_the_card(write: Any, source: ExportSource, tmp_path: Path) -> None:
    limit = "asserts at most 3 latent frames a chunk, this student makes 4 (num_frames_per_block)"
    with pytest.warns(UserWarning, match=re.escape(limit)):
        write(source, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (limit, "`dmd_denoising_steps` [1000]", "absolute positions", "`image_latent`"):
        assert fact in card


@WRITERS
def test_a_chunk_of_three_is_served(write: Any, source: ExportSource, tmp_path: Path) -> None:
    model = source.load_generator()
    model.register_to_config(num_frames_per_block=3, local_attn_size=-1)
    save_transformer(model, tmp_path / "three")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(replace(source, student=tmp_path / "three"), tmp_path / "out")
    config = of(tmp_path / "out" / "transformer" / "config.json")
    assert (config["num_frames_per_block"], config["local_attn_size"]) == (3, -1)
    assert "window_counts_sink" not in config


@WRITERS
def test_the_folder_comes_back(write: Any, source: ExportSource, tmp_path: Path) -> None:
    """aad1 opens it, finds the student, its own window and the same weights."""
    write(source, tmp_path / "out")
    folder = open_folder(tmp_path / "out")
    assert folder.streams
    back = folder.transformer(CausalWanTransformer3DModel)
    own = source.load_generator()
    assert back.span == own.span
    assert back.config.passes == own.config.passes
    for (name, weight), (other, again) in zip(own.named_parameters(), back.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, again)
    assert load_student(tmp_path / "out", device="cpu").generator.span == own.span


def test_an_export_of_an_export_counts_the_window_once(source: ExportSource, tmp_path: Path) -> None:
    """Whoever reads the folder reads the window in our count: another export, and a conversion."""
    first = export(source, "sglang", tmp_path / "first")
    again = export(open_source(str(first), "student"), "fastvideo", tmp_path / "again")
    assert of(again / "transformer" / "config.json") == of(first / "transformer" / "config.json")
    assert main(["convert", str(first / "transformer"), "-o", str(tmp_path / "back")]) == 0
    assert of(tmp_path / "back" / "config.json")["local_attn_size"] == 9


def test_the_generator_of_self_forcing_comes_back(source: ExportSource, tmp_path: Path) -> None:
    out = export(source, "self-forcing", tmp_path / "out")
    held = torch.load(out / "generator.pt", weights_only=True)
    assert held.keys() == {"generator", "generator_ema"}
    assert {"model.head.head.weight", "model.blocks.0.self_attn.q.weight"} <= held["generator_ema"].keys()
    card = (out / "README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("aad1 convert")]
    places = {"generator.pt": out / "generator.pt", "WAN_FOLDER": source.folder.path, "student": tmp_path / "back"}
    assert main([str(places.get(word, word)) for word in line.split()[1:]]) == 0
    back = source.folder.transformer_at(CausalWanTransformer3DModel, tmp_path / "back")
    own = source.load_generator()
    unsaid = {"_name_or_path": "", "rope_max_seq_len": 0}  # the latter is the longest of a table, not of a weight
    assert {**back.config, **unsaid} == {**own.config, **unsaid}
    for weight, again in zip(own.parameters(), back.parameters(), strict=True):
        assert torch.equal(weight, again)


def test_the_base_says_how_wide_heads_are(
    source: ExportSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(source, "self-forcing", tmp_path / "out")
    words = ["convert", str(out / "generator.pt"), "--base", str(source.folder.path), "--like", "aad1"]
    assert main([*words, "-o", str(tmp_path / "back")]) == 0
    assert of(tmp_path / "back" / "config.json")["attention_head_dim"] == 16
    assert main([*words, "--head_dim", "32", "-o", str(tmp_path / "other")]) == 2
    assert "are 16 wide; leave it out" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()
