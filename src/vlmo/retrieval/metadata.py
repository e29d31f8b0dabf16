"""Metadata of images: captions and columns from tables beside the files, as plain values under SQL names."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, date, time
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmo.data.capture import dated, position
from vlmo.data.listing import regular_file
from vlmo.data.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    TABLE_SUFFIXES,
    captions_of,
    column_of,
    table_records,
)
from vlmo.folder import JsonObject
from vlmo.retrieval.store import RESERVED
from vlmo.retrieval.words import Metadata

# A column of numbers holds float64.
_LARGEST = 2**53
_TAKEOUT = re.compile(r"(.+?)(?:-edited)?(\(\d+\))?(\.\w+)?\Z", re.DOTALL)
# A Mac writes letters and their accents apart.
_composed = functools.partial(unicodedata.normalize, "NFC")
_CUT = 46
_MAX_JSON = 1 << 20
# Characters of a column's name, which all hits repeat.
_MAX_NAME = 100
# Columns whose values are texts, whatever stands in them.
_TEXTS = frozenset(("album", "camera", "ocr_text", "taken", "taken_from", "title"))


class Annotation(NamedTuple):
    """Captions and columns of an image; `file` has columns that its EXIF data, and the others, replace."""

    captions: tuple[str, ...] = ()
    metadata: Metadata = {}
    file: Metadata = {}


class MetadataTable:
    """Captions and columns by an image's name: its path below its folder or the table's, or the file's name alone.

    Several lines about one image give it several captions; of other columns the last line counts.

    Args:
        path: .csv, .tsv or .jsonl with a column `image`, `path` or `file_name`.

    Raises:
        ValueError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
            raise ValueError(
                f"{path}: expected a table of metadata, a {', '.join(sorted(TABLE_SUFFIXES))} file"
            )
        try:
            records = [record for _, record in table_records(path)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
        if path.suffix.lower() != ".jsonl" and records:
            texts = (column_of(records[0], IMAGE_COLUMNS), column_of(records[0], CAPTION_COLUMNS))
            # Numbers where all cells of a column are numbers.
            for name in records[0].keys() - texts:
                values = read_column([record[name] for record in records])
                for record, value in zip(records, values, strict=True):
                    record[name] = value
        self._rows = dict[str, Annotation]()
        self._folder = f"{path.absolute().parent}/"
        for number, record in enumerate(records, start=1):
            self._add(record, where=f"{path}, record {number}")

    def about(self, name: str, path: str = "") -> Annotation:
        """Return the annotation of the image with this path below its folder, or this whole `path`; empty without."""
        # The most specific name first.
        for key in (name, path.removeprefix(self._folder), name.rpartition("/")[2]):
            if _composed(key) in self._rows:
                return self._rows[_composed(key)]
        return Annotation()

    def _add(self, record: Mapping[str, object], *, where: str) -> None:
        caption_column = column_of(record, CAPTION_COLUMNS)
        image_column = next((name for name in IMAGE_COLUMNS if record.get(name)), "")
        image = record.get(image_column)
        if not isinstance(image, str) or not image.strip():
            raise ValueError(
                f"{where}: no image is named; give its file in a column {' or '.join(IMAGE_COLUMNS)}"
            )
        captions = captions_of(record.get(caption_column or ""), where=where)
        columns = dict(record)
        columns.pop(image_column)
        columns.pop(caption_column or "", None)
        name = _composed(image.strip().replace("\\", "/").removeprefix("./"))
        before = self._rows.get(name, Annotation())
        self._rows[name] = Annotation(
            (*before.captions, *filter(str.strip, captions)),
            {**before.metadata, **clean_metadata(columns)},
        )


def clean_metadata(columns: Mapping[str, object]) -> dict[str, bool | float | str | None]:
    """Return metadata of an image as plain values under names that SQL takes without quotes.

    Names become lower case, with `_` for everything but letters and digits; a name that the index uses gets a `_` at
    its end, and a long one is cut. Dates become ISO texts, lists and dictionaries JSON. Missing values and bytes are
    left out.
    """
    cleaned: dict[str, bool | float | str | None] = {}
    for name, value in columns.items():
        if (plain := _plain(value)) is not None:
            column = re.sub(r"\W+", "_", str(name)[:_MAX_NAME].lower()).strip("_") or "column"
            column = f"_{column}" if column[0].isdigit() else column
            cleaned[f"{column}_" if column in RESERVED else column] = (
                str(plain) if column in _TEXTS else plain
            )
    return cleaned


def _plain(value: object) -> bool | int | float | str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if (
        value is None
        or isinstance(value, bytes)
        or (isinstance(value, float) and not np.isfinite(value))
    ):
        return None
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        # Larger integers would be rounded, such as ids of posts.
        return value if abs(value) <= _LARGEST else str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return (
        float(value)
        if isinstance(value, Decimal)
        else json.dumps(value, ensure_ascii=False, default=str)
    )


def read_column(cells: Sequence[str]) -> list[bool | int | float | str | None]:
    """Return a column of texts as true/false, numbers, or texts (also digits after a leading zero). Empty: None."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    if all(cell in {"true", "false"} for cell in filled):
        read = {"true": True, "false": False}.get
    # Up to 15 digits, which float64 holds exactly.
    elif all(re.fullmatch(r"-?(0|[1-9]\d{0,14})", cell) for cell in filled):
        read = int
    elif all(
        re.fullmatch(r"-?(?=[.\d])(0|[1-9]\d{0,14})?(\.\d+)?([eE][-+]?\d+)?", cell)
        for cell in filled
    ):
        read = float
    else:
        read = str
    return [read(cell.strip()) if cell.strip() else None for cell in cells]


def read_takeout(image: Path) -> Annotation:
    """Return what the JSON file beside an image says, if Google Takeout wrote one: title, description, time and place.

    Its name is that of the image as it was uploaded, with a suffix, cut, and a number if several have that name.
    """
    stem, number, suffix = _TAKEOUT.findall(image.name)[0]
    # A damaged file says nothing.
    damaged = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
    with contextlib.suppress(*damaged):
        for name, copy in ((image.name, ""), (f"{stem}{suffix}", number)):
            whole = f"{name}.supplemental-metadata"
            beside = _json_files(image.parent, image.parent.stat().st_mtime_ns)
            # Takeout cuts long names, at a length that has changed over the years.
            for length in range(len(whole), min(len(name), _CUT) - 1, -1):
                file_name = f"{whole[:length]}{copy}.json"
                if file_name in beside:
                    return _read_takeout(image.parent / file_name)
    return Annotation()


@functools.lru_cache(maxsize=8)
def _json_files(folder: Path, _changed: int) -> frozenset[str]:
    return frozenset(file.name for file in folder.glob("*.json"))


def _read_takeout(file: Path) -> Annotation:
    if regular_file(file).st_size > _MAX_JSON:
        raise ValueError("too large for one image")
    about = json.loads(file.read_bytes())
    title = _text(about, "title")
    text = _text(about, "description")
    place = about.get("geoData", {})
    columns = dated(float(about["photoTakenTime"]["timestamp"]), source="takeout", zone=UTC)
    columns |= position(float(place.get("latitude", 0)), float(place.get("longitude", 0)))
    if title:
        columns["title"] = title
    return Annotation((text,) if text.strip() else (), columns)


def _text(about: JsonObject, name: str) -> str:
    # JSON may hold half a character, which no text of an index can.
    return str(about.get(name) or "").encode(errors="replace").decode()
