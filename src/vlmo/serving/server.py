"""Runs the service: binds a socket, serves, and stops without breaking off requests."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlmo.serving.app import create_app
from vlmo.serving.decoder import memory_trimmer
from vlmo.serving.parts import Parts
from vlmo.serving.settings import Settings

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MAX_PORT = 65_535
# Seconds that closing may take after the last request.
_CLOSING_S = 5.0
# Seconds in which more signals count as the first; a later one breaks off what runs.
_AT_ONCE_S = 1.0
_TRIM_EVERY_S = 10.0
# Seconds without a request. Clients and proxies reuse connections for 5 to 60, and lose a request
# if it crosses the end of one: uvicorn's 5 is too little.
_KEPT_OPEN_S = 75
_CONNECTIONS = 1000  # at a time
# Connections that asyncio accepts before it looks at one.
_BACKLOG = 100
# Open files that are no connections, mostly of the index.
_OTHER_FILES = 300
_WARN_EVERY_S = 60.0
_LOGGER = logging.getLogger(__name__)


def serve(bound: socket.socket, parts: Parts, settings: Settings) -> None:
    """Serve on a socket of `bind` until SIGTERM or SIGINT; then finish the running requests, and return."""
    host, port = bound.getsockname()[:2]
    app = create_app(parts, with_names(settings, host=host))
    config = uvicorn.Config(
        app,
        http=type("Patient", (_Patient,), {"settings": settings, "most": _connections()}),
        backlog=_BACKLOG,
        # There are no web sockets here.
        ws="none",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=_KEPT_OPEN_S,
        timeout_graceful_shutdown=round(settings.grace),
    )
    engine = "torch"
    if parts.encoder is not None:
        engine = f"{parts.encoder.engine} {parts.encoder.precision}"
    number = "no index" if parts.index is None else f"{parts.index.num_images:,} images"
    key = "no API key is needed" if settings.api_key is None else "requests need the API key"
    _LOGGER.info("serving on http://%s:%d/", f"[{host}]" if ":" in host else host, port)
    _LOGGER.info("engine %s, %s, %s", engine, number, key)
    if settings.api_key is None and not ipaddress.ip_address(host).is_loopback:
        _LOGGER.warning("everybody who reaches %s may use it: there is no API key", host)
    threading.Thread(target=_return_memory, daemon=True).start()
    with bound:
        _Server(config, app, seconds=settings.grace + _CLOSING_S).run(sockets=[bound])
    _LOGGER.info("stopped")


def _connections() -> int:
    """Raise the limit on open files if it is low, and return how many connections it allows; ValueError for none."""
    # Windows has no such limit.
    if sys.platform == "win32":
        return _CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS + _BACKLOG + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _CONNECTIONS
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft <= _BACKLOG + _OTHER_FILES:
        raise ValueError(
            f"only {soft} files may be open at a time (ulimit -n); the service needs {wanted}"
        )
    return soft - _BACKLOG - _OTHER_FILES


def _return_memory() -> None:
    trim = memory_trimmer()
    while True:
        time.sleep(_TRIM_EVERY_S)
        trim()


def read_key(file: Path | None) -> str | None:
    """Read the API key from a file, else from VLMO_API_KEY; None without either, ValueError if the file has no text."""
    if file is None:
        return os.environ.get("VLMO_API_KEY") or None
    # The settings refuse other characters than those of ASCII.
    key = file.read_text(encoding="utf-8", errors="replace").strip()
    if not key:
        raise ValueError(f"--api-key-file {file} is empty; write the key into it")
    return key


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, so that a taken port is known before a model is loaded; ValueError or OSError if that fails."""
    if not 0 <= port <= _MAX_PORT:
        raise ValueError(
            f"--port {port} is none: give a number from 1 to {_MAX_PORT}, or 0 for any that is free"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, so that asyncio sets TCP_NODELAY.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A restarted service takes its port again at once.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(f"{host}:{port} cannot be bound: {error.strerror or error}") from error
    return bound


def with_names(settings: Settings, *, host: str) -> Settings:
    """Settings with the names that a request may call the server by.

    On loopback these are known. Elsewhere any name is accepted unless some are given; this machine's own stay among
    them, for health checks and proxies beside the server.
    """
    address = ipaddress.ip_address(host)
    if not settings.server_name and not address.is_loopback:
        return settings
    names = _LOOPBACK_NAMES if address.is_unspecified else (*_LOOPBACK_NAMES, host)
    return replace(settings, server_name=(*names, *settings.server_name))


class _Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM, where uvicorn would die of the signal after it has stopped.

    It ends `seconds` after the signal in any case, then with exit code 1.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, *, seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._seconds = seconds
        self._asked = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's own
        now = time.monotonic()
        state = self._app.state.vlmo
        if not state.stopping:
            state.stopping = True
            self._asked = now
            # What runs in a thread, such as the decoding of an image, cannot be stopped in another way.
            deadline = threading.Timer(self._seconds, os._exit, [1])
            deadline.daemon = True
            deadline.start()
        # A launcher and the terminal's group may both send the first one.
        self.force_exit = now > self._asked + _AT_ONCE_S
        self.should_exit = True


class _Patient(H11Protocol):
    """HTTP of uvicorn that closes connections whose client is too slow to send a head, or to take an answer.

    One more than `most` costs the connection without a request that has been silent for the longest.
    """

    settings: Settings
    most: int
    warned = -math.inf
    heard = 0.0
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # Writing is paused until all has been sent.
        transport.set_write_buffer_limits(0)
        self.heard = self.loop.time()
        self._watch()
        if len(self.connections) > self.most:
            # The newest is among them if all others have sent a request.
            waiting = [
                other
                for other in cast("set[_Patient]", self.connections)
                if other.conn.their_state in {h11.IDLE, h11.SEND_BODY}
            ]
            silent = min(waiting, key=lambda other: other.heard)
            # It is lost a moment later.
            self.connections.discard(silent)
            silent.transport.abort()
            if self.heard > type(self).warned + _WARN_EVERY_S:
                type(self).warned = self.heard
                _LOGGER.warning(
                    "more than %d connections: closing those without a request", self.most
                )

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.settings.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        # Idle: no head of a request has arrived in full.
        waiting = self.conn.their_state is h11.IDLE
        if waiting and self._reading is None:
            self._reading = self.loop.call_later(self.settings.header_seconds, self.transport.close)
        elif not waiting and self._reading is not None:
            self._reading.cancel()
            self._reading = None
