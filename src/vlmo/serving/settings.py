"""Settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """Settings of a server."""

    request_bytes: int = 16 * 2**20
    """Largest body of a request."""
    buffered_bytes: int = 256 * 2**20
    """All bodies that are held at a time; further requests are refused with 503."""
    pixels: int = 25_000_000
    """Width x height of an image: above the default of phones."""
    body_seconds: float = 30.0
    """Seconds until a body has arrived."""
    header_seconds: float = 10.0
    """Seconds until the head of a request has arrived."""
    queue: int = 64
    """Requests that are admitted at a time, waiting ones included; one more is answered 503."""
    max_batch: int = 32
    """Rows of one call of the model."""
    max_wait: float = 0.005
    """Seconds that a row waits for others to join it."""
    grace: float = 30.0
    """Seconds that running requests have to finish when the server is stopped."""
    api_key: str | None = field(default=None, repr=False)
    """Key that a client must send; None admits everybody."""
    cors_origins: tuple[str, ...] = ()
    """Pages of other origins that may call the service."""
    server_names: tuple[str, ...] = ()
    """Names that a request's Host header may have; none: any."""

    def __post_init__(self) -> None:
        """Validate the values; ValueError if one is out of its range."""
        for name in ("request_bytes", "buffered_bytes", "pixels", "queue", "max_batch"):
            if vars(self)[name] < 1:
                raise ValueError(f"{name} is {vars(self)[name]}: expected a positive number")
        if not 0 <= self.max_wait <= 60:
            raise ValueError(f"max_wait is {self.max_wait} seconds: expected 0 to 60")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("the API key must be one line of ASCII characters: headers carry no others")
