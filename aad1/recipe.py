"""Recipes: one YAML file holds every choice of a distillation; unknown keys are refused with the nearest name.

A recipe that ``extends`` another states what it changes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from aad1.data.selection import WHATEVER, Selection
from aad1.data.store import MOST_BUCKETS
from aad1.errors import UserError, nearest
from aad1.flow import are_pass_levels
from aad1.limits import Count, Natural, Positive, Seed, Sides
from aad1.models.adapters import AdapterConfig
from aad1.parallel.placement import ComputeConfig
from aad1.stages.adversarial import AdversarialConfig
from aad1.stages.dmd_warmup import DmdWarmupConfig
from aad1.stages.ode_init import OdeInitConfig
from aad1.stages.showing import ShowingConfig
from aad1.stages.state_encoder import StateEncoderConfig
from aad1.stages.teacher import TeacherConfig
from aad1.stages.text import TextConfig
from aad1.stages.trajectories import TrajectoryConfig
from aad1.stages.vae import VaeConfig
from aad1.training.motion_guard import GuardConfig

RECIPES = Path(__file__).parent / "recipes"
EXTENDS = "extends"


@dataclass(frozen=True, kw_only=True)
class NewFolder:
    """Configs for `aad1 new`: a Wan folder with random weights, in diffusers' and transformers' own keys.

    dtype: what ``--install`` stores trained parts as (float16 halves the folder; all load as float32).
    """

    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    transformer: Mapping[str, Any]
    flow_shift: float
    dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the stages learn from.

    source: ``world`` (or one track of it, ``world:determined`` or ``world:free``), or videos with captions: a folder, a
    CSV, JSONL or Parquet list, WebDataset tars or ``hf:owner/name``; selection: which of their clips are wanted;
    clips and validation: how many (of a user's own source the first ``validation`` are held out); frames: 1 + 4n
    pixel frames a clip; size: height and width in pixels; batch: clips encoded at once; buckets: picture sizes of
    training clips, of which each gets the nearest in shape (empty: ``size`` alone, which is also that of held-out
    clips and of the student).
    """

    source: str
    clips: Count
    validation: Count
    frames: Annotated[int, Field(ge=2)]  # one frame is an image: nothing would move
    fps: Positive
    size: Sides
    batch: Count = 4
    buckets: Annotated[tuple[Sides, ...], Field(max_length=MOST_BUCKETS)] = ()
    selection: Selection = WHATEVER

    def __post_init__(self) -> None:
        if self.buckets and (self.size not in self.buckets or len(set(self.buckets)) < len(self.buckets)):
            shown = [list(bucket) for bucket in self.buckets]
            raise ValueError(f"buckets must differ and hold size {list(self.size)}, not be {shown}")


@dataclass(frozen=True, kw_only=True)
class Student:
    """The causal generator: latent frames a chunk, window and sink, and the noise levels of its passes."""

    num_frames_per_block: Count = 4
    local_attn_size: int = 9
    sink_size: Natural = 1
    passes: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if 0 <= self.local_attn_size < self.num_frames_per_block or self.local_attn_size < -1:
            raise ValueError(
                f"local_attn_size must hold a chunk ({self.num_frames_per_block} latent frames) or be -1 (unlimited), "
                f"not {self.local_attn_size}"
            )
        if not are_pass_levels(self.passes):
            raise ValueError(f"passes must fall from 1 and end above 0, not {list(self.passes)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every value of a run; a stage reads only its own section.

    model: a Wan folder, or the name of a bundled one; lora: fake score and critic learn adapters, and share one frozen
    backbone with the teacher; compute: over which processes and in which precision it is computed; device: auto, cpu
    or a GPU; threads: CPU threads (results are reproducible for the same number; 0 = all cores).
    """

    seed: Seed
    model: str
    data: Data
    student: Student
    trajectories: TrajectoryConfig
    ode_init: OdeInitConfig
    dmd_warmup: DmdWarmupConfig
    adversarial: AdversarialConfig
    lora: AdapterConfig | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    new: NewFolder | None = None
    text: TextConfig | None = None
    vae: VaeConfig | None = None
    teacher: TeacherConfig | None = None
    state_encoder: StateEncoderConfig | None = None
    guard: GuardConfig = field(default_factory=GuardConfig)
    showing: ShowingConfig = field(default_factory=ShowingConfig)
    negative_prompt: str = ""
    device: str = "auto"
    threads: Natural = 0


def load_recipe(name: str, overrides: Sequence[str] = (), options: Sequence[str] = ()) -> Recipe:
    """Read a bundled recipe by name, or a YAML file by path, and apply ``--section.key value`` overrides.

    ``options`` are the words that the command itself knows: what a mistyped one may have meant.

    Raises UserError for a missing file, bad YAML, an unknown key (naming the nearest) or a value of
    the wrong type.
    """
    values = _values(name)
    for key, text in _pairs(overrides, options):
        _assign(values, key, _parse(key, text))
    _refuse_unknown(Recipe, values, "")
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in first["loc"])[:-1]
        given = first["input"] if isinstance(first["input"], str | int | float | list | None) else "a section"
        shown = "" if first["type"] in ("missing", "value_error") else f" (given: {given!r})"
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"recipe {name}: {what.replace('Value error, ', '')}{shown}") from error


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, in YAML's types."""
    return TypeAdapter(Recipe).dump_python(recipe, mode="json")


def without_defaults(recipe: Recipe) -> dict[str, Any]:
    """As ``as_dict``, without the values that are their defaults."""
    return TypeAdapter(Recipe).dump_python(recipe, mode="json", exclude_defaults=True)


def recipe_names() -> list[str]:
    """The bundled recipes."""
    return sorted(str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.yaml"))


def recipes_in_words() -> str:
    """The bundled recipes, a folder of them as one."""
    names = recipe_names()
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    counted = [f"{folder}/... ({sum(n.startswith(f'{folder}/') for n in names)} of them)" for folder in folders]
    return ", ".join([name for name in names if "/" not in name] + counted)


def _find(name: str) -> Path:
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise UserError(f"no recipe file {name}; give a YAML file, or one of: {recipes_in_words()}")
        return Path(name)
    if name not in recipe_names():
        raise UserError(f"no recipe '{name}'{nearest(name, recipe_names(), recipes_in_words())}")
    return RECIPES / f"{name}.yaml"


def _values(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's own values over those of the one it extends."""
    if name in above:
        raise UserError(f"recipe {name} extends itself, through {', '.join(above)}")
    own = _read_yaml(_find(name))
    base = own.pop(EXTENDS, None)
    return own if base is None else _merged(_values(str(base), (*above, name)), own)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, section by section; what is no section replaces what was there."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"the recipe {path} is not a mapping of sections; see the bundled recipes")
    return values


def _pairs(overrides: Sequence[str], options: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``--a.b 1 --c=2`` into pairs."""
    pairs, words = [], list(overrides)
    sections = [field.name for field in dataclasses.fields(Recipe)]
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"'{word}' is not an option; recipe values are given as --section.key value")
        key, equals, value = word[2:].partition("=")
        if (section := key.partition(".")[0]) not in sections:
            raise UserError(f"unknown recipe key '{key}'{nearest(section, [*sections, *options])}")
        if not equals and not words:
            raise UserError(f"--{key} needs a value")
        pairs.append((key, value if equals else words.pop(0)))
    return pairs


def _parse(key: str, text: str) -> Any:
    """A value from the command line: text as it stands where the recipe holds text, YAML elsewhere."""
    hint: Any = Recipe
    for name in key.split("."):
        hint = get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
        hint = _section_type(hint)
    if hint is str:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{key}: cannot read {text!r}: {' '.join(str(error).split())}") from error


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--{key}: '{section}' is a value, not a section")
    values[last] = value


def _refuse_unknown(kind: Any, values: Any, path: str) -> None:
    """Walk the dataclass tree and refuse the first key it does not have."""
    if not dataclasses.is_dataclass(kind) or not isinstance(values, Mapping):
        return
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for key, value in values.items():
        if key not in names:
            raise UserError(f"unknown recipe key '{path}{key}'{nearest(str(key), names)}")
        _refuse_unknown(_section_type(hints[key]), value, f"{path}{key}.")


def _section_type(hint: Any) -> Any:
    """The dataclass inside an optional section's type."""
    if get_origin(hint) in (Union, UnionType):
        return next((a for a in get_args(hint) if dataclasses.is_dataclass(a)), None)
    return hint
