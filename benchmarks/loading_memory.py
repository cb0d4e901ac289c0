"""Peak host memory of loading one part of a Wan folder, against the model in the wanted type plus one shard.

    python benchmarks/loading_memory.py --folder /some/disk/loading [--layers 8]

A transformer with 1.3B's width and a UMT5 encoder are written in shards of 0.5 GB, float32 and bfloat16, and loaded by
``WanFolder``'s own code in a process each; what importing the libraries takes is measured first and taken off.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from memory import measured
from transformers import UMT5Config

from aad1.models.conversion import KINDS
from aad1.models.weights import tensors_of

SHARD = 500 * 10**6
IMPORTS = (
    "import torch; from pathlib import Path; from aad1.models.loading import whole_model; "
    "from diffusers import WanTransformer3DModel; from transformers import UMT5EncoderModel; "
)
TOUCH = "[p.sum() for p in model.parameters()]"  # what is only mapped costs memory when it is used
LOADED = {
    "transformer": "whole_model(WanTransformer3DModel, Path({path!r}), {dtype}, 'cpu')",
    "text_encoder": "whole_model(UMT5EncoderModel, Path({path!r}), {dtype}, 'cpu')",
}


def make(folder: Path, part: str, layers: int, dtype: torch.dtype) -> None:
    """A part of random weights, in shards."""
    if part == "transformer":
        config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": layers}
    else:
        config = UMT5Config(
            vocab_size=32000, d_model=2048, d_ff=5120, d_kv=64, num_heads=32, num_layers=layers, num_decoder_layers=1,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
    kind = KINDS[part]
    model = kind.cls(**config) if isinstance(config, dict) else kind.cls(config)
    model.to(dtype).save_pretrained(folder, max_shard_size=SHARD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work; must not exist")
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    imports = measured([sys.executable, "-c", IMPORTS])
    try:
        for part, load in LOADED.items():
            for stored in ("float32", "bfloat16"):
                code = f"import sys; sys.path[:0] = {sys.path!r}; from loading_memory import *; " + (
                    f"make(Path({str(folder)!r}), {part!r}, {arguments.layers}, torch.{stored})"
                )
                subprocess.run([sys.executable, "-c", code], check=True)
                numbers = sum(one.bytes // one.dtype.itemsize for one in tensors_of(folder).values())
                largest = max(file.stat().st_size for file in folder.glob("*.safetensors"))
                for wanted in (torch.float32, torch.bfloat16):
                    line = load.format(path=str(folder), dtype=wanted)
                    found = measured([sys.executable, "-c", f"{IMPORTS} model = {line}; {TOUCH}"])
                    allowed = numbers * wanted.itemsize + largest
                    most, own = found.resident - imports.resident, found.anonymous - imports.anonymous
                    case = f"{part}, {stored} read as {str(wanted).removeprefix('torch.')}"
                    print(
                        f"{case}: {most / 1e9:.2f} GB, {own / 1e9:.2f} not mapped; allowed {allowed / 1e9:.2f}",
                        flush=True,
                    )
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
