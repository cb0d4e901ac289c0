"""The HTTP application: jobs in OpenAI's shape, the live WebSocket, health, metrics, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Query, Request, Response, UploadFile, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from aad1.errors import UserError
from aad1.serve.guards import KeyNeeded, SameOrigin, UploadLimit, problem
from aad1.serve.jobs import Full
from aad1.serve.page import DOCS_POLICY, PAGE_POLICY, add_page
from aad1.serve.server import Refusal, Server
from aad1.serve.settings import Settings
from aad1.serve.shapes import Deleted, Health, ModelList, NewVideo, Problem, Scene, Video, VideoList
from aad1.streaming import Student

DESCRIPTION = """Video while it is made. Jobs in the background as in OpenAI's video API, live video over
`/v1/realtime/video` (a WebSocket; its events are described in docs/serving.md), a page at `/`."""
Limit = Annotated[int, Query(ge=1, le=100)]


def create_app(student: Student, settings: Settings) -> FastAPI:
    """The whole server around one student. Raises UserError when the folder for videos cannot be used."""
    server = Server(student, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.jobs.start()
        try:
            yield
        finally:
            try:
                await server.jobs.stop()
            finally:
                server.engine.close()

    app = FastAPIOffline(
        title="aad1", version=version("aad1"), description=DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    app.state.server = server
    _add_guards(app, settings)
    _add_answers(app)
    _add_routes(app, server)
    add_page(app)
    return app


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors a route may answer with, for its description."""
    return {status: {"model": Problem} for status in statuses}


def _add_guards(app: FastAPI, settings: Settings) -> None:
    """From the outside in: the name we are called by, the page that calls, its key, the size of what is sent."""
    app.add_middleware(UploadLimit, most=settings.upload)
    app.add_middleware(KeyNeeded, key=settings.api_key)
    app.add_middleware(SameOrigin)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))

    @app.middleware("http")
    async def _headers(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await follow(request)
        answer.headers.setdefault("X-Content-Type-Options", "nosniff")
        answer.headers.setdefault(
            "Content-Security-Policy", DOCS_POLICY if request.url.path == "/docs" else PAGE_POLICY
        )
        answer.headers.setdefault("Referrer-Policy", "no-referrer")
        return answer


def _add_answers(app: FastAPI) -> None:
    """Every error in one shape."""

    @app.exception_handler(Refusal)
    async def _refusal(_: Request, error: Refusal) -> JSONResponse:
        return JSONResponse(problem(error.message, code=error.code), error.status)

    @app.exception_handler(UserError)
    async def _mistake(_: Request, error: UserError) -> JSONResponse:
        full = isinstance(error, Full)
        headers = {"Retry-After": "5"} if full else None
        return JSONResponse(
            problem(str(error), code="full" if full else "invalid_value"), 429 if full else 400, headers
        )

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"][1:])
        return JSONResponse(problem(f"{place}: {fault['msg']}", code="invalid_request"), 422)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(problem(str(error.detail), code="http_error"), error.status_code, error.headers)


def _add_routes(app: FastAPI, server: Server) -> None:
    """Health, models, jobs, and live video."""

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the server is up, and how busy."""
        needs, waiting = server.settings.api_key is not None, len(server.store.unfinished())
        limit = server.settings.live
        return Health(
            version=app.version,
            live=server.live.playing.taken,
            live_limit=limit,
            waiting=waiting,
            api_key_required=needs,
        )

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses=problems(401))
    async def models() -> ModelList:
        """What is served."""
        return server.models()

    @app.get("/v1/samples", responses=problems(401))
    async def samples() -> list[Scene]:
        """Stills of the embedded world with their captions."""
        return server.samples()

    add_videos(app, server)

    @app.websocket("/v1/realtime/video")
    async def realtime(socket: WebSocket) -> None:
        await server.play(socket)


def add_videos(app: FastAPI, server: Server) -> None:
    """OpenAI's video API."""

    @app.post("/v1/videos", responses=problems(400, 401, 403, 413, 422, 429))
    async def create(
        request: Request,
        form: Annotated[NewVideo, Depends()],
        input_reference: Annotated[UploadFile, File(description="the picture that the video begins with")],
    ) -> Video:
        """Ask for a video; it is made in the background."""
        job = await server.new_job(request, form, await input_reference.read())
        return Video(**job.public())

    @app.get("/v1/videos", responses=problems(401, 404, 422))
    async def listed(limit: Limit = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc") -> VideoList:
        """The jobs, newest first, or oldest first; ``after`` is the last id of the page before."""
        jobs = list(server.store.jobs.values())
        jobs = jobs if order == "asc" else jobs[::-1]
        if after is not None:
            jobs = jobs[jobs.index(server.job(after)) + 1 :]
        page = [Video(**job.public()) for job in jobs[:limit]]
        ends = (page[0].id, page[-1].id) if page else (None, None)
        return VideoList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(jobs) > limit)

    @app.get("/v1/videos/{id}", responses=problems(401, 404))
    async def retrieve(id: str) -> Video:
        """How a job stands."""
        return Video(**server.job(id).public())

    @app.get(
        "/v1/videos/{id}/content",
        response_class=FileResponse,
        responses={200: {"content": {"video/mp4": {}}}, **problems(401, 404, 409, 422)},
    )
    async def content(id: str, variant: Literal["video"] = "video") -> FileResponse:
        """The finished video."""
        job = server.job(id)
        if job.status != "completed":
            raise Refusal(409, f"this video is {job.status.replace('_', ' ')}; there is nothing to fetch", "not_ready")
        if not (path := server.store.video(job)).is_file():
            raise Refusal(404, "the file of this video is gone", "not_found")
        return FileResponse(path, media_type="video/mp4", filename=f"{job.id}.mp4")

    @app.delete("/v1/videos/{id}", responses=problems(401, 403, 404))
    async def delete(id: str) -> Deleted:
        """Forget a job and its video."""
        job = server.job(id)
        await server.jobs.delete(job)
        return Deleted(id=job.id)
