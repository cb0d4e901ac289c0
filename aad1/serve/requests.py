"""What a client sends, checked and turned into a request to the engine."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aad1.data.media import open_image
from aad1.errors import UserError
from aad1.serve.engine import Request
from aad1.serve.events import SessionStart
from aad1.serve.settings import KINDS, Settings

DATA_URL = re.compile(r"data:[\w/+.-]*;base64,")


def live_request(event: SessionStart, settings: Settings) -> Request:
    """A ``session.start`` as a request; UserError for a picture or a prompt that is not allowed."""
    return Request(
        image=picture(_decoded(event.image), settings),
        prompt=checked_prompt(event.prompt, settings),
        seed=event.seed,
        size=(event.size[0], event.size[1]) if event.size else None,
        passes=_levels(event.passes),
        first_passes=_levels(event.first_passes),
    )


def picture(data: bytes, settings: Settings) -> NDArray[np.uint8]:
    """The picture that these bytes are, whatever the client calls them; UserError for none, or too large a one."""
    return open_image(io.BytesIO(data), kinds=KINDS, most_pixels=settings.pixels)


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
