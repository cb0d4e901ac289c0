"""The page at ``/`` and the pictures of its gallery: files beside this one, nothing from elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image

from aad1.serve.server import SAMPLES, Refusal, sample

STATIC = Path(__file__).with_name("static")
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def add_page(app: FastAPI) -> None:
    """Serve the page, its files, and the gallery's pictures."""
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/samples/{index}.png", include_in_schema=False)
    async def still(index: int) -> Response:
        if not 0 <= index < SAMPLES:
            raise Refusal(404, "there is no such picture", "not_found")
        file = io.BytesIO()
        Image.fromarray(sample(index).frames[0]).save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")
