"""Peak memory of a process, as the kernel counts it; shared by the measurements beside it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.02  # seconds between samples


@dataclass(frozen=True)
class Peak:
    """The largest resident memory, in bytes: of all pages, and of those that belong to no file."""

    resident: int
    anonymous: int
    output: str

    def __str__(self) -> str:
        return f"peak {self.resident / 1e9:.2f} GB resident, {self.anonymous / 1e9:.2f} GB of it not mapped files"


def measured(command: Sequence[str], **environment: str) -> Peak:
    """Run a command to its end and return its peak; raises CalledProcessError when it fails."""
    resident = anonymous = 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
        )
        while process.poll() is None:
            status = _status(process.pid)
            resident = max(resident, status.get("VmHWM", 0))
            anonymous = max(anonymous, status.get("RssAnon", 0))
            time.sleep(PERIOD)
        said.seek(0)
        output = said.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), output)
    return Peak(resident, anonymous, output)


def _status(pid: int) -> dict[str, int]:
    """The sizes in the kernel's account of a process, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
