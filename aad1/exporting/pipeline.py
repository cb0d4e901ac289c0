"""The pipeline of an export: what ``DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`` gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import UMT5EncoderModel

from aad1.data.media import open_image, pixels_of
from aad1.errors import UserError
from aad1.models.text import TextEncoder
from aad1.streaming.record import frame_count
from aad1.streaming.session import Frames, Session, Student

Picture = Image.Image | Frames | str | Path

FPS = 16.0  # what Wan 2.1 was trained at


@dataclass
class StreamingOutput(BaseOutput):
    """``frames``: a list of one video, which is a list of pictures."""

    frames: list[list[Image.Image]]


class AAD1Pipeline(DiffusionPipeline):
    """An image and a prompt in, video out, chunk by chunk; the noise levels of a chunk's passes are the student's own.

    A call gives a whole video, ``stream`` its chunks as they are made, ``session`` one that can be steered.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel,
        tokenizer: Any,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)

    def __call__(
        self,
        image: Picture,
        prompt: str,
        *,
        seconds: float = 5.0,
        fps: float = FPS,
        num_frames: int | None = None,
        **options: Any,
    ) -> StreamingOutput:
        """Make ``seconds`` of video at ``fps``, or ``num_frames`` frames; the rest as for ``session``.

        Raises:
            UserError: for less than one frame, and as for ``session``.
        """
        total = frame_count(seconds, fps) if num_frames is None else num_frames
        if total < 1:
            raise UserError(f"{total} frames; ask for one or more")
        video: list[Image.Image] = []
        with self.progress_bar(total=total) as bar:
            for chunk in self.session(image, prompt, **options).frames(total):
                video += [Image.fromarray(frame) for frame in chunk]
                bar.update(len(chunk))
        return StreamingOutput(frames=[video])

    def stream(self, image: Picture, prompt: str, **options: Any) -> Iterator[Frames]:
        """Iterate uint8 [frames, height, width, 3], a chunk at a time, without end; arguments as for ``session``."""
        return self.session(image, prompt, **options).chunks()

    def session(
        self,
        image: Picture,
        prompt: str,
        *,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        passes: Sequence[float] | None = None,
        first_passes: Sequence[float] | None = None,
    ) -> Session:
        """Open a video that begins with ``image``: ``chunks()`` iterates it, ``switch(prompt)`` steers it.

        image: a path, a PIL picture or uint8 [height, width, 3], of any size; the rest as for ``Session``.
        """
        return self._student().session(
            as_pixels(image), prompt, seed=seed, size=size, passes=passes, first_passes=first_passes
        )

    def _student(self) -> Student:
        parts: list[Any] = [self.transformer, self.vae, self.text_encoder]
        generator, vae, encoder = (part.eval().requires_grad_(False) for part in parts)
        text = TextEncoder(self.tokenizer, lambda: encoder, device=generator.device)
        return Student("", generator, vae, text, overlap=generator.device.type == "cuda")


def as_pixels(image: Picture) -> Frames:
    """A path, a PIL picture or uint8 RGB [height, width, 3] as the last; UserError for other arrays."""
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        return pixels_of(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image of {image.dtype} {list(image.shape)}; give uint8 [height, width, 3], or a picture")
    return image
