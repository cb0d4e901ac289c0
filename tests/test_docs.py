"""The documents speak of what is there: files, functions, tests and recipe values that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
HISTORY = ("log.md",)  # tells of what has been, too
SOURCES = [*(ROOT / "aad1").rglob("*.py"), *(ROOT / "aad1").rglob("*.yaml"), *(ROOT / "tests").glob("*.py")]


def quoted(path: Path) -> set[str]:
    """What stands in backticks, outside blocks of code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    named = {
        name for name in quoted(path) if re.fullmatch(r"(aad1|tests|docs|benchmarks)/[\w./-]+\.(py|md|yaml|html)", name)
    }
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name not in HISTORY], ids=lambda path: path.name)
def test_functions_and_tests_that_are_named_exist(path: Path) -> None:
    words = set(re.findall(r"\w+", "\n".join(source.read_text() for source in SOURCES)))
    named = {name.split("(")[0] for name in quoted(path)}
    identifiers = {part for name in named if re.fullmatch(r"[\w.]+", name) for part in name.split(".") if "_" in part}
    assert not sorted(identifiers - words)


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"
