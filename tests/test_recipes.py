"""Every recipe parses, says what the paper says, runs at tiny width, and holds no key that does nothing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from diffusers import AutoencoderKLWan

import aad1
from aad1.assembly import Assembly, new_folder
from aad1.errors import UserError
from aad1.flow import euler_grid, grid_index
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import build_tiny_text
from aad1.recipe import EXTENDS, RECIPES, Recipe, as_dict, load_recipe, recipe_names
from aad1.stages.adversarial import CriticConfig
from aad1.stages.trajectories import stored_indices
from aad1.teacher_sampling import TeacherSampling
from aad1.training import metrics
from aad1.training.metrics import read_metrics
from aad1.workspace import DISTILLATION, STAGES, Workspace

NAMES = recipe_names()
PAPER = ("wan2.1-1.3b", "wan2.1-14b")


def test_the_shipped_recipes() -> None:
    assert {"tiny", "demo", *PAPER} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_parses_and_says_what_it_costs(name: str) -> None:
    recipe = load_recipe(name)
    header = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    for word in ("# Task", "# Hardware", "# Expect", "# Command"):
        assert any(line.startswith(word) for line in header)
    commands = [line.split("aad1 ", 1)[1] for line in header if "  aad1 " in line]
    assert commands
    said = (f"--recipe {name}", f"plan {name} ")
    assert all(any(s in command for s in said) for command in commands if not command.startswith("demo"))
    assert stored_indices(recipe.trajectories)  # the sampler's grid holds every level of stage I


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_being_written_down(name: str, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(as_dict(load_recipe(name))))
    assert load_recipe(str(tmp_path / "again.yaml")) == load_recipe(name)


# --- the paper's numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_the_setting_is_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.data.frames, recipe.data.fps, recipe.data.size) == (81, 16, (480, 832))
    student = recipe.student
    assert (student.num_frames_per_block, student.local_attn_size, student.sink_size) == (4, 9, 1)
    assert student.passes == (1.0,)
    assert recipe.new is None  # it starts from a released model


@pytest.mark.parametrize("name", PAPER)
def test_stage_one_is_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    plan, stage = recipe.trajectories, recipe.ode_init
    assert (plan.steps, plan.shift, plan.guidance) == (48, 5.0, 6.0)
    assert plan.stored_levels == pytest.approx((1, 0.9375, 0.8333, 0.625, 0), abs=1e-4)
    assert (stage.steps, stage.batch * stage.accumulate) == (2000, 64)
    assert (stage.optimizer.lr, stage.optimizer.betas) == (2e-6, (0.9, 0.999))


@pytest.mark.parametrize("name", PAPER)
def test_stage_two_is_the_papers(name: str) -> None:
    stage = load_recipe(name).dmd_warmup
    assert (stage.steps, stage.fake_score_updates, stage.batch * stage.accumulate) == (100, 5, 64)
    assert (stage.guidance, stage.shift, stage.t_range) == (4.0, 5.0, (0.02, 0.98))
    assert (stage.generator_optimizer.lr, stage.fake_score_optimizer.lr) == (2e-6, 4e-7)
    assert (stage.generator_optimizer.ema, stage.fake_score_optimizer.ema) == (0.99, 0)
    for optimizer in (stage.generator_optimizer, stage.fake_score_optimizer):
        assert (optimizer.betas, optimizer.weight_decay, optimizer.clip) == ((0.0, 0.999), 0.01, 10.0)


@pytest.mark.parametrize(("name", "layers"), zip(PAPER, [(14, 21, 29), (19, 29, 39)], strict=True))
def test_stage_three_is_the_papers(name: str, layers: tuple[int, ...]) -> None:
    stage = load_recipe(name).adversarial
    assert (stage.steps, stage.batch * stage.accumulate) == (200, 256)
    assert (stage.consistency_weight, stage.consistency_sigma) == (20.0, 0.05)
    assert (stage.t_range, stage.shift) == ((0.0, 1.0), 1.0)
    critic = stage.critic
    assert (critic.layers, critic.visibility, critic.granularity) == (layers, "full", "clip")
    assert (stage.generator_optimizer.lr, stage.generator_optimizer.ema) == (4e-7, 0.98)
    assert (stage.critic_optimizer.lr, stage.critic_optimizer.ema) == (2e-6, 0)
    assert stage.critic_optimizer.lr_overrides == {"backbone": 1e-6}


def test_fifty_euler_steps_would_not_do() -> None:
    """The trap of the published script: its grid does not pass the levels that stage I trains at."""
    with pytest.raises(UserError, match=r"50 Euler steps at shift 5.0 do not pass t = 0.9375, 0.6250"):
        stored_indices(load_recipe("wan2.1-14b", ["--trajectories.steps", "50"]).trajectories)
    assert grid_index(euler_grid(48, 5.0), 0.9375) is not None


# --- every recipe runs -----------------------------------------------------------------------

TINY = [
    *("--device=cpu", "--threads=1", "--seed=0", "--data.source=world", "--data.size=[64,64]", "--data.fps=16"),
    *("--data.frames=17", "--data.clips=2", "--data.validation=1", "--data.batch=1", "--showing.clips=1"),
    *("--showing.teacher.steps=1", "--trajectories.count=2", "--trajectories.batch=2", "--trajectories.steps=4"),
    *("--adversarial.head_start=0", "--adversarial.critic.layers=[0,1]"),
]
ONE_STEP = [f"--{stage}.{key}=1" for stage in DISTILLATION for key in ("steps", "batch", "accumulate", "save_every")]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_stages_take_a_step(
    name: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)
    recipe = load_recipe(name, [*TINY, *ONE_STEP, "--model", str(tiny_folder)])
    assembly = Assembly(recipe, Workspace(tmp_path))
    student = assembly.distill(resume=False)
    keys = {
        "ode_init": ["generator/loss"],
        "dmd_warmup": ["fake_score/loss", "generator/dmd_gradient"],
        "adversarial": ["critic/loss", "critic/gap", "generator/loss"],
    }
    assert set(assembly.way) >= {"ode_init", "adversarial"}
    for stage in assembly.way:
        (row,) = read_metrics(tmp_path / stage / "metrics.jsonl")
        assert {*keys[stage], "eval/presence"} <= row.keys()
        assert (tmp_path / stage / "samples" / "step-000001.mp4").is_file()
    config = CausalWanTransformer3DModel.load_config(student)
    for key, value in {**as_dict(recipe)["student"], "size": [64, 64]}.items():
        assert config[key] == value


def test_the_students_settings_hold_in_every_stage(tmp_path: Path, tiny_folder: Path) -> None:
    """A later stage with other passes or another window is trained, and exported, with those."""
    new = CausalWanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    new.save_pretrained(Workspace(tmp_path).student("ode_init"))
    options = ["--model", str(tiny_folder), "--student.passes", "[1.0, 0.5]", "--student.local_attn_size", "-1"]
    student = Assembly(load_recipe("tiny", [*TINY, *options]), Workspace(tmp_path)).student("ode_init")
    assert list(student.config.passes) == [1.0, 0.5]
    assert student.span.window == -1


@pytest.mark.parametrize("name", [n for n in NAMES if load_recipe(n).new is not None])
def test_a_new_folder_is_what_the_recipe_says(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    new_folder(recipe, tmp_path / "model")
    assembly = Assembly(dataclasses.replace(recipe, model=str(tmp_path / "model"), threads=1), Workspace(tmp_path))
    assert recipe.new is not None
    for config, values in (
        (assembly.vae.config, recipe.new.vae),
        (assembly.teacher().config, recipe.new.transformer),
    ):
        for key, value in values.items():
            assert config[key] == value or list(config[key]) == value
    scheduler = json.loads((tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["flow_shift"] == recipe.new.flow_shift
    assert assembly.text.length == recipe.new.text["max_length"]


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sed", "1"], r"unknown recipe key 'sed'; did you mean 'seed'"),
        (["--ode_init.step", "1"], r"unknown recipe key 'ode_init.step'; did you mean 'steps'"),
        (["--ode_init.optimizer.beta", "[0, 1]"], r"unknown recipe key 'ode_init.optimizer.beta'.*'betas'"),
        (["--adversarial.critic.layer", "[1]"], r"'adversarial.critic.layer'; did you mean 'layers'"),
        (["--text.caption", "1"], r"'text.caption'; did you mean 'captions'"),
        (["--zzz", "1"], r"unknown recipe key 'zzz'; allowed: adversarial, compute, data, device"),
        (["--seed", "many"], r"seed: .*integer.*given: 'many'"),
        (["--data.size", "[64, 64, 64]"], r"data.size: .*2 items"),
        (["--data.size", "64"], r"data.size: .*tuple.*given: 64"),
        (["--student.passes", "[1.0, high]"], r"student.passes.1: .*number"),
        (["--ode_init.optimizer.schedule", "cosin"], r"schedule: .*'constant', 'linear' or 'cosine' .given: 'cosin'"),
        (["--adversarial.critic.visibility", "causal"], r"visibility: .*'full' or 'block_causal'"),
        (["--ode_init", "5"], r"ode_init: .*given: 5"),
        (["--seed", "-1"], r"seed: .*greater than or equal to 0 .given: -1"),
        (["--student.passes", "[0.5]"], r"passes must fall from 1"),
        (["--student.passes", "[1.0, 1.0]"], r"passes must fall from 1"),
        (["--student.local_attn_size", "3"], r"local_attn_size must hold a chunk \(4 latent frames\)"),
        (["--ode_init.batch", "0"], r"ode_init.batch: .*greater than or equal to 1 .given: 0"),
        (["--ode_init.optimizer.lr", "-1e-3"], r"ode_init.optimizer.lr: .*greater than or equal to 0"),
        (["--data.fps", "0"], r"data.fps: .*greater than 0"),
        (["--trajectories.count", "0"], r"trajectories.count: .*equal to 1"),
        (["--showing.clips", "0"], r"showing.clips: .*equal to 1"),
        (["--data.clips"], r"--data.clips needs a value"),
        (["--resum"], r"unknown recipe key 'resum'; did you mean 'resume'"),
        (["data.clips", "3"], r"'data.clips' is not an option"),
        (["--seed.x", "3"], r"--seed.x: 'seed' is a value, not a section"),
        (["--data.size", "[64, 64"], r"--data.size: cannot read"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_recipe("tiny", options, ["resume", "install"])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("seed", [-1, 2**63]),
        *((f"{stage}.{name}", [0, -1]) for stage in ("ode_init", "adversarial") for name in ("steps", "batch", "keep")),
        *((f"teacher.{name}", [-1]) for name in ("log_every", "evaluate_every", "save_every")),
        *((f"teacher.optimizer.{name}", [-1, ".nan", ".inf"]) for name in ("lr", "clip", "muon_lr", "weight_decay")),
        *((f"teacher.optimizer.{name}", [-0.1, 1, ".nan"]) for name in ("ema", "betas.0")),
        ("adversarial.critic_updates", [0, -5]),
        ("adversarial.head_start", [-3]),
        *((f"adversarial.consistency_{name}", [-1, ".nan", ".inf"]) for name in ("weight", "sigma")),
        *((f"{stage}.t_range", [[-3, 9], [1.0, 0.0], [0.5, ".nan"]]) for stage in ("adversarial", "dmd_warmup")),
        *(
            (f"{part}.shift", [0, -1, ".nan", ".inf"])
            for part in ("teacher", "trajectories", "dmd_warmup", "adversarial")
        ),
        *((f"{part}.guidance", [".nan", ".inf"]) for part in ("trajectories", "dmd_warmup")),
        ("trajectories.levels", [[], [0.25, 0.5], [1.0, 1.0], [1.0, 0.0], [1.5, 1.0], [".nan"]]),
        ("dmd_warmup.fake_score_updates", [0]),
        ("teacher.text_dropout", [-0.1, 2, ".nan"]),
        ("ode_init.clean_context", [-0.1, 1, 5, ".nan"]),
        *((f"guard.{name}", [-1, ".nan", ".inf"]) for name in ("min_rho", "min_kappa")),
        *((f"vae.{name}", [0]) for name in ("shapes", "window", "frames")),
        *((f"text.{name}", [0]) for name in ("captions", "validation")),
        ("adversarial.critic.queries", [0, -1]),
        ("adversarial.critic.layers", [[], [-1]]),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(key: str, wrong: list[object]) -> None:
    section, _, index = key.rpartition(".")
    for value in wrong:
        given = f"[{value}, 0.9]" if index == "0" else str(value).replace("'", "")
        with pytest.raises(UserError, match=section if index == "0" else key):
            load_recipe("tiny", [f"--{section if index == '0' else key}", given])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"seed: 0\nmodle: x\n", "unknown recipe key 'modle'; did you mean 'model'"),
        (b"seed: 0\n", "model: Field required"),
        (b"seed: [0\n", "cannot read the recipe"),
        (b"- 1\n", "not a mapping of sections"),
        (b"", "not a mapping of sections"),
        (b"\xff\xfe\x00", "cannot read the recipe"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_missing_recipe_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe 'tinny'; did you mean 'tiny'"):
        load_recipe("tinny")
    with pytest.raises(UserError, match=r"no recipe file .*none.yaml; give a YAML file, or one of: .*tiny"):
        load_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--new.vae.base_dimm=8", r"unknown recipe key 'new.vae.base_dimm'; did you mean 'base_dim'"),
        ("--new.text.layer=2", r"unknown recipe key 'new.text.layer'; did you mean 'layers'"),
        ("--new.transformer.layers=2", r"unknown recipe key 'new.transformer.layers'; did you mean 'num_layers'"),
        ("--new.text.heads=3", r"does not divide into 3 heads"),
        ("--new.vae.base_dim=many", r"new.vae cannot be built"),
    ],
)
def test_keys_of_new_parts_are_checked(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        new_folder(load_recipe("tiny", [option]), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "path", "value"),
    [
        (["--ode_init.steps", "50"], "ode_init.steps", 50),
        (["--ode_init.steps=50"], "ode_init.steps", 50),
        (["--data.size", "[128, 96]"], "data.size", (128, 96)),
        (["--ode_init.optimizer.lr", "2e-6"], "ode_init.optimizer.lr", 2e-6),
        (["--ode_init.optimizer.lr", "2.5e-06"], "ode_init.optimizer.lr", 2.5e-6),
        (["--student.passes", "[1.0, 0.8333]"], "student.passes", (1.0, 0.8333)),
        (["--ode_init.optimizer.lr_overrides.blocks", "1e-5"], "ode_init.optimizer.lr_overrides.blocks", 1e-5),
        (["--guard", "{min_rho: 0.5}"], "guard.min_rho", 0.5),
        (["--teacher", "null"], "teacher", None),
        # Text is taken as it stands, whatever YAML would make of it.
        (["--negative_prompt", ""], "negative_prompt", ""),
        (["--negative_prompt", "low quality: blurry, [static"], "negative_prompt", "low quality: blurry, [static"),
        (["--data.source", "2024"], "data.source", "2024"),
        (["--model", "no"], "model", "no"),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)  # fmt: skip
def test_overrides(options: list[str], path: str, value: object) -> None:
    found: Any = load_recipe("tiny", options)
    for name in path.split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    assert found == value


# --- nothing does nothing --------------------------------------------------------------------


def sections(kind: Any = Recipe, path: str = "") -> Iterator[tuple[str, type, str]]:
    """(dotted key, the dataclass that has it, its field) of every possible key of a recipe."""
    hints = get_type_hints(kind)
    for found in dataclasses.fields(kind):
        yield f"{path}{found.name}", kind, found.name
        hint = hints[found.name]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                yield from sections(option, f"{path}{found.name}.")


def keys_of(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{path}{key}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{path}{key}.")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_recipe_has_its_field(name: str) -> None:
    known = {path for path, _, _ in sections()}
    free = ("new.vae.", "new.text.", "new.transformer.")
    parts = {"vae": AutoencoderKLWan, "text": build_tiny_text, "transformer": CausalWanTransformer3DModel}
    for key in keys_of(yaml.safe_load((RECIPES / f"{name}.yaml").read_text())):
        if key.startswith(free):
            _, part, entry = key.split(".")
            assert entry in inspect.signature(parts[part]).parameters
        else:
            assert key in {*known, EXTENDS} or key.rpartition(".")[0].endswith("lr_overrides"), key


def test_every_field_is_read_somewhere() -> None:
    """An attribute of each field's name is read in the code, beyond the checks of its own class."""
    read: set[str] = set()
    for path in Path(aad1.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]
                own = node.name == "__post_init__"
                read |= {n.attr for n in found if not (own and ast.unparse(n.value) == "self")}
    by_name = {"new", *STAGES}  # Assembly takes sections so
    dead = [path for path, _, name in sections() if name not in read | by_name]
    assert not dead


def test_every_value_of_the_tiny_recipe_reaches_its_stage(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the method runs, every field of its sections is looked at by something other than their own checks."""
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)
    recipe = load_recipe("tiny", [*TINY, *ONE_STEP, "--model", str(tiny_folder)])
    written = as_dict(recipe)
    monkeypatch.setattr("aad1.assembly.as_dict", lambda recipe: written)  # writing a value down is no use of it
    monkeypatch.setattr("aad1.assembly.without_defaults", lambda recipe: written)
    seen: set[tuple[type, str]] = set()
    kinds = {
        kind for path, kind, _ in sections() if path.startswith((*DISTILLATION, "trajectories", "guard", "showing"))
    }
    kinds -= {Recipe}
    for kind in kinds:

        def look(self: Any, name: str, kind: type = kind) -> Any:
            seen.add((kind, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", look, raising=False)
    Assembly(recipe, Workspace(tmp_path)).distill(resume=False)
    seen |= {(CriticConfig, f.name) for f in dataclasses.fields(CriticConfig) if (CriticConfig, "__dict__") in seen}
    unread = {(k.__name__, f.name) for k in kinds for f in dataclasses.fields(k) if (k, f.name) not in seen}
    shown = {("TeacherSampling", field.name) for field in dataclasses.fields(TeacherSampling)}
    assert unread == {("ShowingConfig", "teacher"), *shown}  # the teacher's own stage reads it
