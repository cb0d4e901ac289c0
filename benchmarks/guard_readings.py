"""What the motion guard reads, from eight held-out clips, beside what a hundred test clips say of the same student.

    python benchmarks/guard_readings.py docs/evidence

A line a condition and seed: rho and kappa at the last evaluation of its training and on the short protocol; then how
far apart they are over all, which is the room that the guard's limits must leave.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from aad1.measures.world import MEASURE, combine
from aad1.reproduction.pieces import PARTS, Piece

READ = ("rho", "kappa", "presence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of `aad1 reproduce --results`")
    arguments = parser.parse_args()
    print("| condition | " + " | ".join(f"{name}, 8 clips | {name}, 100 clips" for name in READ) + " |")
    print("|---" * (1 + 2 * len(READ)) + "|")
    apart: dict[str, list[float]] = {name: [] for name in READ}
    for path in sorted(arguments.results.glob("*.json")):
        piece = TypeAdapter(Piece).validate_python(json.loads(path.read_text()))
        if not piece.training or "local_attn" in path.stem or "sink" in path.stem:
            continue  # nothing was trained, or the student was changed afterwards
        pairs = {name: (piece.training[-1][f"eval/{name}"], tested(piece, name)) for name in READ}
        print(f"| {path.stem} | " + " | ".join(f"{few:.2f} | {many:.2f}" for few, many in pairs.values()) + " |")
        for name, (few, many) in pairs.items():
            apart[name].append(few - many)
    for name, values in apart.items():
        print(
            f"{name}: eight clips read {np.mean(values):+.2f} +- {np.std(values):.2f} of a hundred, {len(values)} runs"
        )


def tested(piece: Piece, name: str) -> float:
    """The measure over the short protocol."""
    sums = piece.protocols["short"].array().sum(axis=0)[None]
    return float(
        combine(
            MEASURE[name], {p: (sums[:, PARTS.index(p), 0], sums[:, PARTS.index(p), 1]) for p in MEASURE[name].keys}
        )[0]
    )


if __name__ == "__main__":
    main()
