"""The README's picture: one row for the truth and one for each stage, frames of the same held-out clip.

python benchmarks/result_picture.py --model runs/model --runs runs/tiny -o docs/assets/result.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from aad1.data.world import Clip, make_clip
from aad1.evaluation.models import student_samples
from aad1.streaming import load_student
from aad1.workspace import DISTILLATION

LABELS = {"ode_init": "I  ODE init", "dmd_warmup": "II  DMD warm-up", "adversarial": "III  adversarial"}
SCALE, MARGIN, LABEL_WIDTH = 2, 4, 130


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--runs", type=Path, required=True, help="folder of a distillation, with its three stages")
    parser.add_argument("--clip", type=int, default=0, help="index in the test split")
    parser.add_argument("--frames", type=int, nargs="+", default=[0, 8, 16, 32, 48, 64, 80])
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    clip = make_clip("test", arguments.clip)
    rows = {"truth": clip.frames}
    for stage in DISTILLATION:
        rows[LABELS[stage]] = animate(arguments.model, arguments.runs / stage / "final" / "student", clip)
    picture(rows, arguments.frames, clip.caption).save(arguments.out)


def animate(model: str, student: Path, clip: Clip) -> NDArray[np.uint8]:
    loaded = load_student(model, student=str(student), device="cpu")
    samples = student_samples(loaded.generator, loaded.vae, loaded.text, [clip])
    return next(iter(samples))[0]


def picture(rows: dict[str, NDArray[np.uint8]], at: list[int], caption: str) -> Image.Image:
    side = 64 * SCALE + MARGIN
    sheet = Image.new("RGB", (LABEL_WIDTH + side * len(at), 22 + side * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((LABEL_WIDTH, 4), f"{caption}   (frames {', '.join(map(str, at))})", fill="black")
    for y, (name, frames) in enumerate(rows.items()):
        draw.text((6, 22 + y * side + side // 2 - 6), name, fill="black")
        for x, index in enumerate(at):
            tile = Image.fromarray(frames[index]).resize((64 * SCALE, 64 * SCALE), Image.Resampling.NEAREST)
            sheet.paste(tile, (LABEL_WIDTH + x * side, 22 + y * side))
    return sheet


if __name__ == "__main__":
    main()
