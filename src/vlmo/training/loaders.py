"""What a trainer asks of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from vlmo.types import Batch


class Loader(Protocol):
    """Endless batches: item t is this process's micro-batches of step t, a pure function of t."""

    def __call__(self, start_step: int) -> Iterator[list[Batch]]:
        """Items `start_step`, `start_step` + 1, ..."""


@runtime_checkable
class CursorLoader(Protocol):
    """A loader whose items depend on more than t; its cursor is saved with the training state."""

    def cursor(self, step: int) -> dict[str, Any]:
        """This process's part of what must be known to go on after the first `step` steps; ready for JSON."""
        ...

    def go_on_from(self, step: int, cursor: dict[str, Any]) -> None:
        """Is told the parts of all processes, as one dictionary, before it is called with `step`."""
        ...
