"""Run a preparer: read its items in several processes, validate all rows, and write the prepared folder.

A chunk of items becomes one Arrow file in `OUT.unfinished`, with all its records, bad ones too. A run that was
interrupted goes on with the chunks that are not there yet. At the end `OUT` is written of these files.

`Dataset.from_generator(num_proc=)` starts anew after an interruption, and `filter` drops a row without a line in the
quarantine file that says why.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Value, concatenate_datasets

from vlmo.data.loader import start_workers
from vlmo.data.prepare.preparer import BadRow, Record, SetOnDisk
from vlmo.data.rows import SUMMARY_FILE, arrow_table, select_rows, to_lines
from vlmo.data.schema import RowValues
from vlmo.data.validation import ImageValidator, image_columns
from vlmo.folder.atomic import LOCK_FILE, atomic_file, lock_folder, write_folder
from vlmo.progress import Progress

LAYOUT = 2
MANY_BAD = 0.01
"""Share of quarantined rows above which the report warns; `filter_invalid_rows` stops a run at the same share."""
QUARANTINE_FILE = "quarantine.jsonl"

_SPLIT_RANKS = {"train": 0, "validation": 1, "test": 2}
"""Order of the splits; others stand after them."""
_BATCH_ROWS = 64
"""Rows that are written together: Arrow's binary columns hold at most 2 GB in a batch."""
_FILE_SIZE = "256MB"
# `datasets` puts files into what is an `Image` to it.
_IMAGE = {"bytes": Value("binary"), "path": Value("string")}
_FACTS = {"_split": Value("string"), "_captions": Value("int32"), "_line": Value("string")}
"""Columns of a chunk beside those of the set.

`_captions` is the number of captions that a row has, and missing where a record is quarantined;
`_line` is the record's line of the quarantine file.
"""


@dataclass(frozen=True)
class Summary:
    """The contents of a prepared folder, as its `prepared.json` holds them.

    Attributes:
        source: The folder that it was read from.
        splits: Numbers of rows, captions and quarantined records by split, and the number of rows
            that is known from the publication; 0 if nothing is known.
    """

    name: str
    source: str
    licence: str
    splits: dict[str, dict[str, int]]
    labels: list[str] | None
    notes: list[str]
    layout: int = LAYOUT

    @classmethod
    def read(cls, folder: Path, *, name: str, root: Path) -> Summary:
        """Read the summary of a folder; ValueError if it has another layout, set or source."""
        file = folder / SUMMARY_FILE
        try:
            summary = cls(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file} is damaged ({error!r}); choose another --out, or remove it"
            ) from error
        if (summary.name, summary.source) != (name, str(root)):
            raise ValueError(
                f"{folder} holds {summary.name} from {summary.source}; choose another --out, or remove it"
            )
        return summary

    def lines(self) -> list[str]:
        """Return warnings, notes and the terms."""
        warnings = []
        for split, counts in self.splits.items():
            rows, _, quarantined, known = counts.values()
            if known not in {0, rows}:
                warnings.append(f"{split} has {rows:,} rows; the whole set has {known:,}")
            if quarantined > MANY_BAD * (rows + quarantined):
                share = f"{quarantined / (rows + quarantined):.1%}"
                warnings.append(f"{share} of {split} cannot be used; {QUARANTINE_FILE} says why")
        labels = [f"labels: {len(self.labels):,}"] if self.labels else []
        warnings = [f"warning: {text}" for text in warnings]
        notes = [f"note: {text}" for text in self.notes]
        return [*labels, *warnings, *notes, f"licence: {self.licence}"]


def prepare_set(
    name: str,
    open_set: Callable[[Path], SetOnDisk],
    *,
    root: Path,
    out: Path,
    num_proc: int = 1,
    progress: Progress | None = None,
) -> Summary:
    """Prepare the set that `open_set` finds below `root`; arguments and ValueError as `vlmo.data.prepare.prepare`."""
    if num_proc < 1:
        raise ValueError(f"num_proc {num_proc} must be at least 1")
    root = Path(root).expanduser().absolute()
    out = Path(out).expanduser().absolute()
    unfinished = out.with_name(f"{out.name}.unfinished")
    if root.is_relative_to(out):
        raise ValueError(f"--out {out} holds --root {root}; choose a new folder")
    if (out / SUMMARY_FILE).is_file():
        done = Summary.read(out, name=name, root=root)
        shutil.rmtree(unfinished, ignore_errors=True)
        return done
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"{out} exists and is not empty; choose a new folder for --out, or remove it"
        )
    with lock_folder(unfinished, work=f"preparing {out}"):
        try:
            progress = progress or Progress(None)
            progress.update(name, 0, None)
            source = open_set(root)
            files = _write_chunks(
                source, name=name, folder=unfinished, num_proc=num_proc, progress=progress
            )
            summary = _assemble(files, source, name=name, root=root, out=out)
        except BaseException:
            if [entry.name for entry in unfinished.iterdir()] == [LOCK_FILE]:
                shutil.rmtree(unfinished)  # no work to keep
            raise
        shutil.rmtree(unfinished)
        return summary


def _write_chunks(
    source: SetOnDisk, *, name: str, folder: Path, num_proc: int, progress: Progress
) -> list[Path]:
    """Return the chunks' files in order, all of them written now or by an interrupted run."""
    total = math.ceil(sum(1 for _ in source.items()) / source.chunk)
    if not total:
        raise ValueError(f"there are no rows of {name} below --root")
    files: list[Path] = []

    def jobs() -> Iterator[tuple[Path, list[Any]]]:
        rules = (LAYOUT, name, source.features, source.needs_image, source.needs_caption)
        items = iter(source.items())
        while chunk := list(itertools.islice(items, source.chunk)):
            # A chunk whose items or rules have changed gets another name, and is read again.
            digest = hashlib.sha256(repr((rules, source.key, chunk)).encode()).hexdigest()
            files.append(folder / f"{len(files):06}-{digest[:16]}.arrow")
            yield files[-1], chunk

    records = 0
    progress.update(name, 0, total)
    # As it is sent to other processes.
    writer = _ChunkWriter(name, replace(source, items=list))
    results = start_workers(writer, sampler=jobs(), num_workers=num_proc if num_proc > 1 else 0)
    for done, result in enumerate(results, start=1):
        if isinstance(result, Exception):
            raise result
        records += result
        progress.update(name, done, total, note=f"{records:,} rows")
    return files


@dataclass(frozen=True)
class _ChunkWriter(torch.utils.data.Dataset):
    name: str
    source: SetOnDisk

    def __getitem__(self, job: tuple[Path, list[Any]]) -> int | Exception:
        """Return the number of records of a chunk, or the error that reading its items gives."""
        file, chunk = job
        try:
            if not file.exists():
                self._write(file, chunk)
            with pa.memory_map(str(file)) as source:
                return pa.ipc.open_stream(source).read_all().num_rows
        except (ValueError, OSError, LookupError) as error:
            return error

    def _write(self, file: Path, chunk: list[Any]) -> None:
        features = self.source.features
        images = image_columns(features)
        validate = ImageValidator(images if self.source.needs_image else [])
        stored = {**features, **dict.fromkeys(images, _IMAGE), **_FACTS}
        schema = Features(stored).arrow_schema
        rows = (self._validated(record, validate) for record in self.source.read(chunk))
        with (
            atomic_file(file) as aside,
            aside.open("wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            while batch := list(itertools.islice(rows, _BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))

    def _validated(self, record: Record, validate: ImageValidator) -> RowValues:
        """Return the row of a chunk for a record."""
        if isinstance(record, BadRow):
            image = {"path": record.path}
            row = {"image_id": record.image_id, "image": image, "source": self.name}
            faults = [record.reason]
            captions = []
        else:
            row = record.values
            captions = [caption for caption in row["captions"] if caption and caption.strip()]
            faults = self._faults(row, captions, validate)
        split = record.split
        if faults:
            return {"_split": split, "_line": _line("row", row, "; ".join(faults), split=split)}
        facts = {"captions": captions, "_split": split, "_captions": len(captions)}
        if removed := len(row["captions"]) - len(captions):
            reason = f"{removed} empty captions removed, the row is kept"
            facts["_line"] = _line("caption", row, reason, split=split)
        return row | facts

    def _faults(self, row: RowValues, captions: list[str], validate: ImageValidator) -> list[str]:
        expected = self.source.features.keys()
        if row.keys() != expected:
            raise KeyError(
                f"row {row['image_id']} has columns {list(row)}; expected {list(expected)}"
            )
        faults = [] if row["image_id"] else ["image_id is empty"]
        faults += validate(row)
        if self.source.needs_caption and not captions:
            faults.append("every caption is empty" if row["captions"] else "the row has no caption")
        return faults


def _line(kind: str, row: RowValues, reason: str, *, split: str) -> str:
    facts = {"kind": kind, "split": split, "image_id": row["image_id"]}
    path = row["image"]["path"] if row["image"] else None
    return to_lines([{**facts, "path": path, "source": row["source"], "reason": reason}])


def _assemble(files: list[Path], source: SetOnDisk, *, name: str, root: Path, out: Path) -> Summary:
    """Write the prepared folder of the chunks' files, without quarantined records."""
    rows: Any = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    columns = [*_FACTS, source.unique] if source.unique else list(_FACTS)
    facts: Any = arrow_table(rows, columns).to_pandas(strings_to_categorical=True)
    kept = facts["_captions"].notna()
    lines = facts["_line"].dropna().tolist()
    if source.unique:
        valid = facts[kept]
        # The first row of equal ones is kept; a repeat in another split is none.
        repeats = valid.index[valid.duplicated(["_split", source.unique])].tolist()
        kept[repeats] = False
        for row in rows.select(repeats):
            reason = f"{source.unique} {row[source.unique]} repeats that of an earlier row"
            lines.append(_line("row", row, reason, split=row["_split"]))
    if not kept.any():
        for file in files:  # what is bad may be repaired
            file.unlink()
        reason = f"the first one: {json.loads(lines[0])['reason']}" if lines else "there are none"
        raise ValueError(f"{root}: not one row of {name} can be used; {reason}")
    rows = rows.select_columns(list(source.features))
    counts = {}
    splits = DatasetDict()
    names = {*facts["_split"].unique(), *source.known_sizes}
    for split in sorted(names, key=lambda name: (_SPLIT_RANKS.get(name, 3), name)):
        is_here = facts["_split"] == split
        captions = facts["_captions"][is_here & kept]
        counts[split] = {
            "rows": len(captions),
            "captions": int(captions.sum()),
            "quarantined": int((is_here & ~kept).sum()),
            "known": source.known_sizes.get(split, 0),
        }
        if len(captions):
            splits[split] = select_rows(rows, captions.index.tolist())
    summary = Summary(
        name, str(root), source.licence, counts, labels=source.labels, notes=list(source.notes)
    )
    _write_prepared(out, splits, summary, features=source.features, lines=lines)
    return summary


def _write_prepared(
    out: Path, splits: DatasetDict, summary: Summary, *, features: Features, lines: list[str]
) -> None:
    """Write a prepared folder: its splits, the quarantine file and the summary."""
    with write_folder(out) as folder:
        splits.save_to_disk(str(folder), max_shard_size=_FILE_SIZE)
        for split in splits:
            # Without what `datasets` notes of its cache files, which are those of one machine.
            DatasetInfo(features=features).write_to_directory(str(folder / str(split)))
        (folder / QUARANTINE_FILE).write_text("".join(lines), encoding="utf-8")
        text = json.dumps(asdict(summary), indent=2, ensure_ascii=False)
        (folder / SUMMARY_FILE).write_text(f"{text}\n", encoding="utf-8")
