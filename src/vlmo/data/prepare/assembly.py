"""Checked parts to the prepared folder: repeated rows out, few files, a summary."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features
from datasets.arrow_writer import ArrowWriter
from jaxtyping import Bool, Int
from numpy import ndarray

from vlmo.data.prepare.checking import Tally, arrow_file, bad_lines
from vlmo.data.prepare.parts import Preparer, SetOnDisk
from vlmo.data.prepare.summary import SplitSummary, Summary
from vlmo.folder import write_folder

SUMMARY_FILE = "prepared.json"
QUARANTINE_FILE = "quarantine.jsonl"
LAYOUT = 1

_SPLIT_ORDER = ("train", "validation", "test")
_JOINED_BYTES = 1 << 28
"""Files of parts are joined up to this size; a bigger one stays a file of its own, and is not copied."""


@dataclass
class _Piece:
    """One split's records in one part.

    Attributes:
        folder: Of the part.
        first: Number of its first row in the split, counted before bad rows were dropped.
        repeats: Good rows that are dropped because they repeat an earlier one, by their place among the good ones.
    """

    folder: Path
    split: str
    tally: Tally
    first: int
    repeats: Int[ndarray, " row"]

    def rows(self) -> Dataset:
        """The good rows, as they are on the disk."""
        return Dataset.from_file(str(arrow_file(self.folder, self.split)))

    def values(self, column: str) -> pa.ChunkedArray:
        """One column of the good rows without repeats; nothing else is read from the disk."""
        if not self.tally.kept:
            return pa.chunked_array([], type=pa.string())
        return self.rows().data.column(column).filter(pa.array(self.mask()))

    def mask(self) -> Bool[ndarray, " row"]:
        """Which good rows stay."""
        stays = np.ones(self.tally.kept, dtype=bool)
        stays[self.repeats] = False
        return stays

    def places(self) -> Int[ndarray, " row"]:
        """Number of each good row in the split as it was read."""
        return self.first + np.delete(np.arange(self.tally.read), self.tally.dropped)


def check_target(out: Path, *, root: Path) -> None:
    """Raise ValueError where `out` cannot become the prepared folder without a loss."""
    if root.is_relative_to(out):
        raise ValueError(f"--out {out} holds --root {root}; choose a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; choose a new folder for --out, or remove it")


def open_prepared(out: Path, *, name: str, root: Path) -> Summary | None:
    """Summary of what `out` holds already; None if it is no prepared folder.

    Raises:
        ValueError: Another set, from another root or in an older layout is there.
    """
    if not (out / SUMMARY_FILE).is_file():
        return None
    try:
        facts = json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))
        held = f"{facts['name']} from {', '.join(facts['sources'])} (layout {facts['layout']})"
        if (facts["name"], facts["layout"], facts["sources"]) == (name, LAYOUT, [str(root)]):
            return Summary.from_json(facts, folder=out)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{out / SUMMARY_FILE} is no summary of a prepared folder ({error!r}); choose another --out, or remove it"
        ) from error
    raise ValueError(
        f"{out} holds {held}, not {name} from {root} (layout {LAYOUT}); choose another --out, or remove it"
    )


def assemble(
    checked: Sequence[tuple[Path, dict[str, Tally]]], *, preparer: Preparer, found: SetOnDisk, root: Path, out: Path
) -> Summary:
    """Writes the folder `out` from the parts' folders and their counts.

    Raises:
        ValueError: No row is good.
    """
    splits = _pieces(checked)
    if not any(piece.tally.kept for pieces in splits.values() for piece in pieces):
        raise ValueError(_nothing_good(splits, name=preparer.NAME, root=root))
    if found.unique is not None:
        for pieces in splits.values():
            _mark_repeats(pieces, unique=found.unique)
    summary = Summary(
        name=preparer.NAME,
        folder=out,
        layout=LAYOUT,
        licence=preparer.LICENCE,
        sources=(str(root),),
        splits=_counts(splits, preparer=preparer, found=found),
        labels=found.labels,
        notes=found.notes,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_folder(out) as folder:
        written = [split for split, counts in summary.splits.items() if counts.rows]
        for split in written:
            _write_split(splits[split], features=found.features, split=split, folder=folder / split)
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": written}), encoding="utf-8")
        with (folder / QUARANTINE_FILE).open("w", encoding="utf-8") as file:
            for piece in itertools.chain.from_iterable(splits.values()):
                lines = _lines(piece, unique=found.unique)
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        text = json.dumps(summary.to_json(), indent=2, ensure_ascii=False)
        (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    return summary


def _pieces(checked: Sequence[tuple[Path, dict[str, Tally]]]) -> dict[str, list[_Piece]]:
    splits: dict[str, list[_Piece]] = {}
    for folder, tallies in checked:
        for split, tally in tallies.items():
            pieces = splits.setdefault(split, [])
            first = pieces[-1].first + pieces[-1].tally.read if pieces else 0
            none = np.zeros(0, dtype=np.int64)
            pieces.append(_Piece(folder=folder, split=split, tally=tally, first=first, repeats=none))
    return {split: splits[split] for split in _in_order(splits)}


def _in_order(splits: Iterable[str]) -> list[str]:
    names = set(splits)
    return [*(split for split in _SPLIT_ORDER if split in names), *sorted(names.difference(_SPLIT_ORDER))]


def _nothing_good(splits: dict[str, list[_Piece]], *, name: str, root: Path) -> str:
    for pieces in splits.values():
        for piece in pieces:
            for line in bad_lines(piece.folder, piece.split):
                return f"{root}: not one row of {name} can be used; the first one: {line['reason']}"
    return f"{root}: there are no rows of {name} in it"


def _all_values(pieces: list[_Piece], column: str) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for piece in pieces for chunk in piece.values(column).chunks], type=pa.string())


def _is_in(values: pa.ChunkedArray, known: pa.Array | pa.ChunkedArray) -> Bool[ndarray, " row"]:
    return pc.call_function("is_in", [values], pc.SetLookupOptions(value_set=known)).to_numpy()


def _mark_repeats(pieces: list[_Piece], *, unique: str) -> None:
    """Finds rows whose value of `unique` an earlier row has. Only values that repeat become Python's."""
    counted = _all_values(pieces, unique).value_counts()
    repeated = counted.field("values").filter(pa.array(counted.field("counts").to_numpy() > 1))
    if not len(repeated):
        return
    seen: set[str] = set()
    for piece in pieces:
        values = piece.values(unique)
        repeats = []
        for place in np.flatnonzero(_is_in(values, repeated)).tolist():
            value = values[place].as_py()
            if value in seen:
                repeats.append(place)
            seen.add(value)
        piece.repeats = np.array(repeats, dtype=np.int64)


def _counts(splits: dict[str, list[_Piece]], *, preparer: Preparer, found: SetOnDisk) -> dict[str, SplitSummary]:
    known = preparer.KNOWN_SIZES if found.known_sizes is None else found.known_sizes
    train = _all_values(splits["train"], found.unique) if "train" in splits and found.unique else None
    counts = {}
    for split in _in_order([*splits, *known]):
        pieces = splits.get(split, [])
        shared = 0
        if train is not None and found.unique and split != "train":
            shared = int(_is_in(_all_values(pieces, found.unique), train).sum())
        absent: collections.Counter[str] = collections.Counter()
        for piece in pieces:
            absent.update(piece.tally.absent)
        kept = sum(piece.tally.kept - len(piece.repeats) for piece in pieces)
        counts[split] = SplitSummary(
            rows=kept,
            captions=sum(piece.tally.captions - _repeated_captions(piece) for piece in pieces),
            quarantined=sum(piece.tally.read for piece in pieces) - kept,
            removed_captions=sum(piece.tally.removed_captions for piece in pieces),
            absent=dict(absent),
            expected=known.get(split),
            shared_with_train=shared,
        )
    return counts


def _repeated_captions(piece: _Piece) -> int:
    if not len(piece.repeats):
        return 0
    lengths = pc.call_function("list_value_length", [piece.rows().data.column("captions")])
    return int(lengths.to_numpy()[piece.repeats].sum())


def _lines(piece: _Piece, *, unique: str | None) -> list[dict[str, Any]]:
    """Lines of the quarantine file, in the order of rows; `row` counts in the split as it was read."""
    lines = [line | {"row": piece.first + line["row"]} for line in bad_lines(piece.folder, piece.split)]
    if len(piece.repeats):
        rows, places = piece.rows(), piece.places()
        for place in piece.repeats.tolist():
            row = rows[place]
            facts = {"split": piece.split, "row": int(places[place]), "image_id": row["image_id"]}
            facts |= {"path": row["image"]["path"] if row["image"] else None, "source": row["source"]}
            reason = f"{unique} {row[unique]} repeats that of an earlier row"
            lines.append({"kind": "row", **facts, "reason": reason})
    return sorted(lines, key=lambda line: line["row"])


def _write_split(pieces: list[_Piece], *, features: Features, split: str, folder: Path) -> None:
    """Files of rows, and what `datasets` needs to read them.

    `Dataset.save_to_disk` is not used: it puts every picture of the disk into the files.
    """
    folder.mkdir()
    content = hashlib.sha256()
    with contextlib.closing(_Files(folder, features=features)) as files:
        for piece in pieces:
            if piece.tally.kept:
                files.add(piece)
            content.update(f"{piece.folder.name} {piece.tally} {piece.repeats.tolist()}".encode())
    state = {
        "_data_files": [{"filename": name} for name in files.names],
        "_fingerprint": content.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
    DatasetInfo(features=features).write_to_directory(str(folder))


class _Files:
    """The Arrow files of a split: small ones joined, big ones taken over."""

    def __init__(self, folder: Path, *, features: Features) -> None:
        self.names: list[str] = []
        self._folder = folder
        self._features = features
        self._writer: ArrowWriter | None = None
        self._bytes = 0

    def add(self, piece: _Piece) -> None:
        """Appends the rows of a piece but the repeats."""
        file = arrow_file(piece.folder, piece.split)
        size = file.stat().st_size
        if self._bytes + size > _JOINED_BYTES:
            self.close()
        if size > _JOINED_BYTES and not len(piece.repeats):
            _link(file, self._next())
            return
        if self._writer is None:
            self._writer = ArrowWriter(path=str(self._next()), features=self._features)
        stays, start = piece.mask(), 0
        # Batch by batch: Arrow cannot take rows out of columns of more than 2 GB.
        for batch in piece.rows().data.to_batches():
            chosen = batch.filter(pa.array(stays[start : start + batch.num_rows]))
            self._writer.write_table(pa.Table.from_batches([chosen]))
            start += batch.num_rows
        self._bytes += size

    def close(self) -> None:
        """Ends the file that small ones are joined into."""
        if self._writer is not None:
            self._writer.finalize()
        self._writer, self._bytes = None, 0

    def _next(self) -> Path:
        self.names.append(f"data-{len(self.names):05}.arrow")
        return self._folder / self.names[-1]


def _link(file: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk knows no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
