"""Tables of captions and metadata: .csv, .tsv and .jsonl files."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

_MARKS = {",": "comma", ";": "semicolon", "\t": "tab"}
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
TABLE_STEMS = ("captions", "metadata", "questions", "sentences", "labels")
"""Names of a table beside its images; the first that is there is read."""

IMAGE_COLUMNS = ("image", "file_name", "path")
SECOND_COLUMNS = ("second_image", "image_2")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "txt", "TEXT")
"""The first of these columns that a table has is read; the last two are img2dataset's."""
SPLITS = {"training": "train", "val": "validation", "valid": "validation"} | {
    name: name for name in ("train", "validation", "test")
}
"""Names of folders and files of splits."""


def column_of(names: Collection[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the wanted columns that is there; None without any."""
    return next((name for name in wanted if name in names), None)


def find_table(folder: Path, *, stems: Sequence[str] = TABLE_STEMS) -> Path | None:
    """Return the table in a folder that names the images beside it, if any; ValueError for several of one name."""
    for stem in stems:
        found = [file for suffix in TABLE_SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()]
        if len(found) > 1:
            raise ValueError(
                f"{folder}: {' and '.join(file.name for file in found)}; keep one, or name the file itself"
            )
        if found and (stem == TABLE_STEMS[0] or _names_images(found[0])):
            return found[0]
    return None


def tables_of(path: Path) -> list[Path]:
    """Return the table that `path` is or holds, or those of its folders of splits; ValueError if one has none."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in TABLE_SUFFIXES else []
    if table := find_table(path):
        return [table]
    parts = [each for each in sorted(path.iterdir()) if each.name.lower() in SPLITS and each.is_dir()]
    tables = {part: find_table(part) for part in parts}
    found = [table for table in tables.values() if table]
    if found and len(found) < len(parts):
        without = next(part for part, table in tables.items() if table is None)
        raise ValueError(f"{without} has no table such as {found[0]} beside its images; add one, or move the folder")
    return found


def _names_images(file: Path) -> bool:
    record = next(table_records(file), (0, {}))[1]
    return column_of(record, IMAGE_COLUMNS) is not None


def table_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and columns of each record of a .csv, .tsv or .jsonl file; ValueError for a broken line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_record(line, where=f"{path}:{number}")
            return
        # Strict: an open quote would take all that follows for one caption.
        heading = file.readline()
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;", key=heading.count)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise ValueError(
                        f"{path}:{reader.line_num}: not the {len(reader.fieldnames or ())} fields of the heading; "
                        f"put quotes around captions that hold a {_MARKS[delimiter]}"
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
    """Return a cell of captions as a list; ValueError if it is neither a text nor a list of texts."""
    captions = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: captions must be a text or a list of texts, found {value!r}")
    return captions
