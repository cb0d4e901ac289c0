"""How fast a student streams, beside the many-step teacher on the same machine: the paper's Table 5, our way.

Protocol: one process, models loaded and warm. A student's figures are those of ``streaming.accounting``: first
frame from the opening of a session with a prompt that no cache has seen; medians over the chunks after the second;
VAE included. The teacher makes a whole clip, guided (two passes a step), decoded by the same VAE; its first
frame comes with its last. What is not counted: loading, reading the picture's file, writing a video's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from aad1.data.world import make_clip
from aad1.flow import shift_t
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.context import Context
from aad1.models.vae import decode_video, geometry
from aad1.progress import Progress
from aad1.runtime import peak_memory
from aad1.streaming import Session, Student
from aad1.streaming.accounting import mark, seconds
from aad1.teacher_sampling import TeacherSampling, sample_teacher

LATENT_FRAMES = 21  # of the teacher's clip: 81 frames
CLIPS = 3  # of the teacher, of which the median counts
OTHER = 1000  # a scene that no row has
SHIFT = 5.0  # of the grid that several passes take their levels from


@dataclass(frozen=True)
class Speed:
    """One row. Times in seconds; rates in frames a second; None for what does not apply.

    first_frame; chunk: until it could be handed over; denoising; context: what writing the context would cost as a
    pass of its own, which denoising includes without paying for it; decoding; fps with the VAE, denoiser_fps without;
    peak_memory: bytes that the process has held at most until the row's end, the weights included.
    """

    name: str
    passes: int
    first_frame: float
    chunk: float | None
    denoising: float
    context: float | None
    decoding: float
    fps: float
    denoiser_fps: float
    peak_memory: int


def pass_levels(passes: int) -> tuple[float, ...]:
    """Noise levels of so many passes: an even grid, shifted towards noise as the teacher's is."""
    grid = 1 - torch.arange(passes, dtype=torch.float64) / passes
    return tuple(shift_t(grid, SHIFT).tolist())


def stream_speeds(
    student: Student,
    passes: Sequence[Sequence[float]],
    chunks: int,
    teacher: Callable[[], CausalWanTransformer3DModel] | None,
    sampling: TeacherSampling,
) -> list[Speed]:
    """A row for each list of noise levels, then the teacher's, if one is wanted: it is loaded only then."""
    with Progress("measuring", len(passes) + (teacher is not None), unit="row") as bar:
        rows, context = [], context_seconds(student, chunks)
        for number, levels in enumerate(passes):
            rows.append(student_speed(student, levels, chunks, context, scene=number))
            bar.advance()
        if teacher is not None:
            rows.append(teacher_speed(student, teacher(), sampling))
            bar.advance()
    return rows


def student_speed(student: Student, passes: Sequence[float], chunks: int, context: float, scene: int) -> Speed:
    """Stream ``chunks`` chunks of one session and read its account; ``context`` as ``context_seconds`` has it."""
    student.warm_up(passes=passes)
    session = _session(student, scene, passes)
    for _ in islice(session.chunks(), chunks):
        pass
    account = session.account
    chunk, denoising, decoding = (account.median(part) or 0.0 for part in ("total", "denoising", "decoding"))
    frames = account.recent[-1].frames
    return Speed(
        name=student.name,
        passes=len(passes),
        first_frame=account.first_frame or 0.0,
        chunk=chunk,
        denoising=denoising,
        context=context,
        decoding=decoding,
        fps=frames / chunk,
        denoiser_fps=frames / denoising,
        peak_memory=peak_memory(),
    )


@torch.no_grad()
def context_seconds(student: Student, times: int) -> float:
    """Median of a pass that does nothing but write a chunk into a full context."""
    generator, (image, text) = student.generator, _session(student, OTHER).conditions()
    chunk = torch.randn_like(image.expand(-1, -1, generator.config.num_frames_per_block, -1, -1))
    context = generator.extend(Context(), image, text)
    for _ in range(max(1, generator.config.local_attn_size // chunk.shape[2])):
        context = generator.extend(context, chunk, text)
    return _median_seconds(lambda: generator.extend(context, chunk, text), times, generator.device)


@torch.no_grad()
def teacher_speed(student: Student, teacher: CausalWanTransformer3DModel, sampling: TeacherSampling) -> Speed:
    """Whole guided clips of the student's size, decoded by its VAE."""
    image, text = _session(student, OTHER).conditions()
    negative = student.text.embed([""]).to(text)

    def denoise() -> Tensor:
        noise = torch.randn_like(image.expand(-1, -1, LATENT_FRAMES, -1, -1))
        return sample_teacher(teacher, noise, text, negative, sampling, image=image)

    latents, frames = denoise(), geometry(student.vae).frames(LATENT_FRAMES)
    denoising = _median_seconds(denoise, CLIPS, teacher.device)
    decoding = _median_seconds(lambda: decode_video(student.vae, latents), CLIPS, student.vae.device)
    return Speed(
        name="teacher",
        passes=sampling.steps,
        first_frame=denoising + decoding,
        chunk=None,
        denoising=denoising,
        context=None,
        decoding=decoding,
        fps=frames / (denoising + decoding),
        denoiser_fps=frames / denoising,
        peak_memory=peak_memory(),
    )


def _session(student: Student, scene: int, passes: Sequence[float] | None = None) -> Session:
    """A still of the embedded world and its caption, another for each row: a prompt is embedded once and kept."""
    clip = make_clip("test", scene, 1)
    return student.session(clip.frames[0], clip.caption, seed=1, passes=passes)


def _median_seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    spent = []
    for _ in range(times):
        start = mark(device)
        work()
        spent.append(seconds(start, mark(device)))
    return statistics.median(spent)


# --- as a table -------------------------------------------------------------------------------


def to_markdown(rows: Sequence[Speed]) -> str:
    """A row each, and how many times the last row's rate every one has."""
    times_of = ("first_frame", "chunk", "denoising", "context", "decoding")
    head = ["", "passes", *(name.replace("_", " ") for name in times_of)]
    head += ["fps", "fps without VAE", "times", "peak memory"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        times = [_seconds(getattr(row, part)) for part in times_of]
        rates = [f"{row.fps:.1f}", f"{row.denoiser_fps:.1f}", f"{row.fps / rows[-1].fps:.1f}"]
        lines.append(_line([row.name, str(row.passes), *times, *rates, f"{row.peak_memory / 2**30:.2f} GiB"]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"
