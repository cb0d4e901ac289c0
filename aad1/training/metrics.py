"""Where a run's numbers go: one JSON line a step, and TensorBoard where it is installed.

``metrics.jsonl`` holds what is learnt, which is the same however a run is broken and resumed; ``speed.jsonl`` what the
machine did, which never is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from aad1.errors import UserError

METRICS, SPEED = "metrics.jsonl", "speed.jsonl"


class MetricsLog:
    """Appends to a file of ``folder`` and to TensorBoard event files in ``board``.

    When a run resumes at ``step``, lines of later steps (written after the last checkpoint) are cut
    off, so that the file of a resumed run reads like that of an unbroken one. Raises UserError when
    they cannot be written.
    """

    def __init__(self, folder: Path, step: int, file: str = METRICS, board: str = "tensorboard") -> None:
        self.path = folder / file
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self._drop_after(step)
            self._file = self.path.open("a")
        self._board = _tensorboard(folder / board, step)

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if _step_of(line, default=step + 1) <= step]
        beside = self.path.with_suffix(".writing")
        beside.write_text("".join(f"{line}\n" for line in rows))
        os.replace(beside, self.path)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log ``values`` as those of ``step``."""
        with self._writing():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; free some space or choose another -o"
            ) from error

    def close(self) -> None:
        """Flush and close both logs."""
        with self._writing():
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every row of a ``metrics.jsonl`` or ``speed.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _step_of(line: str, default: int) -> int:
    """The step of a row; a torn last line counts as ``default``."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return default


def _tensorboard(folder: Path, step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
