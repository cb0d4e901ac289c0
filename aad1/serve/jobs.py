"""Jobs: videos that are made in the background and fetched when they are finished."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace

from aad1.data.media import VideoWriter
from aad1.errors import UserError
from aad1.serve.engine import Engine, Failed, Request
from aad1.serve.metrics import Metrics
from aad1.serve.requests import picture
from aad1.serve.settings import Settings
from aad1.serve.store import Job, VideoStore
from aad1.serve.threads import entered_in_thread, in_thread
from aad1.streaming import Session, enlargement, frame_count
from aad1.streaming.record import video_metadata

log = logging.getLogger(__name__)


class Full(UserError):
    """No room for one more job or session; try again later."""


class Jobs:
    """The queue of jobs and the one task that makes them, oldest first, taking turns with live videos."""

    def __init__(self, store: VideoStore, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.store, self.engine, self.settings, self.metrics = store, engine, settings, metrics
        self._task: asyncio.Task[None] | None = None
        self._news, self._adding = asyncio.Event(), asyncio.Lock()
        self._at_work: str | None = None
        self._session: Session | None = None
        metrics.waiting.set_function(lambda: len(store.unfinished()))

    def start(self) -> None:
        """Begin with what an earlier server left."""
        self._news.set()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop between two chunks; what was under way is queued again at the next start."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def add(self, job: Job, data: bytes) -> Job:
        """Queue a job whose picture and prompt are good. Raises Full, and UserError for a full disk."""
        async with self._adding:
            if len(self.store.unfinished()) >= self.settings.queue:
                self.metrics.refused.inc()
                raise Full(f"{self.settings.queue} videos are waiting, which is all this server keeps; try again later")
            await in_thread(self.store.create, job, data)
            self.store.jobs[job.id] = job
        self._news.set()
        return job

    async def delete(self, job: Job) -> None:
        """Forget a job; one that is being made stops before its next chunk."""
        self.store.jobs.pop(job.id, None)
        if self._at_work == job.id:
            if self._session is not None:
                self._session.cancel()
            return  # its files go when the work on them has ended
        await in_thread(self.store.remove, job)

    async def _work(self) -> None:
        while True:
            waiting = self.store.unfinished()
            if not waiting:
                self._news.clear()
                await self._news.wait()
                continue
            job = waiting[0]
            self._at_work = job.id
            try:
                await self._make(job)
            finally:
                self._at_work = self._session = None
                if job.id not in self.store.jobs:  # deleted meanwhile
                    await in_thread(self.store.remove, job)

    async def _make(self, job: Job) -> None:
        """Make one video, and write down how that went."""
        try:
            job = replace(job, status="in_progress")
            await in_thread(self.store.save, job)
            self._note(job)
            await self._record(job)
            ended = replace(job, status="completed", progress=100)
        except (UserError, OSError, Failed) as error:
            ended = replace(job, status="failed", error=str(error))
        except Exception as error:  # whatever it was: the jobs behind this one are waiting
            log.exception("a job failed")
            ended = replace(job, status="failed", error=f"something went wrong in the server ({type(error).__name__})")
        if job.id not in self.store.jobs:
            return
        ended = replace(ended, completed_at=int(time.time()))
        try:
            await in_thread(self.store.finish, ended)
        except UserError as error:  # a disk that is full now: after a restart it will be made again
            log.warning("%s is %s, which cannot be written down: %s", ended.id, ended.status, error)
        self._note(ended)
        self.metrics.jobs.labels(ended.status).inc()

    def _note(self, job: Job) -> None:
        """How a job stands, unless it was deleted meanwhile."""
        if job.id in self.store.jobs:
            self.store.jobs[job.id] = job

    async def _record(self, job: Job) -> None:
        data = await in_thread(self.store.picture, job)
        image = await self.engine.aside(picture, data, self.settings)
        session = await self.engine.open(Request(image, job.prompt, job.seed, job.size))
        self._session = session
        total, fps, path = frame_count(job.seconds, self.settings.fps), self.settings.fps, self.store.video(job)
        note, scale = video_metadata(session, fps), enlargement(session.size)
        frames, left = session.frames(total), total
        async with entered_in_thread(VideoWriter(path, fps=fps, scale=scale, metadata=note)) as video:
            while left > 0 and job.id in self.store.jobs:
                part = await self.engine.chunk(session, frames)
                if part is None:
                    break
                await in_thread(video.write, part)
                await in_thread(self.store.check_room, 0)
                left -= len(part)
                self._note(replace(job, progress=min(99, 100 * (total - left) // total)))
