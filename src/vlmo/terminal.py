"""Texts of others for a terminal."""

import re

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
