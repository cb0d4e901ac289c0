"""Start the server, and stop it in good order."""

from __future__ import annotations

import socket

import uvicorn

from aad1.errors import UserError
from aad1.serve.app import create_app
from aad1.serve.settings import Settings
from aad1.streaming import Student

GRACE = 10  # seconds for open requests after SIGTERM
EVENT_SHARE = 2  # base64 and JSON make a picture larger


def serve(student: Student, settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError for an address that cannot be listened on."""
    listening = _listen(host, port)
    config = uvicorn.Config(
        create_app(student, settings),
        log_level="warning",
        ws_max_size=EVENT_SHARE * settings.upload,
        ws_max_queue=4,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=GRACE,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}:{port}: {reason}; choose another --port or --host") from None
    return listening
