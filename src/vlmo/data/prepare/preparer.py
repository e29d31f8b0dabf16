"""The form in which a preparer gives a set to the engine, and what preparers share.

A preparer is a function `open_set(root) -> SetOnDisk`, which first checks that every file is there; ValueError if not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from vlmo.data.schema import FEATURES, RowValues

Element = TypeVar("Element")
FileItem = tuple[Path, int, int]


@dataclass(frozen=True)
class Row:
    """One row of a split, with the columns of the set's features, not yet validated."""

    split: str
    values: RowValues


@dataclass(frozen=True)
class BadRow:
    """A record that gives no row; it becomes a line of the quarantine file."""

    split: str
    image_id: str
    reason: str
    path: str | None = None


Record = Row | BadRow


@dataclass(frozen=True)
class SetOnDisk:
    """The contents of `--root`.

    Attributes:
        items: Lists what rows are made of, the same at every call: rows themselves, or what is cheap to list.
        licence: One line about the terms.
        read: Makes records of some items, perhaps in another process.
        chunk: Items that are read and validated as one piece of work, which is kept when a later one fails; about ten
            seconds of one process.
        features: Columns of every split; a column of images is decoded once.
        labels: Names of answers or classes, for tasks that have them.
        unique: Text column whose values may occur once in a split; the later row of two is quarantined. None where rows
            are different by their making, such as files of a folder.
        known_sizes: Rows by split, for sets of published sizes.
        notes: Lines for the report, such as which optional files are not there.
        key: Whatever the rows depend on beside their items; work of an interrupted run with another one is done again.
    """

    items: Callable[[], Iterable[Any]]
    licence: str
    read: Callable[[list[Any]], Iterable[Record]] = list
    chunk: int = 1024
    features: Features = field(default_factory=lambda: FEATURES)
    labels: list[str] | None = None
    unique: str | None = "image_id"
    needs_image: bool = True
    needs_caption: bool = True
    known_sizes: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    key: object = None


def stamped(file: Path) -> FileItem:
    """Return a file as an item, with its size and time: one that has changed is another item."""
    facts = file.stat()
    return file, facts.st_size, facts.st_mtime_ns


def find(root: Path, *candidates: str, layout: str) -> Path:
    """Return the first of `candidates`, paths relative to `root`, that exists; ValueError with the `layout` if none."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; --root must be a folder with {layout}")
    path = first_of(root, *candidates)
    if path is None:
        raise ValueError(
            f"{root}: {' or '.join(candidates)} is missing; --root must be a folder with {layout}"
        )
    return path


def first_of(root: Path, *candidates: str) -> Path | None:
    """Return the first file or folder of `candidates` (paths relative to `root`); None where none is there."""
    paths = (root / candidate for candidate in candidates)
    return next((path for path in paths if path.is_file() or path.is_dir()), None)


def read_table_schema(file: Path) -> pa.Schema:
    """Return the columns of a parquet file; ValueError for one that is cut off."""
    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file}: not a whole parquet file ({error}); remove it or download it again"
        ) from error


def text_of(value: object) -> str:
    """Return the text that a record gives; TypeError where it gives something else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def read_records(
    file: Path, read: Callable[[Any], Element], *, key: str | None = None
) -> list[Element]:
    """Return `read` of the elements of the JSON array or pair of the object in `file`, or of what stands under `key`.

    ValueError for other JSON, no element, or one that lacks what `read` needs: it names the file and the element.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: it is no JSON in UTF-8 ({error}); is it cut off?") from error
    if key is not None:
        content = content.get(key) if isinstance(content, dict) else None
    records = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(records, list) or not records:
        raise ValueError(f"{file}: it holds no list{f' {key!r}' if key else ''}, or an empty one")
    elements = []
    for number, record in enumerate(records):
        try:
            elements.append(read(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{file}: {key or ''}[{number}]: {error!r}; is it the file of another set?"
            ) from error
    return elements
