"""Jobs and their videos on disk: one folder each, so that what is finished survives a restart.

    FOLDER/video_0123.../job.json   what was asked for and how it stands
                         input      the picture's bytes, until the video is finished
                         video.mp4  the result

Ids are drawn here and looked up in memory: nothing a client sends ever becomes a path.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from aad1.errors import UserError
from aad1.files import write_atomic, write_errors

log = logging.getLogger(__name__)

Status = Literal["queued", "in_progress", "completed", "failed"]
UNFINISHED = ("queued", "in_progress")


@dataclass(frozen=True)
class Job:
    """A video that was asked for. seconds: its length; size: (height, width) or None for the model's own."""

    prompt: str
    model: str
    seconds: float
    seed: int = 0
    size: tuple[int, int] | None = None
    id: str = field(default_factory=lambda: f"video_{secrets.token_hex(16)}")
    status: Status = "queued"
    progress: int = 0
    created_at: int = field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    error: str | None = None

    def public(self) -> dict[str, Any]:
        """As OpenAI's video object, with the seed beside it."""
        height, width = self.size or (0, 0)
        return {
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.status,
            "progress": self.progress,
            "created_at": self.created_at,
            "completed_at": self.completed_at,
            "expires_at": None,
            "prompt": self.prompt,
            "seconds": f"{self.seconds:g}",
            "size": f"{width}x{height}",
            "seed": self.seed,
            "remixed_from_video_id": None,
            "error": {"code": "generation_failed", "message": self.error} if self.error else None,
        }


AS_JSON = TypeAdapter(Job)


class VideoStore:
    """All jobs of one folder: ``jobs`` in memory, and their files. Raises UserError when the folder cannot be made.

    What touches files (``create``, ``save``, ``finish``, ``remove``, ``used``) takes its time and may be called in a
    thread; ``jobs`` is the event loop's.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self.folder, self.quota = folder, quota
        if folder.exists() and not folder.is_dir():
            raise UserError(f"cannot keep videos in {folder}: it is a file; choose another folder with --out")
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.jobs = {job.id: job for job in sorted(self._found(), key=lambda job: (job.created_at, job.id))}

    def _found(self) -> list[Job]:
        """The jobs on disk; what was under way when the server stopped is queued again, what is torn left out."""
        jobs = []
        for path in (place / "job.json" for place in self.folder.glob("video_*")):
            try:
                job = AS_JSON.validate_json(path.read_bytes())
            except (OSError, ValueError):
                log.warning("%s cannot be read, and is left out; delete %s to free its space", path, path.parent)
                continue
            if job.status == "in_progress":
                job = replace(job, status="queued", progress=0)
            if job.status == "completed" and not self.video(job).is_file():
                job = replace(job, status="failed", error="its file is gone")
            if job.id == path.parent.name:
                jobs.append(job)
        return jobs

    def unfinished(self) -> list[Job]:
        """Those that are still to be made, oldest first."""
        return [job for job in self.jobs.values() if job.status in UNFINISHED]

    def used(self) -> int:
        """Bytes of everything in the folder; what is deleted meanwhile counts as gone."""
        total = 0
        for place, _, files in os.walk(self.folder):
            for file in files:
                with suppress(FileNotFoundError):
                    total += os.stat(os.path.join(place, file)).st_size
        return total

    def check_room(self, more: int) -> None:
        """Raise UserError when ``more`` bytes are more than the quota has room for."""
        if (used := self.used()) + more > self.quota:
            raise UserError(
                f"the videos here take {used} of the {self.quota} bytes they may; delete some of them first"
            )

    def create(self, job: Job, picture: bytes) -> None:
        """Write down a new job and its picture; UserError when the quota or the disk is full."""
        self.check_room(len(picture))
        place = self.folder / job.id
        try:
            with write_errors(place):
                place.mkdir()
            write_atomic(place / "input", picture)
            self.save(job)
        except UserError:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def save(self, job: Job) -> None:
        """Write down how a job stands."""
        write_atomic(self.folder / job.id / "job.json", AS_JSON.dump_json(job))

    def picture(self, job: Job) -> bytes:
        """The bytes of a job's picture."""
        return (self.folder / job.id / "input").read_bytes()

    def video(self, job: Job) -> Path:
        """Where its video is, once it is finished."""
        return self.folder / job.id / "video.mp4"

    def finish(self, job: Job) -> None:
        """Write down how a job has ended; it needs its picture no more."""
        self.save(job)
        with suppress(OSError):
            (self.folder / job.id / "input").unlink(missing_ok=True)

    def remove(self, job: Job) -> None:
        """Delete a job's files."""
        shutil.rmtree(self.folder / job.id, ignore_errors=True)
