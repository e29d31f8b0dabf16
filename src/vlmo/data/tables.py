"""Tables of captions and metadata: .csv, .tsv and .jsonl files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
TABLE_NAMES = tuple(f"captions{suffix}" for suffix in TABLE_SUFFIXES)

IMAGE_COLUMNS = ("image", "file_name")
CAPTION_COLUMNS = ("caption", "captions")


def table_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and columns of each record of a .csv, .tsv or .jsonl file.

    Raises:
        ValueError: A line has not the fields of the heading, or is no JSON object.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_record(line, where=f"{path}:{number}")
            return
        # Strict: an open quote would take all that follows for one caption.
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise ValueError(
                        f"{path}:{reader.line_num}: not the {len(reader.fieldnames or ())} fields of the heading; "
                        "put quotes around captions that hold a comma"
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise ValueError(
                f"{path}:{reader.line_num + 1}: {error}; a quote that opens a field must be closed at its end, and "
                "quotes within are doubled"
            ) from error


def _json_record(line: str, *, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object such as {{'image': ..., 'captions': [...]}}, found {line[:60]}")
    return record


def captions_of(value: Any, *, where: str) -> list[str]:
    """Return a cell of captions as a list.

    Raises:
        ValueError: It is neither a text nor a list of texts.
    """
    captions = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: captions must be a text or a list of texts, found {value!r}")
    return captions
