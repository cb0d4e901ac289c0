"""The user's environment, where VBench's code runs: what its Python has, and which VBench that finds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aad1.errors import UserError
from aad1.evaluation.vbench.dimensions import DISTRIBUTIONS, PACKAGES, WANTED

HERE = Path(__file__).parent
MARK = "AAD1-PROBE "
PROBE_SECONDS = 300  # importing torch and all the rest from a slow disk
INFO = Path("vbench2_beta_i2v") / "vbench2_i2v_full_info.json"
CROPS = Path("vbench2_beta_i2v") / "data" / "crop"
HEAD_ARGUMENT = "custom_image_folder"  # VBenchI2V.evaluate takes it from the version on that knows own images


@dataclass(frozen=True)
class Package:
    """One importable package: its version, None where it is not installed, and why it cannot be imported."""

    version: str | None
    problem: str


@dataclass(frozen=True)
class Entry:
    """A VBench class: the file it comes from, what its evaluate() takes, and why it cannot be imported."""

    problem: str
    file: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """What ``probe`` found. clone: None where the installed package is used; cwd: where VBench runs."""

    python: str
    python_version: str
    clone: Path | None
    commit: str
    cwd: Path
    packages: Mapping[str, Package]
    vbench: Entry
    vbench_i2v: Entry
    vbench_version: str
    device: str
    places: Mapping[str, str]

    @property
    def source(self) -> str:
        """Which VBench this is, in words."""
        if self.clone:
            return f"clone {self.clone}" + (f" at commit {self.commit}" if self.commit else " (commit unknown)")
        return f"installed package vbench {self.vbench_version}" if self.vbench_version else "no VBench"

    @property
    def own_images(self) -> bool:
        """Whether this VBench's I2V dimensions take pictures of one's own."""
        return HEAD_ARGUMENT in self.vbench_i2v.arguments

    def versions(self) -> dict[str, str]:
        """What a result depends on, as ``made`` of a report has it."""
        named = {f"vbench {name}": p.version or "unknown" for name, p in self.packages.items() if p.version}
        return {"vbench": self.source, "vbench python": self.python_version, "vbench device": self.device, **named}


def is_clone(folder: Path) -> bool:
    """Whether a folder is a clone of VBench with its I2V part."""
    return (folder / "vbench" / "__init__.py").is_file() and (folder / "vbench2_beta_i2v" / "__init__.py").is_file()


def check_clone(folder: Path) -> Path:
    """The clone's full path; raises UserError for a folder that is none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; clone Vchitect/VBench there, or give --clone its place")
    if not is_clone(folder):
        raise UserError(f"{folder} is no clone of VBench (no vbench/ and vbench2_beta_i2v/ in it); give its top folder")
    return folder.resolve()


def commit_of(clone: Path) -> str:
    """The commit that is checked out, "" where git cannot tell."""
    try:
        found = subprocess.run(
            ["git", "-C", str(clone), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    top, _, commit = found.stdout.strip().partition("\n")
    return commit[:12] if found.returncode == 0 and Path(top).resolve() == clone.resolve() else ""


def process_environment(clone: Path | None) -> dict[str, str]:
    """The environment variables VBench runs with: the clone comes first among what Python imports."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"PYTHONUNBUFFERED": "1"} | ({"PYTHONPATH": str(clone)} if clone else {})


def probe(python: str, clone: Path | None, cwd: Path) -> Environment:
    """Ask the user's Python what it has.

    Raises UserError when it does not run, or finds another VBench than the clone.
    """
    names = {name: DISTRIBUTIONS.get(name, name) for name in PACKAGES}
    python = str(Path(python).expanduser().absolute()) if "/" in python else python  # links kept: a venv's is one
    found = _asked(python, clone, cwd, {"packages": names})
    vbench, i2v = (_entry(found[name]) for name in ("vbench", "vbench_i2v"))
    for entry in (vbench, i2v):
        if clone and entry.file and clone not in Path(entry.file).resolve().parents:
            raise UserError(
                f"{python} imports VBench from {entry.file}, not from the clone {clone}; look at its .pth files"
            )
    return Environment(
        python=python,
        python_version=found["python"],
        clone=clone,
        commit=commit_of(clone) if clone else "",
        cwd=cwd,
        packages={name: Package(**package) for name, package in found["packages"].items()},
        vbench=vbench,
        vbench_i2v=i2v,
        vbench_version=found["vbench_version"] or "",
        device=found["device"],
        places={name: found[name] for name in ("cache", "hub", "home")} | {"cwd": str(cwd)},
    )


def _asked(python: str, clone: Path | None, cwd: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    source = (HERE / "probe.py").read_text(encoding="utf-8")
    words = [python, "-c", source, json.dumps(question)]
    advice = "give --python the interpreter of the environment that VBench is installed in"
    try:
        done = subprocess.run(
            words, cwd=cwd, env=process_environment(clone), capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except FileNotFoundError:
        raise UserError(f"there is no Python at {python}; {advice}") from None
    except OSError as error:
        raise UserError(f"{python} does not run ({error.strerror}); {advice}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{python} gave no answer within {PROBE_SECONDS} s; {advice}") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{python} cannot be asked what it has ({last}); {advice}")
    return dict(json.loads(lines[-1].removeprefix(MARK)))


def _entry(found: Mapping[str, Any]) -> Entry:
    return Entry(found["problem"], found.get("file", ""), tuple(found.get("arguments", ())))


def version_trouble(name: str, version: str | None) -> str:
    """ "2.1.0, VBench wants <2" where a version is outside what VBench is known to work with, else ""."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    if name not in WANTED or version is None:
        return ""
    try:
        good = SpecifierSet(WANTED[name]).contains(version, prereleases=True)
    except InvalidVersion:
        good = False
    return "" if good else f"{name} {version}, VBench wants {name}{WANTED[name]}"
