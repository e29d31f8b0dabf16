"""Filters of photographs, and in SQL: refuses what is no condition, and puts LanceDB's complaints in one line.

SQL changes nothing here, but has functions that make gigabytes of a line or end the process, under names that can be
written in several ways. So a filter is read word by word, and has columns, values and known functions only.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from vlmo.retrieval.options import PhotoFilter
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
_MAX_DEPTH = 20
# 500 in a row take LanceDB 12 s, thousands overflow its stack.
_MAX_OPERATORS = 100
# Functions whose result is no longer than their arguments.
_FUNCTIONS = frozenset(("lower", "upper", "contains", "starts_with", "ends_with", "array_has"))
_WORDS = frozenset(
    ("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false")
)
PHOTO_COLUMNS = {"taken": "text", "album": "text", "latitude": "number", "longitude": "number"}
"""Columns that filters of photographs need, with their types in words."""


def check_filter(where: str, *, columns: Collection[str]) -> None:
    """Check that a text is a condition of columns, values and known functions, before it stands in a query.

    Raises:
        ValueError: It has something else in it, or is too long. LanceDB checks its meaning.
    """
    fault = _fault(where, columns={column.lower() for column in columns})
    if fault is not None:
        raise filter_error(where, fault, columns=columns)


def _fault(where: str, *, columns: Collection[str]) -> str | None:
    if len(where) > MAX_LENGTH:
        return f"it has {len(where)} characters; at most {MAX_LENGTH} are allowed"
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
    # Without LanceDB's list of all columns and its own query.
    if isinstance(reason, Exception):
        text = plain(reason).split(" Valid fields are")[0]
        reason = re.sub(
            r"SELECT 1 FROM t WHERE .* \(sql parser error", "(sql parser error", text
        ).rstrip(". ")
    return ValueError(
        f"the filter {where!r:.200} cannot be used: {reason}. Columns: {', '.join(sorted(columns))}"
    )


def is_filter_error(error: Exception) -> bool:
    """True if LanceDB complains about the filter."""
    words = ("Schema error", "filter", "Not supported", "Invalid user input")
    return isinstance(error, ValueError) or any(word in str(error) for word in words)


def photo_columns(photos: PhotoFilter) -> list[str]:
    """Return names of `PHOTO_COLUMNS` that a filter of photographs needs."""
    asked = (photos.since or photos.until, photos.album, photos.near, photos.near)
    return [name for name, value in zip(PHOTO_COLUMNS, asked, strict=True) if value]


def photos_passing(photos: PhotoFilter, images: pa.Table) -> Bool[np.ndarray, " image"]:
    """Return which rows meet the conditions of photographs."""
    passed = np.ones(len(images), bool)
    # Texts of ISO 8601 are in the order of time, and ~ comes after all their characters.
    if photos.since:
        passed &= np.asarray(
            pc.greater_equal(images["taken"], photos.since).fill_null(fill_value=False)
        )
    if photos.until:
        passed &= np.asarray(
            pc.less_equal(images["taken"], f"{photos.until}~").fill_null(fill_value=False)
        )
    # Compared once for each album of the images.
    if photos.album:
        albums = images["album"].combine_chunks().dictionary_encode()
        folders = "/".join(
            ["", *filter(None, unicodedata.normalize("NFC", photos.album).lower().split("/")), ""]
        )
        names = pc.utf8_lower(pc.utf8_normalize(albums.dictionary, form="NFC"))
        named = pc.binary_join_element_wise("/", names, "/", "")
        known = pc.match_substring(named, folders).take(albums.indices)
        passed &= np.asarray(known.fill_null(fill_value=False))
    if photos.circle is not None:
        north, east, angle = photos.circle
        latitude, longitude = (
            np.radians(images[name].to_numpy()) for name in ("latitude", "longitude")
        )
        # Haversine formula: also exact for near places, where the law of cosines is not.
        haversine = np.sin((latitude - north) / 2) ** 2
        haversine += math.cos(north) * np.cos(latitude) * np.sin((longitude - east) / 2) ** 2
        # Images without a place are never within the distance.
        passed &= haversine <= math.sin(angle / 2) ** 2
    return passed
