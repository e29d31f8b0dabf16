"""Middleware around the service: access, limits on bodies, security headers, errors and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from vlmo.retrieval.store import DamagedError
from vlmo.serving.schemas import BusyError, ServiceError, StoppingError
from vlmo.serving.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_LOGGER = logging.getLogger(__name__)
# Open without a key: these show nothing but files of the package, or that the server runs.
_OPEN = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/favicon.ico"})
_STATIC = "/static/"
_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65_535
_ADDRESS = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:(?P<port>[1-9][0-9]{0,4}))?")
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
_LINGER_S = 1.0  # in which a client that still sends can read why its request was refused
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Prometheus metrics of one server; another one in the same process has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        ProcessCollector(**own)
        self.requests = Counter(
            "vlmo_requests", "Requests by route and status", ["method", "route", "status"], **own
        )
        about = "Seconds from the head of a request to the end of its answer"
        self.latency = Histogram("vlmo_request_seconds", about, ["route"], **own)
        self.queue = Gauge(
            "vlmo_queue_length", "Requests that are admitted and not answered", **own
        )
        self._rows = Histogram(
            "vlmo_batch_rows", "Rows of a call of the model", ["kind"], buckets=_ROWS, **own
        )
        self._batch = Histogram(
            "vlmo_batch_seconds", "Seconds of a call of the model", ["kind"], **own
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
        self.settings = settings
        self._metrics = metrics
        self._stopping = stopping
        # In brackets, as in the Host header, so that no other name in brackets is the same.
        self._names = frozenset(
            (f"[{name}]" if ":" in name else name).lower() for name in settings.server_name
        )
        self.buffered = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request to the app, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, guard=self)
        try:
            self._check(scope["path"], scope["scheme"], Headers(scope=scope))
            await self._app(scope, exchange.receive, exchange.send)
        except ServiceError as error:
            await exchange.fail(error)
        except DamagedError as error:
            _LOGGER.warning("%s", error)  # it may name a path of the server
            await exchange.fail(
                ServiceError(503, "the index cannot be read", hint="the server's log says why")
            )
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._stopping():
                raise
            await exchange.fail(StoppingError())  # the grace period is over
        except Exception:
            # The last resort: a traceback goes to the log and is never shown to a client.
            _LOGGER.exception("%s %s failed", scope["method"], scope["path"])
            await exchange.fail(ServiceError(500, "the server failed", hint="its log says why"))
        finally:
            self.buffered -= exchange.received
            method = scope["method"] if scope["method"] in _METHODS else "other"
            # The route has a name in place of an id, so that there are few of them.
            route = getattr(scope.get("route"), "path", "other")
            route = _STATIC if scope["path"].startswith(_STATIC) else route
            self._metrics.requests.labels(method, route, str(exchange.status or 499)).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - exchange.began)

    def _check(self, path: str, scheme: str, headers: Headers) -> None:
        address = _address(scheme, headers.get("host", ""))
        if self._names and (address is None or address[1] not in self._names):
            # A page elsewhere can point its own name here; its requests then have that name.
            raise ServiceError(
                421, "this server has another name", hint="start it with --server-name and this one"
            )
        if not (path in _OPEN or path.startswith(_STATIC)):
            if not self._is_own_or_named(scheme, headers):
                raise ServiceError(
                    403,
                    "pages of other origins may not call this service",
                    hint="see --cors-origin",
                )
            kind, _, key = headers.get("authorization", "").partition(" ")
            key = key.strip() if kind.lower() == "bearer" else ""
            wanted = self.settings.api_key
            if wanted is not None and not hmac.compare_digest(key.encode(), wanted.encode()):
                raise ServiceError(
                    401,
                    "the API key is missing or wrong",
                    hint="send it as Authorization: Bearer KEY",
                )
            if self._stopping() and path.startswith(("/v1/", "/v2/", "/rerank")):
                raise StoppingError
        length = headers.get("content-length", "0")
        self.check_size(int(length) if length.isdecimal() else 0)

    def _is_own_or_named(self, scheme: str, headers: Headers) -> bool:
        """Return False for requests of pages of other origins, unless the settings name these.

        A page can have the browser send a GET without an Origin header, as for an image. `Sec-Fetch-Site` tells then,
        which browsers send to addresses with TLS and to this machine; other clients send neither.
        """
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site")
        if {origin, "*"} & {*self.settings.cors_origin}:
            return True
        if site not in {None, "none", "same-origin"}:
            return False
        if origin is None:
            return True
        page_scheme, _, page = origin.partition("://")
        if page_scheme not in _PORTS:
            return False
        # Behind a proxy with TLS only the browser knows the scheme.
        scheme = page_scheme if site == "same-origin" else scheme
        address = _address(scheme, headers.get("host", ""))
        return address is not None and address == _address(page_scheme, page)

    def check_size(self, received: int) -> None:
        """Raise ServiceError if a request has too many bytes."""
        limit = self.settings.request_bytes
        if received > limit:
            reason = f"the request has more than {limit:,} bytes"
            raise ServiceError(413, reason, hint="send less at a time, or smaller images")


def _address(scheme: str, host: str) -> tuple[str, str, int] | None:
    """Return scheme, name and port of a server; None if `host` is not a name or IP address, with a port or without."""
    match = _ADDRESS.fullmatch(host.lower())
    if match is None:
        return None
    port = int(match["port"] or _PORTS.get(scheme, 0))
    return (scheme, match["name"], port) if port <= _MAX_PORT else None


class _Exchange:
    def __init__(self, scope: Message, receive: Receive, send: Send, *, guard: Guard) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._guard = guard
        self._complete = False
        self.began = time.monotonic()
        self.received = self.status = 0

    async def receive(self) -> Message:
        if self._complete:  # the next message says that the client has gone, whenever that is
            return await self._receive()
        seconds = self._guard.settings.body_seconds
        try:
            async with asyncio.timeout(max(self.began + seconds - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            raise ServiceError(
                408, f"the body took more than {seconds:g} seconds", hint="send it faster"
            ) from None
        if message["type"] == "http.request":
            number = len(message.get("body", b""))
            self.received += number
            self._guard.buffered += number
            self._complete = not message.get("more_body", False)
            self._guard.check_size(self.received)
            if self._guard.buffered > self._guard.settings.buffered_bytes:
                raise BusyError("too many bytes are being received at a time")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault(
                "Cache-Control",
                "no-cache" if self._scope["path"].startswith(_STATIC) else "no-store",
            )
            if (
                not self._complete and self._scope["method"] not in _READING
            ):  # the rest of the body is not read
                headers["Connection"] = "close"
        await self._send(message)

    async def fail(self, error: ServiceError) -> None:
        if not self.status:
            await error.response()(self._scope, self._receive, self._send_and_linger)

    async def _send_and_linger(self, message: Message) -> None:
        """Send an answer and pass over what still comes: closed at once, the connection takes the answer along."""
        is_last = message["type"] == "http.response.body" and not self._complete
        await self.send({**message, "more_body": True} if is_last else message)
        if is_last and self._scope["method"] not in _READING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while (rest := await self._receive())["type"] == "http.request" and rest.get(
                        "more_body"
                    ):
                        pass
        if is_last:
            await self.send({"type": "http.response.body"})
