"""Records of a big JSON array, one at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ijson

Item = TypeVar("Item")


def read_records(file: Path, read: Callable[[Any], Item], *, needs: str, key: str | None = None) -> Iterator[Item]:
    """Yield `read` of each element of the array that `file` holds, or of the array under `key` of its object.

    Only one element is in memory at a time, so a file of gigabytes can be read.

    Args:
        needs: Fields that `read` takes from an element, for the error.

    Raises:
        ValueError: Not such JSON, no element, or one that lacks a field; the message names the file, and the number of
            the element with `needs`.
    """
    number = -1
    with file.open("rb") as opened:
        if opened.read(3) != codecs.BOM_UTF8:
            opened.seek(0)
        records = ijson.items(opened, "item" if key is None else f"{key}.item", use_float=True)
        try:
            for number, record in enumerate(records):
                try:
                    item = read(record)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise ValueError(
                        f"{file}: {key or ''}[{number}]: {needs} are needed ({error!r}); is it the file of another set?"
                    ) from error
                yield item
        except ijson.JSONError as error:
            raise ValueError(f"{file}: after {number + 1} records it is no JSON in UTF-8; is it cut off?") from error
    if number < 0:
        raise ValueError(f"{file}: it holds no list{f' {key!r}' if key else ''}, or an empty one")
