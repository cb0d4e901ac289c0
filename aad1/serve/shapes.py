"""What travels over HTTP: requests and answers, in OpenAI's shapes where it has them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Form
from pydantic import BaseModel

from aad1.serve.events import LARGEST_SEED


@dataclass
class NewVideo:
    """The fields of a job's form, beside its picture. seconds: a number as text, as OpenAI's clients send it."""

    prompt: Annotated[str, Form(description="what happens")]
    model: Annotated[str | None, Form()] = None
    seconds: Annotated[str, Form(description="a number, as text")] = "4"
    size: Annotated[str | None, Form(description="WIDTHxHEIGHT; by default the model's own")] = None
    seed: Annotated[int, Form(ge=0, le=LARGEST_SEED)] = 0


class Fault(BaseModel):
    """What went wrong: ``message`` for people, ``code`` for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Problem(BaseModel):
    """The body of every answer that is an error."""

    error: Fault


class VideoError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Video(BaseModel):
    """A job, in OpenAI's shape; times are Unix seconds, ``size`` is WIDTHxHEIGHT (0x0: the model's own)."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    seconds: str
    size: str
    seed: int
    remixed_from_video_id: str | None
    error: VideoError | None


class VideoList(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A job that is no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(BaseModel):
    """What is served: ``size`` [height, width] if it has one of its own, ``vocabulary`` if it is closed."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "aad1"
    fps: float
    size: list[int] | None
    passes: list[float]
    vocabulary: list[str] | None


class ModelList(BaseModel):
    """The one model of this server."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok"] = "ok"
    version: str
    live: int
    live_limit: int
    waiting: int
    api_key_required: bool


class Scene(BaseModel):
    """A still of the embedded world: something to animate."""

    image: str
    prompt: str
