"""`aad1 serve` in a process of its own, for the benchmarks that look at it from outside."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(model: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A warm server on a free port: its host and port, and the process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "aad1", "serve", "--model", model, "--port", "0", "-o", folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"open http://(\S+)", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield found[1], process
        finally:
            process.terminate()
            process.wait()


def resident(process: subprocess.Popen[str]) -> float:
    """Memory of a process, MiB (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return round(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024, 1)
