"""The command line: the whole way in seconds, a real kill and resume, and one plain line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_transformer
from diffusers import WanPipeline
from test_loop import assert_identical, last_state

from aad1.assembly import Assembly
from aad1.cli import main, parse
from aad1.cli.options import out_of
from aad1.data.clips import write_world_folder
from aad1.data.latents import LatentStore
from aad1.data.media import VideoWriter
from aad1.data.world import make_clip
from aad1.errors import UserError
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import folder_hash, open_folder, save_transformer
from aad1.recipe import load_recipe
from aad1.stages import vae as vae_stage
from aad1.training import metrics
from aad1.training.metrics import read_metrics
from aad1.workspace import DISTILLATION, Workspace

FRAMES = 17
COMMON = [
    *("--threads=1", "--device=cpu", f"--data.frames={FRAMES}", "--data.clips=2", "--data.validation=1"),
    *("--showing.clips=1", "--showing.teacher.steps=1", "--trajectories.count=4", "--trajectories.batch=4"),
    *("--trajectories.steps=4", "--adversarial.head_start=0", "--adversarial.critic.layers=[0,1]"),
    *("--text.captions=64", "--text.validation=16", "--vae.window=16", "--vae.frames=5"),
]
ONE_STEP = [f"--{s}.{k}=1" for s in ("text", "vae", "teacher", *DISTILLATION) for k in ("steps", "batch")]
SMALL_PARTS = [
    *("--new.vae.base_dim=4", "--new.vae.decoder_base_dim=4", "--new.transformer.num_layers=2"),
    *("--new.transformer.ffn_dim=64", "--new.transformer.num_attention_heads=2"),
    "--new.transformer.attention_head_dim=16",
]


@pytest.fixture(autouse=True)
def _as_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` replaces the way warnings are shown; TensorBoard takes seconds to import."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)


@dataclass(frozen=True)
class Prepared:
    """A Wan folder, and a workspace with clips and trajectories made from it."""

    model: Path
    root: Path

    def options(self, root: Path | None = None) -> list[str]:
        return [*COMMON, *ONE_STEP, "--model", str(self.model), "-o", str(root or self.root)]

    def copy(self, folder: Path) -> Path:
        """Its stores in a workspace of one's own."""
        for name in ("clips", "validation", "trajectories", "text_cache"):
            shutil.copytree(self.root / name, folder / name)
        return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Prepared:
    found = Prepared(tiny_folder, tmp_path_factory.mktemp("prepared"))
    for what in ("clips", "trajectories"):
        assert main(["prepare", what, *found.options()]) == 0
    return found


@pytest.fixture
def work(prepared: Prepared, tmp_path: Path) -> Callable[..., list[str]]:
    """Options for a copy of the prepared workspace in this test's own folder."""
    root = prepared.copy(tmp_path / "work")

    def options(*more: str) -> list[str]:
        return [*prepared.options(root), *more]

    return options


@dataclass
class Mistakes:
    """Runs commands that must fail as a user's mistake does."""

    capfd: pytest.CaptureFixture[str]

    def __call__(self, arguments: Sequence[str]) -> str:
        """The one line on stderr, without its prefix."""
        self.capfd.readouterr()
        code = main(list(arguments))
        out, err = self.capfd.readouterr()
        assert code == 2, err
        assert "Traceback" not in err + out
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("aad1: ")
        assert len(lines[0]) < 500
        return lines[0].removeprefix("aad1: ")


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture[str]) -> Mistakes:
    return Mistakes(capfd)


# --- the whole way ---------------------------------------------------------------------------


def test_from_nothing_to_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """new -> text, vae, teacher -> clips, trajectories -> the three stages, each command as in the recipe's header."""
    for name in ("STATISTICS_CLIPS", "VALIDATION_CLIPS"):
        monkeypatch.setattr(vae_stage, name, 1)
    model, root = tmp_path / "model", tmp_path / "run"
    assert main(["new", "--recipe", "tiny", str(model), *SMALL_PARTS]) == 0
    options = ["--recipe", "tiny", "--model", str(model), "-o", str(root), *COMMON, *ONE_STEP]
    hashes = {part: folder_hash(model / part) for part in ("text_encoder", "vae", "transformer")}
    assert main(["train", "text", *options, "--install"]) == 0
    assert main(["train", "vae", *options, "--install"]) == 0
    assert main(["prepare", "clips", *options]) == 0
    assert main(["train", "teacher", *options, "--install"]) == 0
    assert all(folder_hash(model / part) != before for part, before in hashes.items())
    assert main(["distill", *options, "--install"]) == 0
    student = open_folder(model).transformer(CausalWanTransformer3DModel, "student")
    exported = CausalWanTransformer3DModel.from_pretrained(Workspace(root).student("adversarial"))
    assert exported.config.size == student.config.size == [64, 64]
    for name, weight in exported.state_dict().items():
        assert torch.allclose(weight, student.state_dict()[name], atol=1e-3), name
    pipe = WanPipeline.from_pretrained(model)  # what was installed is what stock diffusers expects
    assert type(pipe.transformer).__name__ == "WanTransformer3DModel"
    for stage in ("text", "vae", "teacher", *DISTILLATION):
        assert read_metrics(root / stage / "metrics.jsonl")[-1]["step"] == 1


def test_distilling_a_folder_of_videos(tmp_path: Path, prepared: Prepared, capfd: pytest.CaptureFixture[str]) -> None:
    """The world's clips as mp4 files with captions; one of them is broken, and only it is lost."""
    videos = tmp_path / "videos"
    write_world_folder(videos, "train", 4, FRAMES)
    (videos / "z-broken-one.mp4").write_bytes(b"no video")
    (videos / "z-broken-one.txt").write_text("a red disc")
    options = [*prepared.options(tmp_path / "run"), "--data.source", str(videos), "--data.clips=4"]
    assert main(["distill", *options]) == 0
    assert "z-broken-one.mp4" in capfd.readouterr().err
    assert len(LatentStore(tmp_path / "run" / "clips")) == 3
    (row,) = read_metrics(tmp_path / "run" / "adversarial" / "metrics.jsonl")
    assert {"eval/rho", "eval/kappa", "critic/gap", "generator/loss"} <= row.keys()
    assert (tmp_path / "run" / "adversarial" / "final" / "student" / "config.json").is_file()


def test_a_list_that_grows_keeps_what_it_holds_out(tmp_path: Path, prepared: Prepared) -> None:
    root = tmp_path / "run"
    write_world_folder(tmp_path, "train", 4, FRAMES)
    lines = [
        f'{video.name},"{video.with_suffix(".txt").read_text().strip()}"' for video in sorted(tmp_path.glob("*.mp4"))
    ]
    for count in (2, 4):
        (tmp_path / "list.csv").write_text("\n".join(["video,caption", *lines[:count]]))
        source = ["--data.source", str(tmp_path / "list.csv"), "--data.clips=9"]
        assert main(["prepare", "clips", *prepared.options(root), *source]) == 0
        sources = [row["source"] for row in LatentStore(root / "clips").rows()]
        (held_out,) = [row["source"] for row in LatentStore(root / "validation").rows()]
        assert len(sources) == count - 1
        assert held_out not in sources


def test_clips_are_chosen_and_a_store_keeps_by_what(tmp_path: Path, prepared: Prepared, mistake: Mistakes) -> None:
    videos, root = tmp_path / "videos", tmp_path / "run"
    write_world_folder(videos, "train", 5, FRAMES)
    for name in ("free-00001", "free-00003"):
        shutil.copy(videos / f"train-{name}.txt", videos / f"train-{name}-still.txt")
        with VideoWriter(videos / f"train-{name}-still.mp4", fps=16) as writer:
            writer.write(make_clip("train", 0, 1).frames.repeat(FRAMES, axis=0))
    options = ["prepare", "clips", *prepared.options(root), "--data.source", str(videos), "--data.clips=9"]
    assert main([*options, "--data.selection.min_motion=0.001"]) == 0
    store = LatentStore(root / "clips")
    assert [skip.source for skip in store.skipped()] == [f"train-free-0000{k}-still.mp4" for k in (1, 3)]
    assert all("moves 0 of the 0.001 wanted" in skip.reason for skip in store.skipped())
    assert len(store) == 4
    said = mistake([*options, "--data.selection.min_motion=0.002"])
    assert "was begun with extra.selection.min_motion 0.001, this run has 0.002" in said
    world = ["prepare", "clips", *prepared.options(tmp_path / "other"), "--data.selection.min_side=9"]
    assert "the embedded world has none" in mistake(world)


def test_a_caption_with_unknown_words_costs_its_own_clip(
    tmp_path: Path, prepared: Prepared, capfd: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    write_world_folder(videos, "train", 3, FRAMES)
    max(videos.glob("*.txt")).write_text("my cat jumps")
    options = [*prepared.options(tmp_path / "run"), "--data.source", str(videos)]
    assert main(["prepare", "clips", *options]) == 0
    assert "words that this text encoder does not know: 'my', 'cat', 'jumps'" in capfd.readouterr().err
    assert len(LatentStore(tmp_path / "run" / "clips")) == 1


def test_a_corrected_command_is_not_held_to_the_mistake(mistake: Mistakes, work: Callable[..., list[str]]) -> None:
    options = work()
    shutil.rmtree(Path(options[-1]) / "trajectories")
    assert "'blurry'" in mistake(["prepare", "trajectories", *options, "--negative_prompt", "blurry"])
    assert main(["prepare", "trajectories", *options]) == 0


def test_what_is_finished_is_not_done_again(work: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ode_init", *work()]) == 0
    capfd.readouterr()
    assert main(["distill", *work("--resume")]) == 0
    shown = capfd.readouterr().err
    assert "ode_init 1/1" not in shown
    assert "adversarial 1/1" in shown
    assert "Denoising" not in shown


# --- killed, interrupted, resumed -----------------------------------------------------------


SLOW = ["--ode_init.steps=6", "--ode_init.save_every=2", "--ode_init.log_every=1", "--ode_init.evaluate_every=3"]


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stderr:
        return subprocess.Popen([sys.executable, "-m", "aad1", *arguments], stderr=stderr, env=environment)


def wait_for(process: subprocess.Popen[bytes], path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_and_interrupted_command_resumes_bit_for_bit(
    tmp_path: Path, prepared: Prepared, work: Callable[..., list[str]]
) -> None:
    unbroken, broken = prepared.copy(tmp_path / "unbroken") / "ode_init", tmp_path / "work" / "ode_init"
    assert main(["train", "ode_init", *prepared.options(unbroken.parent), *SLOW]) == 0
    log = tmp_path / "stderr"

    command = ["train", "ode_init", *work(*SLOW)]
    process = start(command, log)
    wait_for(process, broken / "checkpoints" / "step-00000002")
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start([*command, "--resume"], log)
    try:
        wait_for(process, broken / "checkpoints" / "step-00000004")
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        last = log.read_text().splitlines()[-1]
        assert last.startswith("aad1: saved at step ")
        assert "go on with --resume" in last
    finally:
        process.kill()

    assert main([*command, "--resume"]) == 0
    assert (broken / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert_identical(last_state(broken), last_state(unbroken))
    weights = [CausalWanTransformer3DModel.from_pretrained(f / "final" / "student") for f in (broken, unbroken)]
    for (name, one), other in zip(weights[0].state_dict().items(), weights[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_ctrl_c_before_anything_is_said_plainly(
    work: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Assembly, "stage", interrupted)
    assert main(["train", "ode_init", *work()]) == 130
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("aad1: interrupted; what was finished is kept")
    monkeypatch.setattr("aad1.cli.generating.make_clip", interrupted)
    assert main(["world-image", "0"]) == 130
    assert capfd.readouterr().err == "aad1: interrupted; nothing was written\n"


# --- mistakes: recipe and arguments ----------------------------------------------------------


def test_no_arguments_show_what_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    shown = "".join(capfd.readouterr())
    assert stop.value.code == 0
    assert all(name in shown for name in ("new", "prepare", "train", "distill", "--help"))


def test_help_says_what_each_command_does(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, words in {
        ("--help",): ("distill", "Run one training stage"),
        ("train", "--help"): ("ode_init", "--resume", "For example: aad1 train"),
        ("distill", "--help"): ("--recipe", "For example: aad1 distill"),
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        shown = " ".join(capfd.readouterr().out.split())
        assert stop.value.code == 0
        assert all(word in shown for word in words)


@pytest.mark.parametrize(
    "arguments", [["train", "od_init"], ["prepare", "clip"], ["tarin"], ["generate", "--seconds", "abc"]]
)
def test_an_unknown_word_names_those_allowed(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert err.startswith("aad1: ")
    assert err.count("\n") == 1
    assert {"train": "'ode_init'", "prepare": "'trajectories'", "tarin": "'train'", "generate": "--seconds"}[
        arguments[0]
    ] in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "nowhere.yaml"], "no recipe file nowhere.yaml; give a YAML file, or one of: "),
        (["--recipe", "tinny"], "no recipe 'tinny'; did you mean 'tiny'?"),
        (["--ode_init.step", "3"], "unknown recipe key 'ode_init.step'; did you mean 'steps'?"),
        (["--ode_init.steps", "three"], "ode_init.steps: Input should be a valid integer"),
        (["--ode_init.steps"], "--ode_init.steps needs a value"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available here; use auto, cpu, or a GPU"),
        (["--device", "toaster"], "device 'toaster' is not available here"),
        (["--model", "nosuch"], "no bundled model is named 'nosuch'"),
        (["--model", "./nosuch"], "is not a folder; give a Wan T2V folder in diffusers' layout"),
        (["--student.passes", "[0.5]"], "passes must fall from 1"),
    ],
)
def test_wrong_options(
    mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in mistake(["train", "ode_init", *work(*options)])


def test_an_unreadable_recipe(mistake: Mistakes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"seed: [0\n  model: }")
    assert "cannot read the recipe" in mistake(["distill", "--recipe", str(path)])
    path.write_bytes(b"\x00\xff")
    assert "cannot read the recipe" in mistake(["distill", "--recipe", str(path)])


def test_debug_shows_the_traceback(work: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match="unknown recipe key"):
        main(["train", "ode_init", "--debug", *work("--sed", "1")])


# --- mistakes: the model ---------------------------------------------------------------------


def broken_model(prepared: Prepared, folder: Path, part: str) -> Path:
    shutil.copytree(prepared.model, folder)
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("vae", "lacks vae; a Wan folder holds transformer, vae, text_encoder, tokenizer, scheduler"),
        ("tokenizer", "lacks tokenizer"),
        ("model_index.json", "is not a Wan folder: it has no model_index.json"),
        ("transformer/diffusion_pytorch_model.safetensors", "has no weights in transformer"),
    ],
)
def test_an_incomplete_model(mistake: Mistakes, prepared: Prepared, tmp_path: Path, part: str, message: str) -> None:
    model = broken_model(prepared, tmp_path / "model", part)
    options = [*prepared.options(tmp_path / "run"), "--model", str(model)]
    assert message in mistake(["prepare", "clips", *options])


def test_weights_that_are_cut_off(mistake: Mistakes, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.model, tmp_path / "model")
    for part in ("vae", "transformer"):
        weights = tmp_path / "model" / part / "diffusion_pytorch_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        options = [*prepared.options(prepared.copy(tmp_path / part)), "--model", str(tmp_path / "model")]
        line = mistake(["train", "vae", *options] if part == "vae" else ["prepare", "trajectories", *options])
        assert "diffusion_pytorch_model" in line or "store" in line
        weights.write_bytes(whole)


def test_new_does_not_overwrite(mistake: Mistakes, tmp_path: Path) -> None:
    assert "exists; give a folder that does not" in mistake(["new", str(tmp_path)])
    assert "has no 'new' section" in mistake(["new", str(tmp_path / "x"), "--recipe", "wan2.1-1.3b"])


# --- mistakes: stores ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "lacking"),
    [
        (["train", "ode_init"], "trajectories"),
        (["train", "dmd_warmup"], "ode_init"),
        (["train", "adversarial"], "dmd_warmup"),
        (["train", "teacher"], "clips"),
        (["prepare", "trajectories"], "clips"),
    ],
)
def test_what_comes_before_is_missing(
    mistake: Mistakes, prepared: Prepared, tmp_path: Path, command: list[str], lacking: str
) -> None:
    line = mistake([*command, *prepared.options(tmp_path / "run")])
    assert lacking in line
    assert "aad1 prepare" in line or "run `aad1 train" in line
    assert not (tmp_path / "run").exists()


def test_a_store_of_another_vae(mistake: Mistakes, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.model, tmp_path / "model")
    config = tmp_path / "model" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"dropout": 0.0', '"dropout": 0.1'))
    options = [*prepared.options(prepared.copy(tmp_path / "run")), "--model", str(tmp_path / "model")]
    for command in (["train", "teacher"], ["prepare", "trajectories"], ["train", "ode_init"]):
        assert "was made with another VAE" in mistake([*command, *options])
    assert "was begun with encoder" in mistake(["prepare", "clips", *options])


def test_a_store_of_other_clips(mistake: Mistakes, work: Callable[..., list[str]]) -> None:
    assert "has frames 17, this run needs 33" in mistake(["train", "teacher", *work("--data.frames=33")])
    assert "fps 16.0, this run needs 8.0" in mistake(["train", "teacher", *work("--data.fps=8")])
    line = mistake(["prepare", "clips", *work("--data.source", "world", "--data.frames=33")])
    assert "was begun with frames 17, this run has 33" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trajectories.steps=8", "has steps 4, this run needs 8"),
        ("--trajectories.shift=3.0", "the trajectories hold t = 1.0000, 0.9375"),
        ("--trajectories.levels=[1.0,0.5]", "has levels [1.0, 0.75, 0.5, 0.25], this run needs"),
        ("--trajectories.guidance=4.0", "this run needs 4.0"),
        ("--seed=1", "has seed 0, this run needs 1"),
        ("--trajectories.levels=[1.0,0.3]", "missing"),
    ],
)
def test_trajectories_made_otherwise(
    mistake: Mistakes, work: Callable[..., list[str]], option: str, message: str
) -> None:
    assert message in mistake(["train", "ode_init", *work(option)])


def test_trajectories_of_another_teacher(mistake: Mistakes, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(prepared.model, tmp_path / "model")
    config = tmp_path / "model" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"rope_max_seq_len": 64', '"rope_max_seq_len": 65'))
    options = [*prepared.options(prepared.copy(tmp_path / "run")), "--model", str(tmp_path / "model")]
    assert "has teacher " in mistake(["train", "ode_init", *options])


def test_a_grid_without_the_levels(mistake: Mistakes, work: Callable[..., list[str]]) -> None:
    line = mistake(["prepare", "trajectories", *work("--trajectories.steps=50")])
    assert "50 Euler steps at shift 5.0 do not pass t = 0.9375" in line


def rename_clips(root: Path) -> None:
    """The clips of a store, as if they were others."""
    for rows in (root / "clips").glob("*.jsonl"):
        rows.write_text(rows.read_text().replace(":train:", ":other:"))


def test_trajectories_of_other_clips(mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path) -> None:
    rename_clips(tmp_path / "work")
    assert "was made from other clips" in mistake(["train", "ode_init", *work()])
    assert "was begun with world:train:0:determined as trajectory 0" in mistake(["prepare", "trajectories", *work()])


@pytest.mark.parametrize("stage", ["teacher", "ode_init"])
def test_a_run_goes_on_with_the_clips_it_was_begun_with(
    mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path, stage: str
) -> None:
    assert main(["train", stage, *work()]) == 0
    rename_clips(tmp_path / "work")
    if stage == "ode_init":
        for rows in (tmp_path / "work" / "trajectories").glob("*.jsonl"):
            rows.write_text(rows.read_text().replace(":train:", ":other:"))
    line = mistake(["train", stage, *work("--resume")])
    assert f"{stage} was begun with other clips; put those back" in line


def test_a_damaged_store(mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path) -> None:
    shard = tmp_path / "work" / "clips" / "block-00000-64x64.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    assert "block-00000-64x64.safetensors is torn" in mistake(["train", "teacher", *work()])


# --- mistakes: sizes and videos --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.size=[60,64]"], "a picture of 64x60 does not fit the VAE: width and height must be multiples of 8"),
        (["--data.size=[72,64]"], "a picture of 64x72 does not fit the transformer: width must be a multiple of 16"),
        (["--data.size=[128,128]"], "the embedded world has size [64, 64] and fps 16"),
        (["--data.fps=8"], "the embedded world has size [64, 64] and fps 16"),
        (["--data.frames=16"], "16 frames do not fit the VAE: allowed are 1 + 4n; use 13 or 17"),
        (["--data.frames=1"], "data.frames: Input should be greater than or equal to 2"),
    ],
)
def test_sizes_that_do_not_fit(
    mistake: Mistakes, prepared: Prepared, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in mistake(["prepare", "clips", *prepared.options(tmp_path / "run"), *options])


@pytest.mark.parametrize(("option", "message"), [("--vae.frames=8", "8 frames do not"), ("--vae.window=20", "20x20")])
def test_vae_windows_that_do_not_fit(
    mistake: Mistakes, work: Callable[..., list[str]], option: str, message: str
) -> None:
    assert message in mistake(["train", "vae", *work(option)])


def test_critic_layers_that_are_not_there(mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path) -> None:
    teacher = CausalWanTransformer3DModel.from_pretrained(open_folder(_model(work())).path, subfolder="transformer")
    teacher.save_pretrained(tmp_path / "work" / "dmd_warmup" / "final" / "student")
    line = mistake(["train", "adversarial", *work("--adversarial.critic.layers=[0,2]")])
    assert "the backbone has blocks 0 to 1; choose among them in adversarial.critic.layers" in line


def _model(options: list[str]) -> str:
    return options[options.index("--model") + 1]


def test_rates_of_parts_that_are_not_there(mistake: Mistakes, work: Callable[..., list[str]]) -> None:
    line = mistake(["train", "ode_init", *work("--ode_init.optimizer.lr_overrides={block: 1e-3, nothing: 1e-4}")])
    assert "lr_overrides names no parameter: nothing" in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist; give a folder of videos"),
        (lambda folder: folder.mkdir(), "holds no videos"),
        (lambda folder: write_world_folder(folder, "train", 1, FRAMES), "has 1 clips and data.validation holds out 1"),
    ],
    ids=["missing", "empty", "too few"],
)
def test_a_video_folder_that_cannot_serve(
    mistake: Mistakes, prepared: Prepared, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "videos")
    options = [*prepared.options(tmp_path / "run"), "--data.source", str(tmp_path / "videos")]
    assert message in mistake(["prepare", "clips", *options])


@pytest.mark.parametrize("harm", ["captionless", "corrupt", "too short"])
def test_videos_that_cannot_be_used(
    prepared: Prepared, tmp_path: Path, capfd: pytest.CaptureFixture[str], harm: str
) -> None:
    """Every clip is named with its reason, and the last line says that none was left."""
    videos = tmp_path / "videos"
    for path in write_world_folder(videos, "train", 3, 5 if harm == "too short" else FRAMES):
        if harm == "captionless":
            path.with_suffix(".txt").unlink()
        elif harm == "corrupt":
            path.write_bytes(b"no video at all" * 20)
    options = [*prepared.options(tmp_path / "run"), "--data.source", str(videos)]
    capfd.readouterr()
    assert main(["prepare", "clips", *options]) == 2
    err = capfd.readouterr().err
    reason = {"captionless": "no caption", "corrupt": "cannot be decoded", "too short": "too short"}[harm]
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("aad1: none of the 2 clips could be used; the first: ")
    assert reason in err.splitlines()[-1]


# --- mistakes: places and earlier runs -------------------------------------------------------


@pytest.mark.parametrize("command", [["prepare", "clips"], ["train", "vae"], ["train", "text"], ["distill"]])
def test_an_output_that_cannot_be_written(
    mistake: Mistakes, prepared: Prepared, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "a file").write_text("x")
    line = mistake([*command, *prepared.options(tmp_path / "a file" / "run")])
    assert "Not a directory" in line
    assert "a file" in line


def test_new_where_nothing_can_be_written(mistake: Mistakes, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("x")
    assert f"{tmp_path / 'a file'}: " in mistake(["new", str(tmp_path / "a file" / "model"), *SMALL_PARTS])


def test_a_folder_that_holds_a_run(mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(["train", "ode_init", *work()]) == 0
    line = mistake(["train", "ode_init", *work()])
    assert "holds a run at step 1; add --resume, or choose another folder" in line
    for option, message in {
        "--ode_init.clean_context=0.9": "ode_init.clean_context was 0.3, is 0.9",
        "--ode_init.optimizer.weight_decay=0.5": "ode_init.optimizer.weight_decay was 0.0, is 0.5",
        "--seed=1": "seed was 0, is 1",
        "--student.local_attn_size=5": "student.local_attn_size was 9, is 5",
        "--ode_init.optimizer.lr_overrides.blocks=1e-4": "ode_init.optimizer.lr_overrides.blocks was not given, is",
        "--ode_init.optimizer.muon_lr=0.01": "ode_init.optimizer.muon_lr was 0.0, is 0.01",
    }.items():
        line = mistake(["train", "ode_init", *work("--resume", option)])
        assert "was begun with another recipe: " + message in line
    (tmp_path / "work" / "ode_init" / "recipe.yaml").write_text("{")
    assert "recipe.yaml is damaged" in mistake(["train", "ode_init", *work("--resume")])


def test_a_run_whose_inputs_changed_does_not_go_on(
    mistake: Mistakes, prepared: Prepared, work: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Neither as a run to continue nor as one that is done."""
    model, student = tmp_path / "model", tmp_path / "work" / "ode_init" / "final" / "student"
    shutil.copytree(prepared.model, model)
    save_transformer(build_tiny_transformer(CausalWanTransformer3DModel), student)
    options = work("--model", str(model))
    assert main(["train", "dmd_warmup", *options]) == 0
    assert main(["train", "dmd_warmup", *options, "--resume"]) == 0
    save_transformer(build_tiny_transformer(CausalWanTransformer3DModel, seed=1), student)
    save_transformer(build_tiny_transformer(seed=1), model / "transformer", as_stock=True)
    for command in (["train", "dmd_warmup"], ["distill"]):
        line = mistake([*command, *options, "--resume"])
        assert "dmd_warmup was begun with another transformer, student of ode_init; to train anew delete" in line


def test_the_part_that_a_run_trains_may_be_installed_before_it_goes_on(
    prepared: Prepared, work: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.copytree(prepared.model, tmp_path / "model")
    options = work("--model", str(tmp_path / "model"))
    assert main(["train", "teacher", *options, "--install"]) == 0
    assert main(["train", "teacher", *options, "--resume", "--teacher.steps=2"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student.passes=[1.0,0.5]"], "missing 0.5000"),
        (["--adversarial.critic.layers=[0,2]"], "the backbone has blocks 0 to 1; choose among them"),
        (["--adversarial.critic_optimizer.lr_overrides={backbones: 1e-4}"], "names no parameter: backbones"),
        (
            ["--dmd_warmup.fake_score_optimizer.lr_overrides={block: 1e-4, nothing: 1e-4}"],
            "names no parameter: nothing",
        ),
    ],
)
def test_distill_refuses_at_once_what_a_late_stage_would(
    mistake: Mistakes, prepared: Prepared, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in mistake(["distill", *prepared.options(tmp_path / "run"), *options])
    assert not (tmp_path / "run").exists()


def test_distill_refuses_at_once_a_later_stages_run(mistake: Mistakes, prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "run" / "dmd_warmup" / "checkpoints" / "step-00000007").mkdir(parents=True)
    line = mistake(["distill", *prepared.options(tmp_path / "run")])
    assert "dmd_warmup holds a run at step 7; add --resume" in line
    assert not (tmp_path / "run" / "clips").exists()


@pytest.mark.parametrize(
    ("window", "message"), [("2:1", "give FIRST:LAST"), ("1:2", "ode_init has 1 steps; give steps up to 1")]
)
def test_a_window_that_no_stage_reaches(
    mistake: Mistakes, prepared: Prepared, tmp_path: Path, window: str, message: str
) -> None:
    for command in (["train", "ode_init"], ["distill"]):
        line = mistake([*command, *prepared.options(tmp_path / "run"), "--profile", window])
        assert f"--profile {window}: {message}" in line
        assert not (tmp_path / "run").exists()


def test_a_window_is_looked_into(work: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(["train", "ode_init", *work("--profile", "1:1")]) == 0
    folder = tmp_path / "work" / "ode_init"
    assert sorted(path.name for path in (folder / "profile").iterdir()) == [
        "step-1-1.rank-0.json.gz",
        "step-1-1.rank-0.txt",
    ]
    (row,) = read_metrics(folder / "speed.jsonl")
    assert row["speed/tokens_per_s"] / row["speed/clips_per_s"] == pytest.approx(16 * (1 + (FRAMES - 1) // 4))


def test_what_a_resumed_run_may_change(work: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(["train", "ode_init", *work()]) == 0
    more = ["--ode_init.steps=2", "--ode_init.optimizer.lr=1e-5", "--ode_init.log_every=1", "--data.validation=1"]
    assert main(["train", "ode_init", *work("--resume", *more)]) == 0
    rows = read_metrics(tmp_path / "work" / "ode_init" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["generator/lr"] < 1e-5


def test_a_run_that_never_saved_may_be_begun_with_another_recipe(
    mistake: Mistakes, work: Callable[..., list[str]], tmp_path: Path
) -> None:
    bad = work("--ode_init.optimizer.lr_overrides={nothing: 1e-4}", "--ode_init.clean_context=0.5")
    mistake(["train", "ode_init", *bad])
    assert main(["train", "ode_init", *work()]) == 0
    assert main(["train", "ode_init", *work("--resume")]) == 0
    recipe = load_recipe(str(tmp_path / "work" / "ode_init" / "recipe.yaml"))
    assert recipe.ode_init.clean_context == 0.3
    assert not recipe.ode_init.optimizer.lr_overrides


def test_a_recipe_without_the_section(mistake: Mistakes, prepared: Prepared, tmp_path: Path) -> None:
    line = mistake(["train", "teacher", *prepared.options(tmp_path / "run"), "--teacher=null"])
    assert "has no section 'teacher': it starts from an existing folder's transformer" in line
    assert not (tmp_path / "run").exists()


# --- mistakes: weights, places, and our own faults --------------------------------------------


def generate(student: Path | str, model: Path, out: Path) -> list[str]:
    still = out.with_name("still.png")
    assert main(["world-image", "0", "-o", str(still)]) == 0
    words = ["--prompt", "a red disc", "--image", str(still), "--model", str(model), "--student", str(student)]
    return ["generate", *words, "-o", str(out)]


def test_a_student_without_weights(mistake: Mistakes, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder / "transformer", tmp_path / "student")
    (tmp_path / "student" / "diffusion_pytorch_model.safetensors").unlink()
    assert "has no weights" in mistake(generate(tmp_path / "student", tiny_folder, tmp_path / "a.mp4"))


def test_a_student_whose_config_is_not_that_of_its_weights(
    mistake: Mistakes, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder / "transformer", tmp_path / "student")
    config = tmp_path / "student" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 9}))
    assert "cannot read" in mistake(generate(tmp_path / "student", tiny_folder, tmp_path / "a.mp4"))


def test_a_student_of_another_autoencoder(mistake: Mistakes, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder / "transformer", tmp_path / "student")
    config = tmp_path / "student" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 5}))
    assert "z_dim of the VAE must be equal" in mistake(generate(tmp_path / "student", tiny_folder, tmp_path / "a.mp4"))


def test_a_folder_that_does_not_fit_is_not_left_behind(mistake: Mistakes, tmp_path: Path) -> None:
    line = mistake(["new", str(tmp_path / "m"), *SMALL_PARTS, "--new.transformer.in_channels=8"])
    assert "must be equal" in line
    assert not list(tmp_path.iterdir())


def test_the_bundled_model_is_not_written_to(mistake: Mistakes, tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    with pytest.raises(UserError, match="comes with the package"):
        Assembly(recipe, Workspace(tmp_path)).install("teacher")


def test_a_still_needs_a_picture_format(mistake: Mistakes, tmp_path: Path) -> None:
    assert "use .png, .jpg, .jpeg, .webp" in mistake(["world-image", "0", "-o", str(tmp_path / "still")])


def test_a_fault_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero\nmore")

    monkeypatch.setattr("aad1.cli.generating.make_clip", broken)
    assert main(["world-image", "0"]) == 1
    line = capfd.readouterr().err
    assert line == "aad1: internal error (ZeroDivisionError: division by zero); --debug shows where; please report it\n"
    with pytest.raises(ZeroDivisionError):
        main(["world-image", "0", "--debug"])


def test_too_little_memory_says_what_to_do(mistake: Mistakes, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object) -> None:
        raise MemoryError("2 TiB")

    monkeypatch.setattr("aad1.cli.generating.make_clip", greedy)
    assert "not enough memory (2 TiB); use a smaller --size" in mistake(["world-image", "0"])


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["demo"], "runs/demo"),
        (["distill", "--recipe", "wan2.1-14b"], "runs/wan2.1-14b"),
        (["train", "vae", "--recipe", "mine/own.yaml"], "runs/own"),
        (["prepare", "clips", "-o", "there"], "there"),
    ],
)
def test_results_lie_where_the_recipe_is_named_or_where_one_says(words: list[str], folder: str) -> None:
    command = parse(words)[0]
    assert out_of(command.out, command.recipe) == Path(folder)
