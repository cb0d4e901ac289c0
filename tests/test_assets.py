"""The bundled folder: small, loaded by stock diffusers, and its student streams at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline

from aad1.cli import main
from aad1.data.world import make_clip
from aad1.models.checkpoint_io import bundled, open_folder
from aad1.streaming import load_student

LARGEST = 16 * 2**20


def test_the_bundled_folder_is_small_and_whole() -> None:
    folder = bundled("tiny")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= LARGEST
    assert open_folder(folder).transformers == ("student", "transformer")


def test_stock_diffusers_samples_the_bundled_teacher() -> None:
    pipe = WanPipeline.from_pretrained(bundled("tiny"))
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt="a red disc moves right fast",
        negative_prompt="",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=3.0,
        max_sequence_length=40,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    frames = made.frames[0]
    assert frames.shape == (9, 64, 64, 3)
    assert np.isfinite(frames).all()


def test_the_bundled_student_continues_the_picture_it_is_given() -> None:
    clip = make_clip("test", 1, 2)
    frames = next(load_student("tiny", device="cpu").session(clip.frames[0], clip.caption).chunks())
    error = np.abs(frames[0].astype(float) - clip.frames[0]).mean()
    assert frames.shape == (17, 64, 64, 3)
    assert error < 6  # grey levels: the first frame is the picture through the autoencoder


def test_generate_works_at_once(tmp_path: Path) -> None:
    assert main(["world-image", "3", "-o", str(tmp_path / "still.png")]) == 0
    arguments = ["--image", str(tmp_path / "still.png"), "--prompt", "a red disc", "--seconds", "0.5"]
    assert main(["generate", *arguments, "-o", str(tmp_path / "out.mp4")]) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 0
