"""Output on a terminal, which names and texts of others cannot control."""

import difflib
import json
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich.markup import escape

HIDDEN = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Control characters above the space for a regular expression's set: those of the terminal, of the direction of writing
(which show a text in another order), ends of lines, and halves of characters, which cannot be written."""
_CONTROLS = re.compile(rf"[\x00-\x1f{HIDDEN}]")


def without_controls(text: str) -> str:
    """Return a text without control characters, which could write anything to a terminal."""
    return _CONTROLS.sub(" ", text)


def escaped(text: str) -> str:
    """Return a text for one of rich's tables: no control characters, and no markup."""
    return escape(without_controls(text))


def suggestion(word: str, names: Collection[str]) -> str:
    """Return "; did you mean NAME?" with the names, at most three, that hold a word or else are most like it.

    A full stop if none is close.
    """
    near = [name for name in names if word.lower() in name.lower()]
    near = near[:3] or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with columns that are as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def say(*lines: str) -> None:
    """Print lines whole, as they are but for control characters, of which an end of line is one."""
    sys.stdout.write("".join(f"{without_controls(line)}\n" for line in lines))
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """Print a value as JSON, in which every control character is escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    sys.stdout.write(re.sub(rf"[{HIDDEN}]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
