"""One live video over a WebSocket: made at the pace it is watched, with a prompt that can change.

Two tasks share a connection: one sends chunks, one hears what the client says. A client that reads slowly makes
the sender wait, so nothing piles up; one that is gone ends its session.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from aad1.errors import UserError
from aad1.serve.engine import Engine, Frames, enlarged, enlarged_size
from aad1.serve.events import SessionInteraction, SessionStart, SessionStop, error_event, parse_event
from aad1.serve.fragments import FragmentedMp4
from aad1.serve.guards import shows_key
from aad1.serve.metrics import Metrics
from aad1.serve.requests import checked_prompt, live_request
from aad1.serve.settings import Settings
from aad1.streaming import Session

MOST_MISTAKES = 20
POLICY, TRY_LATER, NORMAL = 1008, 1013, 1000


class Hangup(Exception):
    """Close the connection with this code; the client has been told why."""

    def __init__(self, code: int) -> None:
        self.code = code


class LiveVideo:
    """A connection from its first event to its last."""

    def __init__(self, socket: WebSocket, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.socket, self.engine, self.settings, self.metrics = socket, engine, settings, metrics
        self.session: Session | None = None
        self.stopped = asyncio.Event()
        self.reason = "stopped"
        self._mistakes = 0
        self._sending = asyncio.Lock()  # a chunk is two messages that must stay together

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        try:
            start = await self._start()
            await self._play(start)
            code = NORMAL
        except Hangup as hangup:
            code = hangup.code
        except (WebSocketDisconnect, RuntimeError):  # starlette raises the latter for a socket closed meanwhile
            return
        finally:
            if self.session is not None:
                self.session.cancel()
        with suppress(RuntimeError, WebSocketDisconnect):
            await self.socket.close(code)

    # --- the beginning ------------------------------------------------------------------------

    async def _start(self) -> SessionStart:
        """Hear ``session.start`` and open the session; mistakes may be put right on the same connection."""
        while True:
            try:
                event = await asyncio.wait_for(self._heard(), self.settings.patience)
            except TimeoutError:
                await self._wrong("timeout", f"no session.start within {self.settings.patience:g} seconds")
                raise Hangup(POLICY) from None
            if event is None:
                continue
            if not isinstance(event, SessionStart):
                await self._wrong("not_started", f"{event.type} before session.start; start a session first")
                continue
            if not shows_key(self.socket.headers, self.settings.api_key, event.api_key or ""):
                await self._send(error_event("unauthorized", "the API key is missing or wrong"))
                raise Hangup(POLICY)
            try:
                request = live_request(event, self.settings)
                self.session = await self.engine.open(request)
                return event
            except UserError as error:
                await self._wrong("invalid_request", str(error))

    # --- the video ----------------------------------------------------------------------------

    async def _play(self, start: SessionStart) -> None:
        assert self.session is not None
        size = enlarged_size(self.session.size)
        encoder = FragmentedMp4(size, self.settings.fps)
        await self._send(
            {
                "type": "session.started",
                "id": f"session_{secrets.token_hex(8)}",
                "size": list(size),
                "fps": self.settings.fps,
                "mime": encoder.mime,
                "seed": self.session.seed,
                "prompt": self.session.prompt,
                "passes": list(self.session.passes),
            }
        )
        hearing = asyncio.create_task(self._hear())
        try:
            await self._send_chunks(start, encoder)
        finally:
            self.stopped.set()
            hearing.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await hearing
        if self._mistakes >= MOST_MISTAKES:
            raise Hangup(POLICY)
        report = self.session.account.report()
        await self._send({"type": "session.done", "reason": self.reason, "report": report})

    async def _send_chunks(self, start: SessionStart, encoder: FragmentedMp4) -> None:
        assert self.session is not None
        chunks, pace = self.session.chunks(), Pace(self.settings.fps, self.settings.lead)
        left = round(start.max_seconds * self.settings.fps) if start.max_seconds else None
        try:
            while not self.stopped.is_set():
                said = self.session.prompt
                frames = await self.engine.chunk(chunks)
                if frames is None:
                    break
                if left is not None:
                    frames, left = frames[:left], left - len(frames)
                piece = await asyncio.to_thread(_encode, encoder, frames)
                await self._send_chunk(frames, piece, said, pace)
                if left is not None and left <= 0:
                    self.reason = "finished"
                    break
                if start.pace == "realtime":
                    await self._wait(pace.ahead())
            last = await asyncio.to_thread(encoder.close)
            await self._send(last)
        finally:
            self.session.cancel()

    async def _send_chunk(self, frames: Frames, piece: bytes, said: str, pace: Pace) -> None:
        assert self.session is not None
        account = self.session.account
        time_of = account.recent[-1]
        metadata = {
            "type": "video.chunk_metadata",
            "index": account.chunks - 1,
            "frames": len(frames),
            "start_s": pace.frames / self.settings.fps,
            "bytes": len(piece),
            "prompt": said,
            "chunk_s": time_of.total,
            "denoising_s": time_of.denoising,
            "decoding_s": time_of.decoding,
            "first_frame_s": account.first_frame,
            "fps": account.fps,
        }
        await self._send(metadata, piece)
        pace.sent(len(frames))
        self.metrics.chunk(time_of, first_frame=account.first_frame if account.chunks == 1 else None)

    async def _wait(self, seconds: float) -> None:
        """Until the video may go on, or is stopped."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), seconds)

    # --- hearing ------------------------------------------------------------------------------

    async def _hear(self) -> None:
        """What the client says while its video plays."""
        try:
            while not self.stopped.is_set() and self._mistakes < MOST_MISTAKES:
                event = await self._heard()
                if isinstance(event, SessionStop):
                    break
                if isinstance(event, SessionInteraction):
                    await self._switch(event)
                elif isinstance(event, SessionStart):
                    await self._wrong("already_started", "this connection plays a video; open another for a second one")
        except (WebSocketDisconnect, RuntimeError):
            self.reason = "disconnected"
        finally:
            self.stopped.set()

    async def _switch(self, event: SessionInteraction) -> None:
        assert self.session is not None
        try:
            await self.engine.run(self.session.switch, checked_prompt(event.prompt, self.settings))
        except UserError as error:
            await self._wrong("invalid_request", str(error))
            return
        ahead = 1 if self.session.student.overlap else 0
        first = self.session.account.chunks + ahead
        await self._send({"type": "session.interaction.applied", "prompt": event.prompt, "from_chunk": first})

    async def _heard(self) -> SessionStart | SessionInteraction | SessionStop | None:
        """One event, or None for something that is none (the client has been told)."""
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", NORMAL))
        text = message.get("text")
        if text is None:
            await self._wrong("invalid_event", "a binary message; events are JSON text")
            return None
        try:
            return parse_event(text)
        except UserError as error:
            await self._wrong("invalid_event", str(error))
            return None

    # --- sending ------------------------------------------------------------------------------

    async def _wrong(self, code: str, message: str) -> None:
        self._mistakes += 1
        self.metrics.mistakes.labels(code).inc()
        await self._send(error_event(code, message))
        if self._mistakes >= MOST_MISTAKES and self.session is None:
            raise Hangup(POLICY)

    async def _send(self, *messages: dict[str, Any] | bytes) -> None:
        """Events and video, with nothing between them."""
        async with self._sending:
            for message in messages:
                if isinstance(message, bytes):
                    await self._patiently(self.socket.send_bytes(message))
                else:
                    await self._patiently(self.socket.send_json(message))

    async def _patiently(self, sending: Any) -> None:
        """Wait for a client that reads slowly, but not for one that has stopped."""
        try:
            await asyncio.wait_for(sending, self.settings.patience)
        except TimeoutError:
            raise Hangup(TRY_LATER) from None


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
