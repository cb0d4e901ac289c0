"""How this process uses its machine: memory that is kept, and the device it computes on."""

from __future__ import annotations

import ctypes
import sys

import torch

from aad1.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: fresh pages for every large temporary cost a small model most of its time."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, KEEP)


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one. Raises UserError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{name}' is not available here; use auto, cpu, or a GPU such as cuda:0") from error
    return device


def peak_memory() -> int:
    """Bytes that this process has held at most, on the CPU and its GPUs together; 0 where it cannot be told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held + sum(torch.cuda.max_memory_allocated(gpu) for gpu in range(torch.cuda.device_count()))
