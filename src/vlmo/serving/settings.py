"""What a server is told when it starts, and how much of everything it takes."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TEXTS = 256
"""Texts of a request."""
MAX_CHARACTERS = 1000
"""Characters of a text; the model reads the first 40 or 64 tokens of it."""
MAX_PICTURES = 16
"""Pictures of a request."""
MAX_LABELS = 1000
"""Classes of a request."""
MAX_TOP = 200
"""Results of a request."""
MAX_RERANK = 128
"""Candidates of a request that the fusion encoder judges."""
MAX_BUDGET = 60.0
"""Seconds."""
MAX_FILTER = 500
"""Characters of a filter. A few hundred terms nest less deeply than any parser minds."""


@dataclass(frozen=True)
class Limits:
    """What is refused, or made to wait, so that memory stays bounded."""

    request_bytes: int = 16 * 2**20
    """Largest body of a request."""
    buffered_bytes: int = 256 * 2**20
    """Of all bodies that are held at a time; more are told to come again."""
    pixels: int = 25_000_000
    """Width x height of a picture: above what phones take by default."""
    body_seconds: float = 30.0
    """Until a body has arrived."""
    header_seconds: float = 10.0
    """Until the head of a request has arrived."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: A limit is below 1.
        """
        for name in ("request_bytes", "buffered_bytes", "pixels"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name} is {vars(self)[name]}: expected a positive number")


@dataclass(frozen=True)
class Settings:
    """How a server behaves."""

    limits: Limits = field(default_factory=Limits)
    queue: int = 64
    """Requests that are let in at a time, waiting ones included; one more is answered 503."""
    max_batch: int = 32
    """Rows of one call of the model."""
    max_wait: float = 0.005
    """Seconds that a row waits for others to join it."""
    grace: float = 30.0
    """Seconds that running requests have to finish when the server is stopped."""
    api_key: str | None = field(default=None, repr=False)
    """What a client must send; None lets everybody in."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts whose pictures are fetched; none: no address is."""
    cors_origins: tuple[str, ...] = ()
    """Pages of other origins that may call the service."""
    server_names: tuple[str, ...] = ()
    """Names that a request's Host header may have; none: any."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: A wait is not from 0 to 60 s, a count is below 1, or the key has other than printable ASCII.
        """
        for name in ("queue", "max_batch"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name} is {vars(self)[name]}: expected a positive number")
        if not 0 <= self.max_wait <= 60:
            raise ValueError(f"max_wait is {self.max_wait} seconds: expected 0 to 60")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("the API key must be one line of ASCII characters: headers carry no others")
