"""What a client sends, checked and turned into a request to the engine."""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aad1.data.media import fit_image, open_image
from aad1.errors import UserError
from aad1.serve.engine import Request
from aad1.serve.events import SessionStart
from aad1.serve.settings import KINDS, Settings
from aad1.streaming import Student, picture_size

USUAL_VIDEO = (480, 832)  # px; the most for a model without a size of its own
DATA_URL = re.compile(r"data:[\w/+.-]*;base64,")


def live_request(event: SessionStart, student: Student, settings: Settings) -> Request:
    """A ``session.start`` as a request; UserError for a picture, prompt or size that is not allowed."""
    image = picture(_decoded(event.image), settings)
    size = video_size(student, image.shape[:2], (event.size[0], event.size[1]) if event.size else None, settings)
    return Request(
        image=fit_image(image, size),
        prompt=checked_prompt(event.prompt, settings),
        seed=event.seed,
        size=size,
        passes=_levels(event.passes),
        first_passes=_levels(event.first_passes),
    )


def picture(data: bytes, settings: Settings) -> NDArray[np.uint8]:
    """The picture that these bytes are, whatever the client calls them; UserError for none, or too large a one."""
    return open_image(io.BytesIO(data), kinds=KINDS, most_pixels=settings.pixels)


def video_size(
    student: Student, image: tuple[int, int], wanted: tuple[int, int] | None, settings: Settings
) -> tuple[int, int]:
    """The video's (height, width) for a picture of this one; what the model has no size for is made small enough.

    Raises:
        UserError: for a wanted size that does not divide or has too many pixels: it would hold up everyone else.
    """
    most = settings.video_pixels or math.prod(student.generator.config.size or USUAL_VIDEO)
    shrink = min(1.0, math.sqrt(most / math.prod(image)))
    size = picture_size(student.generator, student.vae, (int(image[0] * shrink), int(image[1] * shrink)), wanted)
    if math.prod(size) > most:
        raise UserError(
            f"size {size[0]}x{size[1]} (height x width) has {math.prod(size)} pixels; at most {most} are allowed"
        )
    return size


def checked_prompt(text: str, settings: Settings) -> str:
    """The prompt, if it is not too long."""
    if len(text) > settings.prompt:
        raise UserError(f"the prompt has {len(text)} characters; at most {settings.prompt} are allowed")
    return text


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(DATA_URL.sub("", text[:64], count=1) + text[64:], validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image is no base64; give a picture's bytes in base64, or a data URL of them") from None


def _levels(passes: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if passes is None else tuple(passes)
