"""Named tensors, whole or spread over many processes, as files that any number of processes reads back.

The format is PyTorch's distributed checkpoint: every process writes the shards it holds, ``.metadata`` says which chunk
of which tensor lies where, and a reader takes from each chunk what its own layout asks for. Names are paths, such as
``players/generator/average/blocks.0.attn1.to_q.weight``.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

METADATA = ".metadata"
# What .metadata is made of; pickle would otherwise call whatever a file names.
KNOWN = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
}


class Kind(NamedTuple):
    """What a tensor must have in common with the one it is read into."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


# --- values apart from tensors ---------------------------------------------------------------


def parted(state: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Nested mappings -> (the same without its tensors, its tensors by path)."""
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[f"{path}{key}"] = value
        elif isinstance(value, Mapping):
            values[key], below = parted(value, f"{path}{key}/")
            tensors |= below
        else:
            values[key] = value
    return values, tensors


def rejoined(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``parted`` took apart."""
    state: dict[str, Any] = {key: rejoined(v, {}) if isinstance(v, Mapping) else v for key, v in values.items()}
    for path, tensor in tensors.items():
        *above, name = path.split("/")
        inner = state
        for key in above:
            inner = inner.setdefault(key, {})
        inner[name] = tensor
    return state


# --- copies ----------------------------------------------------------------------------------


class HostCopies:
    """This process's part of tensors, in memory of the CPU that is used again and again."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of these tensors, spread as they are, that stand until the next call."""
        self._held = {name: self._place(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            local_part(self._held[name]).copy_(local_part(tensor), non_blocking=True)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return self._held

    def _place(self, name: str, like: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is not None and (held.shape, held.dtype) == (like.shape, like.dtype):
            return held
        return torch.empty_like(like.detach(), device="cpu", requires_grad=False, pin_memory=like.is_cuda)


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor this process holds."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


# --- files -----------------------------------------------------------------------------------


def write_spread(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Write CPU tensors into ``folder``, each process of ``group`` its own parts, and flush them; None: one alone.

    Raises OSError on every process when the disk of one is full.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    writer = _Writer(folder, per_thread_copy_ahead=0)  # nothing is on a GPU here
    if group is not None:
        with _true_causes():
            save(dict(tensors), storage_writer=writer, planner=planner, process_group=group)
        return
    # ``save`` of one process warns at every call that there is no process group.
    planner.set_up_planner(dict(tensors), storage_meta=writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    local = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([local])
    (plan,) = writer.prepare_global_plan(plans)
    written = writer.write_data(planner.finish_plan(plan), planner)
    writer.finish(metadata, [written.wait()])


def read_into(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill tensors in place with what ``folder`` holds under their names, however it was spread when it was written.

    Each chunk that is needed is read, taken from and let go. Names and kinds must fit (``first_misfit``).
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = _Reader(folder)
    if group is not None:
        with _true_causes(), torch.no_grad():
            load(dict(tensors), storage_reader=reader, planner=planner, process_group=group)
        return
    metadata = reader.read_metadata()
    planner.set_up_planner(dict(tensors), metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, True)
    local = reader.prepare_local_plan(planner.create_local_plan())
    (plan,) = reader.prepare_global_plan(planner.create_global_plan([local]))
    with torch.no_grad():
        reader.read_data(planner.finish_plan(plan), planner).wait()


def kinds_in(folder: Path) -> dict[str, Kind]:
    """Shapes and types of the tensors in a folder, by name."""
    held = _Reader(folder).read_metadata().state_dict_metadata
    return {
        name: Kind(tuple(one.size), one.properties.dtype)
        for name, one in held.items()
        if isinstance(one, TensorStorageMetadata)
    }


def first_misfit(held: Mapping[str, Kind], wanted: Mapping[str, Tensor]) -> str | None:
    """The first tensor, by name, that is held and not wanted, the reverse, or of another kind; None when all fit."""
    for name in sorted(held.keys() | wanted.keys()):
        if name not in wanted:
            return f"it holds {name}, which this model has not"
        ours = Kind(tuple(wanted[name].shape), wanted[name].dtype)
        if name not in held:
            return f"it lacks {name} {ours}"
        if held[name] != ours:
            return f"{name} is {held[name]} there and {ours} here"
    return None


def write_tensors(path: Path, value: Any) -> None:
    """``torch.save`` of plain values, but a disk that is full raises OSError (torch says RuntimeError)."""
    with _disk_errors(), path.open("wb") as file:
        torch.save(value, file)


class _Writer(FileSystemWriter):
    """As torch's, but a full disk is an OSError already where it happens: its cause would not reach the others."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _disk_errors():
            return super().write_data(plan, planner)


class _Reader(FileSystemReader):
    """As torch's, but ``.metadata`` is unpickled with the few classes that belong in it."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{METADATA} holds no metadata")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        plain = module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype))
        if plain or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}, which does not belong there")


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's "unexpected pos", amid which the system's own error is lost
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


@contextmanager
def _true_causes() -> Iterator[None]:
    """What went wrong on some process instead of torch's account of all of them."""
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((c for c in causes if isinstance(c, OSError)), causes[0]) from error
