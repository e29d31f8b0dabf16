"""Filters in SQL: refuses what is no condition before LanceDB sees it, and puts LanceDB's complaints in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vlmo.retrieval.store import plain

_QUOTED = re.compile(r"'[^']*'|`[^`]*`|\"[^\"]*\"")
# A line with one of these can keep a machine busy for hours: they make texts and lists of any length.
_CALL = re.compile(
    r"\b(repeat|lpad|rpad|range|generate_series|array_repeat|list_repeat|array_resize|list_resize)\s*\(", re.IGNORECASE
)


def check_condition(where: str, *, columns: Mapping[str, str]) -> None:
    """Check that a text is one condition, before it stands in a query.

    Raises:
        ValueError: It is more than one, or calls a function that makes texts of any length.
    """
    bare = _QUOTED.sub("''", where)
    if ";" in bare:  # LanceDB would ignore everything after it in silence
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
    """One line that names the existing columns."""
    names = {"place": "text", "width": "whole number", "height": "whole number", **columns}
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(names.items()))
    if isinstance(reason, Exception):  # without LanceDB's list of all columns and its own query
        text = plain(reason).split(" Valid fields are")[0]
        reason = re.sub(r"SELECT 1 FROM t WHERE .* \(sql parser error", "(sql parser error", text).rstrip(". ")
    return ValueError(f"the filter {where!r} cannot be used: {reason}. Columns: {listed}")


def is_filter_error(error: Exception) -> bool:
    """True if LanceDB complains about the filter."""
    return isinstance(error, ValueError) or "Schema error" in str(error) or "filter" in str(error)


# ------------------------------------------------------------------------------------------------ filters of strangers

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<text>'(?:[^'\x00]|'')*')
  | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
  | (?P<name>[^\W\d]\w*|`[^`\x00]+`)
  | (?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,|-(?=\s*\d))
    """,
    re.VERBOSE,
)
_WORDS = frozenset(("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false"))
# Functions whose result is no longer than their arguments: `repeat` and its like make gigabytes of a line.
_FUNCTIONS = frozenset(("lower", "upper", "contains", "starts_with", "ends_with", "array_has"))
_MAX_DEPTH = 20


def check_comparisons(where: str, *, columns: Collection[str], max_length: int) -> None:
    """Check that a filter has only columns, values, comparisons, and/or/not and a few functions.

    The index checks its meaning. A filter changes nothing in any case; but its language has functions that strangers
    shall not call, and a server shall not rely on all of them being harmless.

    Raises:
        ValueError: It has something else in it, or is too long.
    """
    if len(where) > max_length:
        raise ValueError(f"the filter has {len(where)} characters; at most {max_length} are allowed")
    known = {column.lower() for column in columns}
    place = depth = 0
    while place < len(where):
        token = _TOKEN.match(where, place)
        if token is None:
            raise ValueError(
                f"the filter has {where[place]!r} at character {place + 1}, which belongs to no comparison"
            )
        place = token.end()
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth < 0:
            raise ValueError("the filter's parentheses do not match")
        if depth > _MAX_DEPTH:
            raise ValueError("the filter is nested too deeply")
        name = token["name"]
        if name is None or name.lower() in _WORDS:
            continue
        if where[place:].lstrip().startswith("(") and not name.startswith("`"):
            if name.lower() not in _FUNCTIONS:
                raise ValueError(f"the filter calls {name}(); allowed are {', '.join(sorted(_FUNCTIONS))}")
        elif name.strip("`").lower() not in known:
            raise ValueError(f"the filter names {name}, which is no column; there are {', '.join(columns) or 'none'}")
