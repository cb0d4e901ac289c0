"""Start the server, and stop it in good order."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from aad1.errors import UserError
from aad1.serve.settings import Settings

GRACE = 10  # seconds for open requests after SIGTERM
SEND_BUFFER = 2**18  # bytes; what a client does not read must not pile up in the system either


def serve(app: FastAPI, settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, after which everything is in good order and the exit code 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt):  # like SIGTERM, raised once more when the server has stopped
        server_for(app, settings).run(sockets=[listening])


def server_for(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """The HTTP server around the application, with the limits that are its own."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=settings.event,
        ws_ping_interval=None,  # an answer would wait behind the video that a slow reader still has to read
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket for this address; port 0 takes a free one. Raises UserError where that is not possible."""
    if not 0 <= port < 2**16:
        raise UserError(f"port {port}; use a whole number from 0 to {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listening.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port or --host"
        ) from None
    return listening
