"""Exports: loaded by stock libraries without this package, the same frames, whole or not at all."""

from __future__ import annotations

import ast
import errno
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import build_tiny_transformer, with_student
from diffusers import WanTransformer3DModel
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aad1.cli import main
from aad1.errors import UserError
from aad1.evaluation.intervals import Interval
from aad1.evaluation.report import Column, Report, Table, write_report
from aad1.exporting import bundle as bundling
from aad1.exporting import source
from aad1.exporting.bundle import Bundle
from aad1.exporting.pipeline import as_pixels
from aad1.exporting.source import open_source
from aad1.exporting.writing import MARK, export
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder, save_transformer
from aad1.streaming import load_student

PROMPT, THEN = "a red disc moves left slowly", "a blue square moves up"
FRAMES, CHUNKS = 20, 2
WITHOUT_AAD1 = """
import runpy, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "aad1":
            raise ImportError("aad1 is not here")

sys.meta_path.insert(0, Refused())
try:
    import aad1
    raise SystemExit("aad1 can be imported")
except ImportError:
    pass

import numpy as np, torch
from diffusers import DiffusionPipeline

folder, still, prompt, then = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
frames = pipe(still, prompt, num_frames={frames}, seed=3).frames[0]
session = pipe.session(still, prompt, seed=3)
chunks = []
for chunk in session.chunks():
    chunks.append(chunk)
    if len(chunks) == {chunks}:
        break
    session.switch(then)
np.savez("made.npz", frames=np.stack([np.asarray(frame) for frame in frames]), steered=np.concatenate(chunks))
card = open(folder + "/README.md").read().split("```python")[1].split("```")[0]
for said, here in (("FOLDER_OR_ID", folder), ("bfloat16", "float32"), ("cuda", "cpu"), ("seconds=5", "seconds=0.5")):
    assert said in card
    card = card.replace(said, here)
exec(card)
sys.argv = ["example.py", still, prompt, "--chunks", "{chunks}", "-o", "made.webp"]
runpy.run_path(folder + "/example.py", run_name="__main__")
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("aad1", "av")))
"""


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("still") / "still.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A Wan folder with a student for pictures of 32 x 48."""
    return with_student(tiny_folder, tmp_path_factory.mktemp("export") / "wan", (32, 48))


@pytest.fixture(scope="module")
def exported(wan: Path) -> Path:
    return export(open_source(str(wan), "student", base="someone/Some-Model"), "diffusers", wan.parent / "exported")


# --- the diffusers folder ---------------------------------------------------------------------


def assert_same_frames(made: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """Where a tensor lies decides on a CPU which of its numbers are added first: a level on a pixel or two."""
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert np.mean(made != expected) < 1e-4


def test_a_process_without_aad1_makes_the_same_frames(exported: Path, wan: Path, still: Path, tmp_path: Path) -> None:
    code = WITHOUT_AAD1.replace("{frames}", str(FRAMES)).replace("{chunks}", str(CHUNKS))
    shutil.copy(still, tmp_path)
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    env.pop("PYTHONPATH", None)
    words = [sys.executable, "-c", code, str(exported), str(still), PROMPT, THEN]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Expected types" not in done.stderr
    made = np.load(tmp_path / "made.npz")
    student = load_student(str(wan), device="cpu")
    picture = np.asarray(Image.open(still))
    whole = np.concatenate(list(student.session(picture, PROMPT, seed=3).frames(FRAMES)))
    assert_same_frames(made["frames"], whole)
    session = student.session(picture, PROMPT, seed=3)
    chunks = session.chunks()
    first = next(chunks)
    session.switch(THEN)
    steered = np.concatenate([first, next(chunks)])
    assert_same_frames(made["steered"], steered)
    assert (steered != np.concatenate(list(student.session(picture, PROMPT, seed=3).frames(len(steered))))).any()
    with Image.open(tmp_path / "made.webp") as film:
        assert (film.n_frames, film.size) == (len(steered), (48, 32))
    with Image.open(tmp_path / "video.webp") as film:
        assert film.n_frames == 8


def test_our_own_commands_take_the_export(exported: Path, wan: Path, still: Path, tmp_path: Path) -> None:
    asked = ["--image", str(still), "--prompt", PROMPT, "--seconds", "1", "--device", "cpu", "--scale", "1"]
    for model, out in ((exported, "exported"), (wan, "wan")):
        assert main(["generate", "--model", str(model), *asked, "-o", str(tmp_path / out)]) == 0
    pictures = sorted(path.name for path in (tmp_path / "wan").glob("*.png"))
    assert len(pictures) == 16
    for name in pictures:
        one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("exported", "wan"))
        np.testing.assert_array_equal(one, other)


def test_weights_survive_two_exports(exported: Path, wan: Path, tmp_path: Path) -> None:
    again = export(open_source(str(exported), "student"), "diffusers", tmp_path / "again")
    for part in ("vae", "text_encoder", "transformer"):
        own = wan / ("student" if part == "transformer" else part)
        for file in own.glob("*.safetensors"):
            for folder in (exported, again):
                assert (folder / part / file.name).read_bytes() == file.read_bytes()
    own, theirs = (
        open_folder(f).transformer_at(CausalWanTransformer3DModel, f / p).config
        for f, p in ((wan, "student"), (again, "transformer"))
    )
    assert {k: v for k, v in own.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}


def test_stock_diffusers_reads_it_as_a_bidirectional_model(exported: Path, wan: Path) -> None:
    stock = WanTransformer3DModel.from_pretrained(exported, subfolder="transformer")
    ours = open_folder(wan).transformer(CausalWanTransformer3DModel, "student")
    torch.manual_seed(0)
    latents, text = torch.randn(1, 16, 5, 4, 6), torch.randn(1, 7, 64)
    with torch.no_grad():
        theirs = stock(latents, torch.tensor([700.0]), text).sample
        full = ours(latents, torch.full((1, 5), 0.7), text, visibility="full")
    assert (theirs - full).abs().max() < 1e-5


def test_a_student_of_a_plain_class_gets_the_whole_config(tmp_path: Path, tiny_folder: Path) -> None:
    save_transformer(build_tiny_transformer(seed=4), tmp_path / "plain", as_stock=True)
    out = export(open_source(str(tiny_folder), str(tmp_path / "plain")), "diffusers", tmp_path / "out")
    config = json.loads((out / "transformer" / "config.json").read_text())
    assert (config["_class_name"], config["local_attn_size"]) == ("CausalWanTransformer3DModel", 9)


def test_half_precision_is_that_of_transformer_and_text_encoder(wan: Path, tmp_path: Path) -> None:
    out = export(open_source(str(wan), "student", dtype=torch.bfloat16), "diffusers", tmp_path / "half")
    found = {
        part: {v.dtype for f in (out / part).glob("*.safetensors") for v in load_file(f).values()}
        for part in ("transformer", "text_encoder", "vae")
    }
    assert found == {"transformer": {torch.bfloat16}, "text_encoder": {torch.bfloat16}, "vae": {torch.float32}}


def test_shards_are_cast_and_their_index_says_their_size(wan: Path, tmp_path: Path) -> None:
    model = open_folder(wan).transformer(CausalWanTransformer3DModel, "student")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    given = open_source(str(wan), str(tmp_path / "sharded"), dtype=torch.float16)
    out = export(given, "diffusers", tmp_path / "out")
    index = json.loads(next((out / "transformer").glob("*.index.json")).read_text())
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in model.parameters())
    loaded = open_folder(out).transformer(CausalWanTransformer3DModel)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name


def test_no_path_of_the_machine_travels(wan: Path, tmp_path: Path) -> None:
    shutil.copytree(wan, tmp_path / "wan")
    for part in ("student", "vae", "text_encoder"):
        config = tmp_path / "wan" / part / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "/somebody/secret"}))
    out = export(open_source(str(tmp_path / "wan"), "student"), "diffusers", tmp_path / "out")
    assert not [name for name, held in tree(out).items() if b"secret" in held or str(tmp_path).encode() in held]


def test_pictures_may_come_in_many_forms(still: Path) -> None:
    pixels = np.asarray(Image.open(still))
    for given in (still, str(still), Image.open(still), pixels):
        np.testing.assert_array_equal(as_pixels(given), pixels)
    for wrong in (pixels / 255, pixels[0], pixels[..., :1]):
        with pytest.raises(UserError, match="uint8"):
            as_pixels(wrong)


def test_what_other_formats_are_given(wan: Path) -> None:
    given = open_source(str(wan), "student")
    model = given.load_generator()
    assert (given.stored_dtype, model.dtype) == (torch.float32, torch.float32)
    assert replace(given, dtype=torch.bfloat16).load_generator().dtype == torch.bfloat16
    assert model.state_dict().keys() == given.skeleton.state_dict().keys()


# --- the card ---------------------------------------------------------------------------------


def front_matter(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_the_card_says_what_is_known(exported: Path, wan: Path, tmp_path: Path) -> None:
    fields = front_matter(exported)
    assert fields["license"] == "apache-2.0"
    assert fields["pipeline_tag"] == "image-to-video"
    assert fields["library_name"] == "diffusers"
    assert fields["base_model"] == "someone/Some-Model"
    assert "Apache License" in (exported / "LICENSE").read_text()
    card = (exported / "README.md").read_text()
    assert "| picture, height x width | 32 x 48 |" in card
    assert "Evaluation" not in card
    unknown = export(open_source(str(wan), "student"), "diffusers", tmp_path / "unknown")
    assert "base_model" not in front_matter(unknown)
    assert str(wan) not in card


def test_the_card_has_the_report_that_is_given(wan: Path, tmp_path: Path) -> None:
    columns = [Column("rho", "speed ratio", "1", "speed beside the truth's")]
    rows = {"student": {"rho": Interval(0.93, 0.9, 0.96)}, "frozen": {"rho": None}}
    write_report(Report("world", "On the world", {}, columns, [Table("short", rows, {"student": 4})]), tmp_path)
    given = open_source(str(wan), "student", report=tmp_path / "report.json")
    card = (export(given, "diffusers", tmp_path / "out") / "README.md").read_text()
    assert "### On the world" in card
    assert "| speed ratio | 1 | 0.93 [0.90, 0.96] | N/A |" in card


# --- one source of truth ----------------------------------------------------------------------


@pytest.mark.parametrize("file", ["aad1_pipeline.py", "transformer/aad1_transformer.py"])
def test_exported_code_is_made_of_the_sources(exported: Path, file: str) -> None:
    text = (exported / file).read_text()
    tree = ast.parse(text)
    held = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.Assign)]
    module = ""
    for node in held:
        above = [line for line in text.splitlines()[: node.lineno] if line.startswith("# --- aad1.")]
        module = above[-1].split()[2]
        own = inspect.getsource(importlib.import_module(module))
        assert ast.get_source_segment(text, node) in own, (module, node.lineno)
    assert len(held) > 15
    assert module == ("aad1.exporting.pipeline" if file == "aad1_pipeline.py" else "aad1.models.causal_wan")
    assert "import aad1" not in text
    assert "from aad1" not in text
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F811,F401,E9", str(exported / file)]
    found = subprocess.run(ruff, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """Bundles ``root`` of module ``b`` of a package that is written for one test."""

    def write(root: str = "root", **modules: str) -> Bundle:
        name = f"toy{tmp_path.name.replace('-', '_')}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(text.replace("PKG", name))
        monkeypatch.setattr(bundling, "PACKAGE", name)
        monkeypatch.syspath_prepend(str(tmp_path))
        return Bundle(((f"{name}.b", root),))

    return write


def test_a_bundle_holds_what_is_needed_in_order(package: Callable[..., Bundle]) -> None:
    a = "import json\nimport av\n\nONE = 1\n# why\nTWO = ONE + 1\n\n\ndef unused():\n    return json, av\n"
    b = "import math as m\nfrom PKG.a import TWO\n\n\ndef root():\n    return m.floor(TWO + 0.5)\n"
    text = "\n".join(package(a=a, b=b)._import_lines())
    assert text == "import math as m"


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        ("X = 1\ndef f(): return X\n", "from PKG.a import f\nX = 2\ndef root(): return f() + X\n", "'X' would be"),
        ("def f(): return 1\n", "from PKG.a import f as g\ndef root(): return g()\n", "renames f"),
        ("def open(): return 1\n", "from PKG.a import open\ndef root(): return open()\n", "'open'"),
        ("def f(): return 1\n", "def root():\n    from PKG.a import f\n    return f()\n", "inside a function"),
    ],
)
def test_what_cannot_be_bundled_is_refused(package: Callable[..., Bundle], a: str, b: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        package(a=a, b=b)


# --- what is refused --------------------------------------------------------------------------


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command refuses."""
    assert main(["export", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    line = [part for part in said if part.startswith("aad1: ")]
    assert len(line) == 1, said
    assert len(line[0]) < 500
    return line[0]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_export_command(wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(wan), "-o", str(tmp_path / "out")]
    assert main(["export", *words]) == 0
    assert "MB" in capsys.readouterr().out
    before = tree(tmp_path / "out")
    assert json.loads(before[MARK])["format"] == "diffusers"
    assert "--overwrite" in complaint(capsys, *words)
    (tmp_path / "out" / "stale.txt").write_text("left by an earlier version")
    assert main(["export", *words, "--overwrite"]) == 0
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs -o"),
        (("--format", "difusers", "-o", "{tmp}/out"), "did you mean 'diffusers'"),
        (("--student", "nobody", "-o", "{tmp}/out"), "no student 'nobody'"),
        (("-o", "{wan}/out"), "within"),
        (("-o", "{wan}/.."), "within"),
        (("-o", "{tmp}/full"), "no export"),
        (("-o", "{tmp}/full", "--overwrite"), "no export"),
        (("-o", "{tmp}/file"), "is a file"),
        (("--report", "{tmp}/file", "-o", "{tmp}/out"), "damaged"),
        (("--report", "{tmp}/nothing", "-o", "{tmp}/out"), "no report"),
        (("--base_model", "a/b/c", "-o", "{tmp}/out"), "'a/b/c' is no id"),
        (("--dtype", "int8", "-o", "{tmp}/out"), "'--dtype'"),
        (("--student", "{tmp}/other", "-o", "{tmp}/out"), "must be equal"),
        (("--student", "{tmp}/torn", "-o", "{tmp}/out"), "cannot read"),
        (("--student", "{tmp}/bare", "-o", "{tmp}/out"), ".safetensors"),
    ],
)
def test_mistakes_get_one_line(
    words: Sequence[str], said: str, wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.txt").write_text("mine")
    (tmp_path / "file").write_text("[")
    config = build_tiny_transformer(CausalWanTransformer3DModel)
    for name in ("torn", "bare"):
        save_transformer(config, tmp_path / name)
    (weights,) = (tmp_path / "torn").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    next((tmp_path / "bare").glob("*.safetensors")).rename(tmp_path / "bare" / "diffusion_pytorch_model.bin")
    save_transformer(build_tiny_transformer(CausalWanTransformer3DModel, text_dim=32), tmp_path / "other")
    before = tree(wan.parent)
    given = [word.format(tmp=tmp_path, wan=wan) for word in ("--model", "{wan}", *words)]
    assert said in complaint(capsys, *given)
    assert not (tmp_path / "out").exists()
    assert tree(wan.parent) == before
    assert (tmp_path / "full" / "holiday.txt").read_text() == "mine"


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "twice"])
def test_weights_that_do_not_fit_their_config(change: str, wan: Path, tmp_path: Path) -> None:
    shutil.copytree(wan / "student", tmp_path / "student")
    (path,) = (tmp_path / "student").glob("*.safetensors")
    held = load_file(path)
    if change == "missing":
        del held["proj_out.weight"]
    elif change == "unexpected":
        held["extra"] = torch.zeros(1)
    elif change == "shape":
        held["proj_out.bias"] = torch.zeros(3)
    else:
        shutil.copy(path, path.with_name("more.safetensors"))
    save_file(held, path)
    with pytest.raises(UserError, match="student"):
        open_source(str(wan), str(tmp_path / "student"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_becomes_full_leaves_everything_as_it_was(
    overwrite: bool, wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(wan), "-o", str(tmp_path / "out"), *(["--overwrite"] if overwrite else [])]
    if overwrite:
        assert main(["export", *words]) == 0
    before, copied = tree(tmp_path), []

    def copy(path: Path, target: Path, advance: object) -> None:
        copied.append(path)
        if len(copied) == 3:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        shutil.copyfile(path, target)

    monkeypatch.setattr(source, "copy_file", copy)
    assert "the disk is full" in complaint(capsys, *words)
    assert len(copied) == 3
    assert tree(tmp_path) == before
    assert [f for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_safetensors_own_error_is_one_line(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path, dtype: torch.dtype) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(source, "recast", fails)
    assert "No space left" in complaint(capsys, "--model", str(wan), "--dtype", "float16", "-o", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_beforehand(wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = open_source(str(wan), "student")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=given.bytes - 1))
    with pytest.raises(UserError, match="free some space"):
        export(given, "diffusers", tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
