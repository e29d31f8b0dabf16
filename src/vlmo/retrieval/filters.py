"""Filters in SQL: refuses what is no condition before LanceDB sees it, and puts LanceDB's complaints in one line.

A filter changes nothing, but its language has functions that make gigabytes of a line or end the process, under names
that can be written in several ways. So a filter is read word by word, and has columns, values and known functions only.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from vlmo.retrieval.store import plain

MAX_LENGTH = 20_000
_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<text>'(?:[^'\x00]|'')*')
  | (?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[^\W\d]\w*|`[^`\x00]+`|"[^"\x00]+")
  | (?P<sign><=|>=|!=|<>|==|[=<>(),])
    """,
    re.VERBOSE,
)
_MAX_DEPTH, _MAX_OPERATORS = 20, 100  # 500 in a row take LanceDB 12 s, thousands overflow its stack
# Functions whose result is no longer than their arguments.
_FUNCTIONS = frozenset(("lower", "upper", "contains", "starts_with", "ends_with", "array_has"))
_WORDS = frozenset(("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false"))


def check_filter(where: str, *, columns: Collection[str], max_length: int = MAX_LENGTH) -> None:
    """Check that a text is a condition of columns, values and known functions, before it stands in a query.

    Raises:
        ValueError: It has something else in it, or is too long. LanceDB checks its meaning.
    """
    fault = f"it has {len(where)} characters; at most {max_length} are allowed" if len(where) > max_length else None
    if (fault := fault or _fault(where, columns={column.lower() for column in columns})) is not None:
        raise filter_error(where, fault, columns=columns)


def _fault(where: str, *, columns: Collection[str]) -> str | None:
    position = depth = operators = 0
    while position < len(where):
        token = _TOKEN.match(where, position)
        if token is None:
            return f"it has {where[position]!r} at character {position + 1}, which belongs to no comparison"
        position = token.end()
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth < 0:
            break
        name = token["name"]
        is_operator = token["sign"] not in {None, ","} or token[0][0] == "-"
        operators += is_operator or (name or "").lower() in {"and", "or", "not"}
        if depth > _MAX_DEPTH or operators > _MAX_OPERATORS:
            return "it is nested too deeply, or has too many operators"
        called = (name or token["text"]) and where[position:].lstrip().startswith("(")
        if name is not None and name.lower() in _WORDS:
            continue
        if called and (name or "").lower() not in _FUNCTIONS:
            return f"it calls {token[0]}(); allowed are {', '.join(sorted(_FUNCTIONS))}"
        if name is not None and not called and name.strip('`"').lower() not in columns:
            return f"it names {name}, which is no column"
    return "its parentheses do not match" if depth else None


def filter_error(where: str, reason: str | Exception, *, columns: Collection[str]) -> ValueError:
    """One line that names the existing columns."""
    if isinstance(reason, Exception):  # without LanceDB's list of all columns and its own query
        text = plain(reason).split(" Valid fields are")[0]
        reason = re.sub(r"SELECT 1 FROM t WHERE .* \(sql parser error", "(sql parser error", text).rstrip(". ")
    return ValueError(f"the filter {where!r:.200} cannot be used: {reason}. Columns: {', '.join(sorted(columns))}")


def is_filter_error(error: Exception) -> bool:
    """True if LanceDB complains about the filter."""
    text = str(error)
    return isinstance(error, ValueError) or any(word in text for word in ("Schema error", "filter", "Not supported"))
