"""What a client is told instead of a result."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


class ServiceError(Exception):
    """Becomes `{"error": {"reason": ..., "hint": ...}}`.

    Args:
        status: HTTP's number.
        reason: What is wrong.
        hint: What to do.
    """

    def __init__(self, status: int, reason: str, *, hint: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.hint = status, reason, hint

    def response(self) -> JSONResponse:
        """The same over HTTP; 503 says when to come again."""
        return error_response(self.status, self.reason, hint=self.hint, headers=_HEADERS.get(self.status))


class BusyError(ServiceError):
    """No place is free."""

    def __init__(self, reason: str = "the queue is full") -> None:
        super().__init__(503, reason, hint="try again in a second, or start the server with a longer --queue")


class StoppingError(ServiceError):
    """No new work is taken."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping", hint="try again when it has been started anew")


def error_response(
    status: int, reason: str, *, hint: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one form that errors have."""
    return JSONResponse({"error": {"reason": reason, "hint": hint}}, status_code=status, headers=dict(headers or {}))
