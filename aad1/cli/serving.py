"""The command that serves."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from aad1.cli.options import (
    Compile,
    Device,
    DType,
    ModelName,
    StudentName,
    complain,
    dtype_of,
    refuse,
    say,
    warm_up,
)
from aad1.errors import UserError
from aad1.streaming import STUDENT, load_student

HOST_NAME = re.compile(r"(\*\.)?[\w.-]+|[0-9A-Fa-f:]+")


@dataclass(frozen=True)
class Serve:
    """Serve a student: a page at /, live video over a WebSocket, jobs in the shape of OpenAI's video API.

    It can be reached from this machine alone unless --host says otherwise; --api_key (or AAD1_API_KEY) asks clients
    for a key. What jobs make is kept under --out.

    For example:
      aad1 serve
    """

    model: ModelName = "tiny"
    student: StudentName = STUDENT
    host: Annotated[str, arg(help="address to listen on; 0.0.0.0 for every network")] = "127.0.0.1"
    port: int = 8000
    names: Annotated[tuple[str, ...], arg(help="other names under which clients call this server")] = ()
    api_key: Annotated[str | None, arg(help="what clients must show (default: AAD1_API_KEY, else nothing)")] = None
    video_pixels: Annotated[int | None, arg(help="most pixels of a video (default: the model's own size)")] = None
    out: Annotated[Path, arg(aliases=["-o"], help="folder for finished videos")] = Path("runs/serve")
    quota_gb: Annotated[float, arg(help="what they may take together")] = 10.0
    live: Annotated[int, arg(help="live videos at once")] = 8
    queue: Annotated[int, arg(help="jobs that are made or wait")] = 32
    fps: Annotated[float, arg(help="frames a second")] = 16.0
    device: Device = "auto"
    dtype: DType = None
    compile: Compile = False

    def run(self, extra: Sequence[str]) -> None:
        """Load, warm up, serve."""
        refuse(extra, type(self))
        create_app, listen, run_server, settings = _server()
        key = os.environ.get("AAD1_API_KEY") or None if self.api_key is None else self.api_key
        listening = listen(self.host, self.port)
        open_to_all = ipaddress.ip_address(listening.getsockname()[0]).is_unspecified
        wanted = settings.checked(
            folder=self.out,
            quota_gb=self.quota_gb,
            api_key=key,
            hosts=self._names(open_to_all, settings.Settings.hosts),
            video_pixels=self.video_pixels,
            fps=self.fps,
            live=self.live,
            queue=self.queue,
        )
        student = load_student(
            self.model, student=self.student, device=self.device, dtype=dtype_of(self.dtype), compiled=self.compile
        )
        app = create_app(student, wanted)
        if self.compile:
            warm_up(student)
        else:
            student.warm_up()
        if open_to_all and key is None:
            complain("warning: anyone who can reach this machine can use this server; --api_key KEY asks for a key")
        listening.listen()  # who reads the next line may call at once
        host = "localhost" if open_to_all else in_url(self.host)
        say(f"serving {student.name}: open http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        run_server(app, wanted, listening)

    def _names(self, open_to_all: bool, usual: tuple[str, ...]) -> tuple[str, ...]:
        """What the server may be called; on every network that is anyone's guess."""
        for name in self.names:
            if not HOST_NAME.fullmatch(name):
                raise UserError(
                    f"--names {name}: give names or addresses without a port; *.example.org is all below one"
                )
        if open_to_all and not self.names:
            return ("*",)
        return (*usual, *(in_url(name) for name in (self.host, *self.names)))


def _server() -> tuple[Any, Any, Any, Any]:
    """The server's parts, or how to get them."""
    try:
        from aad1.serve import settings
        from aad1.serve.app import create_app
        from aad1.serve.run import listen, serve
    except ImportError as error:
        raise UserError(f"serving needs the package {error.name}; pip install 'aad1[serve]'") from None
    return create_app, listen, serve, settings


def in_url(host: str) -> str:
    """A host as URLs and Host headers have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
