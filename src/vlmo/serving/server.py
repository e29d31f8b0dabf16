"""Runs the service: binds a socket, serves, and stops without breaking off requests."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts
from vlmo.serving.settings import Settings

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MAX_PORT = 65_535
_CLOSING_S = 5.0
"""Seconds that closing may take after the last request."""
_LOGGER = logging.getLogger(__name__)


def serve(bound: socket.socket, parts: Parts, settings: Settings) -> None:
    """Serve on a socket of `bind` until SIGTERM or SIGINT; then finish the running requests, and return."""
    host, port = bound.getsockname()[:2]
    app = create_app(parts, with_names(settings, host=host))
    config = uvicorn.Config(
        app,
        http=_protocol(settings.header_seconds),
        ws="none",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=round(settings.grace),
    )
    _LOGGER.info("serving on http://%s:%d/", f"[{host}]" if ":" in host else host, port)
    if settings.api_key is None and not ipaddress.ip_address(host).is_loopback:
        _LOGGER.warning("everybody who reaches %s may use it: there is no API key", host)
    with bound:
        _Server(config, app, seconds=settings.grace + _CLOSING_S).run(sockets=[bound])


def read_key(file: Path | None) -> str | None:
    """Read the API key from the file, or else from the environment's VLMO_API_KEY; None without either.

    Raises:
        ValueError: The file is empty, or no text.
        OSError: It cannot be read.
    """
    if file is None:
        return os.environ.get("VLMO_API_KEY") or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--api-key-file {file} is no text in UTF-8 ({error.reason}); write the key into it"
        ) from error
    if not key:
        raise ValueError(f"--api-key-file {file} is empty; write the key into it")
    return key


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, so that a taken port is known before a model is loaded.

    Raises:
        ValueError: There is no such port.
        OSError: It cannot be bound.
    """
    if not 0 <= port <= _MAX_PORT:
        raise ValueError(f"--port {port} is none: give a number from 1 to {_MAX_PORT}, or 0 for any that is free")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
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
    own = () if address.is_unspecified else (host,)
    return replace(settings, server_name=(*_LOOPBACK_NAMES, *own, *settings.server_name))


class _Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM, where uvicorn would die of the signal after it has stopped.

    It ends `seconds` after the signal in any case, then with exit code 1.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, *, seconds: float) -> None:
        super().__init__(config)
        self._app, self._seconds = app, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's own
        if not self._app.state.vlmo.stopping:
            # What runs in a thread, such as the decoding of an image, cannot be stopped in another way.
            last = threading.Timer(self._seconds, os._exit, [1])
            last.daemon = True
            last.start()
        self._app.state.vlmo.stopping = True
        self.force_exit = self.should_exit
        self.should_exit = True


def _protocol(seconds: float) -> type[H11Protocol]:
    """HTTP of uvicorn, with connections closed whose request has no complete head after `seconds`."""

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Start the timer while a head is incomplete, and cancel it when it is complete."""
            waiting = self.conn.their_state is h11.IDLE
            if waiting and self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)
            elif not waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Patient
