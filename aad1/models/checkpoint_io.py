"""Wan T2V folders in diffusers' layout: opening, checking, hashing and writing them.

A folder holds ``model_index.json`` and transformer, vae, text_encoder, tokenizer and scheduler; a
distilled student lies beside them as one more transformer in a subfolder of any name. Every write goes
to a hidden neighbour first and is renamed, so a folder is there whole or not at all; one that a killed
write had set aside is put back when the Wan folder is next opened or written to.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, UMT5EncoderModel

from aad1.errors import UserError, nearest
from aad1.files import sync
from aad1.models.loading import quietly, reading, whole_model
from aad1.models.saving import FILE_BYTES, own_class, write_model_weights, writes
from aad1.models.text import TextEncoder

Transformer = TypeVar("Transformer", bound=WanTransformer3DModel)

ASSETS = Path(__file__).parents[1] / "assets"
INDEX = "model_index.json"
PIPELINE = "WanPipeline"
CAUSAL_PIPELINE = "WanCausalDMDPipeline"  # of the folders that serving engines load
SINK_COUNTED = "window_counts_sink"  # in a config: local_attn_size is sink + window, as the engines count
STOCK_TRANSFORMER = WanTransformer3DModel.__name__
MODELS = {"transformer": (STOCK_TRANSFORMER,), "vae": ("AutoencoderKLWan",), "text_encoder": ("UMT5EncoderModel",)}
PARTS = {
    "transformer": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": ("tokenizer.json", "spiece.model"),  # either
    "scheduler": ("scheduler_config.json",),
}
WEIGHTS = (".safetensors", ".bin")
HASHED = (*WEIGHTS, ".json", ".model")
HASH_BLOCK = 2**24
PARTIAL = ".partial-"  # marks a folder that is being written
STALE = ".stale-"  # marks the old folder while a new one takes its place
FLOW_SHIFT = 3.0  # of the scheduler, for 480p
PROVENANCE = ("_", "transformers_version")  # config keys that say who wrote a file, not what is in it


# --- opening ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WanFolder:
    """A checked Wan T2V folder; parts are loaded when asked for, as ``dtype`` on ``device``.

    prepare: what is done to a transformer before its weights are read, such as splitting it over processes. Use
    ``dataclasses.replace`` for a part in another dtype or place.
    """

    path: Path
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    prepare: Callable[[nn.Module], None] = lambda model: None

    def vae(self) -> AutoencoderKLWan:
        """Load the VAE, frozen and in evaluation mode."""
        vae = whole_model(AutoencoderKLWan, self.path / "vae", self.dtype, self.device)
        return vae.eval().requires_grad_(False)

    def text(self, cache_folder: Path | None = None) -> TextEncoder:
        """Load the tokenizer; the encoder follows on the first prompt that ``cache_folder`` does not hold."""
        with reading(self.path / "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True)
        load = partial(whole_model, UMT5EncoderModel, self.path / "text_encoder", self.dtype, self.device)
        identity = ""
        if cache_folder is not None:
            parts = [folder_hash(self.path / part) for part in ("text_encoder", "tokenizer")]
            identity = "-".join([*parts, str(self.dtype)])
        return TextEncoder(tokenizer, load, encoder_hash=identity, cache_folder=cache_folder, device=self.device)

    def transformer(self, cls: type[Transformer], subfolder: str = "transformer", **config: Any) -> Transformer:
        """Load a transformer as ``cls`` from any subfolder; ``config`` overrides entries of its config.json.

        Raises:
            UserError: when there is no transformer in that subfolder, with the ones there are.
        """
        if subfolder not in self.transformers:
            raise UserError(f"'{self.path}' has no transformer '{subfolder}'{nearest(subfolder, self.transformers)}")
        return self.transformer_at(cls, self.path / subfolder, **config)

    def transformer_at(self, cls: type[Transformer], path: Path, **config: Any) -> Transformer:
        """Load a transformer from anywhere, for this folder's VAE and text encoder; ``config`` as above.

        Raises:
            UserError: when it cannot be read or does not fit them.
        """
        self.check_fit(path)
        window = our_window(read_json(path / "config.json"))
        return whole_model(cls, path, self.dtype, self.device, self.prepare, **{**window, **config})

    def check_fit(self, path: Path) -> None:
        """Raise UserError when the transformer at ``path`` was not made for this VAE and text encoder."""
        parts = (path, self.path / "vae", self.path / "text_encoder")
        refuse_misfit(path, *(read_json(part / "config.json") for part in parts))

    @property
    def transformers(self) -> tuple[str, ...]:
        """Names of the subfolders that hold a Wan transformer: ``transformer`` and any students."""
        found = (config.parent for config in self.path.glob("*/config.json"))
        whole = (part for part in found if not part.name.startswith("."))  # hidden: a write that was cut off
        return tuple(sorted(part.name for part in whole if _is_transformer(part)))

    @property
    def streams(self) -> bool:
        """Whether its own transformer is a student, as in an export."""
        name = read_json(self.path / "transformer" / "config.json").get("_class_name")
        return isinstance(name, str) and name != STOCK_TRANSFORMER


def bundled(name: str) -> Path:
    """Return the path of a Wan folder that comes with the package.

    Raises:
        UserError: when there is none of that name, with those there are.
    """
    path = ASSETS / name
    if not (path / INDEX).is_file():
        names = [index.parent.name for index in ASSETS.glob(f"*/{INDEX}")]
        hint = nearest(name, names) if names else "; none is installed"
        raise UserError(f"no bundled model is named '{name}', and there is no such folder{hint}")
    return path


def open_folder(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanFolder:
    """Open a Wan T2V folder in diffusers' layout, checking its parts without loading them.

    Raises:
        UserError: saying what is missing or not supported, and what is allowed.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"'{path}' is not a folder; give a Wan T2V folder in diffusers' layout ({INDEX} beside its parts)"
        )
    if not (path / INDEX).is_file():
        raise UserError(
            f"'{path}' is not a Wan folder: it has no {INDEX}; give the folder that holds {', '.join(PARTS)}"
        )
    _settle(path)
    _check_parts(path)
    refuse_kind(path, path / INDEX)
    _check_classes(path)
    refuse_misfit(path, *(read_json(path / part / "config.json") for part in MODELS))
    return WanFolder(path, dtype, device)


def _check_parts(path: Path) -> None:
    missing = [part for part, files in PARTS.items() if not any((path / part / file).is_file() for file in files)]
    if missing:
        raise UserError(f"'{path}' lacks {', '.join(missing)}; a Wan folder holds {', '.join(PARTS)}")
    bare = [part for part in MODELS if not any(f.suffix in WEIGHTS for f in (path / part).iterdir())]
    if bare:
        raise UserError(
            f"'{path}' has no weights in {', '.join(bare)}; allowed are files ending in {', '.join(WEIGHTS)}"
        )


def refuse_kind(name: str | Path, index: Path) -> None:
    """Raise UserError for a model_index.json of another pipeline: image-to-video, two-transformer or foreign."""
    said = read_json(index)
    kind = said.get("_class_name")
    ours = kind in (PIPELINE, CAUSAL_PIPELINE)
    if isinstance(kind, str) and not ours:  # a list names a pipeline file that comes with the folder
        raise UserError(f"'{name}' is a {kind}; allowed: {PIPELINE} (the image enters as context, so use a T2V model)")
    if (said.get("transformer_2") or [None])[0] is not None:
        raise UserError(f"'{name}' splits its noise levels between two transformers; use a model with one")


def _check_classes(path: Path) -> None:
    for part, allowed in MODELS.items():
        config = read_json(path / part / "config.json")
        name = config.get("_class_name") or (config.get("architectures") or ["?"])[0]
        if name not in allowed and not (part == "transformer" and _is_transformer(path / part)):
            raise UserError(f"'{path / part}' is a {name}; allowed: {', '.join(allowed)}")


def refuse_misfit(path: Path, transformer: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Raise UserError when parts, given by their configs, do not belong together; ``path`` is named."""
    pairs = {
        "in_channels of the transformer and z_dim of the VAE": (transformer.get("in_channels"), vae.get("z_dim")),
        "out_channels and in_channels of the transformer": (
            transformer.get("out_channels"),
            transformer.get("in_channels"),
        ),
        "text_dim of the transformer and d_model of the text encoder": (
            transformer.get("text_dim"),
            text.get("d_model"),
        ),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(f"'{path}': {what} must be equal, but are {one} and {other}")


def _is_transformer(part: Path) -> bool:
    name = read_json(part / "config.json").get("_class_name", "")
    return isinstance(name, str) and name.endswith(STOCK_TRANSFORMER)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"'{path}' does not hold a JSON object")
    return found


def our_window(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a transformer's config we count otherwise than whoever wrote it: a window that counts the sink."""
    counted = config.get(SINK_COUNTED)
    return {"local_attn_size": config["local_attn_size"] - config["sink_size"]} if counted else {}


# --- hashing ---------------------------------------------------------------------------------


def folder_hash(path: str | Path) -> str:
    """Hash a component's weights and configuration (sha256, hex); the same wherever it lies.

    A file's own hash is remembered by path, size and time of change, so large weights are read once.

    Raises:
        UserError: when the folder holds neither weights nor configuration.
    """
    path = Path(path)
    files = sorted(f for f in path.rglob("*") if f.suffix in HASHED and f.is_file())
    if not files:
        raise UserError(f"'{path}' has nothing to hash: no file ends in {', '.join(HASHED)}")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(path).as_posix()} {_file_hash(file)}\n".encode())
    return total.hexdigest()


def _file_hash(file: Path) -> str:
    if file.suffix == ".json":
        return hashlib.sha256(_canonical_json(file)).hexdigest()
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
    note = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aad1" / "hashes" / key
    try:
        return note.read_text(encoding="ascii")
    except OSError:
        pass
    found = _read_and_hash(file)
    try:  # a home that cannot be written costs time, not correctness
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f".{key}.{uuid.uuid4().hex}")
        fresh.write_text(found, encoding="ascii")
        os.replace(fresh, note)
    except OSError:
        pass
    return found


def _read_and_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _canonical_json(file: Path) -> bytes:
    """A config without key order, white space and the entries that name its writer."""
    content = read_json(file)
    kept = {key: value for key, value in content.items() if not key.startswith(PROVENANCE)}
    return json.dumps(kept, sort_keys=True).encode()


# --- writing ---------------------------------------------------------------------------------


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Give a hidden neighbour of ``folder`` to write into; flushed and renamed to ``folder`` when the block succeeds.

    An existing ``folder`` is replaced as a whole; on an error it is left as it was.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _settle(folder.parent)
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}{PARTIAL}*"):  # by a write that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    tag = uuid.uuid4().hex[:8]
    fresh, stale = (folder.with_name(f".{folder.name}{kind}{tag}") for kind in (PARTIAL, STALE))
    fresh.mkdir()
    try:
        yield fresh
        for path in (*fresh.rglob("*"), fresh):
            sync(path)
        if folder.exists():
            os.replace(folder, stale)
        os.replace(fresh, folder)
        sync(folder.parent)
    finally:
        if stale.exists() and not folder.exists():
            os.replace(stale, folder)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def _settle(parent: Path) -> None:
    """Finish what a killed ``whole_folder`` left in ``parent``: put the old folder back unless it was replaced."""
    for stale in parent.glob(f".*{STALE}*"):
        folder = parent / stale.name.removeprefix(".").rpartition(STALE)[0]
        if folder.exists():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            with suppress(OSError):  # where nothing can be renamed, opening says what is missing
                stale.rename(folder)


def save_component(part: Any, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a VAE, text encoder, tokenizer or scheduler to ``folder``, its weights as ``dtype`` if given.

    Of several processes one writes.
    """
    if writes():
        with whole_folder(folder) as fresh:
            _write(part, fresh, dtype)


def save_transformer(
    model: WanTransformer3DModel,
    folder: str | Path,
    *,
    as_stock: bool = False,
    dtype: torch.dtype | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write a transformer to ``folder``, its weights as ``dtype`` if given (the model itself is not touched).

    ``as_stock`` writes the config of a plain ``WanTransformer3DModel``, which any diffusers loads. One that is spread
    over processes is saved by all of them together, and written by one.
    """
    fresh, failure = None, None
    with ExitStack() as stack:
        if writes():
            try:
                fresh = stack.enter_context(whole_folder(folder))
            except OSError as error:  # the others wait for this one's parts all the same
                failure = error
        write_model_weights(model, fresh, dtype, file_bytes)
        if failure is not None:
            raise failure
        if fresh is not None:
            write_config(model, fresh, as_stock)


def save_pipeline_folder(
    folder: str | Path,
    *,
    transformer: WanTransformer3DModel,
    vae: AutoencoderKLWan,
    tokenizer: Any,
    text_encoder: UMT5EncoderModel,
    flow_shift: float = FLOW_SHIFT,
    students: Mapping[str, WanTransformer3DModel] | None = None,
    dtype: torch.dtype | None = None,
) -> WanFolder:
    """Write a complete folder that stock ``WanPipeline.from_pretrained`` loads, replacing what is there.

    ``students`` maps subfolder names to further transformers; they keep their own class and config.
    ``dtype`` is that of the weights on disk (float16 halves a folder); they load as any dtype.
    """
    taken = sorted(set(students or {}) & set(PARTS))
    if taken:
        raise UserError(f"a student cannot be called {', '.join(taken)}: that is a part of the folder; try 'student'")
    refuse_misfit(Path(folder), transformer.config, vae.config, text_encoder.config.to_dict())
    with whole_folder(folder) as fresh:
        _write_transformer(transformer, fresh / "transformer", True, dtype)
        parts = {"vae": vae, "tokenizer": tokenizer, "text_encoder": text_encoder}
        for name, part in parts.items():
            _write(part, fresh / name, dtype)
        for name, student in (students or {}).items():
            _write_transformer(student, fresh / name, False, dtype)
        write_index(fresh, flow_shift)
    return open_folder(folder)


def write_index(folder: Path, flow_shift: float = FLOW_SHIFT) -> None:
    """Write the scheduler and the ``model_index.json`` that make a Wan folder of the parts in it.

    ``expand_timesteps`` tells other programs that a 48-channel model (Wan 2.2 TI2V) takes a noise level a token.
    """
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)
    scheduler.save_pretrained(folder / "scheduler")
    per_token = bool(read_json(folder / "vae" / "config.json").get("is_residual"))
    write_json(folder / INDEX, _model_index(scheduler, per_token))


def _model_index(scheduler: Any, per_token: bool) -> dict[str, Any]:
    return {
        "_class_name": PIPELINE,
        "_diffusers_version": version("diffusers"),
        "boundary_ratio": None,
        "expand_timesteps": per_token,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", STOCK_TRANSFORMER],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def _write_transformer(model: WanTransformer3DModel, folder: Path, as_stock: bool, dtype: torch.dtype | None) -> None:
    folder.mkdir()
    write_model_weights(model, folder, dtype)
    write_config(model, folder, as_stock)


def write_config(model: WanTransformer3DModel, folder: Path, as_stock: bool = False) -> None:
    """Write the config.json of a transformer beside its weights; ``as_stock`` as for ``save_transformer``."""
    with quietly():
        model.save_config(folder)
    _tidy(folder)
    config = read_json(folder / "config.json") | {"_class_name": own_class(model).__name__}
    if as_stock:
        known = inspect.signature(WanTransformer3DModel.__init__).parameters
        config = {key: value for key, value in config.items() if key in known or key.startswith("_")}
        config["_class_name"] = STOCK_TRANSFORMER
    write_json(folder / "config.json", config)


def _write(part: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Save a part that is not a transformer."""
    with quietly():
        part.save_pretrained(folder)
    if isinstance(part, nn.Module):
        if dtype is not None:
            recast(folder, dtype)
        _tidy(folder)


def _tidy(folder: Path) -> None:
    """Where a model was read from stays out of its config, which travels; whoever may read that may read the rest."""
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "_name_or_path"})
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode)  # safetensors writes files that only their owner may read


def recast(folder: Path, dtype: torch.dtype) -> None:
    """Rewrite the weights of one part as ``dtype``."""
    for file in folder.glob("*.safetensors"):
        _recast(file, dtype)


def _recast(file: Path, dtype: torch.dtype) -> None:
    """Rewrite a safetensors file with its floating-point tensors as ``dtype``."""
    with safe_open(file, framework="pt") as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 (not a mapping)
        metadata = source.metadata()
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    mode = file.stat().st_mode
    save_file(cast, file, metadata=metadata)
    file.chmod(mode)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, the same for the same content."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
