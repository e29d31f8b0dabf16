"""Pictures from addresses: only from hosts that were allowed by name, and never out of a private network."""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urlsplit

from vlmo.serving.errors import ServiceError

_PORTS = {"http": 80, "https": 443}
_SECONDS = 10.0
_CHUNK = 64 * 1024

Resolve = Callable[[str, int], Sequence[str]]


class Fetcher:
    """Gets the bytes behind an address. It connects to the very address that was checked, and follows no redirect.

    Args:
        hosts: Names that may be asked, in any case; a name stands for itself, not for those below it.
        max_bytes: Of an answer.
        resolve: From name and port to addresses.
        is_public: Whether an address may be connected to.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        max_bytes: int,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._max_bytes = max_bytes
        self._resolve, self._is_public = resolve or _resolve, is_public or is_public_address

    def fetch(self, url: str) -> bytes:
        """What lies there. Blocks; takes at most a few times ten seconds.

        Raises:
            ServiceError: The address is not allowed, leads to a private network, or gives nothing.
        """
        parts, port = self._check(url)
        host = str(parts.hostname)
        try:
            addresses = self._resolve(host, port)
            if not addresses or not all(map(self._is_public, addresses)):
                raise ServiceError(403, f"{host} is not on the public internet", hint="upload the picture instead")
            connection = _connection(parts.scheme, host, port, addresses[0])
            try:
                return self._read(connection, parts)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(422, f"{host} gave no picture: {error or type(error).__name__}") from error

    def _check(self, url: str) -> tuple[SplitResult, int]:
        if not self._hosts:
            raise ServiceError(403, "this server fetches nothing", hint="upload the picture, or send it as base64")
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise ServiceError(422, f"the address cannot be read: {error}") from error
        if parts.username is not None or parts.password is not None or port != _PORTS.get(parts.scheme):
            raise ServiceError(403, "an address may have neither user nor port", hint="upload the picture instead")
        if (parts.hostname or "").rstrip(".") not in self._hosts:
            raise ServiceError(403, "pictures of this host are not fetched", hint="upload the picture instead")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ServiceError(422, "the address has characters that must be written as %XX")
        return parts, port

    def _read(self, connection: http.client.HTTPConnection, parts: SplitResult) -> bytes:
        deadline = time.monotonic() + _SECONDS
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        data = bytearray()
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise ServiceError(422, f"{parts.hostname} answered {answer.status}", hint="redirects are not followed")
            while chunk := answer.read1(_CHUNK):
                data += chunk
                if len(data) > self._max_bytes:
                    raise ServiceError(413, f"the picture has more than {self._max_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise ServiceError(422, f"{parts.hostname} took more than {_SECONDS:.0f} seconds")
        return bytes(data)


def is_public_address(address: str) -> bool:
    """Whether an IP address is one of the public internet; one that carries another inside is judged by that too."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if not found.is_global or found.is_multicast or found.is_reserved or found.is_unspecified:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return True
    inside = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
    if found in ipaddress.ip_network("64:ff9b::/96"):  # what a network translates to IPv4
        inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    return all(each is None or is_public_address(str(each)) for each in inside)


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    """A connection to `address` that calls the server by its name, in TLS too."""
    if scheme == "http":
        plain = http.client.HTTPConnection(host, port, timeout=_SECONDS)
        plain.sock = socket.create_connection((address, port), timeout=_SECONDS)
        return plain
    secure = http.client.HTTPSConnection(host, port, timeout=_SECONDS)
    raw = socket.create_connection((address, port), timeout=_SECONDS)
    try:
        secure.sock = _context().wrap_socket(raw, server_hostname=host)
    except OSError:
        raw.close()
        raise
    return secure


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
