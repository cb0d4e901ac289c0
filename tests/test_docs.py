"""The documents speak of what is there: files, functions, tests and recipe values that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from aad1.cli import main, parse
from aad1.data.media import read_frames, read_metadata
from aad1.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RECIPES = sorted((ROOT / "aad1" / "recipes").rglob("*.yaml"))
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


def blocks(path: Path) -> list[str]:
    """The blocks of code of a document."""
    return re.findall(r"^```\n(.*?)^```", path.read_text(), flags=re.M | re.S)


def commands(path: Path) -> list[list[str]]:
    """Every `aad1` command of a document's blocks of code, or of a recipe's header."""
    return commands_in("\n".join(blocks(path)) if path.suffix == ".md" else path.read_text())


def commands_in(text: str) -> list[list[str]]:
    """Every `aad1` command of a text, in words."""
    joined = re.sub(r"\\\n|\n#? {20,}(?=--)", " ", text)
    lines = (re.sub(r"^[# ]*(Commands?\b)?", "", line).strip() for line in joined.splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith("aad1 ")]


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda path: path.name)
def test_commands_that_are_shown_are_understood(path: Path) -> None:
    for words in commands(path):
        command, rest = parse(words)
        if "recipe" in vars(command):
            load_recipe(command.recipe, rest)
        else:
            assert not rest, words


def test_the_readme_and_every_recipe_show_commands() -> None:
    assert all(commands(path) for path in [ROOT / "README.md", *RECIPES])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_be_filled_in(path: Path) -> None:
    assert not re.findall(r"@@\w*|TODO|FIXME|XXX", path.read_text())


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"


def defined(path: Path) -> set[str]:
    """Names of a module: functions, classes, constants, and what classes define, as Class.member and as member."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        names = _names(node)
        found.update(names)
        for part in ast.walk(node) if isinstance(node, ast.ClassDef) else ():
            found |= {name for member in _names(part) for name in (member, f"{node.name}.{member}")}
    return found


def _names(node: ast.AST) -> list[str]:
    """What a statement names: a function, a class, variables, attributes of self."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in flat]


def test_what_is_said_to_be_in_a_file_is_in_it() -> None:
    text = (ROOT / "docs" / "paper.md").read_text()
    named = re.findall(r"`((?:aad1|tests)/[\w/]+\.py)`: ((?:`[^`]+`(?:, )?)+)", text)
    assert len(named) > 50
    missing = []
    for file, names in named:
        found = defined(ROOT / file)
        missing += [f"{file}: {n}" for n in re.findall(r"`([\w.]+)", names) if n not in found]  # without arguments
    assert not missing


def test_the_readmes_python_makes_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert len([line for line in block.splitlines() if line]) <= 5
    monkeypatch.chdir(tmp_path)
    assert main(["world-image", "0", "-o", "still.png"]) == 0
    exec(block, {})
    assert read_metadata("video.mp4")["prompt"] == "a red disc moves up slowly"
    assert len(read_frames("video.mp4", 1000)) == 160


def test_the_readmes_first_video_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(block for block in blocks(ROOT / "README.md") if "world-image" in block)
    monkeypatch.chdir(tmp_path)
    for words in commands_in(block):
        assert main(words) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".mp4"}
