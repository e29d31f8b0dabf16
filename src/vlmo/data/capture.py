"""When, where and with which camera a photograph was taken, as its file says."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

# Tags of EXIF (CIPA DC-008), of which two lead to other directories.
_MAKE, _MODEL, _CHANGED, _MORE, _PLACE, _TAKEN, _DIGITIZED = 0x010F, 0x0110, 0x0132, 0x8769, 0x8825, 0x9003, 0x9004
_TEXT, _LONG, _FRACTIONS = 2, 4, 5  # types of values
_MAX_TAGS, _MAX_TEXT = 1000, 100
_XMP_DATE = re.compile(rb"(?:exif:DateTimeOriginal|photoshop:DateCreated|xmp:CreateDate)(?:=[\"']|>)([-\d:T]{10,19})")
_DATE = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d))?)?")


def captured(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what EXIF data, or else XMP, in the `info` of an image that Pillow has opened say.

    `taken` is of ISO 8601, as the camera's clock showed it; `taken_from` is "exif" or "xmp"; `latitude` and `longitude`
    are in degrees; `camera` is a text. What is not said is left out.
    """
    found: dict[str, Any] = {}
    if exif := info.get("exif"):
        with contextlib.suppress(struct.error, AttributeError, TypeError, ValueError):  # damaged
            found = _read_exif(exif.removeprefix(b"Exif\0\0"))
    xmp = info.get("xmp")
    if "taken" not in found and isinstance(xmp, bytes) and (match := _XMP_DATE.search(xmp)) is not None:
        found |= _date(match[1].decode(), source="xmp")
    return found


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


def _read_exif(exif: bytes) -> dict[str, Any]:
    order = "<" if exif[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", exif, 4)
    main = _read_directory(exif, first, order)
    more, place = (_read_directory(exif, main[tag], order) if tag in main else {} for tag in (_MORE, _PLACE))
    dates = (_date(each or "", source="exif") for each in (more.get(_TAKEN), more.get(_DIGITIZED), main.get(_CHANGED)))
    found: dict[str, Any] = next(filter(None, dates), {})
    make, model = main.get(_MAKE, ""), main.get(_MODEL, "")
    if camera := model if model.lower().startswith(make.lower()) else f"{make} {model}".strip():
        found["camera"] = camera
    if {1, 2, 3, 4} <= place.keys():  # side, degrees, minutes and seconds; the same to the east
        north, east = (degrees + minutes / 60 + seconds / 3600 for degrees, minutes, seconds in (place[2], place[4]))
        found |= position(-north if place[1] == "S" else north, -east if place[3] == "W" else east)
    return found


def _read_directory(exif: bytes, start: int, order: str) -> dict[int, Any]:
    """Return texts, whole numbers and triples of fractions by their tags."""
    found: dict[int, Any] = {}
    (number,) = struct.unpack_from(f"{order}H", exif, start)
    for offset in range(start + 2, start + 2 + 12 * min(number, _MAX_TAGS), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHII", exif, offset)
        if kind == _TEXT:
            at = value if count > 4 else offset + 8
            found[tag] = exif[at : at + min(count, _MAX_TEXT)].partition(b"\0")[0].decode(errors="replace").strip()
        elif kind == _LONG:
            found[tag] = value
        elif kind == _FRACTIONS and count == 3:
            numbers = struct.unpack_from(f"{order}6I", exif, value)
            found[tag] = [above / (below or 1) for above, below in zip(numbers[::2], numbers[1::2], strict=True)]
    return found


def _date(text: str, *, source: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):  # such as the zeros of a camera whose clock was never set
        if (match := _DATE.match(text)) is not None:
            year, month, day, hour, minute, second = map(int, match.groups("0"))
            return {"taken": datetime(year, month, day, hour, minute, second).isoformat(), "taken_from": source}
    return {}
