"""A student out of a run's checkpoint: what the averaged generator was at that step, as a folder of its own.

One process reads it, whatever number wrote it, and holds one file's worth of tensors at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from aad1.assembly import student_config
from aad1.errors import UserError
from aad1.files import write_errors
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder, our_window, whole_folder, write_config
from aad1.models.saving import FILE_BYTES, write_weights
from aad1.recipe import load_recipe
from aad1.record import RECIPE
from aad1.training.checkpoint import find
from aad1.training.loop import CHECKPOINTS
from aad1.training.tensor_files import first_misfit, kinds_in, read_into
from aad1.workspace import model_path

GENERATOR = "players/generator/"
Which = int | Literal["last", "best"]


def write_trained(
    run: Path, which: Which, folder: Path, *, model: str | None = None, file_bytes: int = FILE_BYTES
) -> Path:
    """Write the student of a stage's run as it was in its checkpoint ``which``, as ``save_transformer`` would have.

    model: the Wan folder that it was trained from, if that is no longer where the run's recipe says. Returns
    ``folder``. Raises UserError when there is no such checkpoint, or no student in it.
    """
    if not (run / RECIPE).is_file():
        raise UserError(f"{run} is no run: it has no {RECIPE}; give a stage's folder, such as runs/tiny/adversarial")
    recipe = load_recipe(str(run / RECIPE))
    base = open_folder(model_path(model or recipe.model))
    config = CausalWanTransformer3DModel.load_config(base.path, subfolder="transformer", local_files_only=True)
    with torch.device("meta"):
        student = CausalWanTransformer3DModel.from_config(config, **our_window(config), **student_config(recipe))
    like: dict[str, Tensor] = student.state_dict()
    found = find(run / CHECKPOINTS, which)
    held = kinds_in(found.path)
    prefix = next(
        (p for p in (f"{GENERATOR}average/", f"{GENERATOR}parameters/") if any(n.startswith(p) for n in held)), None
    )
    if prefix is None:
        raise UserError(f"{found.path} holds no student; give the run of ode_init, dmd_warmup or adversarial")
    ours = {name.removeprefix(prefix): kind for name, kind in held.items() if name.startswith(prefix)}
    if misfit := first_misfit(ours, like):
        raise UserError(f"{found.path} is of another model than {base.path}: {misfit}; name its own with --model")

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        tensors = {name: torch.empty(like[name].shape, dtype=like[name].dtype) for name in names}
        read_into(found.path, {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
        return tensors

    with write_errors(folder), whole_folder(folder) as fresh:
        write_weights(fresh, like, read, file_bytes)
        write_config(student, fresh)
    return folder


def which_of(word: str) -> Which:
    """A checkpoint as a command names it: ``last``, ``best`` or a step; UserError for anything else."""
    if word.isdecimal():
        return int(word)
    if word in ("last", "best"):
        return word  # type: ignore[return-value]
    raise UserError(f"--checkpoint {word}: allowed are last, best and a step, such as 200")
