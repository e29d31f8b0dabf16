"""Columns of metadata: whole numbers, numbers, yes or no, or text."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np
import pyarrow as pa

WIDER = "__wider"
"""What a column's name ends with while it becomes wider."""
_INT64 = 2**63


class Kind(Enum):
    """What a column holds. The value is a word for people."""

    BOOL = "true or false"
    INT = "whole number"
    FLOAT = "number"
    TEXT = "text"

    @property
    def sql(self) -> str:
        """The type's name in SQL."""
        return _TYPES[self][1]

    def joined(self, other: Kind) -> Kind:
        """The narrowest kind that holds values of both."""
        if self is other:
            return self
        return Kind.FLOAT if {self, other} == {Kind.INT, Kind.FLOAT} else Kind.TEXT


_TYPES = {
    Kind.BOOL: (pa.bool_(), "boolean"),
    Kind.INT: (pa.int64(), "bigint"),
    Kind.FLOAT: (pa.float64(), "double"),
    Kind.TEXT: (pa.string(), "string"),
}


def arrow_type(kind: Kind) -> pa.DataType:
    """The type of the table's column."""
    return _TYPES[kind][0]


def kind_of_type(type_: pa.DataType) -> Kind:
    """The kind of a column of the table."""
    return next(kind for kind, (known, _) in _TYPES.items() if known == type_)


def merged_kind(values: Iterable[Any]) -> Kind | None:
    """The narrowest kind that holds all values; None if there is none to go by."""
    found: Kind | None = None
    for value in values:
        if value is not None:
            kind = _kind(value)
            found = kind if found is None else found.joined(kind)
    return found


def _kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, int):
        return Kind.INT
    return Kind.FLOAT if isinstance(value, float) else Kind.TEXT


def converted(value: Any, kind: Kind) -> Any:
    """The value as a column of this kind, which must be wide enough, holds it."""
    if value is None:
        return None
    if kind is Kind.TEXT:
        return str(value).lower() if isinstance(value, bool) else str(value)
    return float(value) if kind is Kind.FLOAT else value


def clean_metadata(given: Mapping[str, Any], *, reserved: Collection[str]) -> dict[str, Any]:
    """Metadata of a picture as plain values under names that SQL takes without quotes.

    Names become lower case, with `_` for what is no letter or digit; one of ours, or that ends with `WIDER`, gets a `_`
    at its end. Dates become
    ISO texts, lists and tables JSON. What is missing, or bytes, is left out.
    """
    cleaned: dict[str, Any] = {}
    for name, value in given.items():
        plain = _plain(value)
        if plain is not None:
            cleaned[_column_name(str(name), reserved=reserved)] = plain
    return cleaned


def _column_name(name: str, *, reserved: Collection[str]) -> str:
    name = re.sub(r"\W+", "_", name.lower()).strip("_") or "column"
    name = f"_{name}" if name[0].isdigit() else name
    return f"{name}_" if name in reserved or name.endswith(WIDER) else name


def _plain(value: Any) -> bool | int | float | str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bytes) or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else str(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def read_texts(cells: Sequence[str]) -> list[bool | int | float | str | None]:
    """The values that a column of a table of texts stands for; digits with a leading zero stay texts. Empty: None."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    if all(cell in {"true", "false"} for cell in filled):
        read = {"true": True, "false": False}.get
    elif all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", cell) for cell in filled):
        read = int
    elif all(re.fullmatch(r"-?(?=[.\d])(0|[1-9]\d{0,14})?(\.\d+)?([eE][-+]?\d+)?", cell) for cell in filled):
        read = float
    else:
        read = str
    return [read(cell.strip()) if cell.strip() else None for cell in cells]
