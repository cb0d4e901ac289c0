"""How far the few held-out clips of a training can be trusted, and the furthest that they have ever read.

    python benchmarks/held_out_readings.py docs/evidence

The motion guard and ``aad1 doctor`` judge by eight held-out clips. First: eight of a hundred test clips, drawn at
random, beside all hundred. Then: what each training read at its end beside the hundred clips over as many frames. Last:
the extremes of all readings, around which the doctor's thresholds lie (aad1/evaluation/diagnosis/thresholds.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from aad1.measures.motion import CHUNK_FRAMES
from aad1.recipe import load_recipe
from aad1.reproduction.experiments import FOLDER
from aad1.reproduction.pieces import Piece
from aad1.reproduction.summary import value

FEW, DRAWS = 8, 500
HIGHEST = ("rho", "law_residual", "kappa", "freeze")
FALLING = ("presence", "id_ok", "quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of `aad1 reproduce --results`")
    pieces = list(trained(parser.parse_args().results))
    print(f"{len(pieces)} trainings, {sum(len(piece.training) for piece in pieces)} evaluations\n")
    for name in ("rho", "kappa", "presence"):
        apart = np.concatenate([few_of_many(piece, name) for piece in pieces])
        print(f"{name}: {FEW} of 100 clips of 81 frames read {apart.mean():+.2f} +- {apart.std():.2f} of all")
    read = np.array([reading(piece) for piece in pieces])
    print(
        f"rho: each training's {FEW} held-out clips read {read.mean():+.2f} +- {read.std():.2f} of the hundred's first"
    )
    print("frames, as many as they have\n")
    extremes(pieces)


def trained(results: Path) -> Iterator[Piece]:
    """One piece of each training: students that were changed after it are left out."""
    for path in sorted(results.glob("*.json")):
        piece = TypeAdapter(Piece).validate_python(json.loads(path.read_text()))
        if piece.training and path.stem == f"{piece.recipe}-{piece.stage}-seed{piece.seed}":
            yield piece


def few_of_many(piece: Piece, name: str) -> NDArray[np.float64]:
    """The measure over FEW clips less that over all, for DRAWS random choices."""
    sums, rng = piece.protocols["short"].array(), np.random.default_rng(0)
    chosen = np.stack([sums[rng.choice(len(sums), FEW, replace=False)].sum(axis=0) for _ in range(DRAWS)])
    return value(name, chosen) - value(name, sums.sum(axis=0)[None])


def reading(piece: Piece) -> float:
    """rho at the training's end, less that of the test clips over as many frames."""
    frames = load_recipe(f"{FOLDER}/{piece.recipe}").data.frames
    curve = np.array(piece.protocols["short"].curves["rho"][: (frames - 1) // CHUNK_FRAMES])
    above, below = curve.sum(axis=0)
    return float(piece.training[-1]["eval/rho"] - above / below)


def extremes(pieces: Sequence[Piece]) -> None:
    """Each measure's furthest reading, and the largest fall within a training, with the training's name."""
    for name in HIGHEST:
        told(f"highest {name}", max(readings(pieces, name)))
    for name in ("rho", "kappa"):
        told(f"lowest {name}", min(readings(pieces, name)))
    for stage in sorted({piece.stage for piece in pieces}):
        told(f"lowest presence of {stage}", min(readings([p for p in pieces if p.stage == stage], "presence")))
    for name in FALLING:
        falls = [(fall([row[f"eval/{name}"] for row in piece.training]), title(piece)) for piece in pieces]
        print(f"largest fall of {name}: {max(falls)[0]:.3f}, {max(falls)[1]}")


def readings(pieces: Sequence[Piece], name: str) -> Iterator[tuple[float, float, str]]:
    """Every held-out value of a measure with its step and training."""
    return ((row[f"eval/{name}"], row["step"], title(piece)) for piece in pieces for row in piece.training)


def told(what: str, found: tuple[float, float, str]) -> None:
    print(f"{what}: {found[0]:.3f}, step {found[1]:.0f} of {found[2]}")


def fall(values: Sequence[float]) -> float:
    """From the best until then."""
    return float(np.max(np.maximum.accumulate(values) - values))


def title(piece: Piece) -> str:
    return f"{piece.recipe}-{piece.stage}-seed{piece.seed}"


if __name__ == "__main__":
    main()
