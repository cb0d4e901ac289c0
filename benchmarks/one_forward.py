"""One forward a chunk against two: what it saves that a finished chunk enters the context with the next one's pass.

    python benchmarks/one_forward.py [--model tiny] [--chunks 40]
    python benchmarks/one_forward.py --shape 1.3b --latent 30 52 --chunks 8      # random weights, fewer blocks
    python benchmarks/one_forward.py --shape 14b --latent 16 16 --chunks 8

Chunks of one rollout each, in turns (one chunk by ``extend`` and ``forward``, the next by ``advance``), so that a
machine's moods meet both alike; medians after the second chunk. Also prints the largest difference between the two.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder
from aad1.models.context import Context
from aad1.runtime import pick_device
from aad1.streaming.accounting import Mark, mark, seconds
from aad1.workspace import model_path

BLOCKS = 2  # of the 30 or 40 that the real models have: every block costs the same
TEXT, WAN_TEXT = 40, 512  # tokens of a prompt, as the embedded model and Wan pad it
SHAPES = {
    "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960},
    "14b": {"num_attention_heads": 40, "ffn_dim": 13824},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a Wan folder with a student")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of these widths instead")
    parser.add_argument("--latent", type=int, nargs=2, default=(8, 8), help="latent height and width")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build(arguments.model, arguments.shape).eval().requires_grad_(False)
    model = model.to(pick_device(arguments.device))
    tokens = WAN_TEXT if arguments.shape else TEXT
    print(json.dumps(compare(model, tuple(arguments.latent), arguments.chunks, tokens), indent=2))


def build(model: str, shape: str | None) -> CausalWanTransformer3DModel:
    if shape is None:
        return open_folder(model_path(model)).transformer(CausalWanTransformer3DModel, "student")
    return CausalWanTransformer3DModel(num_layers=BLOCKS, **SHAPES[shape])


@torch.no_grad()
def compare(
    model: CausalWanTransformer3DModel, latent: tuple[int, int], chunks: int, tokens: int
) -> dict[str, float | int]:
    frames, channels = model.config.num_frames_per_block, model.config.in_channels
    device = model.device
    text = torch.randn(1, tokens, model.config.text_dim).to(device)
    ones, finished = torch.ones(1, frames, device=device), torch.randn(1, channels, 1, *latent, device=device)
    two = one = Context()
    marks: dict[str, list[tuple[Mark, Mark]]] = {"two": [], "one": []}
    difference = 0.0
    for _ in range(chunks + 2):
        noise = torch.randn(1, channels, frames, *latent, device=device)
        start = mark(device)
        two = model.extend(two, finished, text)
        v_two = model(noise, ones, text, visibility="block_causal", context=two)
        middle = mark(device)
        v_one, one = model.advance(one, finished, noise, ones, text)
        marks["two"].append((start, middle))
        marks["one"].append((middle, mark(device)))
        difference = max(difference, float((v_two - v_one).abs().max() / v_two.abs().max()))
        finished = noise - v_two
    medians = {name: statistics.median(seconds(*pair) for pair in pairs[2:]) for name, pairs in marks.items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_a_chunk": frames * latent[0] * latent[1] // 4,
        "two_passes_s": medians["two"],
        "one_pass_s": medians["one"],
        "ratio": medians["two"] / medians["one"],
        "largest_relative_difference": difference,
    }


if __name__ == "__main__":
    main()
