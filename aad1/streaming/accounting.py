"""What a session cost: time to the first frame, where a chunk's time went, sustained frames per second.

The protocol, the same for ``aad1 generate``, ``aad1 bench stream`` and the server: the first frame counts from
the session's opening (image and prompt included, the model loaded); a chunk's time is that of making it, without
what its consumer does between two chunks; sustained figures are medians over the chunks after the second, where
the context has its full length. The pass that writes a finished chunk into the context is the next chunk's own
first pass, so its cost is part of denoising. With overlap decoding happens beside the making of the next
chunk, and a chunk takes less than its parts.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from aad1.runtime import peak_memory

SETTLED = 2  # chunks before those that count
REMEMBERED = 512  # chunks whose times are kept, so that an endless session stays small

Mark = float | torch.cuda.Event


@dataclass(frozen=True)
class ChunkTime:
    """One chunk: its frames, and the seconds of denoising, of decoding, and until it could be handed over."""

    frames: int
    denoising: float
    decoding: float
    total: float


@dataclass
class Account:
    """Grows with a session's chunks. ``first_frame`` is in seconds, None until there is one."""

    opened: float = field(default_factory=time.perf_counter)
    first_frame: float | None = None
    frames: int = 0
    chunks: int = 0
    recent: deque[ChunkTime] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, chunk: ChunkTime) -> None:
        """Note a chunk that is ready to be handed over."""
        if self.first_frame is None:
            self.first_frame = time.perf_counter() - self.opened
        self.chunks += 1
        self.frames += chunk.frames
        self.recent.append(chunk)

    def settled(self) -> list[ChunkTime]:
        """The chunks that sustained figures are of: those after the second, or all while there are no others."""
        skipped = max(0, SETTLED - (self.chunks - len(self.recent)))
        return list(self.recent)[skipped:] or list(self.recent)

    def median(self, part: str) -> float | None:
        """Of a field of ChunkTime, over the settled chunks; None before the first chunk."""
        found = [getattr(chunk, part) for chunk in self.settled()]
        return statistics.median(found) if found else None

    @property
    def fps(self) -> float | None:
        """Sustained frames per second; None before the first chunk."""
        rates = [chunk.frames / chunk.total for chunk in self.settled() if chunk.total > 0]
        return statistics.median(rates) if rates else None

    def report(self) -> dict[str, float | int | None]:
        """Everything, as numbers a JSON file can hold; seconds, frames per second and bytes.

        Writing the context is part of denoising and has no time of its own (``aad1 bench stream`` says what it would
        cost apart); the peak of memory is the process's, all its sessions and the weights included.
        """
        return {
            "first_frame_s": self.first_frame,
            "chunk_s": self.median("total"),
            "denoising_s": self.median("denoising"),
            "decoding_s": self.median("decoding"),
            "fps": self.fps,
            "chunks": self.chunks,
            "frames": self.frames,
            "peak_memory_bytes": peak_memory(),
        }


def mark(device: torch.device) -> Mark:
    """Now, on the device: an event on a GPU, which does not make it wait."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))  # of this device, which need not be the current one
    return event


def seconds(start: Mark, end: Mark) -> float:
    """Between two marks; on a GPU once the second has been reached."""
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
