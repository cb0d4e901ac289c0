"""What stands before every request: its origin, and its size."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE = ("GET", "HEAD", "OPTIONS")


def same_origin(headers: Headers) -> bool:
    """Whether a browser that sent this did so from one of our own pages; other programs send no Origin."""
    origin, host = headers.get("origin"), headers.get("host", "")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:  # an Origin that is no URL
        return False


def shows_key(headers: Headers, wanted: str | None, said: str = "") -> bool:
    """Whether a client shows the API key that is wanted (None: any will do), as a bearer token or as ``said``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    shown = (token.strip() if scheme.lower() == "bearer" else "", said)
    return wanted is None or any(secrets.compare_digest(key.encode(), wanted.encode()) for key in shown)


def problem(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, object]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class SameOrigin:
    """Refuse what another site's page makes a browser send."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 403."""
        if scope["type"] == "http" and scope["method"] not in SAFE and not same_origin(Headers(scope=scope)):
            answer = JSONResponse(problem("this request comes from another site's page", code="wrong_origin"), 403)
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)


class KeyNeeded:
    """Refuse what is asked of ``/v1`` without the API key, before anything of a body is read."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401; a live client may show its key in ``session.start``."""
        asked = scope["type"] == "http" and scope["path"].startswith("/v1/")
        if asked and not shows_key(Headers(scope=scope), self.key):
            message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
            await JSONResponse(problem(message, code="unauthorized"), 401)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class UploadLimit:
    """Refuse bodies of more than ``most`` bytes: by their stated length, or as soon as that many have come."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most
        self._message = f"the request is larger than the {most} bytes that are allowed; send a smaller picture"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "0")
        if not stated.isdigit() or int(stated) > self.most:
            await JSONResponse(problem(self._message, code="too_large"), 413)(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most:
                raise HTTPException(413, self._message)
            return message

        await self.app(scope, counted, send)
