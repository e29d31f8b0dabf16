"""Tables of captions and metadata (.csv, .tsv and .jsonl files), and the names of columns in all that people bring."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
TABLE_STEMS = ("captions", "metadata")
"""Names of a table beside its images; the first that is there is read."""

# The first of these columns that is there is read; some are img2dataset's.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "file_name", "path")
SECOND_IMAGE = "second_image"
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "txt", "TEXT")
SPLITS = {"training": "train", "val": "validation", "valid": "validation"} | {
    name: name for name in ("train", "validation", "test")
}
"""Names of folders and files of splits."""
MAX_TEXT = 10_000
MAX_CAPTIONS = 1000
"""Characters of a text, and captions of an image, that are read. In an index the captions of an image have so many
characters together, and its columns too."""


def column_of(names: Collection[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the wanted columns that is there; None without any."""
    return next((name for name in wanted if name in names), None)


def file_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold files (images, sounds) in the form of `datasets`: bytes and path."""
    return [field.name for field in schema if "bytes" in getattr(field.type, "names", ())]


def image_column(schema: pa.Schema) -> str | None:
    """Return the column of images, or of their paths; None without any."""
    files = file_columns(schema)
    return column_of(files, (*IMAGE_COLUMNS, *files)) or column_of(schema.names, IMAGE_COLUMNS)


def find_table(folder: Path) -> Path | None:
    """Return the table in a folder that names the images beside it, if any; ValueError for several of one name."""
    for stem in TABLE_STEMS:
        files = [folder / f"{stem}{suffix}" for suffix in TABLE_SUFFIXES]
        tables = list(filter(Path.is_file, files))
        if len(tables) > 1:
            names = " and ".join(table.name for table in tables)
            raise ValueError(f"{folder}: {names}; keep one, or name the file itself")
        for table in tables:
            _, columns = next(table_records(table), (0, {}))
            # A file called metadata may be about anything.
            if stem == "captions" or column_of(columns, IMAGE_COLUMNS):
                return table
    return None


def tables_of(path: Path) -> list[Path]:
    """Return the table that `path` is or holds, or those of its folders of splits; ValueError if one has none."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in TABLE_SUFFIXES else []
    if table := find_table(path):
        return [table]
    tables = []
    without = []
    for folder in sorted(path.iterdir()):
        if folder.name.lower() in SPLITS and folder.is_dir():
            table = find_table(folder)
            if table is None:
                without.append(folder)
            else:
                tables.append(table)
    if tables and without:
        raise ValueError(
            f"{without[0]} has no table such as {tables[0]} beside its images; add one, or move the folder"
        )
    return tables


def table_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and columns of the records of a .csv, .tsv or .jsonl file; ValueError for a broken line."""
    # Spreadsheets put a mark of byte order in front, which is no part of the first name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_record(line, where=f"{path}:{number}")
            return
        # Spreadsheets of many countries separate the fields of a .csv by semicolons.
        heading = file.readline()
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;", key=heading.count)
        advice = (
            f"put quotes around captions that hold {delimiter!r}, and double quotes within them"
        )
        # Strict: an open quote would take all that follows for one caption.
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    number = len(reader.fieldnames or ())
                    raise ValueError(
                        f"{path}:{reader.line_num}: not the {number} fields of the heading; {advice}"
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num + 1}: {error}; {advice}") from error


def _json_record(line: str, *, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{where}: expected an object such as {{'image': ..., 'captions': [...]}}, found {line[:60]}"
        )
    return record


def captions_of(value: object, *, where: str) -> list[str]:
    """Return a cell of captions as a list; ValueError if it is neither a text nor a list of texts."""
    captions = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(
            f"{where}: captions must be a text or a list of texts, found {value!r:.60}"
        )
    return captions


def cut_text(text: str, most: int = MAX_TEXT) -> str:
    """Return a text; of one with more characters the first, and an ellipsis at their end."""
    return text if len(text) <= most else f"{text[: max(0, most - 1)]}…"[:most]


def cut_texts(
    captions: Sequence[str], columns: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return captions and columns of an image whose texts have at most `MAX_TEXT` characters, of either together.

    The longest are cut; captions for which no character is left are left out, and columns empty.
    """
    kept = tuple(filter(None, _cut_longest(captions[:MAX_CAPTIONS])))
    return kept, dict(zip(columns, _cut_longest([*columns.values()]), strict=True))


def _cut_longest(values: Sequence[Any]) -> list[Any]:
    cut = list(values)
    left = MAX_TEXT
    texts = [place for place, value in enumerate(values) if isinstance(value, str)]
    # From the shortest on, so that only long texts lose characters.
    for place in sorted(texts, key=lambda place: len(values[place])):
        cut[place] = cut_text(values[place], left)
        left -= len(cut[place])
    return cut
