"""Middleware around the service: access, limits on bodies, security headers, errors and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from vlmo.retrieval.store import DamagedError
from vlmo.serving.schemas import BusyError, ServiceError, StoppingError
from vlmo.serving.settings import Settings

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
Address: TypeAlias = tuple[str, str, int]  # scheme, name and port of a server

_LOGGER = logging.getLogger(__name__)
# Open without a key: these show nothing but files of the package, or that the server runs.
_OPEN = {"/", "/docs", "/healthz", "/openapi.json", "/favicon.ico"}
_STATIC = "/static/"
_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65_535
_ADDRESS = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:(?P<port>[1-9][0-9]{0,4}))?")
_READING = {"GET", "HEAD", "OPTIONS"}
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
# Seconds in which a client that still sends can read why its request was refused.
_LINGER_S = 1.0
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Prometheus metrics of one server; another one in the same process has its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "vlmo_requests",
            "Requests by route and status",
            ["method", "route", "status"],
            registry=registry,
        )
        self.latency = Histogram(
            "vlmo_request_seconds",
            "Seconds from the head of a request to the end of its answer",
            ["route"],
            registry=registry,
        )
        self.queue = Gauge(
            "vlmo_queue_length", "Requests that are admitted and not answered", registry=registry
        )
        self._rows = Histogram(
            "vlmo_batch_rows",
            "Rows of a call of the model",
            ["kind"],
            buckets=_ROWS,
            registry=registry,
        )
        self._batch = Histogram(
            "vlmo_batch_seconds", "Seconds of a call of the model", ["kind"], registry=registry
        )

    def observe_batch(self, kind: str, rows: int, seconds: float) -> None:
        """Count a call of the model."""
        self._rows.labels(kind).observe(rows)
        self._batch.labels(kind).observe(seconds)


class Guard:
    """ASGI middleware that checks each request, and answers it where it is refused or fails.

    Starlette's own middlewares do not do: TrustedHostMiddleware knows no IPv6 addresses, and none limits bodies.
    """

    def __init__(
        self, app: App, *, settings: Settings, metrics: Metrics, stopping: Callable[[], bool]
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._stopping = stopping
        self._access = Access(settings)
        self._buffer = Buffer(settings)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request to the app, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        exchange = _Exchange(scope, receive, send, self._buffer)
        try:
            self._check(path, scope["scheme"], Headers(scope=scope))
            await self._app(scope, exchange.receive, exchange.send)
        except ServiceError as error:
            await exchange.fail(error)
        except DamagedError as error:
            # It may name a path of the server.
            _LOGGER.warning("%s", error)
            await exchange.fail(
                ServiceError(503, "the index cannot be read", hint="the server's log says why")
            )
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._stopping():
                raise
            # The grace period is over.
            await exchange.fail(StoppingError())
        except Exception:
            # The last resort: a traceback goes to the log and is never shown to a client.
            _LOGGER.exception("%s %s failed", scope["method"], path)
            await exchange.fail(ServiceError(500, "the server failed", hint="its log says why"))
        finally:
            self._buffer.num_bytes -= exchange.received
            method = scope["method"] if scope["method"] in _METHODS else "other"
            # The route has a name in place of an id, so that there are few of them.
            route = getattr(scope.get("route"), "path", "other")
            if path.startswith(_STATIC):
                route = _STATIC
            self._metrics.requests.labels(method, route, str(exchange.status or 499)).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - exchange.began)

    def _check(self, path: str, scheme: str, headers: Headers) -> None:
        self._access.check_host(scheme, headers)
        if path not in _OPEN and not path.startswith(_STATIC):
            self._access.check_client(scheme, headers)
            if self._stopping() and path.startswith(("/v1/", "/v2/")):
                raise StoppingError
        length = headers.get("content-length", "")
        if length.isdecimal():
            self._buffer.check_size(int(length))


class Access:
    """Rules for who may send a request: by the server's name, the page that sends it, and the key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # In brackets, as in the Host header, so that no other name in brackets is the same.
        self._names = {
            (f"[{name}]" if ":" in name else name).lower() for name in settings.server_name
        }

    def check_host(self, scheme: str, headers: Headers) -> None:
        """Raise ServiceError if the request names another server.

        A page elsewhere can point its own name here; its requests then have that name.
        """
        address = _address(scheme, headers.get("host", ""))
        if self._names and (address is None or address[1] not in self._names):
            raise ServiceError(
                421, "this server has another name", hint="start it with --server-name and this one"
            )

    def check_client(self, scheme: str, headers: Headers) -> None:
        """Raise ServiceError if another origin's page sends the request, or the key is missing or wrong."""
        if not self._is_same_or_named_origin(scheme, headers):
            raise ServiceError(
                403, "pages of other origins may not call this service", hint="see --cors-origin"
            )
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            key = ""
        # Compared in constant time, which does not tell how much of a wrong key is right.
        api_key = self._settings.api_key
        if api_key is not None and not hmac.compare_digest(key.strip().encode(), api_key.encode()):
            raise ServiceError(
                401, "the API key is missing or wrong", hint="send it as Authorization: Bearer KEY"
            )

    def _is_same_or_named_origin(self, scheme: str, headers: Headers) -> bool:
        """Return False for requests of pages of other origins, unless the settings name these.

        A page can have the browser send a GET without an Origin header, as for an image. `Sec-Fetch-Site` tells then,
        which browsers send to addresses with TLS and to this machine; other clients send neither.
        """
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site")
        if {origin, "*"}.intersection(self._settings.cors_origin):
            return True
        if site not in {None, "none", "same-origin"}:
            return False
        if origin is None:
            return True
        page_scheme, _, page = origin.partition("://")
        if page_scheme not in _PORTS:
            return False
        # Behind a proxy with TLS only the browser knows the scheme.
        if site == "same-origin":
            scheme = page_scheme
        address = _address(scheme, headers.get("host", ""))
        return address is not None and address == _address(page_scheme, page)


@dataclass
class Buffer:
    """Limits on the bytes of bodies, of which one server holds `num_bytes`."""

    settings: Settings
    num_bytes: int = 0

    def check_size(self, received: int) -> None:
        """Raise ServiceError if a request has too many bytes."""
        limit = self.settings.request_bytes
        if received > limit:
            raise ServiceError(
                413,
                f"the request has more than {limit:,} bytes",
                hint="send less at a time, or smaller images",
            )


def _address(scheme: str, host: str) -> Address | None:
    """Return the address of a server; None if `host` is not a name or IP address, with a port or without."""
    match = _ADDRESS.fullmatch(host.lower())
    if match is None:
        return None
    port = int(match["port"] or _PORTS.get(scheme, 0))
    return (scheme, match["name"], port) if port <= _MAX_PORT else None


@dataclass
class _Exchange:
    """A request, and the answer to it."""

    _scope: Message
    _receive: Receive
    _send: Send
    _buffer: Buffer
    # True when the body has arrived.
    _complete: bool = False
    # Bytes of the body.
    received: int = 0
    status: int = 0
    began: float = field(default_factory=time.monotonic)

    async def receive(self) -> Message:
        """Receive a message; ServiceError if the body is too slow or too large."""
        # The next message says that the client has gone, whenever that is.
        if self._complete:
            return await self._receive()
        settings = self._buffer.settings
        seconds = settings.body_seconds
        try:
            # From the head of the request on: a body that trickles in holds memory and a place.
            async with asyncio.timeout(max(self.began + seconds - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise ServiceError(
                408, f"the body took more than {seconds:g} seconds", hint="send it faster"
            ) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.received += size
            self._buffer.num_bytes += size
            self._complete = not message.get("more_body", False)
            self._buffer.check_size(self.received)
            if self._buffer.num_bytes > settings.buffered_bytes:
                raise BusyError("too many bytes are being received at a time")
        return message

    async def send(self, message: Message) -> None:
        """Send a message, the first one with the headers of all answers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            is_static = self._scope["path"].startswith(_STATIC)
            caching = {"Cache-Control": "no-cache" if is_static else "no-store"}
            for name, value in (_HEADERS | caching).items():
                headers.setdefault(name, value)
            if self._has_unread_body:
                headers["Connection"] = "close"
        await self._send(message)

    @property
    def _has_unread_body(self) -> bool:
        return not self._complete and self._scope["method"] not in _READING

    async def fail(self, error: ServiceError) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.status:
            await error.response()(self._scope, self._receive, self._send_and_linger)

    async def _send_and_linger(self, message: Message) -> None:
        """Send an answer and pass over what still comes: closed at once, the connection takes the answer along."""
        if message["type"] != "http.response.body" or not self._has_unread_body:
            await self.send(message)
            return
        await self.send({**message, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                more = True
                while more:
                    more = (await self._receive()).get("more_body", False)
        await self.send({"type": "http.response.body"})
