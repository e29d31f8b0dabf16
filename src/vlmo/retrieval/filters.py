"""Filters in SQL: refuses what is no condition before LanceDB sees it, and puts LanceDB's complaints in one line.

A filter changes nothing, but its language has functions that make gigabytes of a line or end the process, under names
that can be written in several ways. So a filter is read word by word, and has columns, values and known functions only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vlmo.retrieval.store import FILTERED, plain

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<text>'(?:[^'\x00]|'')*')
  | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[^\W\d]\w*|`[^`\x00]+`|"[^"\x00]+")
  | (?P<sign><=|>=|!=|<>|==|[=<>(),+*%]|/(?!\*)|-(?!-))
    """,
    re.VERBOSE,
)
_MAX_DEPTH, _MAX_OPERATORS = 20, 100  # 500 in a row take LanceDB 12 s, thousands overflow its stack
# Functions whose result is no longer than their arguments.
_FUNCTIONS = frozenset(("lower", "upper", "contains", "starts_with", "ends_with", "array_has"))
_WORDS = frozenset(("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false"))
# What the owner of an index may use beside these.
_MORE_FUNCTIONS = frozenset(
    (
        *("abs", "array_contains", "array_has_all", "array_has_any", "array_length", "btrim", "cardinality", "cast"),
        *("char_length", "character_length", "coalesce", "left", "length", "ltrim", "make_array", "nullif"),
        *("octet_length", "regexp_like", "regexp_match", "right", "round", "rtrim", "strpos", "try_cast"),
    )
)
_MORE_WORDS = frozenset(("as", "bigint", "boolean", "double", "float", "int", "string"))
_MAX_LENGTH = 20_000


def check_condition(where: str, *, columns: Mapping[str, str]) -> None:
    """Check that a text is one condition of columns, values and known functions, before it stands in a query.

    Raises:
        ValueError: It is something else, or too long.
    """
    words, functions = _WORDS | _MORE_WORDS, _FUNCTIONS | _MORE_FUNCTIONS
    known = [*FILTERED, *columns]
    if (fault := _fault(where, columns=known, words=words, functions=functions, max_length=_MAX_LENGTH)) is not None:
        raise filter_error(where, fault, columns=columns)


def check_comparisons(where: str, *, columns: Collection[str], max_length: int) -> None:
    """Check a stranger's filter, which has no arithmetic, no casts and fewer functions.

    Raises:
        ValueError: It has something else in it, or is too long.
    """
    fault = _fault(where, columns=columns, words=_WORDS, functions=_FUNCTIONS, max_length=max_length)
    bare = re.sub(r"""'[^']*'|`[^`]*`|"[^"]*\"""", "", where)
    if fault is None and (sign := re.search(r"[+*/%]|-(?!\s*\d)", bare)):
        fault = f"it has {sign[0]!r}, which belongs to no comparison"
    if fault is not None:
        raise ValueError(f"the filter cannot be used: {fault}")


def _fault(
    where: str, *, columns: Collection[str], words: Collection[str], functions: Collection[str], max_length: int
) -> str | None:
    """Return what is in a filter that shall not be there; the index checks its meaning."""
    if len(where) > max_length:
        return f"it has {len(where)} characters; at most {max_length} are allowed"
    known = {column.lower() for column in columns}
    place = depth = operators = 0
    while place < len(where):
        token = _TOKEN.match(where, place)
        if token is None:
            return f"it has {where[place]!r} at character {place + 1}, which belongs to no condition"
        place = token.end()
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth < 0:
            break
        name = token["name"]
        operators += (token["sign"] or ",") != "," or (name or "").lower() in {"and", "or", "not"}
        if depth > _MAX_DEPTH or operators > _MAX_OPERATORS:
            return "it is nested too deeply, or has too many operators"
        called = (name or token["text"]) and where[place:].lstrip().startswith("(")
        if name is not None and name.lower() in words:
            continue
        if called and (name or "").lower() not in functions:
            return f"it calls {token[0]}(); allowed are {', '.join(sorted(functions))}"
        if name is not None and not called and name.strip('`"').lower() not in known:
            return f"it names {name}, which is no column; there are {', '.join(sorted(columns)) or 'none'}"
    return "its parentheses do not match" if depth else None


def filter_error(where: str, reason: str | Exception, *, columns: Mapping[str, str]) -> ValueError:
    """One line that names the existing columns."""
    names = {"place": "text", "width": "whole number", "height": "whole number", **columns}
    listed = ", ".join(f"{name} ({kind})" for name, kind in sorted(names.items()))
    if isinstance(reason, Exception):  # without LanceDB's list of all columns and its own query
        text = plain(reason).split(" Valid fields are")[0]
        reason = re.sub(r"SELECT 1 FROM t WHERE .* \(sql parser error", "(sql parser error", text).rstrip(". ")
    return ValueError(f"the filter {where!r:.200} cannot be used: {reason}. Columns: {listed}")


def is_filter_error(error: Exception) -> bool:
    """True if LanceDB complains about the filter."""
    text = str(error)
    return isinstance(error, ValueError) or any(word in text for word in ("Schema error", "filter", "Not supported"))
