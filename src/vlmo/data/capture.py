"""When, where and with which camera a photograph was taken, as its file says."""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Mapping
from datetime import datetime, tzinfo
from operator import itemgetter
from typing import Any

from PIL import ExifTags, Image
from PIL.ExifTags import GPS, Base

_SIGNS = {"N": 1, "E": 1, "S": -1, "W": -1}
# Names of cameras are short.
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
Directory = Mapping[int, Any]
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
        columns, dates = _read_exif(exif)
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


def _read_exif(data: bytes) -> tuple[Columns, list[Date]]:
    """Return columns and dates; a field that is damaged leaves the others."""
    exif = Image.Exif()
    more: Directory = {}
    place: Directory = {}
    # No header, or a directory at an offset below zero.
    with contextlib.suppress(SyntaxError, ValueError, struct.error):
        exif.load(data)
        more = exif.get_ifd(ExifTags.IFD.Exif)
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    make = _text(exif, Base.Make)
    camera = _text(exif, Base.Model)
    if not camera.lower().startswith(make.lower()):
        camera = f"{make} {camera}".strip()
    columns: Columns = {"camera": camera} if camera else {}
    columns |= position(_degrees(place, GPS.GPSLatitude), _degrees(place, GPS.GPSLongitude))
    dates = [
        (0, _text(more, Base.DateTimeOriginal), "exif"),
        (1, _text(more, Base.DateTimeDigitized), "exif"),
        (3, _text(exif, Base.DateTime), "exif"),
    ]
    return columns, dates


def _text(directory: Directory, tag: int) -> str:
    value = directory.get(tag)
    return value[:_MAX_TEXT].partition("\0")[0].strip() if isinstance(value, str) else ""


def _degrees(place: Directory, tag: int) -> float:
    """Return degrees, minutes and seconds as one number, below zero in the south and west; NaN if damaged."""
    # The side stands under the tag before.
    sign = _SIGNS.get(_text(place, tag - 1)[:1].upper(), math.nan)
    try:
        # Some cameras write no seconds as 0/0.
        parts = [part.numerator / (part.denominator or 1) for part in place[tag]]
        degrees, minutes, seconds = parts
    except (KeyError, TypeError, ValueError, AttributeError):
        return math.nan
    return sign * (degrees + minutes / 60 + seconds / 3600)
