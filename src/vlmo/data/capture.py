"""When, where and with which camera a photograph was taken, as its file says."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

# Tags of EXIF (CIPA DC-008), of which two lead to other directories.
_MAKE = 0x010F
_MODEL = 0x0110
_CHANGED = 0x0132
_MORE = 0x8769
_PLACE = 0x8825
_ORIGINAL = 0x9003
_DIGITIZED = 0x9004
_TEXT, _LONG, _FRACTIONS = 2, 4, 5  # types of values
_MAX_TAGS = 1000
_MAX_TEXT = 100
_XMP_DATE = re.compile(
    rb"\b(exif:DateTimeOriginal|exif:DateTimeDigitized|photoshop:DateCreated|xmp:CreateDate|xmp:ModifyDate)"
    rb"\s*(?:=\s*[\"']|>)\s*([-\d:T]{10,19})"
)
_PREFERENCE = {
    "exif:DateTimeOriginal": 0,
    "exif:DateTimeDigitized": 1,
    "photoshop:DateCreated": 2,
    "xmp:CreateDate": 2,
    "xmp:ModifyDate": 3,
}
"""Original, digitized, created, changed: the first of them that a file has is its date."""
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?")


def captured(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what EXIF data and XMP in the `info` of an image that Pillow has opened say.

    `taken` is of ISO 8601, as the camera's clock showed it: the original date, else that of digitizing, of creation or
    of the last change, of equal ones EXIF's. `taken_from` is "exif" or "xmp"; `latitude` and `longitude` are in
    degrees; `camera` is a text. What is not said, or damaged, is left out, and the rest is read.
    """
    columns: dict[str, Any] = {}
    dates: list[tuple[int, dict[str, Any]]] = []
    exif = info.get("exif")
    xmp = info.get("xmp")
    if isinstance(exif, bytes):
        columns, dates = _read_exif(exif.removeprefix(b"Exif\0\0"))
    if isinstance(xmp, bytes):
        for name, text in _XMP_DATE.findall(xmp):
            dates.append((_PREFERENCE[name.decode()], _date(text.decode(), source="xmp")))
    dates = [date for date in dates if date[1]]
    if dates:
        _, taken = min(dates, key=lambda date: date[0])  # of equal ones the first: EXIF's
        columns |= taken
    return columns


def position(north: float, east: float) -> dict[str, float]:
    """Return columns of a place; none if it is not on the earth, or where devices without a fix are: 0, 0."""
    is_there = abs(north) <= 90 and abs(east) <= 180 and (north, east) != (0, 0)
    return {"latitude": round(north, 6), "longitude": round(east, 6)} if is_there else {}


def dated(seconds: float, *, source: str, zone: tzinfo | None = None) -> dict[str, Any]:
    """Return columns of a time in seconds since 1970, in the machine's time or that of a zone."""
    try:
        taken = datetime.fromtimestamp(seconds, zone).replace(tzinfo=None, microsecond=0)
    except (OverflowError, ValueError, OSError):  # before the first year, or after the last
        return {}
    return {"taken": taken.isoformat(), "taken_from": source}


def _read_exif(exif: bytes) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    """Return columns, and dates with their places in the order of preference; each field fails alone."""
    order = "<" if exif[:2] == b"II" else ">"
    main = _read_directory(
        exif, int.from_bytes(exif[4:8], "little" if order == "<" else "big"), order
    )
    more = _read_directory(exif, main.get(_MORE), order)
    place = _read_directory(exif, main.get(_PLACE), order)
    dates = [
        (0, _date(more.get(_ORIGINAL), source="exif")),
        (1, _date(more.get(_DIGITIZED), source="exif")),
        (3, _date(main.get(_CHANGED), source="exif")),
    ]
    columns: dict[str, Any] = {}
    make, model = (
        text if isinstance(text := main.get(tag), str) else "" for tag in (_MAKE, _MODEL)
    )
    if camera := model if model.lower().startswith(make.lower()) else f"{make} {model}".strip():
        columns["camera"] = camera
    north = _degrees(place.get(2), side=place.get(1))
    east = _degrees(place.get(4), side=place.get(3))
    if north is not None and east is not None:
        columns |= position(north, east)
    return columns, dates


def _degrees(parts: Any, *, side: Any) -> float | None:
    """Return degrees, minutes and seconds as one number, below zero in the south and west; None without a side."""
    if (
        not isinstance(parts, list)
        or not isinstance(side, str)
        or side[:1].upper() not in {"N", "S", "E", "W"}
    ):
        return None
    degrees, minutes, seconds = parts
    value = degrees + minutes / 60 + seconds / 3600
    return -value if side[0].upper() in {"S", "W"} else value


def _read_directory(exif: bytes, start: Any, order: str) -> dict[int, Any]:
    """Return texts, whole numbers and triples of fractions by their tags; what lies outside of the data is left out."""
    values: dict[int, Any] = {}
    if not isinstance(start, int) or start + 2 > len(exif):
        return values
    (number,) = struct.unpack_from(f"{order}H", exif, start)
    for offset in range(start + 2, start + 2 + 12 * min(number, _MAX_TAGS), 12):
        with contextlib.suppress(struct.error):  # a value, or the tag itself, is not in the data
            tag, kind, count, value = struct.unpack_from(f"{order}HHII", exif, offset)
            if kind == _TEXT:
                at = value if count > 4 else offset + 8
                text = exif[at : at + min(count, _MAX_TEXT)].partition(b"\0")[0]
                values[tag] = text.decode(errors="replace").strip()
            elif kind == _LONG:
                values[tag] = value
            elif kind == _FRACTIONS and count == 3:
                numbers = struct.unpack_from(f"{order}6I", exif, value)
                values[tag] = [numbers[part] / (numbers[part + 1] or 1) for part in (0, 2, 4)]
    return values


def _date(text: Any, *, source: str) -> dict[str, Any]:
    if not isinstance(text, str):
        return {}
    with contextlib.suppress(ValueError):  # such as the zeros of a camera whose clock was never set
        if (match := _DATE.match(text)) is not None:
            year, month, day, hour, minute, second = map(int, match.groups("0"))
            return {
                "taken": datetime(year, month, day, hour, minute, second).isoformat(),
                "taken_from": source,
            }
    return {}
