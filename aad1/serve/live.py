"""Live video over WebSockets: made at the pace it is watched, with a prompt that can change.

Two tasks share a connection: one sends chunks, one hears what the client says. A client that reads slowly makes
the sender wait, so nothing piles up; one that is gone ends its session.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.websockets import WebSocket

from aad1.errors import UserError
from aad1.serve.connection import INTERNAL, NORMAL, POLICY, TRY_LATER, Connection, Hangup, Lost
from aad1.serve.engine import Engine, Failed, Frames, enlarged, enlarged_size
from aad1.serve.events import SessionInteraction, SessionStart, SessionStop
from aad1.serve.fragments import FragmentedMp4
from aad1.serve.guards import shows_key
from aad1.serve.metrics import Metrics
from aad1.serve.requests import checked_prompt, live_request
from aad1.serve.settings import Settings
from aad1.serve.threads import in_thread
from aad1.streaming import Session, frame_count

log = logging.getLogger(__name__)


class Busy(Exception):
    """All seats are taken."""


class Seats:
    """How many there are at once, of at most ``limit``."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what, self.taken = limit, what, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a seat; Busy when there is none."""
        if self.taken >= self.limit:
            raise Busy(f"{self.limit} {self.what}, which is all this server takes; try again later")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class LiveVideos:
    """All live connections of a server; only those that have begun a video take a seat among the playing."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self.connected = Seats(settings.sockets, "clients are connected")
        self.playing = Seats(settings.live, "live videos are playing")
        metrics.sessions.set_function(lambda: self.playing.taken)

    async def serve(self, socket: WebSocket) -> None:
        """Serve an accepted connection from its first event to its last, and close it."""
        connection = Connection(socket, self.settings, self.metrics)
        with suppress(Lost):
            await connection.close(await self._served(connection))

    async def _served(self, connection: Connection) -> int:
        """The code to close a connection with, after all that was to be said on it."""
        code = NORMAL
        try:
            try:
                with self.connected.one():
                    await self._converse(connection)
            except Busy as busy:
                self.metrics.refused.inc()
                code = TRY_LATER
                await connection.error("busy", str(busy))
            except Failed as error:
                code = INTERNAL
                await connection.error("failed", str(error))
        except Hangup as hangup:
            code = hangup.code
        except Lost:
            raise
        except Exception:
            log.exception("a live video failed")
            code = INTERNAL
            with suppress(Hangup):
                await connection.error("failed", "something went wrong in the server")
        return code

    async def _converse(self, connection: Connection) -> None:
        """Hear ``session.start`` and play; what is wrong with it may be put right on the same connection."""
        deadline = time.monotonic() + self.settings.patience
        while True:
            start = await hear_start(connection, deadline)
            with self.playing.one():
                try:
                    request = await self.engine.aside(live_request, start, self.engine.student, self.settings)
                    live = LiveVideo(connection, self.engine, await self.engine.open(request), start)
                except UserError as error:
                    await connection.wrong("invalid_request", str(error))
                    continue
                await live.play()
                return


async def hear_start(connection: Connection, deadline: float) -> SessionStart:
    """``session.start`` from a client that shows the API key, where one is asked for, until the deadline."""
    settings = connection.settings
    while True:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                event = await connection.hear()
        except TimeoutError:
            await connection.error("timeout", f"no session.start within {settings.patience:g} seconds")
            raise Hangup(POLICY) from None
        if event is None:
            continue
        if not isinstance(event, SessionStart):
            await connection.wrong("not_started", f"{event.type} before session.start; start a session first")
            continue
        if not shows_key(connection.socket.headers, settings.api_key, event.api_key or ""):
            await connection.error("unauthorized", "the API key is missing or wrong")
            raise Hangup(POLICY)
        return event


class LiveVideo:
    """A session that plays on a connection until it is stopped, finished or alone.

    Raises UserError for a length that is none, and for what no MP4 for browsers can hold.
    """

    def __init__(self, connection: Connection, engine: Engine, session: Session, start: SessionStart) -> None:
        self.connection, self.engine, self.session = connection, engine, session
        self.fps, self.hurried = connection.settings.fps, start.pace == "fast"
        self.left = frame_count(start.max_seconds, self.fps) if start.max_seconds is not None else None
        self.pace = Pace(self.fps, connection.settings.lead)
        self.encoder = FragmentedMp4(enlarged_size(session.size), self.fps, start.codec)
        self.stopped = asyncio.Event()
        self.reason = "stopped"
        self.hangup: int | None = None

    async def play(self) -> None:
        """Send chunks and hear events; at the end the session's report."""
        await self.connection.send(self._started())
        hearing = asyncio.create_task(self._hear())
        try:
            await self._send_chunks()
        finally:
            self.session.cancel()
            await in_thread(self.encoder.close)
            hearing.cancel()
            with suppress(asyncio.CancelledError):
                await hearing
        if self.hangup is not None:
            raise Hangup(self.hangup)
        report = self.session.account.report()
        await self.connection.send({"type": "session.done", "reason": self.reason, "report": report})

    def _started(self) -> dict[str, object]:
        return {
            "type": "session.started",
            "id": f"session_{secrets.token_hex(8)}",
            "size": list(enlarged_size(self.session.size)),
            "fps": self.fps,
            "mime": self.encoder.mime,
            "seed": self.session.seed,
            "prompt": self.session.prompt,
            "passes": list(self.session.passes),
        }

    # --- sending ------------------------------------------------------------------------------

    async def _send_chunks(self) -> None:
        chunks = self.session.chunks()
        while not self.stopped.is_set():
            frames = await self.engine.chunk(self.session, chunks)
            if frames is None:
                break
            if self.left is not None:
                frames, self.left = frames[: self.left], self.left - len(frames)
            await self._send_chunk(frames, await in_thread(_encode, self.encoder, frames))
            if self.left is not None and self.left <= 0:
                self.reason = "finished"
                break
            if not self.hurried:
                await self._wait(self.pace.ahead())
        await self.connection.send(await in_thread(self.encoder.close))

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

    async def _wait(self, seconds: float) -> None:
        """Until the video may go on, or is stopped."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.stopped.wait()

    # --- hearing ------------------------------------------------------------------------------

    async def _hear(self) -> None:
        """What the client says while its video plays, until it says stop, too much that is wrong, or is gone.

        Raises nothing: a task that failed and those who wait for it hold each other, and with them the video.
        """
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
        except Hangup as hangup:
            self.hangup = hangup.code
        except Lost:
            pass  # the next chunk that is sent finds out, too
        finally:
            self.stopped.set()

    async def _switch(self, event: SessionInteraction) -> None:
        try:
            prompt = checked_prompt(event.prompt, self.connection.settings)
            first = await self.engine.run(self.session.switch, prompt)
        except UserError as error:
            await self.connection.wrong("invalid_request", str(error))
            return
        except Failed as error:
            await self.connection.error("failed", str(error))
            raise Hangup(INTERNAL) from None
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
