"""Writing a transformer's weights file by file, also when they are spread over processes or lie in a checkpoint.

Nobody holds more than one file's tensors besides the model itself. Names, sizes and index of the files are diffusers'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from aad1.errors import UserError

WEIGHTS = "diffusion_pytorch_model{suffix}.safetensors"
FILE_BYTES = 10 * 10**9  # diffusers' own


def writes() -> bool:
    """Whether this process writes what all processes have in common."""
    return not dist.is_initialized() or dist.get_rank() == 0


def write_weights(
    folder: Path | None,
    like: Mapping[str, Tensor],
    read: Callable[[Sequence[str]], Mapping[str, Tensor]],
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write what ``read`` gives for the names of one file after the other into ``folder``; None: only read.

    like: shapes and types of all tensors, which may be on the meta device. The reading goes on to its end after an
    error, so that processes which give their parts do not wait in vain. Raises UserError when the disk is full.
    """
    split = split_torch_state_dict_into_shards(dict(like), filename_pattern=WEIGHTS, max_shard_size=file_bytes)
    failure: Exception | None = None
    for name, names in split.filename_to_tensors.items():
        tensors = read(names)
        if folder is None or failure is not None:
            continue
        try:
            save_file(dict(tensors), folder / name, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            failure = error
    if failure is not None:
        reason = " ".join(str(failure).split())
        raise UserError(f"cannot write weights into {folder}: {reason}; free some space or choose another place")
    if split.is_sharded and folder is not None:
        index = {"metadata": dict(split.metadata), "weight_map": split.tensor_to_filename}
        place = folder / f"{WEIGHTS.format(suffix='')}.index.json"
        place.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_model_weights(
    model: nn.Module, folder: Path | None, dtype: torch.dtype | None, file_bytes: int = FILE_BYTES
) -> None:
    """Write a model's weights, as ``dtype`` if given; all processes that hold parts of them call it together.

    Each tensor is made whole on all of them, one at a time, and kept by the one that writes.
    """
    held: dict[str, Tensor] = model.state_dict()

    def kind(tensor: Tensor) -> torch.dtype:
        return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        for name in names:
            tensor = held[name]
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if folder is not None:
                found[name] = whole.detach().to("cpu", kind(tensor)).contiguous()
        return found

    like = {name: torch.empty(tensor.shape, dtype=kind(tensor), device="meta") for name, tensor in held.items()}
    write_weights(folder, like, read, file_bytes)


def own_class(model: nn.Module) -> type:
    """A model's class as it was before it was split over processes, which gives it one of another name."""
    return next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
