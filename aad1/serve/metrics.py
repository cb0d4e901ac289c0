"""What the server counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aad1.runtime import peak_memory
from aad1.streaming import ChunkTime

CHUNK_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
FIRST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 10)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.sessions = Gauge("aad1_live_sessions", "Live videos that are playing", registry=own)
        self.waiting = Gauge("aad1_jobs_waiting", "Jobs in the queue", registry=own)
        self.jobs = Counter("aad1_jobs", "Jobs that ended", ["status"], registry=own)
        self.refused = Counter("aad1_refused", "Live videos and jobs refused because the server was full", registry=own)
        self.errors = Counter("aad1_live_errors", "Error events sent to live clients", ["code"], registry=own)
        self.frames = Counter("aad1_frames", "Frames made, for live videos and jobs", registry=own)
        self.first = Histogram(
            "aad1_first_frame_seconds",
            "From a session's opening to its first frame",
            buckets=FIRST_SECONDS,
            registry=own,
        )
        parts = ("total", "denoising", "decoding")
        self.parts = {
            part: Histogram(f"aad1_chunk_{part}_seconds", f"A chunk's {part} time", buckets=CHUNK_SECONDS, registry=own)
            for part in parts
        }
        memory = Gauge("aad1_peak_memory_bytes", "Memory held at most, CPU and GPU", registry=own)
        memory.set_function(peak_memory)

    def chunk(self, time: ChunkTime, first_frame: float | None = None) -> None:
        """Note a chunk that was made, and how long the first one took."""
        self.frames.inc(time.frames)
        for part, histogram in self.parts.items():
            histogram.observe(getattr(time, part))
        if first_frame is not None:
            self.first.observe(first_frame)

    def text(self) -> bytes:
        """All of it, as ``/metrics`` gives it."""
        return generate_latest(self.registry)
