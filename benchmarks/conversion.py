"""What it costs to convert a 1.3B transformer to diffusers' names and back, and whether a single bit changes.

    python benchmarks/conversion.py --folder /some/disk/conversion [--dtype bfloat16] [--layers 30]

Random weights of the published shape are written as a native .pth and .safetensors; `aad1 convert` runs in processes of
their own, whose peaks are the kernel's: of all resident memory, and of the part that is not a mapped file (sampled).
Needs three times the checkpoint on the disk, which is freed at the end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from memory import measured
from torch import Tensor

from aad1.models.conversion import KINDS
from aad1.models.geometry import shapes_of
from aad1.models.weights import Reader, tensors_of

WIDTH = {"num_attention_heads": 12, "ffn_dim": 8960}  # Wan 2.1 1.3B


def make(folder: Path, layers: int, dtype: torch.dtype, suffix: str) -> Path:
    """A native checkpoint of random weights."""
    kind = KINDS["transformer"]
    shapes = shapes_of(kind.cls, {**WIDTH, "num_layers": layers})
    random = torch.Generator().manual_seed(0)
    weights = {
        native: torch.empty(shapes[name]).normal_(generator=random).to(dtype)
        for name, native in kind.native(shapes).items()
    }
    folder.mkdir(parents=True)
    file = folder / f"diffusion_pytorch_model{suffix}"
    if suffix == ".pth":
        torch.save(weights, file)
    else:
        from safetensors.torch import save_file

        save_file(weights, file)
    return file


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same bits under the same names."""
    first, second = tensors_of(one), tensors_of(other)
    read, also = Reader(), Reader()
    return first.keys() == second.keys() and all(
        _bits(read(first[name])).equal(_bits(also(second[name]))) for name in first
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work; must not exist")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--suffix", default=".pth", choices=(".pth", ".safetensors"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    try:
        code = f"import sys; sys.path[:0] = {sys.path!r}; from conversion import *; " + (
            f"make(Path({str(folder / 'native')!r}), {arguments.layers}, torch.{arguments.dtype}, {arguments.suffix!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)  # its memory is not ours
        source = folder / "native" / f"diffusion_pytorch_model{arguments.suffix}"
        size = source.stat().st_size / 1e9
        print(f"{size:.2f} GB of {arguments.dtype} in {arguments.layers} layers ({arguments.suffix})", flush=True)
        convert = [sys.executable, "-m", "aad1", "convert"]
        steps = {
            "to diffusers": [*convert, str(source), "-o", str(folder / "diffusers")],
            "and back": [*convert, str(folder / "diffusers"), "--to", "native", "-o", str(folder / "back")],
        }
        for name, command in steps.items():
            began = time.monotonic()
            found = measured(command)
            print(f"{name}: {found}, {time.monotonic() - began:.0f} s", flush=True)
        print("bit for bit the same:", same(source, folder / "back"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
