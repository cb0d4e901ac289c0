"""Streaming: an image and a prompt in, frames out, chunk by chunk, for as long as anyone looks.

A session runs the same ``rollout`` that training runs, with a context and a decoder cache that do not grow,
so memory is constant and a long video begins exactly as a short one does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from aad1.data.media import HELD_IN_MEMORY, VideoWriter, fit_image, tensor_to_video, video_to_tensor
from aad1.errors import UserError
from aad1.flow import are_pass_levels
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import WanFolder, open_folder
from aad1.models.text import TextEncoder
from aad1.models.vae import DecodeStream, encode_image, geometry
from aad1.progress import Progress
from aad1.rollout import rollout
from aad1.runtime import pick_device
from aad1.training.randomness import generator_for
from aad1.workspace import model_path

STUDENT = "student"
MOST_FRAMES = 10**9  # two years at 16 fps
MOST_HELD = 4 * 2**30  # bytes of an animation's frames
LARGEST_SIDE = 16383  # px; what every format can hold (WebP's limit)
SMALL_SIDE = 384  # px; players blur what they enlarge, so smaller pictures are enlarged pixel by pixel

Frames = NDArray[np.uint8]


# --- noise ------------------------------------------------------------------------------------


class StreamNoise:
    """Noise of every chunk and pass from (seed, chunk, pass) alone: one seed for each video of a batch.

    Iterating gives chunks [batch, channels, frames, height, width] without end; ``again`` gives the fresh
    noise between the passes of the chunk given last. Drawn on the CPU, so every device gets the same.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor, chunk_frames: int) -> None:
        if min(seeds) < 0:
            raise UserError(f"seed {min(seeds)} is negative; use 0 or a larger whole number")
        self.seeds, self.like = tuple(seeds), like
        self.shape = (like.shape[1], chunk_frames, *like.shape[3:])
        self._chunk, self._pass = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        for self._chunk in count():
            self._pass = 0
            yield self._draw()

    def again(self, like: Tensor) -> Tensor:
        """Fresh noise for the next pass of this chunk."""
        self._pass += 1
        return self._draw()

    def _draw(self) -> Tensor:
        streams = [generator_for(seed, "stream", self._chunk, self._pass) for seed in self.seeds]
        return torch.stack([torch.randn(self.shape, generator=stream) for stream in streams]).to(self.like)


# --- sessions ---------------------------------------------------------------------------------


class Session:
    """One video: begins with ``image`` and goes on until nobody asks for more.

    ``image`` is uint8 [height, width, 3] of any size; ``size`` (height, width) is that of the video, by
    default ``picture_size``'s choice; ``passes`` are the noise levels of a chunk's passes, by default those
    the student was distilled for. Sessions may share their parts.

    Raises:
        UserError: for a size that does not divide or is too large, passes that do not fall from 1, a negative
            seed, or a word that the text encoder does not know.
    """

    def __init__(
        self,
        generator: CausalWanTransformer3DModel,
        vae: AutoencoderKLWan,
        text: TextEncoder,
        image: Frames,
        prompt: str,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        passes: Sequence[float] | None = None,
    ) -> None:
        self.opened = time.perf_counter()
        self.generator, self.vae, self.text, self.seed = generator, vae, text, seed
        self.size = picture_size(generator, vae, (image.shape[0], image.shape[1]), size)
        self.passes = check_passes(generator.config.passes if passes is None else passes)
        self.image = fit_image(image, self.size)
        self.switch(prompt)

    def switch(self, prompt: str) -> None:
        """Change the prompt from the next chunk on; raises UserError for unknown words."""
        self._embedded = self.text.embed([prompt]).to(self.generator.device, self.generator.dtype)
        self.prompt = prompt

    def chunks(self) -> Iterator[Frames]:
        """Yield uint8 [frames, height, width, 3] without end; every call begins the video anew.

        The first chunk has one frame more than the others: the image itself, as the VAE decodes it.
        """
        decoder, latents = DecodeStream(self.vae), self._latents()
        while True:
            with torch.no_grad():  # around the work alone: the consumer's gradient mode is not ours to change
                frames = tensor_to_video(decoder.decode(next(latents)))[0]
            yield frames

    def frames(self, total: int) -> Iterator[Frames]:
        """Yield chunks of exactly ``total`` frames in all."""
        chunks = self.chunks()
        while total > 0:
            frames = next(chunks)[:total]
            total -= len(frames)
            yield frames

    def _latents(self) -> Iterator[Tensor]:
        """The image's latent and the first chunk, then a chunk at a time."""
        picture = video_to_tensor(self.image[None])[None].to(self.vae.device, self.vae.dtype)
        image = encode_image(self.vae, picture).to(self.generator.device, self.generator.dtype)
        noise = StreamNoise([self.seed], image, self.generator.config.num_frames_per_block)
        made = rollout(self.generator, image, self._texts(), noise, levels=self.passes, renoise=noise.again)
        yield torch.cat([image, next(made)], dim=2)
        yield from made

    def _texts(self) -> Iterator[Tensor]:
        while True:
            yield self._embedded


def picture_size(
    generator: CausalWanTransformer3DModel,
    vae: AutoencoderKLWan,
    image: tuple[int, int],
    wanted: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """The video's (height, width): the one wanted, else the student's own, else the image's, cut to what fits.

    Raises:
        UserError: when the wanted size is not a multiple of what the VAE and the patches need, or has more rows
            or columns of tokens than the transformer has rotary positions, naming what is allowed.
    """
    factor, patch, positions = geometry(vae).spatial, generator.config.patch_size, generator.config.rope_max_seq_len
    multiples = factor * patch[1], factor * patch[2]
    chosen = wanted or generator.config.size
    if chosen is None:
        height, width = (min(max(1, side // m), positions) * m for side, m in zip(image, multiples, strict=True))
        return height, width
    height, width = chosen
    if height > positions * multiples[0] or width > positions * multiples[1]:
        raise UserError(
            f"size {height}x{width} is too large for this model: at most "
            f"{positions * multiples[0]}x{positions * multiples[1]} (height x width)"
        )
    if min(chosen) < 1 or height % multiples[0] or width % multiples[1]:
        raise UserError(
            f"size {height}x{width} does not fit this model: height must be a multiple of {multiples[0]} "
            f"and width of {multiples[1]}"
        )
    return height, width


def check_passes(passes: Sequence[float]) -> tuple[float, ...]:
    """Return noise levels that fall from 1; UserError for others."""
    if not are_pass_levels(passes):
        raise UserError(f"passes {list(passes)}: noise levels must begin at 1, fall, and stay above 0, e.g. 1 0.8333")
    return tuple(passes)


# --- students ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Student:
    """A student's parts, loaded once; opens any number of sessions. ``name`` says where it came from."""

    name: str
    generator: CausalWanTransformer3DModel
    vae: AutoencoderKLWan
    text: TextEncoder

    def session(
        self,
        image: Frames,
        prompt: str,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        passes: Sequence[float] | None = None,
    ) -> Session:
        """Open a video that begins with ``image``; arguments and errors as for ``Session``."""
        return Session(self.generator, self.vae, self.text, image, prompt, seed=seed, size=size, passes=passes)


def load_student(
    model: str | Path, *, student: str = STUDENT, device: str = "auto", dtype: torch.dtype | None = None
) -> Student:
    """Load a student with the VAE and text encoder of its Wan folder.

    model: a folder, or the name of a bundled one. student: a subfolder of it, or the path of a student that a
    run exported. dtype: of the transformer and text encoder, by default bfloat16 on a GPU and float32 on a CPU.

    Raises:
        UserError: when a part is missing or the device is not there.
    """
    where = pick_device(device)
    dtype = dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
    folder = open_folder(model_path(str(model)), dtype=dtype, device=str(where))
    generator = _generator(folder, student).eval().requires_grad_(False)
    # Half precision shows in the VAE's colours and saves little: it is the smallest part.
    vae = open_folder(folder.path, device=str(where)).vae()
    return Student(f"{model}/{student}", generator, vae, folder.text())


def _generator(folder: WanFolder, student: str) -> CausalWanTransformer3DModel:
    if student in folder.transformers:
        return folder.transformer(CausalWanTransformer3DModel, student)
    if (Path(student) / "config.json").is_file():
        return folder.transformer_at(CausalWanTransformer3DModel, Path(student))
    raise UserError(
        f"'{folder.path}' has no student '{student}': distil one with `aad1 distill --model {folder.path} --install`, "
        "or give the folder that a run exported (.../final/student)"
    )


# --- files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A written video: frames, seconds from the session's opening to its first frame, and frames made per second."""

    path: Path
    frames: int
    size: tuple[int, int]
    first_frame: float
    rate: float


def frame_count(seconds: float, fps: float) -> int:
    """How many frames last ``seconds`` at ``fps``, at least one; UserError for lengths that are none."""
    if not 0 < seconds * fps <= MOST_FRAMES:
        raise UserError(f"a video of {seconds:g} seconds; give a number above 0 and up to {MOST_FRAMES / fps:.0f}")
    return max(1, round(seconds * fps))


def enlargement(size: tuple[int, int]) -> int:
    """The whole factor by which a small picture is enlarged, so that players have no reason to blur it."""
    return max(1, SMALL_SIDE // max(size))


def record(
    session: Session, total: int, path: Path, *, fps: float, scale: int = 1, metadata: Mapping[str, Any] | None = None
) -> Recording:
    """Stream ``total`` frames into a file (.mp4, .gif, .webp, or a folder of PNG frames), chunk by chunk.

    Raises:
        UserError: when the enlarged picture is too large, an animation too long to be held in memory, or the output
            cannot be written; nothing is left of it then.
    """
    held = total * 3 * session.size[0] * session.size[1] * scale**2
    if path.suffix.lower() in HELD_IN_MEMORY and held > MOST_HELD:
        raise UserError(
            f"{total} frames of {path} are {held / 2**30:.1f} GiB, held in memory until the last has come; "
            f"give fewer seconds (up to {MOST_HELD * total // held / fps:g}), a smaller scale, or write .mp4"
        )
    if max(session.size) * scale > LARGEST_SIDE:
        raise UserError(
            f"scale {scale} makes {session.size[0]}x{session.size[1]} (height x width) larger than {LARGEST_SIDE} px "
            f"a side; use at most {LARGEST_SIDE // max(session.size)}"
        )
    spent: list[tuple[int, float]] = []
    with (
        VideoWriter(path, fps=fps, scale=scale, metadata=metadata) as video,
        Progress("generating", total, unit="frame") as bar,
    ):
        frames = _timed(session.frames(total), spent, session.opened)
        for part in frames:
            video.write(part)
            bar.advance(len(part))
    (_, first), rest = spent[0], spent[1:]
    made, seconds = (sum(x) for x in zip(*(rest or spent), strict=True))
    height, width = session.size
    return Recording(path, total, (height * scale, width * scale), first, made / seconds)


def _timed(chunks: Iterator[Frames], spent: list[tuple[int, float]], start: float) -> Iterator[Frames]:
    """Pass chunks through and note (frames, seconds) of making each, without the time of writing them."""
    for frames in chunks:
        spent.append((len(frames), time.perf_counter() - start))
        yield frames
        start = time.perf_counter()
