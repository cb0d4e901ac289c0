"""What the server allows: one table of limits, each with its unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from aad1.data.media import MAX_FPS
from aad1.errors import UserError
from aad1.limits import Count, Natural, Positive

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # pictures that are accepted, told by their bytes


@dataclass(frozen=True)
class Settings:
    """How one server behaves.

    folder: where finished videos are kept, the only place that is written to. quota_gb: GiB they may take
    together. api_key: what a client must show, None for anyone. hosts: names under which the server may be called
    (others are refused, so that no page elsewhere reaches a server on its reader's machine). live: videos that
    play at once. queue: jobs that wait. upload: bytes of a request. pixels: of a picture, before it is decoded.
    video_pixels: of a video, by default those of the model's own size. sockets: live clients that are connected,
    playing or not. event: bytes of what a live client says at once; strangers may say as much. prompt: characters.
    seconds: the longest job. lead: seconds of video that may be sent ahead of its playing. patience: seconds to wait
    for a client that neither reads nor says what it has to.
    """

    folder: Path
    quota_gb: Positive = 10.0
    api_key: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    fps: Annotated[float, Field(gt=0, le=MAX_FPS)] = 16.0
    live: Count = 8
    queue: Natural = 32
    upload: Count = 16 * 2**20
    pixels: Count = 40_000_000
    video_pixels: Count | None = None
    sockets: Count = 24
    event: Count = 8 * 2**20
    prompt: Count = 2000
    seconds: Positive = 600.0
    lead: Positive = 2.0
    patience: Positive = 60.0

    @property
    def quota(self) -> int:
        """Bytes that finished videos may take together."""
        return int(self.quota_gb * 2**30)


def checked(**values: Any) -> Settings:
    """Settings of what a user gave; UserError for a number that is not allowed, with what is."""
    key = values.get("api_key")
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise UserError(
            "the API key is empty or has characters that a header cannot carry; use those of ASCII, no spaces"
        )
    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{fault['loc'][0]} {fault['input']}: {fault['msg'].lower()}") from None
