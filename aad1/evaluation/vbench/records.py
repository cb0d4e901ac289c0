"""run.json beside the result files: in which environment each dimension was measured, over which videos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from aad1.errors import UserError
from aad1.files import write_atomic

FILE = "run.json"


@dataclass(frozen=True)
class Measured:
    """How one dimension was measured. key: everything its result depends on; seconds: what it took."""

    key: str
    seconds: float
    date: str


@dataclass
class Record:
    """What a folder of results says of itself.

    environment: versions, as ``made`` of a report; problems: of the videos' folder; failed: the last reason.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    measured: dict[str, Measured] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=1).encode())


def read_record(folder: Path) -> Record:
    """The record of a folder of results, an empty one where there is none; raises UserError for a damaged one."""
    path = folder / FILE
    try:
        return TypeAdapter(Record).validate_json(path.read_bytes())
    except FileNotFoundError:
        return Record()
    except (OSError, ValidationError):
        raise UserError(f"{path} is damaged or not aad1's; choose another folder, or delete it") from None


def read_environment(folder: Path) -> dict[str, str]:
    """The versions that a folder's results were measured with."""
    return dict(read_record(folder).environment) or {"vbench": "unknown: not run by aad1"}


def read_problems(folder: Path) -> list[str]:
    """What was wrong with the videos, and which dimensions failed, a line each."""
    record = read_record(folder)
    return [*record.problems, *(f"{name} failed: {reason}" for name, reason in record.failed.items())]
