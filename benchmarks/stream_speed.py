"""How fast a student streams, VAE included, beside the many-step guided teacher in the same run.

    python benchmarks/stream_speed.py [--model tiny] [--chunks 20]

Protocol: one process, threads as torch finds them; the model is loaded and one short session is run
before the clock starts. Frames per second are the median over chunks after the second; the teacher's
are those of whole 81-frame clips (48 Euler steps, guided: 96 forward passes), decoded by the same VAE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from aad1.data.world import make_clip
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder
from aad1.models.vae import decode_video
from aad1.runtime import keep_freed_memory
from aad1.streaming import load_student
from aad1.teacher_sampling import TeacherSampling, sample_teacher
from aad1.workspace import model_path

LATENT_FRAMES, TEACHER_CLIPS = 21, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--chunks", type=int, default=20)
    arguments = parser.parse_args()
    keep_freed_memory()
    result = student_speed(arguments.model, arguments.chunks) | teacher_speed(arguments.model)
    result["ratio_with_vae"] = result["student_fps"] / result["teacher_fps"]
    result["ratio_without_vae"] = result["student_denoiser_fps"] / result["teacher_denoiser_fps"]
    result |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}, indent=2))


def student_speed(model: str, chunks: int) -> dict[str, float]:
    """First-frame latency and sustained frames per second of one session."""
    student = load_student(model)
    clip = make_clip("test", 1, 2)
    for _ in student.session(clip.frames[0], clip.caption).frames(40):
        pass
    start, other = time.perf_counter(), make_clip("test", 3, 2)  # a prompt that no cache has seen
    session = student.session(other.frames[0], other.caption, seed=1)
    frames, spent = session.chunks(), []
    for _ in range(chunks):
        made = len(next(frames))
        spent.append((made, time.perf_counter() - start))
        start = time.perf_counter()
    latents, denoising = session._latents(), []
    with torch.no_grad():
        for _ in range(chunks):
            begin = time.perf_counter()
            next(latents)
            denoising.append(time.perf_counter() - begin)
    per_chunk = spent[-1][0]
    return {
        "first_frame_s": spent[0][1],
        "student_fps": per_chunk / statistics.median(s for _, s in spent[2:]),
        "student_denoiser_fps": per_chunk / statistics.median(denoising[2:]),
    }


def teacher_speed(model: str) -> dict[str, float]:
    """Frames per second of 48-step guided clips, with and without their decoding."""
    folder = open_folder(model_path(model))
    teacher, vae, text = folder.transformer(CausalWanTransformer3DModel), folder.vae(), folder.text()
    prompt, empty = text.embed([make_clip("test", 1, 2).caption]), text.embed([""])
    size = 64 // 8

    def denoise() -> torch.Tensor:
        noise = torch.randn(1, vae.config.z_dim, LATENT_FRAMES, size, size)
        return sample_teacher(teacher, noise, prompt, empty, TeacherSampling(steps=48))

    frames = 1 + 4 * (LATENT_FRAMES - 1)
    with torch.no_grad():
        latents = denoise()
        sampling = median_seconds(denoise, TEACHER_CLIPS)
        decoding = median_seconds(lambda: decode_video(vae, latents), TEACHER_CLIPS)
    return {"teacher_fps": frames / (sampling + decoding), "teacher_denoiser_fps": frames / sampling}


def median_seconds(work: Callable[[], object], times: int) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
