"""Texts of others for a terminal."""

import re

from rich.markup import escape


def without_controls(text: str) -> str:
    """Return a text without control characters, which could write anything to a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def escaped(text: str) -> str:
    """Return a text for one of rich's tables: no control characters, and no markup."""
    return escape(without_controls(text))
