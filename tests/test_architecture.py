"""What the code must stay: imports in one direction, short functions, no foreign or private ingredients."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import aad1

PACKAGE = Path(aad1.__file__).parent
ROOT = PACKAGE.parent
# Anyone may import them; they import errors alone.
LEAVES = ("errors", "files", "limits", "progress", "runtime", "stopwatch")
ORDER = (
    "flow",
    "data",
    "measures",
    "models",
    ("rollout", "teacher_sampling"),
    "objectives",
    "parallel",
    "training",
    "stages",
    "recipe",
    "workspace",
    "record",
    "assembly",
    "planning",
    "streaming",
    "evaluation",
    "exporting",
    "inspection",
    "reproduction",
    "demo",
    "serve",
    "cli",
    "__main__",
)
RANK = {
    name: rank for rank, names in enumerate(ORDER) for name in ((names,) if isinstance(names, str) else names)
} | dict.fromkeys(LEAVES, -1)
LONGEST_FUNCTION = 70
FORBIDDEN = ("torchvision", "torchcodec", "decord", "accelerate", "timm", "open_clip", "lpips", "streaming", "litdata")
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The part of the package that a file belongs to: its first folder, or its own name."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).with_suffix("").parts
            base = ".".join(here[: -node.level]) + "." if node.level else ""
            module = f"{base}{node.module or ''}".rstrip(".")
            names = [f"{module}.{alias.name}" for alias in node.names] if module in ("aad1", "") else [module]
            yield from ((node.lineno, name) for name in names)


def test_every_file_has_a_place_in_the_order() -> None:
    homeless = {unit(path) for path in FILES} - RANK.keys() - {"__init__"}
    assert not homeless, f"say in ORDER where these stand: {sorted(homeless)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = unit(path)
    if here == "__init__":
        assert not [name for _, name in imports(path) if name.startswith("aad1")]
        return
    wrong = []
    for line, name in imports(path):
        if not name.startswith("aad1."):
            continue
        there = name.split(".")[1]
        earlier = RANK[there] < RANK[here] if there in RANK else False
        leaf = here in LEAVES and there != "errors"
        if not (there == here or earlier or there == "errors") or (leaf and there != here):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


def test_there_is_no_cycle_between_files() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph = {name: {n for _, n in imports(path) if n in names and n != name} for name, path in names.items()}
    while free := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph, f"these import each other: {sorted(graph)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short(path: Path) -> None:
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {f.name: lines for f in functions if (lines := (f.end_lineno or f.lineno) - f.lineno + 1) > LONGEST_FUNCTION}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_forbidden_is_imported(path: Path) -> None:
    assert not [name for _, name in imports(path) if name.split(".")[0] in FORBIDDEN]


def test_the_loop_holds_no_equation_and_no_objective_an_optimizer() -> None:
    for path in FILES:
        found = {name for _, name in imports(path)}
        if path.parent.name == "training":
            assert not {n for n in found if n.startswith(("aad1.objectives", "aad1.flow", "aad1.stages"))}
        if path.parent.name == "objectives":
            assert not {n for n in found if n.startswith(("aad1.training", "aad1.models", "torch.optim"))}


def test_weights_are_never_unpickled() -> None:
    """torch.load only with weights_only=True."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
                assert safe, f"{path}:{node.lineno}"


# --- tracked files ---------------------------------------------------------------------------

# Written apart, so that this file does not find itself.
PRIVATE_PATHS = re.compile(
    "|".join(["/" + "work/", "/" + r"home/\w", "/" + r"Users/\w", "/" + "root/", r"[A-Z]:\\" + "Users"])
)
HOST = re.compile(r"https?://([^/\s\"'<>()]+)")
REGISTRY = re.compile("index" + "-url|" + "find" + "-links|" + "trusted" + "-host", re.IGNORECASE)
MIRROR = re.compile(r"artifactory|nexus|mirror|registry|localhost\.|\.internal|\.corp|\.local(:|$)|^\d+\.\d+\.\d+\.\d+")
LOOPBACK = ("127.0.0.1", "0.0.0.0")


def tracked_text() -> dict[str, str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if path.is_file():
            data = path.read_bytes()
            if b"\0" not in data[:8192]:
                found[name] = data.decode("utf-8", errors="replace")
    return found


def test_tracked_files_name_no_machine() -> None:
    paths, hosts = [], []
    for name, text in tracked_text().items():
        for number, line in enumerate(text.splitlines(), start=1):
            if PRIVATE_PATHS.search(line):
                paths.append(f"{name}:{number}: {line.strip()[:100]}")
            strange = [h for h in HOST.findall(line) if MIRROR.search(h) and h.split(":")[0] not in LOOPBACK]
            if strange:
                hosts.append(f"{name}:{number}: {strange[0]}")
            if REGISTRY.search(line) and "download.pytorch.org" not in line:
                hosts.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not paths
    assert not hosts


def test_recipes_and_code_hold_no_key() -> None:
    pattern = re.compile(r"(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}|ghp_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})")
    assert not [name for name, text in tracked_text().items() if pattern.search(text)]
