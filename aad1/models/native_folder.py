"""Wan folders as Wan's authors publish them, and how they and diffusers' layout become each other.

Native: config.json and ``diffusion_pytorch_model*.safetensors`` of the transformer, ``Wan2.1_VAE.pth``,
``models_t5_umt5-xxl-enc-bf16.pth`` and the tokenizer in ``google/umt5-xxl``, all in one folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from aad1.errors import UserError
from aad1.models.checkpoint_io import INDEX, MODELS, PARTS, open_folder, write_index
from aad1.models.conversion import Plan, Terms, plan, write_native_transformer, write_part
from aad1.models.weights import PICKLED, SHARD, Stored, made, tensors_of

VAE = "Wan2.1_VAE.pth"
TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
PATTERNS = ("config.json", "diffusion_pytorch_model*", VAE, TEXT, f"{TOKENIZER}/*")  # of a download


def is_native(folder: Path) -> bool:
    """Whether a folder holds more than a transformer, in the native layout."""
    parts = (VAE, TEXT, TOKENIZER)
    return not (folder / INDEX).is_file() and any((folder / part).exists() for part in parts)


def plan_native(folder: Path, terms: Terms) -> list[Plan]:
    """Plan the parts of a native folder.

    Raises:
        UserError: when one is missing, or as ``plan``.
    """
    missing = [name for name in (VAE, TEXT, TOKENIZER) if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"'{folder}' lacks {', '.join(missing)}; a native Wan 2.1 folder holds them beside the transformer. "
            "To convert the transformer alone, give its file"
        )
    found = {
        "transformer": _transformer_of(folder),
        "vae": tensors_of(folder / VAE),
        "text_encoder": tensors_of(folder / TEXT),
    }
    configs = {"transformer": folder / "config.json"}
    return [plan(part, tensors, terms, config=configs.get(part)) for part, tensors in found.items()]


def plan_folder(folder: Path, terms: Terms) -> list[Plan]:
    """Plan the parts of a Wan folder in diffusers' layout; raises as ``plan``."""
    open_folder(folder)
    return [plan(part, tensors_of(folder / part), terms, config=folder / part / "config.json") for part in MODELS]


def _transformer_of(folder: Path) -> dict[str, Stored]:
    """The weights in the folder that are neither the VAE's nor the text encoder's."""
    pickled = [f for f in sorted(folder.iterdir()) if f.suffix in PICKLED and f.name not in (VAE, TEXT)]
    if any(folder.glob("*.safetensors")):
        return tensors_of(folder)
    if len(pickled) != 1:
        raise UserError(
            f"'{folder}' holds {len(pickled)} files that could be the transformer; give one file as the source"
        )
    return tensors_of(pickled[0])


def write_wan_folder(
    plans: list[Plan],
    tokenizer: list[Path],
    folder: Path,
    *,
    shard: int = SHARD,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write a Wan folder in diffusers' layout into an empty folder."""
    for one in plans:
        write_part(one, folder / one.part, shard=shard, done=done)
    _copy(tokenizer, folder / "tokenizer")
    write_index(folder)


def write_native_folder(
    plans: list[Plan],
    tokenizer: list[Path],
    folder: Path,
    *,
    shard: int = SHARD,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Write a Wan folder in the native layout into an empty folder."""
    for one in plans:
        if one.part == "transformer":
            write_native_transformer(one, folder, shard=shard, done=done)
            continue
        tensors = {}
        for name, tensor in made(one.native()):
            tensors[name] = tensor
            done()
        torch.save(tensors, folder / {"vae": VAE, "text_encoder": TEXT}[one.part])
    _copy(tokenizer, folder / TOKENIZER)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer; UserError when there is none."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not any(file.name in PARTS["tokenizer"] for file in files):
        raise UserError(f"'{folder}' holds no tokenizer ({' or '.join(PARTS['tokenizer'])}); download it again")
    return files


def _copy(files: list[Path], target: Path) -> None:
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
