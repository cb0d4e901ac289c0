"""The realtime protocol's events, as they travel over the WebSocket.

    client                                   server
    session.start {prompt, image, ...}   ->
                                         <-  session.started {id, size, fps, mime}
                                         <-  video.chunk_metadata {index, frames, ...} and one binary message of
                                             fragmented MP4, again and again
    session.interaction {prompt}         ->
                                         <-  session.interaction.applied {prompt, from_chunk}
    session.stop                         ->
                                         <-  session.done {reason, report}

Anything wrong is answered by ``error {code, message}``; what can be put right leaves the connection open.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aad1.errors import UserError

LARGEST_SEED = 2**63 - 1
MOST_PASSES = 8


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Passes = Annotated[list[float], Field(min_length=1, max_length=MOST_PASSES)]


class SessionStart(_Event):
    """Begin a video. image: base64 of a picture's bytes, or a data URL of them; size: [height, width]."""

    type: Literal["session.start"]
    prompt: str
    image: str
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    size: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    passes: Passes | None = None
    first_passes: Passes | None = None
    max_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    pace: Literal["realtime", "fast"] = "realtime"
    codec: Literal["h264", "vp9"] = "h264"
    api_key: str | None = None


class SessionInteraction(_Event):
    """Change the prompt from the next chunk that is made on."""

    type: Literal["session.interaction"]
    prompt: str


class SessionStop(_Event):
    """End the video."""

    type: Literal["session.stop"]


Event = Annotated[SessionStart | SessionInteraction | SessionStop, Field(discriminator="type")]
_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(text: str) -> SessionStart | SessionInteraction | SessionStop:
    """Read one event; UserError says what is wrong with it."""
    try:
        return _EVENTS.validate_json(text)
    except ValidationError as error:
        raise UserError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """The first fault, and where it is."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])


def error_event(code: str, message: str) -> dict[str, Any]:
    """What a client is told when something is wrong."""
    return {"type": "error", "code": code, "message": message}
