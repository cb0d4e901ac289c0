"""What the doctor says: one sentence of what it saw, with numbers, and one of what to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad; a run is as bad as its worst finding."""

    OK = 0
    NOTE = 1
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True)
class Finding:
    """name: for programs; sure: sure, likely or perhaps; options: recipe values of the advice, (key, value)."""

    name: str
    severity: Severity
    stage: str
    saw: str
    advice: str = ""
    options: Sequence[tuple[str, str]] = ()
    sure: str = "sure"

    @property
    def words(self) -> str:
        """The advice with its options as they are given on the command line."""
        given = " ".join(f"--{key} {value}" for key, value in self.options)
        return ": ".join(part for part in (self.advice, given) if part)

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "name": self.name,
            "severity": self.severity.name.lower(),
            "stage": self.stage,
            "sure": self.sure,
            "saw": self.saw,
            "try": self.advice,
            "options": dict(self.options),
        }


def worst(findings: Sequence[Finding]) -> Severity:
    """The worst severity among them."""
    return max((finding.severity for finding in findings), default=Severity.OK)
