"""What the generator's update holds and takes: a rollout kept for its backward against one that is run again.

    python benchmarks/rollout_memory.py                                        # the embedded student
    python benchmarks/rollout_memory.py --shape 1.3b --latent 16 16            # random weights, fewer blocks
    python benchmarks/rollout_memory.py --shape 1.3b --blocks 4 --latent 60 104 --planned --chunks 3 10
    python benchmarks/rollout_memory.py --seconds 7 --chunks 10                # time instead of memory

d loss / d clip is given: what critic or scores hold to find it is left out. Bytes at the peak are beyond weights,
gradients, image, text, noise and d loss / d clip, all of which are there before; measured by the allocator's own
record, planned on tensors without contents. Seconds: so many repeats of every way in turns, so that a machine's moods
meet all alike; medians, and their ratio to the checkpointed plain one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from one_forward import BLOCKS, SHAPES, TEXT, WAN_TEXT
from plan_accuracy import peak_bytes
from torch import Tensor

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder
from aad1.planning.ledger import META, TRANSIENT, without_contents
from aad1.rollout import ClipRollout, roll_clip, roll_clip_replayed
from aad1.runtime import pick_device
from aad1.streaming.accounting import mark, seconds
from aad1.workspace import model_path

MB = 1e6
REFERENCE = "plain, checkpointed"
WAYS: Mapping[str, tuple[ClipRollout, bool]] = {
    "plain": (roll_clip, False),
    REFERENCE: (roll_clip, True),
    "replayed": (roll_clip_replayed, False),
    "replayed, checkpointed": (roll_clip_replayed, True),
}


class Given(NamedTuple):
    """What an update begins with."""

    image: Tensor
    text: Tensor
    noise: Tensor
    gradient: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a Wan folder with a student")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of these widths instead")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of that shape")
    parser.add_argument("--latent", type=int, nargs=2, default=(8, 8), help="latent height and width")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--chunks", type=int, nargs="+", default=(2, 4, 6, 8, 10))
    parser.add_argument("--planned", action="store_true", help="count on tensors without contents")
    parser.add_argument("--seconds", type=int, metavar="REPEATS", help="measure time, not memory")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    torch.manual_seed(0)
    measure = timed if given.seconds else planned if given.planned else measured
    device = META if given.planned else pick_device(given.device)
    for chunks in given.chunks:
        print(json.dumps({"chunks": chunks, **measure(given, device, chunks)}), flush=True)


def build(given: argparse.Namespace, device: torch.device) -> CausalWanTransformer3DModel:
    """The generator; its gradients are there, as they are from the second micro-batch on."""
    if given.shape is None:
        model = open_folder(model_path(given.model)).transformer(CausalWanTransformer3DModel, "student").to(device)
    else:
        with device:
            model = CausalWanTransformer3DModel(num_layers=given.blocks, **SHAPES[given.shape])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def tensors(given: argparse.Namespace, model: CausalWanTransformer3DModel, chunks: int) -> Given:
    frames, channels = model.config.num_frames_per_block, model.config.in_channels

    def clip(frames: int) -> Tensor:
        return torch.randn(given.batch, channels, frames, *given.latent, device=model.device)

    tokens = WAN_TEXT if given.shape else TEXT
    text = torch.randn(given.batch, tokens, model.config.text_dim, device=model.device)
    return Given(clip(1), text, clip(chunks * frames), clip(1 + chunks * frames))


def update(model: CausalWanTransformer3DModel, given: Given, way: str) -> None:
    roll, checkpointed = WAYS[way]
    (model.enable_gradient_checkpointing if checkpointed else model.disable_gradient_checkpointing)()
    clip = roll(model, given.image, given.text, given.noise, levels=(1.0,), renoise=torch.randn_like)
    clip.backward(given.gradient)


def measured(given: argparse.Namespace, device: torch.device, chunks: int) -> dict[str, float]:
    """MB at the peak of each way."""
    model = build(given, device)
    read = tensors(given, model, chunks)
    peak = most_on_gpu if device.type == "cuda" else peak_bytes
    return {way: round(peak(lambda way=way: update(model, read, way)) / MB, 2) for way in WAYS}  # type: ignore[misc]


def most_on_gpu(run: Callable[[], Any]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def planned(given: argparse.Namespace, device: torch.device, chunks: int) -> dict[str, dict[str, float]]:
    """As ``measured``, on tensors without contents, and the operations of an update."""
    found = {}
    for way in WAYS:
        with without_contents() as ledger:
            model = build(given, device)
            read = tensors(given, model, chunks)
            ledger.claim("given", (*read, *model.buffers(), *model.parameters()))
            ledger.claim("given", (parameter.grad for parameter in model.parameters()))
            ledger.begin()
            update(model, read, way)
            found[way] = {"MB": round(ledger.peak.bytes[TRANSIENT] / MB, 2), "TFLOP": round(ledger.flops / 1e12, 3)}
    return found


def timed(given: argparse.Namespace, device: torch.device, chunks: int) -> dict[str, dict[str, float]]:
    """Median seconds of each way, and their ratio to the checkpointed plain one."""
    model = build(given, device)
    read = tensors(given, model, chunks)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(1 + given.seconds):  # the first warms up
        for way, times in taken.items():
            start = mark(device)
            update(model, read, way)
            times.append(seconds(start, mark(device)))
    medians = {way: statistics.median(times[1:]) for way, times in taken.items()}
    return {way: {"s": round(s, 3), "ratio": round(s / medians[REFERENCE], 3)} for way, s in medians.items()}


if __name__ == "__main__":
    main()
