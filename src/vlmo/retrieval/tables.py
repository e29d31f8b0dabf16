"""Tables that say more about pictures of a folder: captions, and columns of metadata."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlmo.data.tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    TABLE_NAMES,
    TABLE_SUFFIXES,
    captions_of,
    table_records,
)
from vlmo.retrieval.columns import clean_metadata, read_texts
from vlmo.retrieval.store import RESERVED


class Told(NamedTuple):
    """What a table says of a picture."""

    captions: tuple[str, ...]
    metadata: dict[str, Any]


NOTHING = Told((), {})


@dataclass(frozen=True)
class Unmatched:
    """Names in tables that no picture has.

    Attributes:
        number: How many.
        total: How many names there are in all.
        example: One of them.
        table: The table that it stands in.
    """

    number: int
    total: int
    example: str
    table: Path


def unmatched(tables: Iterable[MetadataTable]) -> Unmatched | None:
    """What tables say of pictures that nobody has asked for; None if there is nothing."""
    tables = list(tables)
    strangers = [(name, table.path) for table in tables for name in table.strangers()]
    if not strangers:
        return None
    return Unmatched(len(strangers), sum(map(len, tables)), *strangers[0])


class MetadataTable:
    """Captions and columns by the name of a picture: its path below the folder, or the file's name alone.

    Several lines about one picture give it several captions; of other columns the last line counts.

    Args:
        path: .csv, .tsv or .jsonl with a column `image` or `file_name`.

    Raises:
        ValueError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
            raise ValueError(f"{path}: expected a table of metadata, a {', '.join(sorted(TABLE_SUFFIXES))} file")
        self.path = path
        try:
            records = [record for _, record in table_records(path)]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}: not a table: {error}") from error
        if path.suffix.lower() != ".jsonl" and records:
            records = _read_columns(records)
        self._rows: dict[str, Told] = {}
        self._asked: set[str] = set()
        for number, record in enumerate(records, start=1):
            self._add(record, where=f"{path}, record {number}")

    def __len__(self) -> int:
        return len(self._rows)

    def about(self, name: str) -> Told:
        """What it says of the picture of this path below its folder."""
        for known in (name, name.rpartition("/")[2]):
            if known in self._rows:
                self._asked.add(known)
                return self._rows[known]
        return NOTHING

    def strangers(self) -> list[str]:
        """Names that no picture had that was asked about."""
        return [name for name in self._rows if name not in self._asked]

    def _add(self, record: Mapping[str, Any], *, where: str) -> None:
        image = next((record[name] for name in IMAGE_COLUMNS if record.get(name)), None)
        if not isinstance(image, str):
            raise ValueError(f"{where}: no picture is named; a column {' or '.join(IMAGE_COLUMNS)} tells its file")
        captions = [
            caption
            for name in CAPTION_COLUMNS
            for caption in captions_of(record.get(name), where=where)
            if caption.strip()
        ]
        others = {name: value for name, value in record.items() if name not in (*IMAGE_COLUMNS, *CAPTION_COLUMNS)}
        name = image.strip().removeprefix("./")
        before = self._rows.get(name, NOTHING)
        metadata = {**before.metadata, **clean_metadata(others, reserved=RESERVED)}
        self._rows[name] = Told((*before.captions, *captions), metadata)


def table_of_folder(folder: Path) -> MetadataTable | None:
    """The table that lies in a folder under one of the names that training reads too; None if there is none.

    Raises:
        ValueError: There are several, or it cannot be read.
    """
    there = [folder / name for name in TABLE_NAMES if (folder / name).is_file()]
    if len(there) > 1:
        raise ValueError(f"{folder}: {' and '.join(table.name for table in there)}; keep one")
    return MetadataTable(there[0]) if there else None


def _read_columns(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers where every cell of a column is one; names and captions stay texts."""
    names = [name for name in records[0] if name not in (*IMAGE_COLUMNS, *CAPTION_COLUMNS)]
    columns = {name: read_texts([record[name] for record in records]) for name in names}
    return [{**record, **{name: columns[name][row] for name in names}} for row, record in enumerate(records)]
