"""Images of requests: files, and addresses on hosts that were allowed by name, never of a private network."""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urlsplit

from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.serving.schemas import ServiceError

_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF"
_PORTS = {"http": 80, "https": 443}
_SECONDS = 10.0
_CHUNK = 64 * 1024
_UPLOAD = "upload the image instead"

Resolve = Callable[[str, int], Sequence[str]]


class Fetcher:
    """Fetches from addresses. It connects to the very address that was checked, and follows no redirect.

    Args:
        hosts: Names that may be asked, in any case; a name stands for itself, not for those below it.
        max_bytes: Largest answer.
        resolve: Function from name and port to addresses.
        is_public: Function that tells if an address may be connected to.
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
        """Return the bytes at an address. Blocks; takes at most a few times ten seconds.

        Raises:
            ServiceError: The address is not allowed, leads to a private network, or gives nothing.
        """
        parts, port = self._check(url)
        host = str(parts.hostname)
        try:
            addresses = self._resolve(host, port)
            if not addresses or not all(map(self._is_public, addresses)):
                raise ServiceError(403, f"{host} is not on the public internet", hint=_UPLOAD)
            connection = _connection(parts.scheme, host, port, addresses[0])
            try:
                return self._read(connection, parts)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(422, f"{host} gave no image: {error or type(error).__name__}") from error

    def _check(self, url: str) -> tuple[SplitResult, int]:
        if not self._hosts:
            raise ServiceError(403, "this server fetches nothing", hint="upload the image, or send it as base64")
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise ServiceError(422, f"the address cannot be read: {error}") from error
        if parts.username is not None or parts.password is not None or port != _PORTS.get(parts.scheme):
            raise ServiceError(403, "an address may have neither user nor port", hint=_UPLOAD)
        if (parts.hostname or "").rstrip(".") not in self._hosts:
            raise ServiceError(403, "images of this host are not fetched", hint=_UPLOAD)
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
                    raise ServiceError(413, f"the image has more than {self._max_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise ServiceError(422, f"{parts.hostname} took more than {_SECONDS:.0f} seconds")
        return bytes(data)


def read_image(source: bytes | str, *, fetcher: Fetcher, max_pixels: int) -> Image.Image:
    """Decode an image from a file's bytes or an address, in mode RGB. Blocks.

    Raises:
        ServiceError: It cannot be fetched, is no image, or has too many pixels.
    """
    data = source if isinstance(source, bytes) else fetcher.fetch(source)
    try:
        return decode_image({"bytes": data, "path": None}, max_pixels=max_pixels)
    except ValueError as error:
        reason = str(error).removeprefix("bytes in memory: ")
        raise ServiceError(422, f"no usable image: {reason}", hint=f"send a whole file: {_FORMATS}") from error


def is_public_address(address: str) -> bool:
    """True if an IP address is on the public internet, and so is another one that it may embed."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if not found.is_global or found.is_multicast or found.is_reserved or found.is_unspecified:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return True
    inside = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
    if found in ipaddress.ip_network("64:ff9b::/96"):  # a network translates these to IPv4
        inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    return all(each is None or is_public_address(str(each)) for each in inside)


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    """A connection to `address` that calls the server by its name, in TLS too."""
    raw = socket.create_connection((address, port), timeout=_SECONDS)
    connection = http.client.HTTPConnection(host, timeout=_SECONDS)
    try:
        connection.sock = raw if scheme == "http" else _context().wrap_socket(raw, server_hostname=host)
    except OSError:
        raw.close()
        raise
    return connection


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()
