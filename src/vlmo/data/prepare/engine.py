"""Runs a preparer: reads its parts in several processes, validates each row, and writes the prepared folder.

Each part becomes one Arrow file in `OUT.unfinished`, with all its records, bad ones too. A run that was interrupted
goes on with the parts that are not there yet. At the end the files are read once more, and `OUT` is written of them.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from datasets import DatasetInfo, Features
from jaxtyping import Bool, Int
from numpy import ndarray

from vlmo.data.loader import start_workers
from vlmo.data.prepare.parts import Absent, BadRow, Part, Record, SetOnDisk
from vlmo.data.prepare.summary import SplitSummary, Summary
from vlmo.data.quarantine import to_lines
from vlmo.data.rows import SUMMARY_FILE
from vlmo.data.validation import RowValidator, Verdict, image_columns, quarantine_lines, without_empty
from vlmo.folder.atomic import LOCK_FILE, atomic_file, lock_folder, write_folder
from vlmo.progress import Progress

_compute: Any = pyarrow.compute  # its functions are made when it is imported

QUARANTINE_FILE = "quarantine.jsonl"
LAYOUT = 1

_SPLIT_ORDER = ("train", "validation", "test")
_BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 26
"""Rows are written when so many wait: Arrow's binary columns hold at most 2 GB in a batch."""
_FILE_BYTES = 1 << 28
"""Size of a file of the prepared folder, about."""

_VALID, _BAD, _ABSENT = range(3)
_FACTS = (
    pa.field("_split", pa.string()),
    pa.field("_kind", pa.int8()),
    pa.field("_reason", pa.string()),
    pa.field("_empty", pa.list_(pa.int32())),
)
"""Columns of a part beside those of the set: split, validity, reason, and numbers of empty captions."""


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
    root, out = Path(root).expanduser().absolute(), Path(out).expanduser().absolute()
    unfinished = out.with_name(f"{out.name}.unfinished")
    if root.is_relative_to(out):
        raise ValueError(f"--out {out} holds --root {root}; choose a new folder")
    if out.exists() and not (out / SUMMARY_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; choose a new folder for --out, or remove it")
    with lock_folder(unfinished, work=f"preparing {out}"):
        try:
            summary = _open_prepared(out, name=name, root=root)
            if summary is None:
                progress = progress or Progress(None)
                progress.update(name, 0, None)
                found = open_set(root)
                files = _write_parts(found, name=name, folder=unfinished, num_proc=num_proc, progress=progress)
                summary = _assemble(files, found, name=name, root=root, out=out)
        except BaseException:
            if [entry.name for entry in unfinished.iterdir()] == [LOCK_FILE]:
                shutil.rmtree(unfinished)  # no part to keep
            raise
        shutil.rmtree(unfinished)
        return summary


def _open_prepared(out: Path, *, name: str, root: Path) -> Summary | None:
    """Return the summary of what `out` holds; None if it is no prepared folder, ValueError for that of another set."""
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
    asked = f"{name} from {root} (layout {LAYOUT})"
    raise ValueError(f"{out} holds {held}, not {asked}; choose another --out, or remove it")


# --------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _PartWriter(torch.utils.data.Dataset):
    """Reads, validates and writes parts, in a worker; gives the number of rows, or the error."""

    name: str
    features: Features
    needs_image: bool
    needs_caption: bool

    def __getitem__(self, job: tuple[Path, Part]) -> int | Exception:
        file, part = job
        try:
            return _rows_of(file, part) or self._write(file, part)
        except (ValueError, OSError, LookupError) as error:
            return error

    def _write(self, file: Path, part: Part) -> int:
        images = image_columns(self.features)
        validator = RowValidator(images=images if self.needs_image else [], needs_caption=self.needs_caption)
        schema = pa.schema([*self.features.arrow_schema, *_FACTS])
        with (
            atomic_file(file) as aside,
            aside.open("wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
        ):
            waiting: list[dict[str, Any]] = []
            size = count = 0
            for record in part.rows():
                waiting.append(self._validated(record, validator))
                count += not isinstance(record, Absent)
                size += sum(len(cell["bytes"] or b"") for name in images if (cell := waiting[-1].get(name)))
                if len(waiting) >= _BATCH_ROWS or size > _BATCH_BYTES:
                    writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                    waiting, size = [], 0
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
        return count

    def _validated(self, record: Record, validator: RowValidator) -> dict[str, Any]:
        if isinstance(record, Absent):
            return {"_split": record.split, "_kind": _ABSENT, "_reason": record.reason}
        if isinstance(record, BadRow):
            reason, image_id, source, path = record.reason, record.image_id, self.name, record.path
        else:
            values = record.values
            if values.keys() != self.features.keys():
                raise KeyError(f"row {values['image_id']} has columns {list(values)}; expected {list(self.features)}")
            verdict = validator(values)
            if verdict.reason is None:
                captions = without_empty(values["captions"], verdict)
                facts = {"_split": record.split, "_kind": _VALID, "_empty": verdict.empty}
                return values | facts | {"captions": captions}
            reason, image_id, source = verdict.reason, values["image_id"], values["source"]
            path = values["image"]["path"] if values["image"] else None
        facts = {"_split": record.split, "_kind": _BAD, "_reason": reason}
        return facts | {"image": {"bytes": None, "path": path}, "image_id": image_id, "source": source}


def _rows_of(file: Path, part: Part) -> int | None:
    """Return the number of rows of a part that an interrupted run has left; None where it is to be read (again)."""
    if not file.exists():
        return None
    kinds = np.concatenate([np.zeros(0), *(batch.column("_kind").to_numpy() for batch in _batches([file]))])
    return None if part.images_apart and (kinds == _BAD).any() else int((kinds != _ABSENT).sum())


def _write_parts(found: SetOnDisk, *, name: str, folder: Path, num_proc: int, progress: Progress) -> list[Path]:
    """Return the parts' files in order, each of them written now or by an interrupted run."""
    writer = _PartWriter(name, found.features, found.needs_image, found.needs_caption)
    files: list[Path] = []

    def jobs() -> Iterator[tuple[Path, Part]]:
        for number, part in enumerate(found.parts):
            facts = f"{LAYOUT} {writer} {part.key}"
            files.append(folder / f"{number:06}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.arrow")
            yield files[-1], part

    num_parts = len(found.parts) if isinstance(found.parts, Sized) else found.num_parts
    rows = 0
    progress.update(name, 0, num_parts)
    results = start_workers(writer, sampler=jobs(), num_workers=num_proc if num_proc > 1 else 0)
    try:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Exception):
                raise result
            rows += result
            progress.update(name, done, num_parts, note=f"{rows:,} rows")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "a process ended without a word, most often for want of memory. Finished parts are kept: run the same "
            f"again, with fewer processes than {num_proc}."
        ) from error
    return files


def _batches(files: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of parts, mapped into memory: only what is looked at is read from the disk."""
    for file in files:
        with pa.memory_map(str(file)) as source:
            yield from pa.ipc.open_stream(source)


# ------------------------------------------------------------------------------------------------------------ assembly


def _assemble(files: Sequence[Path], found: SetOnDisk, *, name: str, root: Path, out: Path) -> Summary:
    """Write the folder `out` from the parts; ValueError if no row is valid."""
    records = _read_records(files, unique=found.unique)
    splits = {split: _Split.of(records, split) for split in records["_split"].unique().to_pylist()}
    if not any(part.kept.any() for part in splits.values()):
        reasons = [reason for part in splits.values() for reason in part.reasons(_BAD)]
        if not reasons:
            raise ValueError(f"{root}: there are no rows of {name} in it")
        raise ValueError(f"{root}: not one row of {name} can be used; the first one: {reasons[0]}")
    names = splits.keys() | found.known_sizes.keys()
    order = [*(split for split in _SPLIT_ORDER if split in names), *sorted(names.difference(_SPLIT_ORDER))]
    counts = {split: SplitSummary(expected=found.known_sizes.get(split)) for split in order}
    for split, part in splits.items():
        counts[split] = replace(counts[split], **part.counts(None if split == "train" else splits.get("train")))
    summary = Summary(name, out, LAYOUT, found.licence, (str(root),), counts, found.labels, found.notes)
    with write_folder(out) as folder:
        written = [split for split in order if counts[split].rows]
        for split in written:
            mask = np.zeros(len(records), dtype=bool)
            mask[splits[split].rows[splits[split].kept]] = True
            _write_split(files, mask, features=found.features, split=split, folder=folder / split)
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": written}), encoding="utf-8")
        lines = (splits[split].quarantine_lines(split, unique=found.unique) for split in order if split in splits)
        (folder / QUARANTINE_FILE).write_text("".join(map(to_lines, lines)), encoding="utf-8")
        text = json.dumps(summary.to_json(), indent=2, ensure_ascii=False)
        (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    return summary


def _read_records(files: Sequence[Path], *, unique: str | None) -> pa.Table:
    """Return the small columns of all records, with `path` of the image, number of `captions`, and `key`.

    `key` is equal for equal values of the column `unique`.
    """
    kinds = {field.name: field.type for field in _FACTS} | dict.fromkeys(("image_id", "source", "licence"), pa.string())
    kinds |= {"path": pa.string(), "captions": pa.int32(), "num_empty": pa.int32()}
    kinds |= {} if unique is None else {unique: pa.string()}
    columns: dict[str, list[pa.Array]] = {name: [] for name in kinds}
    for batch in _batches(files):
        counts = {"captions": _lengths(batch["captions"]), "num_empty": _lengths(batch["_empty"])}
        cells = counts | {"path": _compute.struct_field(batch["image"], "path")}
        for name in kinds:
            columns[name].append(cells[name] if name in cells else batch[name])
    table = pa.table({name: pa.chunked_array(chunks, kinds[name]) for name, chunks in columns.items()})
    if unique is None:
        return table.append_column("key", pa.array(np.arange(len(table))))
    codes = table[unique].dictionary_encode().unify_dictionaries()
    return table.append_column(
        "key", pa.chunked_array([chunk.indices.fill_null(-1) for chunk in codes.chunks], pa.int32())
    )


def _lengths(lists: Any) -> Any:
    return _compute.fill_null(_compute.list_value_length(lists), 0)


class _Split(NamedTuple):
    """The records of one split.

    Attributes:
        records: What `_read_records` gives of them.
        rows: Their numbers among all records.
        kept: True for the rows that are written: valid ones, of equal values of the unique column the first.
    """

    records: pa.Table
    rows: Int[ndarray, " record"]
    kept: Bool[ndarray, " record"]

    @classmethod
    def of(cls, records: pa.Table, split: str) -> _Split:
        mask = _compute.equal(records["_split"], split)
        own, rows = records.filter(mask), np.flatnonzero(mask.to_numpy())
        kept = np.zeros(len(own), dtype=bool)
        valid = np.flatnonzero(own["_kind"].to_numpy() == _VALID)
        kept[valid[np.unique(own["key"].to_numpy()[valid], return_index=True)[1]]] = True
        return cls(own, rows, kept)

    def reasons(self, kind: int) -> list[str]:
        """Return the reasons of the records of a kind."""
        return self.records.filter(_compute.equal(self.records["_kind"], kind))["_reason"].to_pylist()

    def counts(self, train: _Split | None) -> dict[str, Any]:
        """Return the fields of `SplitSummary`; rows are compared with those of `train`."""
        absent, num_kept = self.reasons(_ABSENT), int(self.kept.sum())
        keys, captions, empty = (self.records[name].to_numpy()[self.kept] for name in ("key", "captions", "num_empty"))
        return {
            "rows": num_kept,
            "captions": int(captions.sum()),
            "licences": dict(collections.Counter(self.records["licence"].filter(self.kept).to_pylist()).most_common()),
            "quarantined": len(self.records) - len(absent) - num_kept,
            "removed_captions": int(empty.sum()),
            "absent": dict(collections.Counter(absent)),
            "shared_with_train": 0
            if train is None
            else int(np.isin(keys, train.records["key"].to_numpy()[train.kept]).sum()),
        }

    def quarantine_lines(self, split: str, *, unique: str | None) -> list[dict[str, Any]]:
        """Return the lines of the quarantine file, in the order of rows; `row` counts in the split as it was read."""
        present = np.flatnonzero(self.records["_kind"].to_numpy() != _ABSENT)
        flagged = np.flatnonzero(~self.kept[present] | (self.records["num_empty"].to_numpy()[present] > 0))
        lines = []
        for number, row in zip(flagged.tolist(), self.records.take(present[flagged]).to_pylist(), strict=True):
            reason = row["_reason"]
            if reason is None and not self.kept[present[number]]:
                reason = f"{unique} {row[unique or 'image_id']} repeats that of an earlier row"
            cells = {"image_id": row["image_id"], "image": {"path": row["path"]}, "source": row["source"]}
            lines += quarantine_lines(cells, Verdict(reason, row["_empty"] or []), split=split, row=number)
        return lines


def _write_split(
    files: Sequence[Path], mask: Bool[ndarray, " record"], *, features: Features, split: str, folder: Path
) -> None:
    """Write the rows of the mask, and what `datasets` needs to read them.

    `Dataset.save_to_disk` is not used: it puts every image of the disk into the files.
    """
    folder.mkdir()
    names: list[str] = []
    writer: pa.ipc.RecordBatchStreamWriter | None = None
    with contextlib.ExitStack() as stack:
        size, start = _FILE_BYTES, 0
        for batch in _batches(files):
            chosen = batch.select(list(features)).filter(pa.array(mask[start : start + batch.num_rows]))
            start += batch.num_rows
            if not chosen.num_rows:
                continue
            if writer is None or size >= _FILE_BYTES:
                stack.close()
                names.append(f"data-{len(names):05}.arrow")
                sink = stack.enter_context(pa.OSFile(str(folder / names[-1]), "wb"))
                writer = stack.enter_context(pa.ipc.new_stream(sink, features.arrow_schema))
                size = 0
            writer.write_batch(pa.RecordBatch.from_arrays(chosen.columns, schema=features.arrow_schema))
            size += chosen.nbytes
    content = hashlib.sha256(mask.tobytes())
    for file in files:
        content.update(file.name.encode())
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": content.hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
    DatasetInfo(features=features).write_to_directory(str(folder))
