"""The records of a set in parts, as a preparer hands them to the engine, and what preparers share.

A preparer is a function `open_set(root) -> SetOnDisk`, which first checks that every file is there; ValueError if not.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from vlmo.data.schema import FEATURES

Item = TypeVar("Item")

ROWS_A_PART = 1024
"""Rows that are validated and kept as one piece of work: about ten seconds of one process."""


@dataclass(frozen=True)
class Row:
    """One row of a split, with the columns of the set's features, not yet validated."""

    split: str
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A record that gives no row; it becomes a line of the quarantine file."""

    split: str
    image_id: str
    reason: str
    path: str | None = None


@dataclass(frozen=True)
class Absent:
    """A record that is left out, such as a link that could not be downloaded: only counted."""

    split: str
    reason: str


Record = Row | BadRow | Absent


@dataclass(frozen=True)
class Part:
    """A piece of work: its rows are read and validated in one process, and kept when a later part fails."""

    key: str
    """Tells whether a part kept from an interrupted run is still the same; see `file_key`."""
    rows: Callable[[], Iterable[Record]]
    """Gives the records, perhaps in another process."""


@dataclass(frozen=True)
class SetOnDisk:
    """The contents of `--root`.

    Attributes:
        parts: Has a length; gives the same parts each time.
        licence: One line about the terms.
        features: Columns of every split; each column of images is decoded once.
        labels: Names of answers or classes, for tasks that have them.
        unique: Text column whose values may occur once in a split; the later row of two is quarantined. None where rows
            are different by their making, such as files of a folder.
        needs_image: A row without an image is invalid.
        needs_caption: A row without a caption is invalid.
        known_sizes: Rows by split, for sets of published sizes.
        notes: Lines for the report, such as which optional files are not there.
    """

    parts: Collection[Part]
    licence: str
    features: Features = field(default_factory=lambda: FEATURES)
    labels: list[str] | None = None
    unique: str | None = "image_id"
    needs_image: bool = True
    needs_caption: bool = True
    known_sizes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


class chunked(Collection[Part]):  # noqa: N801
    """Parts of `size` rows each, for rows that are cheap to list: images by path, not by their bytes.

    `rows` may be a function that lists them anew each time: they are then never all in memory.
    """

    def __init__(self, rows: Iterable[Record] | Callable[[], Iterable[Record]], *, size: int = ROWS_A_PART) -> None:
        self._rows = rows if callable(rows) else functools.partial(list, list(rows))
        self._size = size

    def __len__(self) -> int:
        return math.ceil(sum(1 for _ in self._rows()) / self._size)

    def __iter__(self) -> Iterator[Part]:
        rows = iter(self._rows())
        while chunk := list(itertools.islice(rows, self._size)):
            key = hashlib.sha256(repr(chunk).encode()).hexdigest()
            yield Part(key, functools.partial(list, chunk))

    def __contains__(self, part: object) -> bool:
        return any(part == each for each in self)


def file_key(file: Path, *details: object) -> str:
    """Return the key of a part that is read from `file`; it changes with the file's size and time."""
    facts = file.stat()
    return hashlib.sha256(repr((str(file), facts.st_size, facts.st_mtime_ns, details)).encode()).hexdigest()


def find(root: Path, *candidates: str, layout: str) -> Path:
    """Return the first of `candidates`, paths relative to `root`, that exists; ValueError with the `layout` if none."""
    require_folder(root, layout=layout)
    if (found := first_of(root, *candidates)) is not None:
        return found
    raise ValueError(f"{root}: {' or '.join(candidates)} is missing; --root must be a folder with {layout}")


def first_of(root: Path, *candidates: str) -> Path | None:
    """Return the first file or folder of `candidates` (paths relative to `root`); None where none is there."""
    paths = (root / candidate for candidate in candidates)
    return next((path for path in paths if path.is_file() or path.is_dir()), None)


def require_folder(root: Path, *, layout: str) -> None:
    """Raise ValueError where there is no such folder."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root must be a folder with {layout}")


def read_table_schema(file: Path) -> pa.Schema:
    """Return the columns of a parquet file; ValueError for one that is cut off."""
    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not a whole parquet file ({error}); remove it or download it again") from error


def text_of(value: Any) -> str:
    """Return the text that a record gives; TypeError where it gives something else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def read_records(file: Path, read: Callable[[Any], Item], *, needs: str, key: str | None = None) -> list[Item]:
    """Return `read` of each element of the JSON array that `file` holds, or of the array under `key` of its object.

    ValueError for other JSON, no element, or one that lacks a field: it names the file, the number of the element, and
    the fields that it `needs`.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: it is no JSON in UTF-8 ({error}); is it cut off?") from error
    records = content if key is None else content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file}: it holds no list{f' {key!r}' if key else ''}, or an empty one")
    found = []
    for number, record in enumerate(records):
        try:
            found.append(read(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{file}: {key or ''}[{number}]: {needs} are needed ({error!r}); is it the file of another set?"
            ) from error
    return found
