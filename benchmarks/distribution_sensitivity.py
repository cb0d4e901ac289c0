"""What the distances between distributions of clips notice, and what they cost: a table in Markdown.

    python benchmarks/distribution_sensitivity.py --clips 512

True clips of the embedded world are spoilt in one way each and compared with as many other true clips, on features of
the bundled state encoder and, beside them, of the same network with the weights it was born with. "sigmas" is how
far a distance is above the truth's own, in standard errors of itself or of the truth's, whichever is larger.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aad1.data.media import video_to_tensor
from aad1.data.world import SHORT_FRAMES, Clip, make_clip, render, simulate
from aad1.evaluation.distribution import MMD_SCALE, cut, features_of, reference_clips
from aad1.evaluation.world import frozen_frames, protocol_clips
from aad1.measures.distribution import Estimate, Features, frechet, mmd
from aad1.models.state_encoder import StateEncoder, load_state_encoder
from aad1.runtime import keep_freed_memory
from aad1.stages.state_encoder import STATISTICS_CLIPS, held_out_windows, scores

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import corruptions

Frames = NDArray[np.uint8]


def faster(clip: Clip, factor: float = 1.1) -> Frames:
    """The same scene with every first speed multiplied."""
    shapes = [replace(s, velocity=(factor * s.velocity[0], factor * s.velocity[1])) for s in clip.truth.scene.shapes]
    scene = replace(clip.truth.scene, shapes=tuple(shapes))
    truth = simulate(scene, len(clip.frames))
    return render(scene, truth.positions)


ROWS: dict[str, Callable[[Clip], Frames]] = {
    "truth": lambda clip: clip.frames,
    "1.1 x speed": faster,
    "half speed": corruptions.half_speed,
    "decaying speed": corruptions.decaying_speed,
    "frozen": frozen_frames,
    "frozen second half": corruptions.frozen_second_half,
    "shuffled time": corruptions.shuffled_time,
    "jitter of .7 px": corruptions.jitter,
    "one object vanishes": corruptions.one_vanishes,
    "one object changes hue": corruptions.one_recolours,
    "objects shrink": corruptions.shrinks,
    "blur up to 1.2 px": corruptions.blur,
    "desaturation": corruptions.desaturation,
}


def untrained() -> StateEncoder:
    """The network as it is born, its features made white on true clips as the trained one's are."""
    torch.manual_seed(0)
    encoder = StateEncoder().eval().requires_grad_(False)
    clips = (make_clip("train", index).frames for index in range(STATISTICS_CLIPS))
    encoder.whiten([video_to_tensor(cut(frames)) for frames in clips])
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--frames", type=int, default=SHORT_FRAMES)
    parser.add_argument("--encoder", type=Path, help="a model folder with another state encoder")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    encoders = [load_state_encoder(arguments.encoder), untrained()]
    print_scores(encoders[0])
    print_table(arguments, encoders)


def print_scores(encoder: StateEncoder) -> None:
    print("held-out clips:", ", ".join(f"{k} {v:.3f}" for k, v in scores(encoder, list(held_out_windows(128))).items()))


def print_table(arguments: argparse.Namespace, encoders: list[StateEncoder]) -> None:
    clips = list(protocol_clips(arguments.frames, arguments.clips))
    names = ("trained", "untrained")
    reference = features("reference", encoders, (c.frames for c in reference_clips(arguments.frames, arguments.clips)))
    heads = [f"{what}, {name}" for name in names for what in ("FD", "sigmas", f"MMD x {MMD_SCALE}", "sigmas")]
    lines = ["| clips | " + " | ".join(heads) + " |", "|" + "---|" * (1 + len(heads))]
    floors: list[tuple[Estimate, Estimate]] = []
    for row, spoil in ROWS.items():
        own = features(row, encoders, (spoil(clip) for clip in clips))
        found = [(frechet(a, b), mmd(a, b)) for a, b in zip(own, reference, strict=True)]
        floors = floors or found
        lines.append(f"| {row} | " + " | ".join(cells(*pair) for pair in zip(found, floors, strict=True)) + " |")
    print("\n".join(lines))


def features(name: str, encoders: list[StateEncoder], clips: Iterator[Frames]) -> list[Features]:
    """Of every clip, by every encoder."""
    held: list[list[NDArray[np.float64]]] = [[] for _ in encoders]
    spent = 0.0
    for frames in clips:
        begun = time.perf_counter()
        windows = cut(frames)
        for kept, encoder in zip(held, encoders, strict=True):
            kept.append(features_of(encoder, windows))
        spent += time.perf_counter() - begun
    print(f"{name}: features of {len(held[0])} clips in {spent / len(encoders):.1f} s an encoder", file=sys.stderr)
    return [np.stack(kept) for kept in held]


def cells(found: tuple[Estimate, Estimate], floor: tuple[Estimate, Estimate]) -> str:
    shown = []
    for one, true, scale in zip(found, floor, (1, MMD_SCALE), strict=True):
        shown.append(f"{scale * one.value:.2f} ± {scale * one.error:.2f}")
        shown.append(f"{(one.value - true.value) / max(one.error, true.error):.1f}")
    return " | ".join(shown)


if __name__ == "__main__":
    main()
