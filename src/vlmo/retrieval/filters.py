"""Filters of photographs, and in SQL: refuses what is no condition, and puts LanceDB's complaints in one line.

SQL changes nothing here, but has functions that make gigabytes of a line or end the process, under names that can be
written in several ways. So a filter is read word by word, and has columns, values and known functions only.
"""

from __future__ import annotations

import contextlib
import math
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

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
_MAX_OPERATORS = 100  # 500 in a row take LanceDB 12 s, thousands overflow its stack
# Functions whose result is no longer than their arguments.
_FUNCTIONS = frozenset(("lower", "upper", "contains", "starts_with", "ends_with", "array_has"))
_WORDS = frozenset(
    ("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false")
)
_NUMBER = r"\s*(-?\d{1,3}(?:\.\d+)?)\s*"
_PLACE = re.compile(rf"{_NUMBER},{_NUMBER},\s*(\d{{1,5}}(?:\.\d+)?)\s*km\s*")
_EARTH_KM = 6371.0088  # mean radius
PHOTO_COLUMNS = {"taken": "text", "album": "text", "latitude": "number", "longitude": "number"}
"""Columns that filters of photographs need, with their types in words."""


def check_filter(where: str, *, columns: Collection[str], max_length: int = MAX_LENGTH) -> None:
    """Check that a text is a condition of columns, values and known functions, before it stands in a query.

    Raises:
        ValueError: It has something else in it, or is too long. LanceDB checks its meaning.
    """
    fault = (
        f"it has {len(where)} characters; at most {max_length} are allowed"
        if len(where) > max_length
        else None
    )
    if (
        fault := fault or _fault(where, columns={column.lower() for column in columns})
    ) is not None:
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


@dataclass(frozen=True, kw_only=True)
class PhotoFilter:
    """Conditions of photographs, all of which must hold; those that are None or empty always do.

    Attributes:
        since: "2021", "2021-06", "2021-06-14" or with a time "2021-06-14T09:30": taken then or later.
        until: The same: taken before the end of that year, month, day or minute.
        near: "LATITUDE,LONGITUDE,20km": taken within that distance of the place.
        album: A folder, or some that follow each other, such as "Italy/Rome", anywhere in the path below the input.

    Raises:
        ValueError: One has another form.
    """

    since: str | None = None
    until: str | None = None
    near: str | None = None
    album: str | None = None

    def __post_init__(self) -> None:
        for text in filter(None, (self.since, self.until)):
            _check_date(text)
        if self.near:
            _read_circle(self.near)

    @property
    def columns(self) -> list[str]:
        """Names of `PHOTO_COLUMNS` that it needs."""
        asked = (self.since or self.until, self.album, self.near, self.near)
        return [name for name, value in zip(PHOTO_COLUMNS, asked, strict=True) if value]

    def passing(self, images: pa.Table) -> Bool[np.ndarray, " image"]:
        """Return which rows meet the conditions."""
        passed = np.ones(len(images), bool)
        # Texts of ISO 8601 are in the order of time, and ~ comes after all their characters.
        if self.since:
            passed &= np.asarray(
                pc.greater_equal(images["taken"], self.since).fill_null(fill_value=False)
            )
        if self.until:
            passed &= np.asarray(
                pc.less_equal(images["taken"], f"{self.until}~").fill_null(fill_value=False)
            )
        if self.album:  # compared once for each album of the images
            albums = images["album"].combine_chunks().dictionary_encode()
            folders = "/".join(
                ["", *filter(None, unicodedata.normalize("NFC", self.album).lower().split("/")), ""]
            )
            names = pc.utf8_lower(pc.utf8_normalize(albums.dictionary, form="NFC"))
            named = pc.binary_join_element_wise("/", names, "/", "")
            known = pc.match_substring(named, folders).take(albums.indices)
            passed &= np.asarray(known.fill_null(fill_value=False))
        if self.near:
            north, east, angle = _read_circle(self.near)
            latitude, longitude = (
                np.radians(images[name].to_numpy()) for name in ("latitude", "longitude")
            )
            # Haversine formula: also exact for near places, where the law of cosines is not.
            haversine = np.sin((latitude - north) / 2) ** 2
            haversine += math.cos(north) * np.cos(latitude) * np.sin((longitude - east) / 2) ** 2
            passed &= haversine <= math.sin(angle / 2) ** 2  # not where there is no place
        return passed


def _check_date(text: str) -> None:
    with contextlib.suppress(ValueError):
        datetime.fromisoformat(text + "0001-01-01T00:00:00"[len(text) :])
        if len(text) in {4, 7, 10, 16, 19} and re.fullmatch(r"[\dT:-]+", text):
            return
    raise ValueError(f"the date is {text!r:.50}; give one such as 2021, 2021-06 or 2021-06-14")


def _read_circle(near: str) -> tuple[float, float, float]:
    """Return latitude, longitude and the angle of the distance in radians."""
    match = _PLACE.fullmatch(near)
    north, east, distance = map(float, match.groups()) if match else (91.0, 0.0, 0.0)
    if abs(north) > 90 or abs(east) > 180:
        raise ValueError(
            f"near is {near!r:.50}; give degrees and a distance: LATITUDE,LONGITUDE,20km"
        )
    return math.radians(north), math.radians(east), min(distance / _EARTH_KM, math.pi)
