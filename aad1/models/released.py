"""Generators as the projects of the Self Forcing family publish them, in and out."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from aad1.files import write_whole
from aad1.models.names import native_names


def save_self_forcing(model: WanTransformer3DModel, path: Path) -> None:
    """Write a .pt that Self Forcing, CausVid and LongLive load: ``generator`` and ``generator_ema``, native names.

    Both entries are the same tensors, stored once; the file appears whole or not at all.

    Raises:
        UserError: when the disk is full or the place is not writable.
    """
    weights = model.state_dict()
    generator = {f"model.{native}": weights[name].detach() for name, native in native_names(weights).items()}
    with write_whole(path) as fresh:
        torch.save({"generator": generator, "generator_ema": dict(generator)}, fresh)
