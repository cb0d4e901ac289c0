"""Checkpoints of others are found, matched and written bit for bit, and bad ones refused in one line."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tiny_transformer, build_tiny_vae
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from aad1.cli import main
from aad1.models import weights
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import folder_hash, open_folder, save_pipeline_folder, save_transformer
from aad1.models.names import native_names
from aad1.models.released import KNOWN, save_self_forcing
from aad1.models.weights import Made, tensors_of, write_shards

STUDENT = ("--like", "self-forcing", "--head-dim", "16")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory, tiny_text: Any) -> Path:
    """A Wan folder whose VAE has the published structure, narrow."""
    path = tmp_path_factory.mktemp("wan") / "wan"
    vae = build_tiny_vae(dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    tokenizer, encoder = tiny_text
    save_pipeline_folder(path, transformer=build_tiny_transformer(), vae=vae, tokenizer=tokenizer, text_encoder=encoder)
    return path


@pytest.fixture(scope="module")
def native(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the native layout, its transformer in several files."""
    path = tmp_path_factory.mktemp("native") / "wan"
    assert main(["convert", str(wan), "--to", "native", "--shard-gb", "0.0001", "-o", str(path)]) == 0
    return path


def native_weights(model: Any) -> dict[str, Tensor]:
    weights = model.state_dict()
    return {native: weights[name].clone() for name, native in native_names(weights).items()}


def run(*words: str | Path) -> int:
    return main(["convert", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    assert run(*words) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert len(line) < 500
    return line


def weights_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


# --- whole folders ---------------------------------------------------------------------------


def test_a_wan_folder_goes_native_and_comes_back_bit_for_bit(wan: Path, native: Path, tmp_path: Path) -> None:
    names = {file.name for file in native.iterdir()}
    assert {"config.json", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google", "conversion.json"} < names
    assert (native / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert "blocks.0.self_attn.q.weight" in weights_in(native)
    assert "middle.0.residual.0.gamma" in str(torch.load(native / "Wan2.1_VAE.pth", weights_only=True).keys())
    assert run(native, "-o", tmp_path / "back") == 0
    for part in ("transformer", "vae", "text_encoder"):
        assert equal(weights_in(tmp_path / "back" / part), weights_in(wan / part)), part
    back = open_folder(tmp_path / "back")
    assert torch.equal(back.text().embed(["a red disc"]), open_folder(wan).text().embed(["a red disc"]))
    assert back.transformer(WanTransformer3DModel).config.num_layers == 2
    assert back.vae().config.latents_mean == open_folder(wan).vae().config.latents_mean
    report = json.loads((tmp_path / "back" / "conversion.json").read_text())
    assert [(part["part"], part["missing"], part["unexpected"]) for part in report["parts"]] == [
        ("transformer", [], []),
        ("vae", [], []),
        ("text_encoder", [], []),
    ]


def test_a_native_folder_with_pickled_weights_and_no_index(native: Path, wan: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(native, tmp_path / "copy"))
    torch.save(weights_in(copy), copy / "diffusion_pytorch_model.bin")
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    assert run(copy, "--dtype", "bfloat16", "-o", tmp_path / "out") == 0
    found = weights_in(tmp_path / "out" / "transformer")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[n], t.bfloat16()) for n, t in weights_in(wan / "transformer").items())


def test_shards_without_an_index_are_read_together(native: Path, wan: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(native, tmp_path / "copy"))
    (copy / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert run(copy, "-o", tmp_path / "out") == 0
    assert equal(weights_in(tmp_path / "out" / "transformer"), weights_in(wan / "transformer"))


def test_what_is_written_in_pieces_is_a_safetensors_file_as_the_library_writes_it(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 5).bfloat16(),
        "one": torch.randn(7),
        "number": torch.tensor(3),
        "byte": torch.arange(3, dtype=torch.uint8),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "library.safetensors")
    found = tensors_of(tmp_path / "library.safetensors")
    write_shards(tmp_path / "out", "model", {name: Made((one,), one.dtype) for name, one in found.items()})
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)


# --- generators ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        "model.{}",
        "model._fsdp_wrapped_module.{}",
        "model._orig_mod.{}",
        "module.model.{}",
        "{}",
        "base_model.model.{}",
        "model._fsdp_wrapped_module.BLOCK",
    ],
)
def test_a_generator_behind_any_wrapper_becomes_a_student(wrap: str, wan: Path, tmp_path: Path) -> None:
    model = build_tiny_transformer(seed=5)

    def named(name: str) -> str:
        if "BLOCK" in wrap:
            parts = name.split(".")
            inside = [*parts[:2], "_checkpoint_wrapped_module", "_fsdp_wrapped_module", *parts[2:]]
            name = ".".join(inside if parts[0] == "blocks" else parts)
        return wrap.replace("BLOCK", "{}").format(name)

    wrapped = {named(name): tensor for name, tensor in native_weights(model).items()}
    torch.save({"generator": wrapped, "critic": {"x": torch.zeros(1)}, "step": 7}, tmp_path / "g.pt")
    assert run(tmp_path / "g.pt", *STUDENT, "--base", wan, "-o", tmp_path / "student") == 0
    student = open_folder(wan).transformer_at(CausalWanTransformer3DModel, tmp_path / "student")
    assert equal(dict(student.state_dict()), dict(model.state_dict()))
    settings = {key: student.config[key] for key in KNOWN["self-forcing"]}
    assert settings == {**KNOWN["self-forcing"], "passes": list(KNOWN["self-forcing"]["passes"])}


def test_the_average_is_taken_unless_told_otherwise(tmp_path: Path) -> None:
    last, average = build_tiny_transformer(seed=1), build_tiny_transformer(seed=2)
    torch.save({"generator": native_weights(last), "generator_ema": native_weights(average)}, tmp_path / "g.pt")
    assert run(tmp_path / "g.pt", *STUDENT, "-o", tmp_path / "a") == 0
    assert run(tmp_path / "g.pt", *STUDENT, "--which", "generator", "-o", tmp_path / "b") == 0
    assert equal(weights_in(tmp_path / "a"), dict(average.state_dict()))
    assert equal(weights_in(tmp_path / "b"), dict(last.state_dict()))


def test_our_own_export_comes_back(tmp_path: Path) -> None:
    model = build_tiny_transformer(seed=4)
    save_self_forcing(model, tmp_path / "g.pt")
    assert (
        run(tmp_path / "g.pt", "--like", "aad1", "--head-dim", "16", "--passes", "1", "0.5", "-o", tmp_path / "s") == 0
    )
    assert equal(weights_in(tmp_path / "s"), dict(model.state_dict()))
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert (config["_class_name"], config["passes"], config["sink_size"]) == (
        "CausalWanTransformer3DModel",
        [1.0, 0.5],
        1,
    )


def test_a_student_goes_native_and_keeps_its_settings_in_diffusers_layout(tmp_path: Path) -> None:
    student = build_tiny_transformer(CausalWanTransformer3DModel, seed=6, sink_size=2, passes=(1.0, 0.5))
    save_transformer(student, tmp_path / "s")
    assert run(tmp_path / "s", "--dtype", "float16", "-o", tmp_path / "half") == 0
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (config["_class_name"], config["sink_size"]) == ("CausalWanTransformer3DModel", 2)
    assert run(tmp_path / "s", "--to", "native", "-o", tmp_path / "n") == 0
    assert equal(weights_in(tmp_path / "n"), native_weights(student))


def test_the_known_projects_are_those_that_the_option_allows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert ",".join(KNOWN) in "".join(capsys.readouterr().out.replace("│", "").split())


# --- adapters --------------------------------------------------------------------------------


def adapters_for(model: Any, form: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Low-rank pairs for two layers, and the weights they should give, by diffusers' names."""
    weights = dict(model.state_dict())
    table = native_names(weights)
    pairs: dict[str, Tensor] = {}
    for name in ("blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"):
        up, down = torch.randn(weights[name].shape[0], 4), torch.randn(4, weights[name].shape[1])
        layer = table[name].removesuffix(".weight")
        if form == "peft":
            pairs |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
            scale = 8 / 4
        else:
            layer = f"diffusion_model.{layer}"
            pairs |= {
                f"{layer}.lora_down.weight": down,
                f"{layer}.lora_up.weight": up,
                f"{layer}.alpha": torch.tensor(2.0),
            }
            scale = 2 / 4
        weights[name] = weights[name] + scale * up @ down
    return pairs, weights


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_adapters_are_merged_into_their_base(form: str, wan: Path, tmp_path: Path) -> None:
    model = build_tiny_transformer()
    pairs, expected = adapters_for(model, form)
    torch.save({"generator_lora": pairs}, tmp_path / "lora.pt")
    save_self_forcing(model, tmp_path / "base.pt")
    alpha = ("--lora-alpha", "8") if form == "peft" else ()
    assert run(tmp_path / "base.pt", "--lora", tmp_path / "lora.pt", *alpha, *STUDENT, "-o", tmp_path / "a") == 0
    assert run(tmp_path / "lora.pt", "--base", wan, *alpha, *STUDENT, "-o", tmp_path / "b") == 0
    for out in ("a", "b"):
        found = weights_in(tmp_path / out)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
        report = json.loads((tmp_path / out / "conversion.json").read_text())
        assert report["parts"][0]["merged"] == 2


def test_wrapped_peft_layers_merge_with_the_weights_beside_them(tmp_path: Path) -> None:
    model = build_tiny_transformer()
    pairs, expected = adapters_for(model, "peft")
    layers = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in pairs}
    held = {
        f"model.base_model.model.{re.sub(r'.weight$', '.base_layer.weight', name) if name[:-7] in layers else name}": x
        for name, x in native_weights(model).items()
    }
    held |= {f"model.{name.replace('.weight', '.default.weight')}": tensor for name, tensor in pairs.items()}
    torch.save({"generator": held}, tmp_path / "g.pt")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    assert run(tmp_path / "g.pt", *STUDENT, "-o", tmp_path / "out") == 0
    found = weights_in(tmp_path / "out")
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, _ = adapters_for(build_tiny_transformer(), "peft")
    save_self_forcing(build_tiny_transformer(), tmp_path / "base.pt")
    words = (tmp_path / "base.pt", *STUDENT, "--lora", tmp_path / "lora.pt", "-o", tmp_path / "out")

    def refusal(pairs: dict[str, Tensor], *more: str) -> str:
        torch.save({"generator_lora": pairs}, tmp_path / "lora.pt")
        return refused(capsys, *words, *more)

    assert "without their alpha, and no adapter_config.json" in refusal(pairs)
    elsewhere = {name.replace("blocks.0", "blocks.9"): tensor for name, tensor in pairs.items()}
    assert "belongs to no weight of this model" in refusal(elsewhere, "--lora-alpha", "8")
    narrow = {name: tensor[:, :9] if "lora_A" in name else tensor for name, tensor in pairs.items()}
    assert "is for another model: it changes 32 x 9" in refusal(narrow, "--lora-alpha", "8")
    odd = {name: tensor[:3] if "lora_A" in name else tensor for name, tensor in pairs.items()}
    assert "does not fit together" in refusal(odd, "--lora-alpha", "8")
    torch.save({"generator_lora": pairs}, tmp_path / "lora.pt")
    alone = refused(capsys, tmp_path / "lora.pt", *STUDENT, "--lora-alpha", "8", "-o", tmp_path / "out")
    assert "there are only low-rank adapters in it" in alone
    assert not (tmp_path / "out").exists()


# --- bad input -------------------------------------------------------------------------------


class Bomb:
    """A pickle that writes a file when it is read carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def claim_too_much(file: Path) -> None:
    """A safetensors header whose tensors overlap."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("w.safetensors", cut, "damaged or cut off"),
        ("w.safetensors", claim_too_much, "damaged or cut off"),
        ("w.safetensors", lambda file: file.write_bytes(b""), "it is empty"),
        ("w.safetensors", lambda file: file.write_text("hello" * 99), "damaged or cut off"),
        ("w.pt", cut, "damaged or cut off"),
        ("w.pt", lambda file: file.write_bytes(b""), "it is empty"),
        ("w.pt", lambda file: file.write_text("hello" * 99), "it is no checkpoint"),
        ("w.pt", lambda file: torch.save([1, 2], file), "holds a list"),
        ("w.pt", lambda file: torch.save({"step": 3}, file), "holds no tensors: its entries are step"),
        ("w.pt", lambda file: torch.save({"generator": Bomb(file.parent / "boom")}, file), "could run code"),
        ("w.pt", lambda file: file.write_bytes(pickle.dumps(Bomb(file.parent / "boom"))), "it is no checkpoint"),
        (
            "w.pt",
            lambda file: torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=False),
            "in an old format",
        ),
        ("w.mp4", lambda file: file.write_bytes(b"x"), "allowed are files ending in .safetensors, .pt"),
    ],
)
def test_a_bad_file_costs_one_line(
    name: str, spoil: Callable[[Path], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    weights = native_weights(build_tiny_transformer())
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save({"generator": weights}, file)
    spoil(file)
    assert message in refused(capsys, file, *STUDENT, "-o", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {name}  # nothing written, nothing run


def widened(weights: dict[str, Tensor]) -> None:
    weights["blocks.1.ffn.0.weight"] = torch.zeros(65, 32)


def without_a_layer(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if name.startswith("blocks.0.cross_attn.k")]:
        del weights[name]


def as_image_model(weights: dict[str, Tensor]) -> None:
    weights["img_emb.proj.0.weight"] = torch.zeros(4)


def with_two_names(weights: dict[str, Tensor]) -> None:
    weights["model.head.modulation"] = weights["head.modulation"].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (widened, "1 tensors have the wrong shape, such as 'blocks.1.ffn.0.weight'"),
        (without_a_layer, "67 match: 2 missing (blocks.0.attn2.to_k.bias, blocks.0.attn2.to_k.weight)"),
        (lambda weights: weights.update({"extra.bias": torch.zeros(1)}), "69 match: 1 unexpected (extra.bias)"),
        (as_image_model, "image-to-video or other special model ('img_emb.proj.0.weight')"),
        (with_two_names, "holds 'head.modulation' twice"),
        (lambda weights: weights.pop("patch_embedding.weight"), "'patch_embedding.weight' is missing"),
        (lambda weights: weights.update({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 32)}), "half there"),
    ],
)
def test_weights_that_do_not_match_are_refused(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = native_weights(build_tiny_transformer())
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    assert message in refused(capsys, tmp_path / "w.pth", "--head-dim", "16", "-o", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"w.pth"}


def test_a_partial_match_is_completed_from_the_base_when_told(
    wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = native_weights(build_tiny_transformer(seed=7))
    without_a_layer(weights)
    weights["extra.bias"] = torch.zeros(1)
    torch.save(weights, tmp_path / "w.pth")
    partial = (tmp_path / "w.pth", "--head-dim", "16", "--allow-partial", "-o", tmp_path / "out")
    assert "there is no --base to take it from" in refused(capsys, *partial)
    assert run(*partial, "--base", wan) == 0
    found, base = weights_in(tmp_path / "out"), weights_in(wan / "transformer")
    changed = {name for name in found if not torch.equal(found[name], base[name])}
    assert not {name for name in changed if name.startswith("blocks.0.attn2.to_k")}
    assert len(changed) > 40
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())["parts"][0]
    assert (report["matched"], len(report["missing"]), report["unexpected"]) == (67, 2, ["extra.bias"])


def test_bad_folders_are_refused(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoilt(name: str, spoil: Callable[[Path], Any]) -> str:
        copy = Path(shutil.copytree(native, tmp_path / name))
        spoil(copy)
        line = refused(capsys, copy, "-o", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return line

    def deeper(copy: Path) -> None:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "num_layers": 30}))

    def claimed_twice(copy: Path) -> None:
        (copy / "diffusion_pytorch_model.safetensors.index.json").unlink()
        shard = next(copy.glob("*.safetensors"))
        shutil.copy(shard, copy / "again.safetensors")

    def outside(copy: Path) -> None:
        index = copy / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')

    def other_vae(copy: Path) -> None:
        torch.save({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, copy / "Wan2.1_VAE.pth")

    assert "says num_layers 30, but the weights have 2" in spoilt("config", deeper)
    assert "hold '" in spoilt("twice", claimed_twice)
    assert "outside its folder" in spoilt("index", outside)
    assert "files that are missing" in spoilt("shard", lambda copy: next(copy.glob("*.safetensors")).unlink())
    assert "not the weights of a Wan model of this kind" in spoilt("vae", other_vae)
    assert "lacks Wan2.1_VAE.pth" in spoilt("no_vae", lambda copy: (copy / "Wan2.1_VAE.pth").unlink())
    assert "holds no tokenizer" in spoilt(
        "no_tokenizer", lambda c: [f.unlink() for f in (c / "google/umt5-xxl").iterdir()]
    )
    assert "cannot read" in spoilt("torn", lambda copy: (copy / "config.json").write_text("{"))


def test_a_full_disk_leaves_nothing(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[Path] = []

    def full(path: Path, *_: Any) -> None:
        begun.append(path)
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_write_safetensors", full)
    assert "the disk is full" in refused(capsys, wan, "--to", "native", "-o", tmp_path / "out")
    assert begun
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced_unasked(wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(wan, tmp_path / "wan"))
    before = folder_hash(copy)
    save_self_forcing(build_tiny_transformer(), tmp_path / "g.pt")
    assert "is there already" in refused(
        capsys, tmp_path / "g.pt", *STUDENT, "--base", copy, "-o", copy / "transformer"
    )
    assert "holds the source" in refused(capsys, copy, "-o", copy, "--overwrite")
    assert "say with -o" in refused(capsys, copy)
    assert "--like is for a single transformer" in refused(capsys, copy, "--like", "aad1", "-o", tmp_path / "out")
    assert "give --num-frames-per-block" in refused(
        capsys, tmp_path / "g.pt", "--head-dim", "16", "-o", tmp_path / "out"
    )
    assert "noise levels must begin at 1" in refused(
        capsys, tmp_path / "g.pt", *STUDENT, "--passes", "0.5", "-o", tmp_path / "out"
    )
    assert folder_hash(copy) == before
    assert run(tmp_path / "g.pt", *STUDENT, "--base", copy) == 0
    assert open_folder(copy).transformers == ("student", "transformer")


def test_a_student_of_another_model_does_not_fit_the_base(
    wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_self_forcing(build_tiny_transformer(in_channels=48, out_channels=48), tmp_path / "g.pt")
    line = refused(capsys, tmp_path / "g.pt", *STUDENT, "--base", wan, "-o", tmp_path / "out")
    assert "in_channels of the transformer and z_dim of the VAE must be equal, but are 48 and 16" in line
