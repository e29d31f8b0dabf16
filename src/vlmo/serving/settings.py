"""Settings of a server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from tyro.conf import Suppress

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]+)?")


@dataclass(frozen=True)
class Settings:
    """Settings of a server; `vlmo serve` has them as options, but for the last six.

    Attributes:
        queue: Requests that are let in at a time, waiting ones included; one more is answered 503.
        max_batch: Rows of one call of the model.
        max_request_mb: Megabytes (2**20 bytes) of a request.
        max_pixels: Width x height of an image in a request; the default is above that of phones.
        cors_origin: Origins of other pages that may call the service, such as https://example.org.
        server_name: Names that requests may call this server by, beside localhost; without it, any on an address that
            is not loopback.
        buffered_bytes: All bodies that are held at a time; further requests are refused with 503.
        body_seconds: Seconds until a body has arrived.
        header_seconds: Seconds until the head of a request has arrived.
        answer_seconds: Seconds until a client has taken what was sent.
        grace: Seconds that running requests have to finish when the server is stopped.
        api_key: Key that a client must send; None admits everybody.
    """

    queue: int = 64
    max_batch: int = 32
    max_request_mb: float = 16.0
    max_pixels: int = 25_000_000
    cors_origin: tuple[str, ...] = ()
    server_name: tuple[str, ...] = ()
    buffered_bytes: Suppress[int] = 256 * 2**20
    body_seconds: Suppress[float] = 30.0
    header_seconds: Suppress[float] = 10.0
    answer_seconds: Suppress[float] = 60.0
    grace: Suppress[float] = 25.0
    api_key: Suppress[str | None] = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Validate the values; ValueError if one is out of its range."""
        for name in ("queue", "max_batch", "max_request_mb", "max_pixels"):
            if not 0 < vars(self)[name] < 2**63:
                raise ValueError(f"{name} is {vars(self)[name]}: expected a positive number")
        for origin in self.cors_origin:
            if not _ORIGIN.fullmatch(origin):
                expected = "as browsers send it, such as https://example.org, in lower case and without a path"
                raise ValueError(f"cors_origin is {origin!r}: expected an origin {expected}")
        for name in self.server_name:
            if not _is_host_name(name):
                raise ValueError(
                    f"server_name is {name!r}: expected a name without scheme and port, or an address"
                )
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.isprintable() and self.api_key
        ):
            raise ValueError(
                "the API key must be one line of ASCII characters: headers carry no others"
            )

    @property
    def request_bytes(self) -> int:
        """Largest body of a request."""
        return int(self.max_request_mb * 2**20)


def _is_host_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return re.fullmatch(r"[\w.-]+", name, re.ASCII) is not None
    return True
