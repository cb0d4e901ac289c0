"""A session: one image and a prompt in, frames out, chunk by chunk, without end.

A session runs the same ``rollout`` that training runs, with a context and a decoder cache that do not grow,
so memory is constant and a long video begins exactly as a short one does. Any number of sessions share one
student's weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor

from aad1.data.media import fit_image, tensor_to_video, video_to_tensor
from aad1.errors import UserError
from aad1.flow import are_pass_levels
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.text import TextEncoder
from aad1.models.vae import DecodeStream, encode_image, geometry
from aad1.rollout import rollout
from aad1.streaming.accounting import Account, ChunkTime, Mark, mark, seconds
from aad1.streaming.noise import StreamNoise, check_seed

COMPILER = ("torch._dynamo", "torch._inductor")
WARM_UP_CHUNKS = 4  # where a context never settles

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Student:
    """A student's parts, loaded once; opens any number of sessions.

    name: where it came from. overlap: whether a chunk is decoded, in a thread of its own, while the next one
    is made.
    """

    name: str
    generator: CausalWanTransformer3DModel
    vae: AutoencoderKLWan
    text: TextEncoder
    overlap: bool = False

    def session(
        self,
        image: Frames,
        prompt: str,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        passes: Sequence[float] | None = None,
        first_passes: Sequence[float] | None = None,
    ) -> Session:
        """Open a video that begins with ``image``; arguments and errors as for ``Session``."""
        return Session(self, image, prompt, seed=seed, size=size, passes=passes, first_passes=first_passes)

    def warm_up(
        self,
        size: tuple[int, int] | None = None,
        passes: Sequence[float] | None = None,
        advance: Callable[[int], object] = lambda chunks: None,
    ) -> None:
        """Make chunks of nothing until the context has its full length, so that kernels are chosen (and compiled).

        ``advance`` is told of each chunk of ``warming``. Raises UserError where torch.compile does not work.
        """
        picture = np.full((*(size or self.generator.config.size or (64, 64)), 3), 128, np.uint8)
        chunks = self.session(picture, "", size=size, passes=passes).chunks()
        for _ in range(self.warming):
            try:
                next(chunks)
            except RuntimeError as error:
                if not type(error).__module__.startswith(COMPILER):
                    raise
                reason = str(error).partition("\n")[0]
                raise UserError(f"torch.compile does not work here ({reason}); go on without it") from error
            advance(1)

    @property
    def warming(self) -> int:
        """How many chunks ``warm_up`` makes."""
        return self.generator.span.settling or WARM_UP_CHUNKS

    @cached_property
    def decoding(self) -> DecodingThread:
        """Where the chunks of all sessions are decoded when that overlaps with making the next."""
        return DecodingThread(self.vae.device)


class Prompt(NamedTuple):
    """What was said, and its embedding [1, length, dim]."""

    text: str
    embedded: Tensor


class Latents(NamedTuple):
    """A chunk that is made, its prompt, and when its making began and ended."""

    values: Tensor
    prompt: str
    start: Mark
    end: Mark


class Session:
    """One video: begins with ``image`` and goes on until nobody asks for more.

    ``image`` is uint8 [height, width, 3] of any size; ``size`` (height, width) is that of the video, by
    default ``picture_size``'s choice; ``passes`` are the noise levels of a chunk's passes, by default those
    the student was distilled for, and ``first_passes`` those of the first chunk, if it is to have more. ``shown``
    is the prompt of the chunk that was handed over last.

    Raises:
        UserError: for a size that does not divide or is too large, passes that do not fall from 1, a negative
            seed, or a word that the text encoder does not know.
    """

    def __init__(
        self,
        student: Student,
        image: Frames,
        prompt: str,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        passes: Sequence[float] | None = None,
        first_passes: Sequence[float] | None = None,
    ) -> None:
        self.account = Account()
        self.student, self.seed = student, check_seed(seed)
        generator = student.generator
        self.size = picture_size(generator, student.vae, (image.shape[0], image.shape[1]), size)
        self.passes = check_passes(generator.config.passes if passes is None else passes)
        self.first_passes = self.passes if first_passes is None else check_passes(first_passes)
        self.image = fit_image(image, self.size)
        self.shown = prompt
        self.cancelled, self._begun = False, 0
        self.switch(prompt)

    def switch(self, prompt: str) -> int:
        """Change the prompt from the next chunk that is made on, and return that chunk's index.

        With the student's ``overlap`` one chunk is made ahead of those handed over. Raises UserError for unknown words.
        """
        generator = self.student.generator
        embedded = self.student.text.embed([prompt]).to(generator.device, generator.dtype)
        self._said = Prompt(prompt, embedded)
        return self._begun

    @property
    def prompt(self) -> str:
        """Of the chunks that are still to be made."""
        return self._said.text

    def cancel(self) -> None:
        """End ``chunks`` before the next chunk; may be called from another thread."""
        self.cancelled = True

    def chunks(self) -> Iterator[Frames]:
        """Iterate uint8 [frames, height, width, 3] until cancelled; every call begins the video anew.

        The first chunk has one frame more than the others: the image itself, as the VAE decodes it.
        """
        self.cancelled, self._begun = False, 0
        if self.account.chunks:
            self.account = Account()
        return self._until_cancelled(self._overlapped() if self.student.overlap else self._in_turn())

    def _until_cancelled(self, parts: Iterator[Decoded]) -> Iterator[Frames]:
        while not self.cancelled:
            start = time.perf_counter()
            part = next(parts)
            self.account.add(part.time(time.perf_counter() - start))
            self.shown = part.latents.prompt
            yield part.frames

    def frames(self, total: int) -> Iterator[Frames]:
        """Yield chunks of exactly ``total`` frames in all, or fewer when cancelled."""
        for frames in self.chunks():
            yield frames[:total]
            total -= len(frames)
            if total <= 0:
                return

    def conditions(self) -> tuple[Tensor, Tensor]:
        """What the generator is given: the image's latent frame [1, channels, 1, h, w], the prompt [1, length, dim].

        Latents are float32 whatever the weights are, as noise levels are: halves would blunt both in every pass.
        """
        generator, vae = self.student.generator, self.student.vae
        picture = video_to_tensor(self.image[None])[None].to(vae.device, vae.dtype)
        return encode_image(vae, picture).to(generator.device, torch.float32), self._said.embedded

    def _in_turn(self) -> Iterator[Decoded]:
        """Make a chunk, decode it, hand it over."""
        decoder = DecodeStream(self.student.vae)
        for latents in self._made():
            yield decode(decoder, latents)

    def _overlapped(self) -> Iterator[Decoded]:
        """The first chunk at once; from then on each is decoded while the next is made."""
        decoder, made, thread = DecodeStream(self.student.vae), self._made(), self.student.decoding
        yield thread.start(decoder, next(made)).result()
        coming = thread.start(decoder, next(made))
        for latents in made:
            decoded = coming.result()
            coming = thread.start(decoder, latents)
            yield decoded

    def _made(self) -> Iterator[Latents]:
        """The image's latent and the first chunk, then a chunk at a time, without gradient."""
        device, latents = self.student.generator.device, self._latents()
        while True:
            start = mark(device)
            with torch.no_grad():  # around the work alone: the consumer's gradient mode is not ours to change
                values = next(latents)
            yield Latents(values, self._making.text, start, mark(device))

    def _latents(self) -> Iterator[Tensor]:
        generator, (image, _) = self.student.generator, self.conditions()
        noise = StreamNoise([self.seed], image, generator.config.num_frames_per_block)
        levels = {"levels": self.passes, "first_levels": self.first_passes}
        made = rollout(generator, image, self._texts(), noise, renoise=noise.again, **levels)
        yield torch.cat([image, next(made)], dim=2)
        yield from made

    def _texts(self) -> Iterator[Tensor]:
        while True:
            self._begun += 1  # first: a prompt that is said between the two may come a chunk early, never late
            self._making = self._said
            yield self._making.embedded


# --- decoding ---------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """A chunk's frames, the latents they were decoded from, and the seconds that took."""

    frames: Frames
    latents: Latents
    seconds: float

    def time(self, total: float) -> ChunkTime:
        """Where its time went, when it was ready after ``total`` seconds."""
        return ChunkTime(len(self.frames), seconds(self.latents.start, self.latents.end), self.seconds, total)


@torch.no_grad()
def decode(decoder: DecodeStream, latents: Latents) -> Decoded:
    """The next chunk of a decoder's video."""
    start = mark(latents.values.device)  # a GPU may still be making the latents: its own clock tells decoding apart
    frames = tensor_to_video(decoder.decode(latents.values))[0]
    return Decoded(frames, latents, seconds(start, mark(latents.values.device)))


class DecodingThread:
    """Decodes chunk after chunk beside what the caller does; on a GPU in a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(1, "decoding")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, decoder: DecodeStream, latents: Latents) -> Future[Decoded]:
        """Begin to decode; chunks of one decoder must be given in order."""
        return self._pool.submit(self._decode, decoder, latents)

    def _decode(self, decoder: DecodeStream, latents: Latents) -> Decoded:
        if self._stream is None:
            return decode(decoder, latents)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(latents.end)  # type: ignore[arg-type]
            latents.values.record_stream(self._stream)
            return decode(decoder, latents)


# --- checks -----------------------------------------------------------------------------------


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
