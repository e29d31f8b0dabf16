"""Filters in SQL: what is refused before LanceDB sees it, and LanceDB's complaints in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vlmo.retrieval.store import plain

_QUOTED = re.compile(r"'[^']*'|`[^`]*`|\"[^\"]*\"")
# A line with one of these can keep a machine busy for hours: they make texts and lists of any length.
_ENDLESS = (
    "repeat",
    "lpad",
    "rpad",
    "range",
    "generate_series",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
)
_CALL = re.compile(rf"\b({'|'.join(_ENDLESS)})\s*\(", re.IGNORECASE)


def check_condition(where: str, *, columns: Mapping[str, str]) -> None:
    """Whether it is one condition, before it stands in a query.

    Raises:
        ValueError: It is more than one, or calls what makes texts of any length.
    """
    bare = _QUOTED.sub("''", where)
    if ";" in bare:  # LanceDB would leave out what follows, without a word
        raise filter_error(where, "it is more than one condition", columns=columns)
    depth = 0
    for sign in re.findall(r"[()]", bare):
        depth += 1 if sign == "(" else -1
        if depth < 0:
            break
    if depth:
        raise filter_error(where, "its parentheses do not match", columns=columns)
    if call := _CALL.search(bare):
        raise filter_error(where, f"{call[1]}() makes texts or lists of any length", columns=columns)


def filter_error(where: str, reason: str | Exception, *, columns: Mapping[str, str]) -> ValueError:
    """One line that names the columns that there are."""
    names = {"place": "text", "width": "whole number", "height": "whole number", **columns}
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(names.items()))
    told = _reason(reason) if isinstance(reason, Exception) else reason
    return ValueError(f"the filter {where!r} cannot be used: {told}. Columns: {listed}")


def blames_filter(error: Exception) -> bool:
    """Whether it is the filter that LanceDB complains of."""
    return isinstance(error, ValueError) or "Schema error" in str(error) or "filter" in str(error)


def _reason(error: Exception) -> str:
    """LanceDB's message without its list of all columns and its own query."""
    text = plain(error).split(" Valid fields are")[0]
    return re.sub(r"SELECT 1 FROM t WHERE .* \(sql parser error", "(sql parser error", text).rstrip(". ")
