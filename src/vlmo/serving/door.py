"""What every request passes first: who may come in, how much it may bring, and how errors look."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from vlmo.serving.errors import BusyError, ServiceError, StoppingError
from vlmo.serving.metrics import Metrics
from vlmo.serving.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_LOGGER = logging.getLogger(__name__)
# These show nothing but what the package holds, or whether the server runs.
_OPEN = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/favicon.ico"})
_STATIC = "/static/"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _READING | {"POST", "PUT", "PATCH", "DELETE"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Door:
    """ASGI middleware around the whole service.

    Args:
        app: What it guards.
        settings: Of the server.
        metrics: Told of each request.
        stopping: Whether new work is refused.
    """

    def __init__(self, app: App, *, settings: Settings, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self._app, self._settings, self._metrics, self._stopping = app, settings, metrics, stopping
        self._names = frozenset(name.lower() for name in settings.server_names)
        self._buffered = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request in, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, visit = time.monotonic(), _Visit(scope, receive, send, door=self)
        try:
            self._check(scope)
            await self._app(scope, visit.receive, visit.send)
        except ServiceError as error:
            await visit.fail(error)
        except ClientDisconnect:
            visit.status = visit.status or 499
        except Exception:
            # The last line of defence: a client is never shown a traceback, which goes to the log instead.
            _LOGGER.exception("%s %s failed", scope["method"], scope["path"])
            await visit.fail(ServiceError(500, "the server failed", hint="its log says why"))
        finally:
            self._buffered -= visit.received
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request(method, _route(scope), visit.status or 499, time.monotonic() - began)

    def _check(self, scope: Message) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self._names and _host_name(headers.get("host", "")) not in self._names:
            # A page elsewhere can make its own name point here; what it then sends has that name.
            raise ServiceError(421, "this server has another name", hint="start it with --server-name and this one")
        origin = headers.get("origin")
        if scope["method"] not in _READING and origin is not None and not self._is_ours(origin, headers):
            raise ServiceError(403, "pages of other origins may not call this service", hint="see --cors-origin")
        if not (path in _OPEN or path.startswith(_STATIC)):
            self._check_key(headers)
            if self._stopping() and path.startswith("/v1/"):
                raise StoppingError
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.limits.request_bytes:
            raise self._too_large()

    def _is_ours(self, origin: str, headers: Headers) -> bool:
        allowed = self._settings.cors_origins
        return origin in allowed or "*" in allowed or urlsplit(origin).netloc == headers.get("host")

    def _check_key(self, headers: Headers) -> None:
        wanted = self._settings.api_key
        if wanted is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise ServiceError(401, "the API key is missing or wrong", hint="send it as Authorization: Bearer KEY")

    def count(self, number: int, received: int) -> None:
        """Notes `number` more bytes of a request that has now brought `received`.

        Raises:
            ServiceError: That is more than one request, or all of them together, may bring.
        """
        self._buffered += number
        if received > self._settings.limits.request_bytes:
            raise self._too_large()
        if self._buffered > self._settings.limits.buffered_bytes:
            raise BusyError("too many bytes are being received at a time")

    def _too_large(self) -> ServiceError:
        limit = self._settings.limits.request_bytes
        return ServiceError(
            413, f"the request has more than {limit:,} bytes", hint="send less at a time, or smaller pictures"
        )

    @property
    def body_seconds(self) -> float:
        """Until a body has arrived."""
        return self._settings.limits.body_seconds


class _Visit:
    """Counts what a request brings, and adds headers to what it gets."""

    def __init__(self, scope: Message, receive: Receive, send: Send, *, door: Door) -> None:
        self._scope, self._receive, self._send, self._door = scope, receive, send, door
        self._deadline = time.monotonic() + door.body_seconds
        self._whole = False
        self.received = self.status = 0

    async def receive(self) -> Message:
        if self._whole:  # what comes now is the news that the client has gone, whenever that is
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._deadline - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            reason = f"the body took more than {self._door.body_seconds:g} seconds"
            raise ServiceError(408, reason, hint="send it faster") from None
        if message["type"] == "http.request":
            number = len(message.get("body", b""))
            self.received += number
            self._whole = not message.get("more_body", False)
            self._door.count(number, self.received)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-cache" if self._scope["path"].startswith(_STATIC) else "no-store")
            if not self._whole and self._scope["method"] not in _READING:  # the rest of the body is not read
                headers["Connection"] = "close"
        await self._send(message)

    async def fail(self, error: ServiceError) -> None:
        if not self.status:
            await error.response()(self._scope, self._receive, self.send)


def _route(scope: Message) -> str:
    """The path as the service names it: with a name in place of an id, so that there are few of them."""
    if scope["path"].startswith(_STATIC):
        return _STATIC
    route = scope.get("route")
    return "other" if route is None else route.path


def _host_name(host: str) -> str:
    """Without the port, in small letters."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower()
