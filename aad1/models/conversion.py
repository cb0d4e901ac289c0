"""One part of a Wan model from any naming into diffusers' or the native one: planned by shapes, then streamed.

A plan says what every tensor is made of, and what did not match; nothing large is read for it, so a plan of 14B costs
nothing. Writing then takes one tensor at a time (``weights.py``).
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from aad1.errors import UserError
from aad1.models import geometry
from aad1.models.checkpoint_io import read_json, write_json
from aad1.models.names import native_names, native_text_names, native_vae_names
from aad1.models.released import Adapters, unwrapped
from aad1.models.weights import SHARD, Made, Stored, write_shards

REPORT = "conversion.json"  # beside what was made: which names matched

IMAGE_MODEL = re.compile(r"img_emb|image_embedder|[kv]_img|add_[kv]_proj|face_|vace")
NUMBERED = re.compile(r"(?:encoder\.)?blocks?\.(\d+)\.")
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Kind:
    """What there is to know about one part: its class, its naming, how its shape is read off its weights."""

    cls: type[nn.Module]
    marks: tuple[str, ...]  # in native names and in no others
    native: Callable[[Iterable[str]], dict[str, str]]
    config: Callable[..., Any]
    smallest: Callable[[int], Any]  # a config with so many layers, for the names
    stem: str


KINDS = {
    "transformer": Kind(
        WanTransformer3DModel,
        ("self_attn.", "cross_attn.", "head."),
        native_names,
        geometry.transformer_config,
        lambda layers: {"num_layers": layers, "num_attention_heads": 1, "ffn_dim": 1, "text_dim": 1, "freq_dim": 2},
        "diffusion_pytorch_model",
    ),
    "vae": Kind(
        AutoencoderKLWan,
        ("encoder.downsamples.", "decoder.upsamples."),
        native_vae_names,
        geometry.vae_config,
        lambda layers: {"base_dim": 4},
        "diffusion_pytorch_model",
    ),
    "text_encoder": Kind(
        UMT5EncoderModel,
        ("token_embedding.", "blocks."),
        native_text_names,
        geometry.text_config,
        lambda layers: UMT5Config(vocab_size=1, d_model=1, d_kv=1, d_ff=1, num_layers=layers, num_heads=1),
        "model",
    ),
}


@dataclass(frozen=True)
class Report:
    """How a part's weights met what its model wants."""

    part: str
    matched: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    merged: int = 0  # adapters
    found: dict[str, int] = field(default_factory=dict)  # tensors by their type in the source
    written: dict[str, int] = field(default_factory=dict)
    bytes: int = 0  # as written

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What will be written: the library's config, and every tensor by the library's name."""

    part: str
    config: Any
    tensors: dict[str, Made]
    report: Report

    @property
    def kind(self) -> Kind:
        """Facts about the part."""
        return KINDS[self.part]

    def native(self) -> dict[str, Made]:
        """The tensors by their native names; UserError where there are none."""
        try:
            table = self.kind.native(self.tensors)
        except ValueError as error:
            raise UserError(f"the {self.part} is none that Wan's authors published for Wan 2.1: {error}") from None
        return {table[name]: made for name, made in self.tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the user allows and wants: see the command's help."""

    dtype: torch.dtype | None = None
    allow_partial: bool = False
    head_dim: int | None = None
    lora_alpha: float | None = None


def plan(
    part: str,
    found: Mapping[str, Stored],
    terms: Terms,
    *,
    adapters: Mapping[str, Stored] | None = None,
    base: Mapping[str, Stored] | None = None,
    config: Path | None = None,
) -> Plan:
    """Plan a part from the tensors that were found for it, in any naming and wrapping.

    ``adapters``: low-rank pairs from another file. ``base``: the part that adapters without weights, or missing
    weights, are taken from. ``config``: a config.json to check against.

    Raises:
        UserError: when they are of another model, have wrong shapes, or match only in part and that is not allowed.
    """
    clean = unwrapped(found)
    low_rank = Adapters({**clean, **unwrapped(adapters or {})}, terms.lora_alpha)
    tied = getattr(KINDS[part].cls, "_tied_weights_keys", None) or ()
    full = {name: stored for name, stored in clean.items() if name not in low_rank.names and name not in tied}
    if low_rank.layers and not full:
        full = _base_of_adapters(base)
    _refuse_image_model(full)
    kind = KINDS[part]
    place = _placing(kind, list(full))
    placed = {place[name]: stored for name, stored in full.items() if name in place}
    model_config, shapes = _model(kind, placed, terms, config)
    unexpected = sorted(name for name in full if place.get(name) not in shapes)
    missing = sorted(shapes.keys() - placed.keys())
    _refuse_partial(part, missing, unexpected, len(shapes), terms.allow_partial)
    sources = {name: _source(name, placed, base or {}) for name in shapes}
    _refuse_shapes(shapes, sources)
    tensors = {name: _made(stored, terms.dtype) for name, stored in sources.items()}
    _merge_adapters(tensors, low_rank, kind)
    report = Report(
        part,
        matched=len(shapes) - len(missing),
        missing=missing,
        unexpected=unexpected,
        merged=len(low_rank.layers),
        found=_types(stored.dtype for stored in full.values()),
        written=_types(made.dtype for made in tensors.values()),
        bytes=sum(made.bytes for made in tensors.values()),
    )
    return Plan(part, model_config, tensors, report)


def _base_of_adapters(base: Mapping[str, Stored] | None) -> dict[str, Stored]:
    if not base:
        raise UserError("there are only low-rank adapters in it; give the Wan folder that they belong to with --base")
    return dict(base)


def _refuse_image_model(names: Iterable[str]) -> None:
    if found := next((name for name in names if IMAGE_MODEL.search(name)), None):
        raise UserError(
            f"these weights are of an image-to-video or other special model ('{found}'); allowed are Wan T2V weights "
            "(the image enters as context)"
        )


def _placing(kind: Kind, names: list[str]) -> dict[str, str]:
    """{name as found: library's name} of those names that have a place, in whichever naming they are."""
    if not any(name.startswith(kind.marks) or f".{mark}" in name for name in names for mark in kind.marks):
        return {name: name for name in names}
    layers = max((int(match[1]) + 1 for name in names if (match := NUMBERED.match(name))), default=1)
    library = geometry.shapes_of(kind.cls, kind.smallest(layers))
    return {native: name for name, native in kind.native(library).items()}


def _model(
    kind: Kind, placed: Mapping[str, Stored], terms: Terms, file: Path | None
) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The model's config and its {name: shape}; a config of the library's own layout says what shapes do not."""
    found = {name: stored.shape for name, stored in placed.items()}
    given = read_json(file) if file is not None and file.is_file() else {}
    known = {key: value for key, value in given.items() if key in inspect.signature(kind.cls.__init__).parameters}
    if kind.cls is UMT5EncoderModel:
        config = UMT5Config.from_dict(given) if given else kind.config(found)
    elif kind.cls is AutoencoderKLWan:
        config = known or kind.config(found)
    else:
        width, heads = given.get("dim"), given.get("num_heads")
        said = given.get("attention_head_dim") or (width // heads if width and heads else geometry.HEAD_DIM)
        config = kind.config(found, terms.head_dim or said)
        geometry.refuse_contradiction(str(file), given, config)
        config = {**known, **config}
    return config, geometry.shapes_of(kind.cls, config)


def _refuse_partial(part: str, missing: list[str], unexpected: list[str], wanted: int, allowed: bool) -> None:
    if allowed or not (missing or unexpected):
        return
    what = [
        f"{len(names)} {word} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for word, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    raise UserError(
        f"of the {wanted} tensors of the {part}, {wanted - len(missing)} match: {' and '.join(what)}; "
        "--allow-partial leaves out what is unexpected and takes what is missing from --base"
    )


def _source(name: str, placed: Mapping[str, Stored], base: Mapping[str, Stored]) -> Stored:
    if found := placed.get(name) or base.get(name):
        return found
    raise UserError(f"'{name}' is missing, and there is no --base to take it from; give a Wan folder of the same size")


def _refuse_shapes(shapes: Mapping[str, tuple[int, ...]], sources: Mapping[str, Stored]) -> None:
    wrong = [name for name, shape in shapes.items() if sources[name].shape != shape]
    if wrong:
        one = sources[wrong[0]]
        raise UserError(
            f"{len(wrong)} tensors have the wrong shape, such as '{one.name}' in '{one.file}': {list(one.shape)} "
            f"instead of {list(shapes[wrong[0]])}; these are the weights of another model"
        )


def _made(stored: Stored, dtype: torch.dtype | None) -> Made:
    return Made((stored,), dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype)


def _merge_adapters(tensors: dict[str, Made], low_rank: Adapters, kind: Kind) -> None:
    """Put the adapters into the weights they belong to; theirs may be the other naming."""
    layers = {f"{layer}.weight": layer for layer in low_rank.layers}
    place = _placing(kind, list(layers))
    for name, layer in layers.items():
        weight = place.get(name, "")
        if weight not in tensors:
            raise UserError(f"the adapter of '{layer}' belongs to no weight of this model; give the model it is for")
        tensors[weight] = low_rank.merged(layer, tensors[weight])


def _types(dtypes: Iterable[torch.dtype]) -> dict[str, int]:
    return dict(Counter(str(dtype).removeprefix("torch.") for dtype in dtypes))


# --- writing ---------------------------------------------------------------------------------


def write_part(
    plan: Plan,
    folder: Path,
    *,
    cls: type[WanTransformer3DModel] | None = None,
    settings: Mapping[str, Any] | None = None,
    shard: int = SHARD,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write a part in the library's layout: config.json and safetensors.

    A transformer can be written as another class ``cls`` with further ``settings`` in its config: a student.
    """
    write_shards(folder, plan.kind.stem, plan.tensors, shard=shard, done=done)
    if isinstance(plan.config, UMT5Config):
        plan.config.dtype = max(plan.report.written, key=plan.report.written.__getitem__)
        plan.config.save_pretrained(folder)
        return
    with torch.device("meta"):
        model: Any = (cls or plan.kind.cls)(**plan.config, **(settings or {}))
    model.save_config(folder)


def write_native_transformer(
    plan: Plan, folder: Path, *, shard: int = SHARD, done: Callable[[], None] = lambda: None
) -> None:
    """Write a transformer as Wan's authors publish it: config.json and safetensors with native names."""
    write_shards(folder, plan.kind.stem, plan.native(), shard=shard, done=done)
    model_type = "t2v" if plan.config["in_channels"] == 16 else "ti2v"
    facts = {key: value(plan.config) for key, value in geometry.NATIVE_KEYS.items()}
    write_json(folder / "config.json", {"_class_name": "WanModel", "model_type": model_type, "text_len": 512, **facts})
