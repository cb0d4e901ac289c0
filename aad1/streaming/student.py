"""Loading a student with the VAE and text encoder of its Wan folder."""

from __future__ import annotations

from pathlib import Path

import torch

from aad1.errors import UserError
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import WanFolder, open_folder
from aad1.runtime import pick_device
from aad1.streaming.session import Student
from aad1.workspace import model_path

STUDENT = "student"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_student(
    model: str | Path,
    *,
    student: str = STUDENT,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    compiled: bool = False,
    overlap: bool | None = None,
) -> Student:
    """Load a student with the VAE and text encoder of its Wan folder.

    model: a folder, or the name of a bundled one. student: as for ``student_folder``. dtype: of the transformer and
    text encoder, by default bfloat16 on a GPU and float32 on a CPU. compiled: run its blocks through torch.compile,
    which takes a minute during the first chunks of the first session (``Student.warm_up``). overlap: decode beside
    the making of the next chunk, by default on a GPU only: on a CPU both would share the same cores.

    Raises:
        UserError: when a part is missing or the device is not there.
    """
    where = pick_device(device)
    folder = _open(model, where, dtype)
    generator = folder.transformer_at(CausalWanTransformer3DModel, student_folder(folder, student))
    generator.eval().requires_grad_(False)
    if compiled:
        generator.compile_blocks()
    # Half precision shows in the VAE's colours and saves little: it is the smallest part.
    vae = open_folder(folder.path, device=str(where)).vae()
    overlap = where.type == "cuda" if overlap is None else overlap
    return Student(f"{model}/{student}", generator, vae, folder.text(), overlap)


def load_teacher(
    model: str | Path, device: str = "auto", dtype: torch.dtype | None = None
) -> CausalWanTransformer3DModel:
    """The bidirectional teacher of a Wan folder, on the same device and in the same type as its student would be."""
    folder = _open(model, pick_device(device), dtype)
    return folder.transformer(CausalWanTransformer3DModel).eval().requires_grad_(False)


def _open(model: str | Path, device: torch.device, dtype: torch.dtype | None) -> WanFolder:
    usual = torch.bfloat16 if device.type == "cuda" else torch.float32
    return open_folder(model_path(str(model)), dtype=dtype or usual, device=str(device))


def student_folder(folder: WanFolder, student: str = STUDENT) -> Path:
    """Where a student lies: in a subfolder of ``folder``, at a path, or as the transformer of an export.

    Raises:
        UserError: when it is nowhere, with how to get one.
    """
    if student in folder.transformers:
        return folder.path / student
    if (Path(student) / "config.json").is_file():
        return Path(student)
    if student == STUDENT and folder.streams:
        return folder.path / "transformer"
    raise UserError(
        f"'{folder.path}' has no student '{student}': distil one with `aad1 distill --model {folder.path} --install`, "
        "or give the folder that a run exported (.../final/student)"
    )
