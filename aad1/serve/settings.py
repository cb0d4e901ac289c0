"""What the server allows: one table of limits, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # pictures that are accepted, told by their bytes


@dataclass(frozen=True)
class Settings:
    """How one server behaves.

    folder: where finished videos are kept, the only place that is written to. quota: bytes they may take
    together. api_key: what a client must show, None for anyone. hosts: names under which the server may be called
    (others are refused, so that no page elsewhere reaches a server on its reader's machine). live: sessions that
    play at once. queue: jobs that wait. upload: bytes of a request. pixels: of a picture, before it is decoded.
    prompt: characters. seconds: the longest job. lead: seconds of video that may be sent ahead of its playing.
    patience: seconds to wait for a client that neither reads nor says anything it has to.
    """

    folder: Path
    quota: int = 10 * 2**30
    api_key: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    fps: float = 16.0
    live: int = 8
    queue: int = 32
    upload: int = 16 * 2**20
    pixels: int = 40_000_000
    prompt: int = 2000
    seconds: float = 600.0
    lead: float = 2.0
    patience: float = 60.0
