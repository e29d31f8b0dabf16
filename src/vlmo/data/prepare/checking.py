"""One part of a set: its rows are read and looked at, good ones go into Arrow files, bad ones into a list."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, Image
from datasets.arrow_writer import ArrowWriter

from vlmo.data.prepare.parts import Absent, BadRow, Part, Row
from vlmo.data.quarantine import PictureCheck, inspect_row
from vlmo.folder import write_folder

_COUNTS_FILE = "counts.json"
_LINES_FILE = "quarantine.jsonl"

_BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 26
"""Rows are written when so many wait: Arrow's binary columns hold at most 2 GB in a batch."""


@dataclass
class Tally:
    """What became of the records of one split in one part.

    Attributes:
        read: Good and bad rows.
        dropped: Numbers of the bad rows, from 0.
        captions: Of the good rows.
        removed_captions: Empty ones, of good rows.
        absent: How many records never were there, by reason.
    """

    read: int = 0
    dropped: list[int] = field(default_factory=list)
    captions: int = 0
    removed_captions: int = 0
    absent: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Good rows."""
        return self.read - len(self.dropped)


@dataclass(frozen=True)
class Rules:
    """What makes a row good; see `SetOnDisk`."""

    name: str
    features: Features
    needs_image: bool
    needs_caption: bool


def check_part(part: Part, *, rules: Rules, folder: Path) -> dict[str, Tally]:
    """Reads the part, or finds that `folder` holds it already; counts by split.

    `folder` then holds `SPLIT.arrow` for each split with good rows, and a line for each bad row. It is whole or not
    there.
    """
    if (tallies := _kept(folder)) is not None:
        return tallies
    tallies, lines = {}, []
    pictures = PictureCheck() if rules.needs_image else None
    with write_folder(folder) as aside, contextlib.ExitStack() as stack:
        files: dict[str, _RowFile] = {}
        for record in part.rows():
            tally = tallies.setdefault(record.split, Tally())
            if isinstance(record, Absent):
                tally.absent[record.reason] = tally.absent.get(record.reason, 0) + 1
                continue
            values, found = _inspected(record, rules=rules, pictures=pictures, number=tally.read)
            lines += found
            _count(tally, values, found)
            if values is None:
                continue
            if record.split not in files:
                files[record.split] = _RowFile(arrow_file(aside, record.split), features=rules.features)
                stack.callback(files[record.split].close)
            files[record.split].write(values)
        again = part.pictures_apart and any(tally.dropped for tally in tallies.values())
        _write_counts(aside, tallies, lines, again=again)
    return tallies


def arrow_file(folder: Path, split: str) -> Path:
    """Where a part's good rows of one split are."""
    return folder / f"{split}.arrow"


def bad_lines(folder: Path, split: str) -> list[dict[str, Any]]:
    """Lines of the quarantine file for one split; `row` counts from 0 in this part."""
    with (folder / _LINES_FILE).open(encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if line["split"] == split]


def _write_counts(folder: Path, tallies: dict[str, Tally], lines: list[dict[str, Any]], *, again: bool) -> None:
    with (folder / _LINES_FILE).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    counts = {split: dataclasses.asdict(tally) for split, tally in tallies.items()}
    (folder / _COUNTS_FILE).write_text(json.dumps({"again": again, "splits": counts}), encoding="utf-8")


def _kept(folder: Path) -> dict[str, Tally] | None:
    """Counts of a part that an interrupted run has left; None where it is to be read (again)."""
    if not (folder / _COUNTS_FILE).is_file():
        return None
    counts = json.loads((folder / _COUNTS_FILE).read_text(encoding="utf-8"))
    return None if counts["again"] else {split: Tally(**tally) for split, tally in counts["splits"].items()}


def _count(tally: Tally, values: dict[str, Any] | None, lines: list[dict[str, Any]]) -> None:
    if values is None:
        tally.dropped.append(tally.read)
    else:
        tally.captions += len(values["captions"])
        tally.removed_captions += len(lines)
    tally.read += 1


def _inspected(
    record: Row | BadRow, *, rules: Rules, pictures: PictureCheck | None, number: int
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The row's columns without empty captions (None: the row is bad), and lines for what is dropped."""
    facts: dict[str, Any] = {"split": record.split, "row": number}
    if isinstance(record, BadRow):
        facts |= {"image_id": record.image_id, "path": record.path, "source": rules.name}
        return None, [{"kind": "row", **facts, "reason": record.reason}]
    values = record.values
    images = [name for name, feature in rules.features.items() if isinstance(feature, Image)]
    verdict = inspect_row(values, needs_caption=rules.needs_caption, pictures=pictures, images=images)
    first = values[images[0]] if images else None
    facts |= {"image_id": values["image_id"], "path": first["path"] if first else None, "source": values["source"]}
    if verdict["reason"] is not None:
        return None, [{"kind": "row", **facts, "reason": verdict["reason"]}]
    if verdict["captions"] is None:
        return values, []
    lines = [
        {"kind": "caption", **facts, "reason": f"caption {place} is empty; removed, the row is kept"}
        for place, caption in enumerate(values["captions"], start=1)
        if not caption or not caption.strip()
    ]
    return values | {"captions": verdict["captions"]}, lines


class _RowFile:
    """An Arrow file that grows by rows. Pictures on the disk stay where they are; only their paths are written."""

    def __init__(self, file: Path, *, features: Features) -> None:
        self._schema = features.arrow_schema
        self._images = [name for name, feature in features.items() if isinstance(feature, Image)]
        self._writer = ArrowWriter(path=str(file), features=features)
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, values: dict[str, Any]) -> None:
        """Adds one row, which must have all columns in Arrow's own types: the number of a class, and not its name."""
        if values.keys() != set(self._schema.names):
            raise KeyError(f"row {values['image_id']} has columns {list(values)}; expected {self._schema.names}")
        self._waiting.append(values)
        self._bytes += sum(len(cell["bytes"] or b"") for name in self._images if (cell := values[name]))
        if len(self._waiting) >= _BATCH_ROWS or self._bytes > _BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Ends the file."""
        if self._waiting:
            self._flush()
        self._writer.finalize()

    def _flush(self) -> None:
        # `Features.encode_example` would take two thirds of the time that a text row takes.
        self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting, self._bytes = [], 0
