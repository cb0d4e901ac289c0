"""A picture and a prompt to a video, chunk by chunk, from the folder that this file lies in.

    python example.py still.png "a red disc moves left slowly" -o video.webp

Needs the packages that README.md names, and nothing else.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

FPS = 16


def main() -> None:
    """Load, stream, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="the picture that the video begins with")
    parser.add_argument("prompt", help="what happens")
    parser.add_argument("--chunks", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("video.webp"))
    arguments = parser.parse_args()

    gpu = torch.cuda.is_available()
    dtype = {"default": torch.bfloat16 if gpu else torch.float32, "vae": torch.float32}
    pipe = DiffusionPipeline.from_pretrained(Path(__file__).parent, trust_remote_code=True, torch_dtype=dtype)
    pipe.to("cuda" if gpu else "cpu")

    pictures, start = [], time.perf_counter()
    chunks = pipe.stream(arguments.image, arguments.prompt, seed=arguments.seed)  # endless
    for frames in islice(chunks, arguments.chunks):
        pictures += [Image.fromarray(frame) for frame in frames]
        print(f"{len(pictures):4d} frames after {time.perf_counter() - start:.2f} s")
    pictures[0].save(
        arguments.out, save_all=True, append_images=pictures[1:], duration=round(1000 / FPS), loop=0, lossless=True
    )
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
