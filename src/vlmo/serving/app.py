"""The service over HTTP: routes, their documentation, and the form of errors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from vlmo.serving import schemas
from vlmo.serving.batcher import Places
from vlmo.serving.bodies import described, read_body
from vlmo.serving.door import Door
from vlmo.serving.errors import error_response
from vlmo.serving.metrics import Metrics
from vlmo.serving.service import Parts, Service
from vlmo.serving.settings import Settings

_STATIC = Path(__file__).parent / "static"
_ERRORS = {
    400: "The body cannot be read.",
    401: "The API key is missing or wrong.",
    403: "The origin or address is not allowed.",
    404: "This service cannot do it, or there is no such picture.",
    408: "The body took too long.",
    413: "Too many bytes or pixels.",
    415: "Another content type than JSON or a form.",
    421: "The server has another name.",
    422: "A value is wrong.",
    503: "The queue is full, or the server is stopping; `Retry-After` says when to come again.",
}
_WITHOUT_BODY = (401, 404, 421, 422, 503)
_JPEG = {200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "JPEG"}}
_FIGURES = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Figures"}}

Work = Callable[[Service, Any], Coroutine[Any, Any, BaseModel]]
_POSTS: tuple[tuple[str, type[schemas.Body], type[BaseModel], Work], ...] = (
    ("/embed", schemas.EmbedRequest, schemas.EmbedResponse, Service.embed),
    ("/search", schemas.SearchRequest, schemas.SearchResponse, Service.search),
    ("/similar", schemas.SimilarRequest, schemas.SearchResponse, Service.similar),
    ("/match", schemas.MatchRequest, schemas.MatchResponse, Service.match),
    ("/vqa", schemas.QuestionRequest, schemas.QuestionResponse, Service.answer),
    ("/classify", schemas.ClassifyRequest, schemas.ClassifyResponse, Service.classify),
)
"""Path, body, answer, and what makes one of the other; the latter's docstring is the description."""


class State:
    """Of a running app: whether it is stopping, its places, and its service, which lives as long as the event loop."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.parts, self.settings, self.metrics = parts, settings, Metrics()
        self.places = Places(settings.queue, observe=self.metrics.queue)
        self.stopping = False
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        """The service.

        Raises:
            RuntimeError: The app was not started (an ASGI server does so by the lifespan protocol).
        """
        if self._service is None:
            raise RuntimeError("the app was not started: its lifespan has not run")
        return self._service

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Starts and stops the service."""
        self._service = Service(self.parts, self.settings, observe=self.metrics.batch)
        try:
            await asyncio.to_thread(self._service.warm_up)
            yield
        finally:
            await asyncio.to_thread(self._service.close)
            self._service = None


def create_app(parts: Parts, settings: Settings | None = None) -> FastAPI:
    """An ASGI app. `app.state.vlmo` is its `State`."""
    settings = settings or Settings()
    state = State(parts, settings)
    app = FastAPI(
        title="vlmo",
        version=version("vlmo"),
        summary="Search pictures by words or by picture, and ask whether words fit.",
        lifespan=state.lifespan,
        docs_url=None,  # FastAPI's pages fetch their scripts from a network of other people
        redoc_url=None,
        exception_handlers={HTTPException: _http_error, RequestValidationError: _invalid},
    )
    app.state.vlmo = state
    app.include_router(_api())
    app.include_router(_around(state))
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_middleware(Door, settings=settings, metrics=state.metrics, stopping=lambda: state.stopping)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        )
    return app


def _state(request: Request) -> State:
    return request.app.state.vlmo


Running = Annotated[State, Depends(_state)]


def _errors(*numbers: int) -> dict[int | str, dict[str, Any]]:
    return {number: {"model": schemas.ErrorResponse, "description": _ERRORS[number]} for number in numbers}


def _api() -> APIRouter:
    """What models do."""
    api = APIRouter(prefix="/v1")
    for path, body, answer, work in _POSTS:
        _add_post(api, path, body=body, answer=answer, work=work)

    @api.get("/pictures/{id:path}", response_class=Response, responses={**_JPEG, **_errors(*_WITHOUT_BODY)})
    async def picture(request: Request, state: Running, id: str) -> Response:  # noqa: A002 - the path's name
        """An indexed picture, of at most 2048 pixels a side."""
        return await _answer(request, state, state.service.picture(id))

    @api.get("/thumbnails/{id:path}", response_class=Response, responses={**_JPEG, **_errors(*_WITHOUT_BODY)})
    async def thumbnail(state: Running, id: str) -> Response:  # noqa: A002
        """A small copy of an indexed picture."""
        return _jpeg(await state.service.thumbnail(id))

    @api.get("/about", responses=_errors(*_WITHOUT_BODY))
    def about(state: Running) -> schemas.About:  # no coroutine, so that it runs on a thread
        """What this service can do, its columns and its limits."""
        return state.service.about()

    return api


def _add_post(api: APIRouter, path: str, *, body: type[schemas.Body], answer: type[BaseModel], work: Work) -> None:
    async def route(request: Request, state: Running) -> Response:
        read = await read_body(request, body)
        return await _answer(request, state, work(state.service, read))

    api.post(
        path,
        name=path.strip("/"),
        description=inspect.getdoc(work),
        response_class=JSONResponse,
        responses={200: {"model": answer}, **_errors(*_ERRORS)},
        openapi_extra=described(body),
    )(route)


def _around(state: State) -> APIRouter:
    """What is around the models."""
    router = APIRouter()

    @router.get("/healthz", responses={503: {"model": schemas.Health}})
    async def healthz(response: Response) -> schemas.Health:
        """Whether requests are taken."""
        if state.stopping:
            response.status_code = 503
        return schemas.Health(status="stopping" if state.stopping else "ready")

    @router.get("/metrics", response_class=Response, responses={**_FIGURES, **_errors(401)})
    async def metrics() -> Response:
        """Figures in Prometheus's text format."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, file in (("/", "index.html"), ("/docs", "docs.html"), ("/favicon.ico", "icon.svg")):
        router.get(path, include_in_schema=False)(_sender(file))
    return router


def _sender(file: str) -> Any:
    async def send() -> FileResponse:
        return FileResponse(_STATIC / file)

    return send


async def _answer(request: Request, state: State, work: Coroutine[Any, Any, BaseModel | bytes]) -> Response:
    """The result of `work`, which is cancelled if the client goes away."""
    task: asyncio.Task[BaseModel | bytes] | None = None
    gone: asyncio.Task[Any] | None = None
    try:
        with state.places.take():
            task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            result = task.result()
            if isinstance(result, bytes):
                return _jpeg(result)
            # Vectors of many texts are megabytes of JSON.
            return Response(await asyncio.to_thread(_dump, result), media_type="application/json")
    finally:
        work.close() if task is None else task.cancel()
        if gone is not None:
            gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _dump(result: BaseModel) -> bytes:
    return result.model_dump_json().encode()


def _jpeg(data: bytes) -> Response:
    kept = {"Cache-Control": "private, max-age=3600", "Vary": "Authorization, X-API-Key"}
    return Response(data, media_type="image/jpeg", headers=kept)


async def _http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    hint = "GET /openapi.json lists what there is" if error.status_code in {404, 405} else ""
    return error_response(error.status_code, str(error.detail), hint=hint, headers=error.headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    return error_response(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
