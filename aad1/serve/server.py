"""The parts that all routes share, and the checks before anything is made."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache

from fastapi import Request, WebSocket

from aad1.data.world import Clip, make_clip
from aad1.errors import UserError
from aad1.models.text import has_closed_vocabulary
from aad1.serve.engine import Engine
from aad1.serve.guards import same_origin
from aad1.serve.jobs import Jobs
from aad1.serve.live import LiveVideos
from aad1.serve.metrics import Metrics
from aad1.serve.requests import checked_prompt, picture, video_size
from aad1.serve.settings import Settings
from aad1.serve.shapes import Model, ModelList, NewVideo, Scene
from aad1.serve.store import Job, VideoStore
from aad1.streaming import Student

SAMPLES = 8  # pictures in the gallery
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]*)?|\.[0-9]+")
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str) -> None:
        self.status, self.message, self.code = status, message, code


class Server:
    """The parts that routes share."""

    def __init__(self, student: Student, settings: Settings) -> None:
        self.student, self.settings, self.metrics = student, settings, Metrics()
        self.engine = Engine(student, self.metrics)
        self.store = VideoStore(settings.folder, settings.quota)
        self.jobs = Jobs(self.store, self.engine, settings, self.metrics)
        self.live = LiveVideos(self.engine, settings, self.metrics)

    def job(self, id: str) -> Job:
        """The job with this id; 404 for none."""
        if (job := self.store.jobs.get(id)) is None:
            raise Refusal(404, "there is no video with this id", "not_found")
        return job

    async def new_job(self, request: Request, form: NewVideo, data: bytes) -> Job:
        """Check everything that was asked for, and queue it."""
        if unknown := sorted(
            set(await request.form()) - {field.name for field in fields(NewVideo)} - {"input_reference"}
        ):
            raise UserError(f"unknown fields: {', '.join(unknown)}")
        if form.model not in (None, self.student.name):
            raise UserError(f"model '{form.model}' is not served here; leave it out, or use '{self.student.name}'")
        image = await self.engine.aside(picture, data, self.settings)
        size = video_size(self.student, image.shape[:2], wanted_size(form.size), self.settings)
        text = checked_prompt(form.prompt, self.settings)
        await self.engine.run(self.student.text.embed, [text])  # refuses unknown words now, not in the queue
        seconds = length(form.seconds, self.settings)
        return await self.jobs.add(Job(text, self.student.name, seconds, form.seed, size), data)

    async def play(self, socket: WebSocket) -> None:
        """One live connection, if there is room for it."""
        if not same_origin(socket.headers):
            await socket.close(1008, "this request comes from another site's page")
            return
        await socket.accept()
        await self.live.serve(socket)

    def models(self) -> ModelList:
        """What is served."""
        config, text = self.student.generator.config, self.student.text
        words = sorted(text.tokenizer.get_vocab()) if has_closed_vocabulary(text.tokenizer) else None
        model = Model(
            id=self.student.name,
            fps=self.settings.fps,
            size=list(config.size) if config.size else None,
            passes=list(config.passes),
            vocabulary=[word for word in words if not word.startswith("<")] if words else None,
        )
        return ModelList(data=[model])

    def samples(self) -> list[Scene]:
        """Stills of the embedded world with their captions: something to animate."""
        return [Scene(image=f"/samples/{i}.png", prompt=sample(i).caption) for i in range(SAMPLES)]


@cache
def sample(index: int) -> Clip:
    """A scene of the gallery, its first frame alone."""
    return make_clip("test", index, 1)


def wanted_size(text: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT as (height, width); UserError for anything else."""
    if text is None:
        return None
    if (match := SIZE.fullmatch(text)) is None:
        raise UserError(f"size '{text[:40]}'; write it as WIDTHxHEIGHT, such as 64x64")
    return int(match[2]), int(match[1])


def length(text: str, settings: Settings) -> float:
    """Seconds of a job; UserError for none, or too many."""
    seconds = float(text) if SECONDS.fullmatch(text) else 0.0
    if not 0 < seconds <= settings.seconds:
        raise UserError(f"seconds '{text[:40]}'; give a number above 0 and up to {settings.seconds:g}")
    return seconds
