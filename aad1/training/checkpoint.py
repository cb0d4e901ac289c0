"""Checkpoints that survive a kill at any moment: written beside, synced, renamed; a torn one is skipped.

A checkpoint is a folder ``step-00000100`` with ``state.pt`` (read back with weights_only) and
``meta.json`` (step, format, size and digest of the state). The rename is the last thing that happens.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from aad1.errors import UserError
from aad1.files import sync

FORMAT = 3
WRITING = ".writing-"


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``step``; keep the last ``keep``, and none of a later step.

    Later ones can only be unreadable ones that a resumed run has left behind. Raises UserError when the
    disk is full or the place cannot be written; nothing half-written stays and older checkpoints are whole.
    """
    final, beside = folder / f"step-{step:08d}", folder / f"{WRITING}{step:08d}"
    try:
        for stale in folder.glob(f"{WRITING}*"):  # a process that was killed while saving
            shutil.rmtree(stale, ignore_errors=True)
        beside.mkdir(parents=True)
        write_tensors(beside / "state.pt", state)
        meta = {"format": FORMAT, "step": step, "sha256": _digest(beside / "state.pt")}
        (beside / "meta.json").write_text(json.dumps(meta))
        for path in (beside / "state.pt", beside / "meta.json", beside):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        beside.rename(final)
        sync(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        reason = error.strerror or error
        raise UserError(
            f"cannot write the checkpoint {final}: {reason}; free some space or choose another -o"
        ) from error
    current = [path for path in _complete(folder) if path.name <= final.name]
    for old in {*_complete(folder)} - {*current[-keep:]}:
        shutil.rmtree(old)
    return final


def write_tensors(path: Path, value: Any) -> None:
    """``torch.save``, but a disk that is full raises OSError (torch says RuntimeError "unexpected pos")."""
    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def load_last(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest readable (step, state); unreadable ones are skipped with a warning; None when there is none."""
    for path in reversed(_complete(folder)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
            warnings.warn(f"skipping the unreadable checkpoint {path}: {error}", stacklevel=2)
    return None


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if meta["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {meta['format']}; this version reads {FORMAT}")
    if _digest(path / "state.pt") != meta["sha256"]:
        raise ValueError("its contents do not match its digest")
    return int(meta["step"]), torch.load(path / "state.pt", map_location="cpu", weights_only=True)


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
