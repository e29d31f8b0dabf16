"""Elements of a big JSON array, one at a time."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

_CHUNK = 1 << 20
_GOES_ON = ("", *"0123456789.eE+-")
_SPACE = re.compile(r"[ \t\n\r]*")


def read_array(file: Path, *, key: str | None = None) -> Iterator[Any]:
    """Elements of the array that `file` holds, or of the array under `key` of the object that it holds.

    Only one element is in memory at a time, so a file of gigabytes can be read.

    Raises:
        ValueError: Not such JSON; the message names the file.
    """
    with file.open(encoding="utf-8-sig") as opened:
        text = _Text(opened)
        try:
            if key is None:
                yield from text.elements()
                return
            text.expect("{")
            while not text.skip("}"):
                name = text.value()
                text.expect(":")
                if text.peek() != "[":
                    text.value()
                elif name == key:
                    yield from text.elements()
                    return
                else:
                    deque(text.elements(), maxlen=0)
                text.skip(",")
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not the JSON that was expected ({error}); is the file cut off?") from error
    raise ValueError(f"{file}: it holds no list {key!r}")


def read_records(file: Path, read: Callable[[Any], Item], *, needs: str, key: str | None = None) -> Iterator[Item]:
    """Yield `read` of each element; see `read_array`.

    Args:
        needs: Fields that `read` takes from an element, for the error.

    Raises:
        ValueError: As `read_array`, or an element lacks a field; the message has its number and `needs`.
    """
    for number, record in enumerate(read_array(file, key=key)):
        try:
            item = read(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{file}: {key or ''}[{number}]: {needs} are needed ({error!r}); is it the file of another set?"
            ) from error
        yield item


class _Text:
    """The part of a file that is not read yet; more comes in as it is needed."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._place = file, "", 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is no space; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._place)
            self._place = found.end() if found else self._place
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def skip(self, character: str) -> bool:
        """Pass over `character` if it is next; return True if so."""
        is_next = self.peek() == character
        self._place += is_next
        return is_next

    def expect(self, character: str) -> None:
        """Pass over `character`, which must be next."""
        if not self.skip(character):
            raise json.JSONDecodeError(f"expected {character!r}, found {self.peek()!r}", self._text, self._place)

    def value(self) -> Any:
        """Return the next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # A number may go on behind what was read, and "1." is read as 1.
            if self._text[end : end + 1] not in _GOES_ON or not self._more():
                self._place = end
                return value

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the array that is next."""
        self.expect("[")
        while not self.skip("]"):
            yield self.value()
            if self.peek() != "]":
                self.expect(",")

    def _more(self) -> bool:
        rest = self._text[self._place :]
        # As much again, so that a long element is not copied once for each piece of it.
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._place = rest + chunk, 0
        return bool(chunk)
