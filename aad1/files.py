"""Files that survive a kill or a full disk: written beside, flushed, renamed; old or whole, never half."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from aad1.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there two at once are not noticed
    fcntl = None  # type: ignore[assignment]

LOOK = 0.1  # seconds between tries to have a lock


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` as ``write_whole`` does."""
    with write_whole(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a hidden neighbour to write, flush it, rename it: ``path`` is the old file or the whole new one, never half.

    Its folder is made if there is none. Raises UserError when the disk is full or the place is not writable; nothing is
    left behind then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """A full disk or a place that cannot be written becomes a UserError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_and_remedy(error)}") from None


@contextmanager
def user_errors() -> Iterator[None]:
    """A full disk, a place that cannot be written, weights that cannot be read: the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot use {error.filename or 'a file'}: {reason_and_remedy(error)}") from error
    except SafetensorError as error:
        raise UserError(f"weights cannot be read or written: {' '.join(str(error).split())}; check the disk") from error


def reason_and_remedy(error: OSError) -> str:
    """Why a file or folder could not be written, and what to do."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{error.strerror}; give a folder, or a name that is free"
    full = error.errno == errno.ENOSPC
    what = "the disk is full; free some space" if full else f"{error.strerror or error}; make it writable"
    return f"{what} and run the same command again"


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that it survives a power cut; not every system can flush folders."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def sole_holder(path: Path, patience: float, otherwise: str) -> Iterator[None]:
    """Hold the lock on the file ``path`` for as long as the block lasts; the system drops it with the process.

    Raises:
        UserError: ``otherwise``, when another process has it for longer than ``patience`` seconds.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        if not locked_within(file, patience):
            raise UserError(otherwise)
        yield


def locked_within(file: IO[str], patience: float) -> bool:
    """Whether the lock could be had (``locked``), tried for so many seconds."""
    until = time.monotonic() + patience
    while not (have := locked(file)) and time.monotonic() < until:
        time.sleep(LOOK)
    return have


def locked(file: IO[str]) -> bool:
    """Whether the lock could be had, alone by a leader, or with others by a follower who may only read ``file``.

    Where there are no locks a leader has it and a follower has not, as if all were well.
    """
    if fcntl is None:
        return file.writable()
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if file.writable() else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return file.writable()
    return True
