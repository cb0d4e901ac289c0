"""Models by their name on the Hugging Face hub: fetched once into its cache, and only the files that are used."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from aad1.errors import UserError
from aad1.models.checkpoint_io import INDEX, PARTS, WEIGHTS, refuse_kind
from aad1.models.native_folder import PATTERNS as NATIVE

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
DIFFUSERS = (INDEX, *(f"{part}/*" for part in ("tokenizer", "scheduler")), "*/*.json", f"*/*{WEIGHTS[0]}")


def is_hub_name(model: str) -> bool:
    """Whether this can be OWNER/NAME or OWNER/NAME@REVISION; a path of a folder that is there is not asked about."""
    return HUB_NAME.fullmatch(model) is not None and not model.startswith(".")


def fetch_wan_folder(model: str) -> Path:
    """A Wan folder in diffusers' layout from the hub; its kind is checked before the weights are fetched.

    Raises:
        UserError: when it cannot be fetched, or is another kind of model.
    """
    folder = _fetch(model, [INDEX])
    if not (folder / INDEX).is_file():
        raise UserError(
            f"'{model}' on the hub has no {INDEX}: it is not in diffusers' layout; for one in the native layout, "
            f"`aad1 convert {model} -o FOLDER`"
        )
    refuse_kind(model, folder / INDEX)
    folder = _fetch(model, DIFFUSERS)
    if lacking := [part for part in PARTS if not (folder / part).is_dir()]:
        raise UserError(f"'{model}' is not all in the cache (no {', '.join(lacking)}); go online and try again")
    return folder


def fetch_native_folder(model: str) -> Path:
    """A Wan folder in the native layout from the hub; raises as above."""
    return _fetch(model, NATIVE)


def _fetch(model: str, patterns: Sequence[str]) -> Path:
    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except GatedRepoError:
        why = "its owner wants you to accept terms first, on its page, and to log in with `hf auth login`"
    except RepositoryNotFoundError:
        why = "the hub has no such model, or it is private: `hf auth login`"
    except LocalEntryNotFoundError:
        why = "the hub cannot be reached, and its cache does not hold it"
    except (OSError, ValueError) as error:
        why = (str(error).splitlines() or ["?"])[0][:150]
    raise UserError(f"'{model}' is not a folder here, and cannot be fetched from the hub: {why}")
