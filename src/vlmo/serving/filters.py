"""Filters that strangers may send: comparisons of columns with values, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection

from vlmo.serving.settings import MAX_FILTER

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
# Those whose result is no longer than what they are given: `repeat` and its like make gigabytes of a line.
_FUNCTIONS = frozenset(("lower", "upper", "contains", "starts_with", "ends_with", "array_has"))
_MAX_DEPTH = 20


def check_filter(where: str, *, columns: Collection[str]) -> str:
    """The filter, if it has nothing in it but columns, values, comparisons, and/or/not and a few functions.

    What it means is left to the index. A filter changes nothing in any case; but its language has functions that
    strangers shall not call, and a server shall not rely on all of them being harmless.

    Raises:
        ValueError: It has something else in it, or is too long.
    """
    if len(where) > MAX_FILTER:
        raise ValueError(f"the filter has {len(where)} characters; at most {MAX_FILTER} are allowed")
    known = {column.lower() for column in columns}
    place = depth = 0
    while place < len(where):
        token = _TOKEN.match(where, place)
        if token is None:
            raise ValueError(
                f"the filter has {where[place]!r} at character {place + 1}, which belongs to no comparison"
            )
        if token["name"] is not None:
            _check_name(token["name"], after=where[token.end() :], known=known, columns=columns)
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if not 0 <= depth <= _MAX_DEPTH:
            raise ValueError(
                "the filter's parentheses do not match" if depth < 0 else "the filter is nested too deeply"
            )
        place = token.end()
    return where


def _check_name(name: str, *, after: str, known: Collection[str], columns: Collection[str]) -> None:
    plain = name.strip("`").lower()
    if after.lstrip().startswith("(") and not name.startswith("`") and plain not in _WORDS:
        if plain not in _FUNCTIONS:
            raise ValueError(f"the filter calls {name}(); allowed are {', '.join(sorted(_FUNCTIONS))}")
        return
    if plain in _WORDS and not name.startswith("`"):
        return
    if plain not in known:
        raise ValueError(f"the filter names {name}, which is no column; there are {', '.join(columns) or 'none'}")
