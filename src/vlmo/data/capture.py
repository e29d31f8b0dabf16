"""When, where and with which camera a photograph was taken, as its file says.

Pillow's own reader of EXIF data is not used: of data that are damaged in one place it reads fewer of
the other fields, all or nothing of some directories, and it warns of every tag that it leaves out.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Mapping
from datetime import datetime, tzinfo
from operator import itemgetter

# Tags of EXIF (CIPA DC-008), of which two lead to other directories.
_MAKE = 0x010F
_MODEL = 0x0110
_CHANGED = 0x0132
_MORE = 0x8769
_PLACE = 0x8825
# Sides ("N" or "S", "E" or "W") in the directory of the place.
_NORTH = 1
_EAST = 3
_SIGNS = {"N": 1, "E": 1, "S": -1, "W": -1}
_ORIGINAL = 0x9003
_DIGITIZED = 0x9004
# Types of values.
_TEXT = 2
_LONG = 4
_FRACTIONS = 5
# Cameras write some tens of tags, and short names.
_MAX_TAGS = 1000
_MAX_TEXT = 100
_XMP_DATE = re.compile(
    rb"\b(exif:DateTimeOriginal|exif:DateTimeDigitized|photoshop:DateCreated|xmp:CreateDate|xmp:ModifyDate)"
    rb"\s*(?:=\s*[\"']|>)\s*([-\d:T]{10,19})"
)
# Original, digitized, created, changed: the first of them that a file has is its date.
_RANKS = {
    b"exif:DateTimeOriginal": 0,
    b"exif:DateTimeDigitized": 1,
    b"photoshop:DateCreated": 2,
    b"xmp:CreateDate": 2,
    b"xmp:ModifyDate": 3,
}
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?")


Columns = dict[str, str | float]
Date = tuple[int, str, str]
"""Rank, text and "exif" or "xmp"."""


def captured(info: Mapping[str, object]) -> Columns:
    """Return what EXIF data and XMP in the `info` of an image that Pillow has opened say.

    `taken` is of ISO 8601, as the camera's clock showed it: the original date, else that of digitizing, of creation or
    of the last change, of equal ones EXIF's. `taken_from` is "exif" or "xmp"; `latitude` and `longitude` are in
    degrees; `camera` is a text. What is not said, or damaged, is left out, and the rest is read.
    """
    columns: Columns = {}
    dates: list[Date] = []
    exif = info.get("exif")
    xmp = info.get("xmp")
    if isinstance(exif, bytes):
        columns, dates = _read_exif(exif.removeprefix(b"Exif\0\0"))
    if isinstance(xmp, bytes):
        for name, text in _XMP_DATE.findall(xmp):
            dates.append((_RANKS[name], text.decode(), "xmp"))
    for _, text, source in sorted(dates, key=itemgetter(0)):  # of equal ones EXIF's comes first
        if (match := _DATE.match(text)) is None:
            continue
        # The zeros of a clock that was never set.
        with contextlib.suppress(ValueError):
            year, month, day, hour, minute, second = map(int, match.groups("0"))
            taken = datetime(year, month, day, hour, minute, second)
            return {**columns, "taken": taken.isoformat(), "taken_from": source}
    return columns


def position(north: float, east: float) -> Columns:
    """Return columns of a place; none if it is not on the earth, or where devices without a fix are: 0, 0."""
    if abs(north) <= 90 and abs(east) <= 180 and (north, east) != (0, 0):
        return {"latitude": round(north, 6), "longitude": round(east, 6)}
    return {}


def dated(seconds: float, *, source: str, zone: tzinfo | None = None) -> Columns:
    """Return columns of a time in seconds since 1970, in the machine's time or that of a zone."""
    try:
        taken = datetime.fromtimestamp(seconds, zone).replace(tzinfo=None, microsecond=0)
    except (OverflowError, ValueError, OSError):  # before the first year, or after the last
        return {}
    return {"taken": taken.isoformat(), "taken_from": source}


def _read_exif(exif: bytes) -> tuple[Columns, list[Date]]:
    """Return columns and dates; a field that is damaged leaves the others."""
    # Intel (II) or Motorola (MM), as in TIFF.
    order = "<" if exif[:2] == b"II" else ">"
    header = struct.Struct(f"{order}4xI")
    if len(exif) < header.size:
        return {}, []
    main = _Directory(exif, *header.unpack_from(exif), order=order)
    more = _Directory(exif, main.numbers.get(_MORE, len(exif)), order=order)
    place = _Directory(exif, main.numbers.get(_PLACE, len(exif)), order=order)
    make = main.texts.get(_MAKE, "")
    camera = main.texts.get(_MODEL, "")
    if not camera.lower().startswith(make.lower()):
        camera = f"{make} {camera}".strip()
    columns: Columns = {"camera": camera} if camera else {}
    columns |= position(_degrees(place, _NORTH), _degrees(place, _EAST))
    dates = [
        (0, more.texts.get(_ORIGINAL, ""), "exif"),
        (1, more.texts.get(_DIGITIZED, ""), "exif"),
        (3, main.texts.get(_CHANGED, ""), "exif"),
    ]
    return columns, dates


class _Directory:
    """Texts, whole numbers and triples of fractions by their tags; what lies outside of the data is left out."""

    def __init__(self, exif: bytes, start: int, *, order: str) -> None:
        self.texts = dict[int, str]()
        self.numbers = dict[int, int]()
        self.triples = dict[int, list[float]]()
        total = int.from_bytes(exif[start : start + 2], "little" if order == "<" else "big")
        for offset in range(start + 2, start + 2 + 12 * min(total, _MAX_TAGS), 12):
            with contextlib.suppress(
                struct.error
            ):  # a value, or the tag itself, is not in the data
                tag, kind, count, value = struct.unpack_from(f"{order}HHII", exif, offset)
                if kind == _TEXT:
                    at = value if count > 4 else offset + 8
                    # Texts of up to four bytes stand in the entry itself, in place of the offset.
                    text = exif[at : at + min(count, _MAX_TEXT)].partition(b"\0")[0]
                    self.texts[tag] = text.decode(errors="replace").strip()
                elif kind == _LONG:
                    self.numbers[tag] = value
                elif kind == _FRACTIONS and count == 3:
                    parts = struct.unpack_from(f"{order}6I", exif, value)
                    self.triples[tag] = [parts[at] / (parts[at + 1] or 1) for at in (0, 2, 4)]


def _degrees(place: _Directory, tag: int) -> float:
    """Return degrees, minutes and seconds as one number, below zero in the south and west.

    Args:
        tag: Tag of the side; the degrees stand under the next one. NaN without one of both.
    """
    sign = _SIGNS.get(place.texts.get(tag, "")[:1].upper(), math.nan)
    degrees, minutes, seconds = place.triples.get(tag + 1, (math.nan, 0.0, 0.0))
    return sign * (degrees + minutes / 60 + seconds / 3600)
