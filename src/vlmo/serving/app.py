"""The service over HTTP: routes, their documentation, bodies of requests and the form of errors."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_origin

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from vlmo.serving import schemas
from vlmo.serving.middleware import Guard, Metrics
from vlmo.serving.parts import Parts
from vlmo.serving.schemas import MAX_FILTER, MAX_IMAGES, MAX_TEXTS, Body, BusyError, ServiceError
from vlmo.serving.service import Service
from vlmo.serving.settings import Settings

_STATIC = Path(__file__).parent / "static"
_ERRORS: dict[int | str, dict[str, Any]] = {
    number: {"model": schemas.ErrorResponse, "description": description}
    for number, description in {
        400: "The body cannot be read.",
        401: "The API key is missing or wrong.",
        403: "The origin is not allowed.",
        404: "This service cannot do it, or there is no such image.",
        408: "The body took too long.",
        413: "Too many bytes or pixels.",
        415: "Another content type than JSON or a form.",
        421: "The server has another name.",
        422: "A value is wrong.",
        503: "The queue is full, the server is stopping, or the index cannot be read; `Retry-After` says when to try.",
    }.items()
}
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "JPEG"}
}
_JSON, _FORM, _CHARSETS = "application/json", "multipart/form-data", {"", "utf-8", "utf8", "utf_8", "ascii", "us-ascii"}
_FIELDS = MAX_TEXTS + 10
# UTF-8 takes up to four bytes a character; texts are checked exactly afterwards.
_FIELD_BYTES = 4 * max(1000, MAX_FILTER) + 1
_HINT = "GET /openapi.json describes every field"
_MAX_VALUES = 4000
"""Strings, commas and opening brackets of a body in JSON, several times those of the most texts. However small, each
takes microseconds under Python's lock and hundreds of bytes."""
_VALUES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
_PARSERS = 2
"""Bodies that are parsed at a time: each takes several times its size."""

B = TypeVar("B", bound=Body)
Work = Callable[[Service, Any], Coroutine[Any, Any, BaseModel]]
_POSTS: tuple[tuple[str, type[Body], type[BaseModel], Work], ...] = (
    ("/v1/search", schemas.SearchRequest, schemas.SearchResponse, Service.search),
    ("/v1/similar", schemas.SimilarRequest, schemas.SearchResponse, Service.similar),
    ("/v1/vqa", schemas.QuestionRequest, schemas.QuestionResponse, Service.answer),
    ("/v1/embeddings", schemas.EmbeddingsRequest, schemas.EmbeddingsResponse, Service.embeddings),
    ("/v1/rerank", schemas.RerankRequest, schemas.RerankResponse, Service.rerank),
    ("/v2/rerank", schemas.RerankRequest, schemas.RerankResponse, Service.rerank),
)
"""Path, body, answer, and the method that makes one of the other; its docstring is the description."""


class State:
    """State of a running app; its service lives as long as the event loop."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self.parts, self.settings, self.metrics = parts, settings, Metrics()
        self.admitted, self.stopping = 0, False
        self._parsers = ThreadPoolExecutor(_PARSERS, thread_name_prefix="vlmo-parser")

    service: Service

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Start and stop the service."""
        self.service = Service(self.parts, self.settings, observe=self.metrics.observe_batch)
        try:
            await asyncio.to_thread(self.service.warm_up)
            yield
        finally:
            await asyncio.to_thread(self.service.close)

    async def answer(self, request: Request, work: Coroutine[Any, Any, BaseModel | bytes]) -> Response:
        """Answer with the result of `work`, which is cancelled if the client goes away.

        Raises:
            BusyError: The queue is full.
            ClientDisconnect: The client has gone.
        """
        if self.admitted >= self.settings.queue:
            work.close()
            raise BusyError
        self._admit(1)
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            result = task.result()
            if isinstance(result, bytes):
                return _jpeg(result)
            # Vectors of many texts are megabytes of JSON.
            return Response(await asyncio.to_thread(result.model_dump_json, exclude_unset=True), media_type=_JSON)
        finally:
            task.cancel()
            gone.cancel()
            self._admit(-1)

    async def parse(self, body: bytes | dict[str, Any], kind: type[B]) -> B:
        """Validate a body that `read_body` has read; ServiceError if it is wrong, or the queue is full."""
        # It takes none of the queue's places: only now is known whether it brings images, which may have half of them.
        if self.admitted >= self.settings.queue:
            raise BusyError
        return await asyncio.get_running_loop().run_in_executor(self._parsers, _parse, body, kind)

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
        docs_url=None,  # FastAPI's pages fetch their scripts from other servers
        redoc_url=None,
        exception_handlers={HTTPException: _http_error},
        responses=_ERRORS,
    )
    app.state.vlmo = state
    _add_routes(app, state)
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_middleware(Guard, settings=settings, metrics=state.metrics, stopping=lambda: state.stopping)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        )
    return app


def _add_routes(app: FastAPI, state: State) -> None:
    for path, body, answer, work in _POSTS:
        _add_post(app, state, path, body=body, answer=answer, work=work)

    @app.get("/v1/images/{id:path}", response_class=Response, responses=_JPEG)
    async def image(request: Request, id: str) -> Response:  # noqa: A002 - the path's name
        """An indexed image, of at most 2048 pixels a side."""
        return await state.answer(request, state.service.image(id))

    @app.get("/v1/thumbnails/{id:path}", response_class=Response, responses=_JPEG)
    async def thumbnail(id: str) -> Response:  # noqa: A002
        """A small copy of an indexed image."""
        return _jpeg(await state.service.thumbnail(id))

    @app.get("/v1/models")
    def models() -> schemas.ModelList:
        """Models of this service, as OpenAI's clients list them, and the routes that each answers."""
        return state.service.models()

    @app.get("/v1/about")
    def about() -> schemas.About:  # no coroutine, so that it runs on a thread
        """Abilities of this service, its columns and its limits."""
        return state.service.about()

    @app.get("/healthz", responses={503: {"model": dict[str, str]}})
    async def healthz(response: Response) -> dict[str, str]:
        """State of the server: ready, or stopping."""
        response.status_code = 503 if state.stopping else 200
        return {"status": "stopping" if state.stopping else "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(generate_latest(state.metrics.registry), media_type="text/plain; version=0.0.4")

    for path, file in (("/", "index.html"), ("/docs", "docs.html"), ("/favicon.ico", "icon.svg")):
        app.router.add_route(path, lambda _, file=file: FileResponse(_STATIC / file))


def _add_post(app: FastAPI, state: State, path: str, *, body: type[Body], answer: type[BaseModel], work: Work) -> None:
    async def route(request: Request) -> Response:
        read = await state.parse(await read_body(request, body), body)
        return await state.answer(request, work(state.service, read))

    app.post(
        path,
        name=path.rpartition("/")[2],
        description=inspect.getdoc(work),
        response_class=JSONResponse,
        responses={200: {"model": answer}},
        openapi_extra=_described(body),
    )(route)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _jpeg(data: bytes) -> Response:
    kept = {"Cache-Control": "private, max-age=3600", "Vary": "Authorization, X-API-Key"}
    return Response(data, media_type="image/jpeg", headers=kept)


async def _http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    hint = "GET /openapi.json lists all routes" if error.status_code in {404, 405} else _HINT
    return ServiceError(error.status_code, str(error.detail), hint=hint, headers=error.headers).response()


async def read_body(request: Request, kind: type[Body]) -> bytes | dict[str, Any]:
    """Read the body of a request: JSON, or the fields of a form; ServiceError if it is neither."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == _JSON:
        return await request.body()
    if media == _FORM:
        return await _read_form(request, kind)
    raise ServiceError(415, f"content type {media!r}", hint=f"send {_JSON} or {_FORM}")


def _parse(body: bytes | dict[str, Any], kind: type[B]) -> B:
    try:
        if isinstance(body, dict):
            return kind.model_validate(body)
        if next(itertools.islice(_VALUES.finditer(body), _MAX_VALUES, None), None) is not None:
            raise ServiceError(422, f"the body has more than {_MAX_VALUES:,} values", hint=_HINT)
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        fields = f"send {', '.join(kind.model_fields)}; {_HINT}"
        raise ServiceError(422, f"{where}: {message}" if where else message, hint=fields) from None


async def _read_form(request: Request, kind: type[Body]) -> dict[str, Any]:
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"").decode("latin-1")
    if charset.lower() not in _CHARSETS:  # Python keeps every name that it is asked for
        raise ServiceError(415, f"charset {charset!r:.40}", hint="send UTF-8")
    fields: dict[str, Any] = {}
    lists = {name for name, field in kind.model_fields.items() if get_origin(field.annotation) is list}
    limits = {"max_files": MAX_IMAGES, "max_fields": _FIELDS, "max_part_size": _FIELD_BYTES}
    parser = MultiPartParser(request.headers, request.stream(), **limits)
    parser.spool_max_size = sys.maxsize  # no temporary files: `buffered_bytes` limits what is in memory
    try:
        form = await parser.parse()
    except (FormParserError, MultiPartException) as error:
        raise ServiceError(400, f"the form cannot be read: {error}", hint=_HINT) from error
    items = [(key, await each.read() if isinstance(each, UploadFile) else each) for key, each in form.multi_items()]
    await form.close()
    for name, content in items:
        if name in lists:
            fields.setdefault(name, []).append(content)
        elif name in fields:
            raise ServiceError(422, f"{name!r:.80} is given twice", hint=_HINT)
        else:
            fields[name] = content
    return fields


def _described(kind: type[Body]) -> dict[str, Any]:
    """OpenAPI description of a body that `read_body` reads; a form has files where JSON has base64."""
    schema = kind.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    about = {"description": "An image file."}
    fields = dict(schema["properties"])
    if "image" in fields:
        fields["image"] = file | about
    if "images" in fields:
        fields["images"] = {**fields["images"], "items": file, **about}
    content = {_JSON: {"schema": schema}, _FORM: {"schema": {**schema, "properties": fields}}}
    return {"requestBody": {"required": True, "content": content}}
