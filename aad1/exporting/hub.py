"""Sending an export to the hub: what would be sent, what is amiss with it, and the sending."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from aad1.errors import UserError
from aad1.exporting.source import check_repo
from aad1.exporting.writing import MARK

CARD, LICENCE_FILE = "README.md", "LICENSE"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
DENIED = (401, 403)


@dataclass(frozen=True)
class Upload:
    """An export and where it would go. files: its own, relative to ``folder``; amiss: what a reader would miss."""

    folder: Path
    repo: str
    files: tuple[Path, ...]
    amiss: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.size(file) for file in self.files)

    def size(self, file: Path) -> int:
        """Bytes of one of them."""
        return (self.folder / file).stat().st_size


def prepare_upload(folder: Path, repo: str) -> Upload:
    """List what belongs to an export: no hidden files or folders, and no links that lead out of it.

    Raises:
        UserError: for a malformed id or a folder that is no export.
    """
    check_repo(repo)
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder; give what `aad1 export -o FOLDER` wrote")
    if not (folder / MARK).is_file():
        raise UserError(f"'{folder}' is no export: it has no {MARK}; make one with `aad1 export`")
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    own = tuple(file for file in files if _belongs(folder, file))
    return Upload(folder, repo, own, tuple(_amiss(folder)))


def _belongs(folder: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in file.parts)
    return not hidden and (folder / file).resolve().is_relative_to(folder.resolve())


def _amiss(folder: Path) -> Iterator[str]:
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    try:
        matter = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        matter = None
    if not isinstance(matter, dict):
        yield f"{CARD} has no front matter: the hub will not know what this is"
        matter = {"license": "?", "pipeline_tag": "?"}
    for key in ("license", "pipeline_tag"):
        if not matter.get(key):
            yield f"{CARD} names no {key}"
    if "base_model" not in matter:
        yield f"{CARD} names no base_model: give it with `aad1 export --base-model`"
    if "## Evaluation" not in card:
        yield f"{CARD} has no evaluation: give one with `aad1 export --report`"
    if not (folder / LICENCE_FILE).is_file():
        yield f"there is no {LICENCE_FILE}"


def send(upload: Upload, *, private: bool = False, client: Any = None) -> str:
    """Create the repository if there is none and upload the files in one commit; returns where it is.

    client: as ``huggingface_hub.HfApi``.

    Raises:
        UserError: without a token, a right or a network, or when the repository is not as private as asked for.
    """
    api = client or HfApi()
    with _hub_errors(upload.repo):
        api.create_repo(upload.repo, private=private, exist_ok=True)
        if private and not api.repo_info(upload.repo).private:
            raise UserError(
                f"'{upload.repo}' exists and is public; make it private on the hub first, or push elsewhere"
            )
        commit = api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=[file.as_posix() for file in upload.files],
            commit_message="Export by aad1",
        )
    return str(getattr(commit, "commit_url", commit))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub or the way to it refuses, on one line."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"the hub wants to know who you are: {LOG_IN}") from None
    except OfflineModeIsEnabled:
        raise UserError(
            "the hub is switched off here (HF_HUB_OFFLINE); unset it and run the same command again"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"there is no '{repo}' that this token may see; check the name, or {LOG_IN}") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        what = f"may not write to '{repo}': {LOG_IN}" if status in DENIED else f"refused '{repo}'"
        raise UserError(f"the hub: {what} ({' '.join(str(error).split())[:200]})") from None
    except OSError as error:  # what the network raises
        raise UserError(f"the hub cannot be reached ({' '.join(str(error).split())[:200]}); try again later") from None
