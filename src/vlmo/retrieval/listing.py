"""Everything that lies in some inputs, listed once and kept on the disk: lists of millions need no memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO

from rich.console import Console

from vlmo.retrieval.places import Found, find, was_deleted
from vlmo.retrieval.progress import Lines

_TOLD_EVERY = 1000


class Listing:
    """Files, shards and saved data sets in the order in which they were found.

    Attributes:
        size: Of all of them, in bytes.
    """

    def __init__(self, file: IO[str], *, size: int) -> None:
        self._file, self.size = file, size

    def __iter__(self) -> Iterator[Found]:
        self._file.seek(0)
        for line in self._file:
            yield Found(**json.loads(line))


@contextmanager
def listed(origins: Sequence[str], *, before: Collection[str] = (), console: Console | None) -> Iterator[Listing]:
    """What lies in inputs, as `as_origin` gives them.

    Args:
        before: Those of them that earlier runs were given: a picture or shard among them may have been deleted.

    Raises:
        ValueError: One of them holds nothing, or is gone.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        size = 0
        for origin in origins:
            if origin in before and was_deleted(origin):
                continue
            number = 0
            with _status(console, f"listing {origin}") as tell:
                for number, found in enumerate(_found(origin, before=before), start=1):
                    file.write(json.dumps(asdict(found)) + "\n")
                    size += found.size
                    if number % _TOLD_EVERY == 0:
                        tell(f"listing {origin}: {number}")
            if not number:
                raise ValueError(
                    f"{origin} holds no picture, .tar or .parquet file; one that is empty by intent is taken out of "
                    "an index with --forget"
                )
        yield Listing(file, size=size)


def _found(origin: str, *, before: Collection[str]) -> Iterator[Found]:
    try:
        yield from find(origin)
    except ValueError as error:
        if origin not in before:
            raise
        raise ValueError(f"{error}. The index has pictures of it; --forget {origin} takes them out") from error


@contextmanager
def _status(console: Console | None, text: str) -> Iterator:
    if console is None or not console.is_terminal:
        lines = Lines(console)
        yield lambda line: lines.say(line) if lines.due() else None
    else:
        with console.status(text) as status:
            yield status.update
