"""Run in the user's Python, never imported: prints what is installed there as one line of JSON.

Arguments: a JSON object {"packages": {importable name: distribution}}. Needs nothing of aad1; Python 3.8 will do.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any


def version_of(distribution: str) -> str | None:
    """A distribution's version, None where it is not installed."""
    for name in (distribution, distribution + "-headless"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def imported(name: str) -> tuple[Any, str]:
    """A module and "", or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except BaseException as error:  # a package may even exit
        return None, type(error).__name__ + ": " + (str(error).splitlines() or [""])[0]


def entry(module: str, cls: str) -> dict[str, Any]:
    """Where a VBench class comes from and what its evaluate() takes, or why it cannot be imported."""
    found, problem = imported(module)
    if found is None or not hasattr(found, cls):
        return {"problem": problem or "it has no " + cls}
    arguments = list(inspect.signature(getattr(found, cls).evaluate).parameters)
    return {"problem": "", "file": os.path.abspath(found.__file__ or ""), "arguments": arguments}


def main() -> None:
    """Look, and print."""
    packages = json.loads(sys.argv[1])["packages"]
    out: dict[str, Any] = {"python": platform.python_version(), "packages": {}}
    for name, distribution in packages.items():
        module, problem = imported(name)
        version = version_of(distribution) or getattr(module, "__version__", None)
        out["packages"][name] = {"version": version and str(version), "problem": problem}
    torch = imported("torch")[0]
    cuda = torch is not None and torch.cuda.is_available()
    out["device"] = torch.cuda.get_device_name(0) if cuda else "cpu"
    out["hub"] = torch.hub.get_dir() if torch is not None else ""
    out["home"] = os.path.expanduser("~")
    cache = os.path.join(out["home"], ".cache", "vbench")
    out["cache"] = os.environ.get("VBENCH_CACHE_DIR") or cache
    out["vbench_version"] = version_of("vbench")
    out["vbench"] = entry("vbench", "VBench")
    out["vbench_i2v"] = entry("vbench2_beta_i2v", "VBenchI2V")
    print("\nAAD1-PROBE " + json.dumps(out))


main()
