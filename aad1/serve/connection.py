"""A live client's end of the line: events heard and sent, mistakes told and counted, patience with slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from aad1.errors import UserError
from aad1.serve.events import SessionInteraction, SessionStart, SessionStop, error_event, parse_event
from aad1.serve.metrics import Metrics
from aad1.serve.settings import Settings

MOST_MISTAKES = 20
NORMAL, POLICY, INTERNAL, TRY_LATER = 1000, 1008, 1011, 1013  # RFC 6455 and its registry of close codes
CLOSING = 5.0  # seconds for a client to take the last of what was sent


class Hangup(Exception):
    """Close the connection with this code; the client has been told why."""

    def __init__(self, code: int) -> None:
        self.code = code


class Lost(Exception):
    """The client is gone."""


class Connection:
    """One WebSocket."""

    def __init__(self, socket: WebSocket, settings: Settings, metrics: Metrics) -> None:
        self.socket, self.settings, self.metrics = socket, settings, metrics
        self._mistakes = 0
        self._sending = asyncio.Lock()  # a chunk is two messages that must stay together

    async def hear(self) -> SessionStart | SessionInteraction | SessionStop | None:
        """One event, or None for something that is none (the client has been told). Raises Lost, and Hangup."""
        try:
            message = await self.socket.receive()
        except RuntimeError:  # starlette's, for a socket that was closed meanwhile
            raise Lost from None
        if message["type"] == "websocket.disconnect":
            raise Lost
        text = message.get("text")
        if text is None:
            await self.wrong("invalid_event", "a binary message; events are JSON text")
            return None
        try:
            return parse_event(text)
        except UserError as error:
            await self.wrong("invalid_event", str(error))
            return None

    async def wrong(self, code: str, message: str) -> None:
        """Tell the client of a mistake; after too many of them, Hangup."""
        self._mistakes += 1
        await self.error(code, message)
        if self._mistakes >= MOST_MISTAKES:
            raise Hangup(POLICY)

    async def error(self, code: str, message: str) -> None:
        """Tell the client that something is wrong."""
        self.metrics.errors.labels(code).inc()
        await self.send(error_event(code, message))

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Events and video, with nothing between them. Raises Lost, and Hangup when the client has stopped reading."""
        async with self._sending:
            for message in messages:
                if isinstance(message, bytes):
                    await self._patiently(self.socket.send_bytes(message))
                else:
                    await self._patiently(self.socket.send_json(message))

    async def _patiently(self, sending: Awaitable[None]) -> None:
        """Wait for a client that reads slowly, but not for one that has stopped."""
        try:
            async with asyncio.timeout(self.settings.patience):
                await sending
        except TimeoutError:
            raise Hangup(TRY_LATER) from None
        except (WebSocketDisconnect, RuntimeError):
            raise Lost from None

    async def close(self, code: int) -> None:
        """Say goodbye, if the other end still listens."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(CLOSING):
                await self.socket.close(code)
