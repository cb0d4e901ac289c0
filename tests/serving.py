"""A real server in a thread, and clients for it: what the tests of the server and of its page share."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import uvicorn
import websockets
from numpy.typing import NDArray
from PIL import Image

from aad1.data.world import make_clip
from aad1.serve.app import create_app
from aad1.serve.run import listen, server_for
from aad1.serve.settings import Settings
from aad1.streaming import Student

CLIP = make_clip("test", 1, 1)
PATIENCE = 60  # seconds that a test waits for an event


@contextmanager
def running(student: Student, folder: Path, **limits: Any) -> Iterator[RunningServer]:
    """A server on a free port of this machine."""
    socket = listen("127.0.0.1", 0)
    settings = Settings(folder=folder, **limits)
    app = create_app(student, settings)
    server = server_for(app, settings)
    thread = threading.Thread(target=lambda: server.run(sockets=[socket]), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield RunningServer(socket.getsockname()[1], server, app)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


class RunningServer:
    """Where it is, and what is in it."""

    def __init__(self, port: int, server: uvicorn.Server, app: Any) -> None:
        self.port, self.server, self.parts = port, server, app.state.server
        self.url, self.socket = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/v1/realtime/video"


def png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


PICTURE = png(CLIP.frames[0])


def start(**values: Any) -> dict[str, Any]:
    image = base64.b64encode(PICTURE).decode()
    return {"type": "session.start", "prompt": CLIP.caption, "image": image, "pace": "fast", **values}


def decode(data: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class Client:
    """A stock WebSocket client that follows the protocol."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.video, self.events = connection, b"", list[dict[str, Any]]()

    async def say(self, event: Any) -> None:
        await self.connection.send(event if isinstance(event, str | bytes) else json.dumps(event))

    async def hear(self) -> dict[str, Any]:
        """The next event; video is kept aside."""
        while True:
            message = await asyncio.wait_for(self.connection.recv(), PATIENCE)
            if isinstance(message, bytes):
                self.video += message
                continue
            self.events.append(json.loads(message))
            return self.events[-1]

    async def until(self, kind: str, **values: Any) -> dict[str, Any]:
        """Hear until an event of this type with these values."""
        while True:
            event = await self.hear()
            if event["type"] == kind and all(event[k] == v for k, v in values.items()):
                return event


def talk(server: RunningServer, conversation: Any, **options: Any) -> Any:
    """Run ``conversation(client)`` on a connection of its own."""

    async def whole() -> Any:
        async with websockets.connect(server.socket, max_size=None, **options) as connection:
            return await conversation(Client(connection))

    return asyncio.run(whole())
