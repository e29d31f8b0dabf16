"""The service over HTTP: routes, their documentation, bodies of requests and the form of errors."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import generate_latest
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from vlmo.serving import schemas
from vlmo.serving.middleware import Guard, Metrics
from vlmo.serving.parts import Parts
from vlmo.serving.schemas import Body, BusyError, ServiceError
from vlmo.serving.service import Answer, Service
from vlmo.serving.settings import Settings

_STATIC = Path(__file__).parent / "static"
_FILES = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}
_JSON = "application/json"
Responses: TypeAlias = dict[int | str, Answer]
_ERRORS: Responses = {
    "4XX": {
        "model": schemas.ErrorResponse,
        "description": "The request is wrong; the message says what is.",
    },
    503: {
        "model": schemas.ErrorResponse,
        "description": "The queue is full, the server is stopping, or the index cannot be read; "
        "`Retry-After` says when to try.",
    },
}
_FILE_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
_JPEG: Responses = {200: {"content": {"image/jpeg": _FILE_SCHEMA}, "description": "JPEG"}}
_ANY = TypeAdapter[Any](Any)
_HINT = "GET /openapi.json describes every field"
# Strings, commas and opening brackets of a body, several times those of the most texts. However small,
# each takes microseconds under Python's lock and hundreds of bytes.
_MAX_VALUES = 4000
_VALUES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
# Characters of a name in a body that an error repeats.
_MAX_NAME = 60
# Bodies that are parsed at a time: each takes several times its size.
_PARSERS = 2

B = TypeVar("B", bound=Body)
Work: TypeAlias = Coroutine[object, None, Answer | bytes]
# Path, body, and the method that answers it; its docstring is the description.
_POSTS: tuple[tuple[str, type[Body], Callable[[Service, Any], Work]], ...] = (
    ("/v1/search", schemas.SearchRequest, Service.search),
    ("/v1/similar", schemas.SimilarRequest, Service.similar),
    ("/v1/vqa", schemas.QuestionRequest, Service.answer),
    ("/v1/caption", schemas.CaptionRequest, Service.caption),
    ("/v1/embeddings", schemas.EmbeddingsRequest, Service.embeddings),
    ("/v1/rerank", schemas.RerankRequest, Service.rerank),
    ("/v2/rerank", schemas.RerankRequest, Service.rerank),
)


class State:
    """State of a running app; its service lives as long as the event loop."""

    service: Service

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.parts = parts
        self.settings = settings
        self.metrics = Metrics()
        self.admitted = 0
        self.stopping = False
        # Beside the event loop, which megabytes of JSON would hold up for all requests.
        self._parsers = ThreadPoolExecutor(_PARSERS, thread_name_prefix="vlmo-parser")

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Start and stop the service."""
        self.service = Service(self.parts, self.settings, observe=self.metrics.observe_batch)
        try:
            await asyncio.to_thread(self.service.warm_up)
            yield
        finally:
            await asyncio.to_thread(self.service.close)

    async def parse(self, request: Request, body: type[B]) -> B:
        """Read and validate the body of a request; ServiceError if it is wrong, or the queue is full."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != _JSON:
            raise ServiceError(415, f"content type {media!r:.80}", hint=f"send {_JSON}")
        data = await request.body()
        # It does not count in the queue: only now is known whether it brings images, which may have half of them.
        if self.admitted >= self.settings.queue:
            raise BusyError
        return await asyncio.get_running_loop().run_in_executor(self._parsers, _parse, data, body)

    async def answer(self, request: Request, work: Work) -> Response:
        """Answer with the result of `work`, which is cancelled if the client goes away.

        Raises:
            BusyError: The queue is full.
            ClientDisconnect: The client has gone.
        """
        if self.admitted >= self.settings.queue:
            work.close()
            raise BusyError
        self._admit(1)
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            result = task.result()
            if isinstance(result, bytes):
                return _jpeg(result)
            # Vectors of many texts are megabytes of JSON.
            return Response(await asyncio.to_thread(_ANY.dump_json, result), media_type=_JSON)
        finally:
            task.cancel()
            gone.cancel()
            self._admit(-1)

    def _admit(self, change: int) -> None:
        self.admitted += change
        self.metrics.queue.set(self.admitted)


def create_app(parts: Parts, settings: Settings | None = None) -> FastAPI:
    """Create an ASGI app. `app.state.vlmo` is its `State`."""
    settings = settings or Settings()
    state = State(parts, settings)
    app = FastAPI(
        title="vlmo",
        version=version("vlmo"),
        summary="Search images by words or by image, and score how well words fit.",
        lifespan=state.lifespan,
        # FastAPI's pages fetch their scripts from other servers.
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    app.state.vlmo = state
    _add_routes(app, state)
    _add_facts(app, state)
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_middleware(
        Guard, settings=settings, metrics=state.metrics, stopping=lambda: state.stopping
    )
    # Starlette calls the middleware first that was added last: CORS answers preflight requests itself.
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_routes(app: FastAPI, state: State) -> None:
    for path, body, work in _POSTS:
        _add_post(app, state, path, body=body, work=work)

    @app.get("/v1/images/{id:path}", response_class=Response, responses=_JPEG)
    async def image(request: Request, id: str) -> Response:  # noqa: A002 - the path's name
        """An indexed image, of at most 2048 pixels a side."""
        return await state.answer(request, state.service.image(id))

    @app.get("/v1/thumbnails/{id:path}", response_class=Response, responses=_JPEG)
    async def thumbnail(id: str) -> Response:  # noqa: A002
        """A small copy of an indexed image."""
        return _jpeg(await state.service.thumbnail(id))

    for path, file in _FILES.items():
        app.router.add_route(path, lambda _, file=file: FileResponse(_STATIC / file))

    @app.exception_handler(HTTPException)
    async def show_error(_request: Request, error: HTTPException) -> Response:
        status = error.status_code
        hint = "GET /openapi.json lists all routes" if status in {404, 405} else _HINT
        return ServiceError(status, error.detail, hint=hint, headers=error.headers).response()


def _add_facts(app: FastAPI, state: State) -> None:
    # What asks the index blocks, and is no coroutine therefore: such a function runs on a thread.

    @app.get("/v1/groups")
    def groups() -> Answer:
        """Albums by their names, and months from the last on, with their number of images and the newest of them."""
        return state.service.index().groups()

    @app.get("/v1/skipped")
    def skipped() -> Answer:
        """Files that are not in the index: names and reasons of the first 1,000, and formats that are not read."""
        return state.service.index().skipped(most=schemas.MAX_FILES)

    @app.get("/v1/map", response_class=JSONResponse, responses={200: {"model": Answer}})
    def map_() -> Response:
        """The map: images and groups with places; or the `step` that is being done for it, to be asked for again."""
        return Response(_ANY.dump_json(state.service.map()), media_type=_JSON)

    @app.get("/v1/models")
    def models() -> Answer:
        """Models of this service, as OpenAI's clients list them."""
        return state.service.models()

    @app.get("/v1/about")
    def about() -> Answer:
        """Abilities of this service: columns that filters may name, limits of requests, some images of the index."""
        return state.service.about()

    @app.get("/healthz", responses={503: {"model": dict[str, str]}})
    async def healthz(response: Response) -> dict[str, str]:
        """State of the server: ready, or stopping."""
        response.status_code = 503 if state.stopping else 200
        return {"status": "stopping" if state.stopping else "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        text = generate_latest(state.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4")


def _add_post(
    app: FastAPI, state: State, path: str, *, body: type[Body], work: Callable[[Service, Any], Work]
) -> None:
    async def route(request: Request) -> Response:
        parsed = await state.parse(request, body)
        return await state.answer(request, work(state.service, parsed))

    content = {_JSON: {"schema": _schema_of(body)}}
    app.post(
        path,
        name=path.rpartition("/")[2],
        description=inspect.getdoc(work),
        response_class=JSONResponse,
        responses={200: {"model": Answer}},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )(route)


def _schema_of(body: type[Body]) -> Answer:
    """Return a schema without references, which would be looked up from the root of the whole description."""
    schema = body.model_json_schema()
    parts = schema.pop("$defs", {})
    text = json.dumps(schema)
    for name, part in parts.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(part))
    return json.loads(text)


def _jpeg(data: bytes) -> Response:
    headers = {"Cache-Control": "private, max-age=60", "Vary": "Authorization"}
    return Response(data, media_type="image/jpeg", headers=headers)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _parse(data: bytes, body: type[B]) -> B:
    if next(itertools.islice(_VALUES.finditer(data), _MAX_VALUES, None), None) is not None:
        raise ServiceError(422, f"the body has more than {_MAX_VALUES:,} values", hint=_HINT)
    try:
        return body.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:_MAX_NAME] for part in fault["loc"])
        reason = fault["msg"].removeprefix("Value error, ")
        hint = _HINT
        if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
            names = [field.alias or name for name, field in body.model_fields.items()]
            hint = f"send {', '.join(names)}; {_HINT}"
        raise ServiceError(422, f"{place}: {reason}" if place else reason, hint=hint) from None
