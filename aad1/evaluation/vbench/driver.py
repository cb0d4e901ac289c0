"""Run in the user's Python, never imported: has VBench measure one dimension, on the GPU where there is one.

Arguments: a JSON object with the fields of ``run.Call`` and the folder ``out``. VBench writes its result there as
{name}_eval_results.json. Needs nothing of aad1; Python 3.8 will do.
"""

from __future__ import annotations

import importlib
import json
import sys


def main() -> None:
    """Measure."""
    asked = json.loads(sys.argv[1])
    torch = importlib.import_module("torch")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cls = getattr(importlib.import_module(asked["module"]), asked["cls"])
    cls(device, asked["info"], asked["out"]).evaluate(**asked["arguments"])


main()
