"""One live video over a WebSocket: made at the pace it is watched, with a prompt that can change.

Two tasks share a connection: one sends chunks, one hears what the client says. A client that reads slowly makes
the sender wait, so nothing piles up; one that is gone ends its session.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress

from starlette.websockets import WebSocket

from aad1.errors import UserError
from aad1.serve.connection import INTERNAL, LOST, NORMAL, POLICY, Connection, Hangup
from aad1.serve.engine import Engine, Failed, Frames, enlarged, enlarged_size
from aad1.serve.events import SessionInteraction, SessionStart, SessionStop, error_event
from aad1.serve.fragments import FragmentedMp4
from aad1.serve.guards import shows_key
from aad1.serve.metrics import Metrics
from aad1.serve.requests import checked_prompt, live_request
from aad1.serve.settings import Settings
from aad1.serve.threads import in_thread
from aad1.streaming import Session


async def serve_live(socket: WebSocket, engine: Engine, settings: Settings, metrics: Metrics) -> None:
    """Serve a connection from its first event to its last, and close it."""
    connection, code = Connection(socket, settings, metrics), NORMAL
    try:
        start, session = await open_session(connection, engine)
        await LiveVideo(connection, engine, session, start).play()
    except Hangup as hangup:
        code = hangup.code
    except Failed as error:
        code = INTERNAL
        with suppress(Hangup, *LOST):
            await connection.send(error_event("failed", str(error)))
    except LOST:
        return
    with suppress(*LOST):
        await socket.close(code)


async def open_session(connection: Connection, engine: Engine) -> tuple[SessionStart, Session]:
    """Hear ``session.start`` and open the session; mistakes may be put right on the same connection."""
    settings = connection.settings
    while True:
        try:
            event = await asyncio.wait_for(connection.hear(), settings.patience)
        except TimeoutError:
            await connection.wrong("timeout", f"no session.start within {settings.patience:g} seconds")
            raise Hangup(POLICY) from None
        if event is None:
            continue
        if not isinstance(event, SessionStart):
            await connection.wrong("not_started", f"{event.type} before session.start; start a session first")
            continue
        if not shows_key(connection.socket.headers, settings.api_key, event.api_key or ""):
            await connection.send(error_event("unauthorized", "the API key is missing or wrong"))
            raise Hangup(POLICY)
        try:
            return event, await engine.open(await engine.aside(live_request, event, settings))
        except UserError as error:
            await connection.wrong("invalid_request", str(error))


class LiveVideo:
    """A session that plays on a connection until it is stopped, finished or alone."""

    def __init__(self, connection: Connection, engine: Engine, session: Session, start: SessionStart) -> None:
        self.connection, self.engine, self.session, self.start = connection, engine, session, start
        self.fps = connection.settings.fps
        self.pace = Pace(self.fps, connection.settings.lead)
        self.stopped = asyncio.Event()
        self.reason = "stopped"

    async def play(self) -> None:
        """Send chunks and hear events; at the end the session's report."""
        size = enlarged_size(self.session.size)
        encoder = FragmentedMp4(size, self.fps)
        await self.connection.send(
            {
                "type": "session.started",
                "id": f"session_{secrets.token_hex(8)}",
                "size": list(size),
                "fps": self.fps,
                "mime": encoder.mime,
                "seed": self.session.seed,
                "prompt": self.session.prompt,
                "passes": list(self.session.passes),
            }
        )
        hearing = asyncio.create_task(self._hear())
        try:
            await self._send_chunks(encoder)
        finally:
            self.session.cancel()
            hearing.cancel()
            with suppress(asyncio.CancelledError, *LOST):
                await hearing
        report = self.session.account.report()
        await self.connection.send({"type": "session.done", "reason": self.reason, "report": report})

    # --- sending ------------------------------------------------------------------------------

    async def _send_chunks(self, encoder: FragmentedMp4) -> None:
        chunks, seconds = self.session.chunks(), self.start.max_seconds
        left = round(seconds * self.fps) if seconds else None
        while not self.stopped.is_set():
            frames = await self.engine.chunk(chunks)
            if frames is None:
                break
            if left is not None:
                frames, left = frames[:left], left - len(frames)
            await self._send_chunk(frames, await in_thread(_encode, encoder, frames))
            if left is not None and left <= 0:
                self.reason = "finished"
                break
            if self.start.pace == "realtime":
                await self._wait(self.pace.ahead())
        await self.connection.send(await in_thread(encoder.close))

    async def _send_chunk(self, frames: Frames, piece: bytes) -> None:
        account = self.session.account
        time_of = account.recent[-1]
        metadata = {
            "type": "video.chunk_metadata",
            "index": account.chunks - 1,
            "frames": len(frames),
            "start_s": self.pace.frames / self.fps,
            "bytes": len(piece),
            "prompt": self.session.shown,
            "chunk_s": time_of.total,
            "denoising_s": time_of.denoising,
            "decoding_s": time_of.decoding,
            "first_frame_s": account.first_frame,
            "fps": account.fps,
        }
        await self.connection.send(metadata, piece)
        self.pace.sent(len(frames))
        first = account.first_frame if account.chunks == 1 else None
        self.connection.metrics.chunk(time_of, first_frame=first)

    async def _wait(self, seconds: float) -> None:
        """Until the video may go on, or is stopped."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), seconds)

    # --- hearing ------------------------------------------------------------------------------

    async def _hear(self) -> None:
        """What the client says while its video plays, until it says stop, or too much that is wrong."""
        try:
            while True:
                event = await self.connection.hear()
                if isinstance(event, SessionStop):
                    break
                if isinstance(event, SessionInteraction):
                    await self._switch(event)
                elif isinstance(event, SessionStart):
                    message = "this connection plays a video; open another for a second one"
                    await self.connection.wrong("already_started", message)
        finally:
            self.stopped.set()

    async def _switch(self, event: SessionInteraction) -> None:
        try:
            prompt = checked_prompt(event.prompt, self.connection.settings)
            first = await self.engine.run(self.session.switch, prompt)
        except UserError as error:
            await self.connection.wrong("invalid_request", str(error))
            return
        applied = {"type": "session.interaction.applied", "prompt": event.prompt, "from_chunk": first}
        await self.connection.send(applied)


def _encode(encoder: FragmentedMp4, frames: Frames) -> bytes:
    return encoder.add(enlarged(frames))


class Pace:
    """How far the video that was sent is ahead of its playing, which began with the first chunk."""

    def __init__(self, fps: float, lead: float) -> None:
        self.fps, self.lead, self.frames = fps, lead, 0
        self._began: float | None = None

    def sent(self, frames: int) -> None:
        """Note frames that are on their way."""
        if self._began is None:
            self._began = time.monotonic()
        self.frames += frames

    def ahead(self) -> float:
        """Seconds to wait until only ``lead`` seconds are ahead; 0 or less for none."""
        played = time.monotonic() - (self._began if self._began is not None else time.monotonic())
        return self.frames / self.fps - played - self.lead
