"""Runs a preparer: reads its parts in several processes, validates each row, and writes the prepared folder.

Each part becomes one Arrow file in `OUT.unfinished`, with all its records, bad ones too. A run that was interrupted
goes on with the parts that are not there yet. At the end `OUT` is written of these files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, Value, concatenate_datasets

from vlmo.data.loader import start_workers
from vlmo.data.prepare.parts import Absent, BadRow, Part, Record, SetOnDisk
from vlmo.data.rows import SUMMARY_FILE, arrow_table, select_rows, to_lines
from vlmo.data.validation import ImageValidator, Verdict, image_columns
from vlmo.folder.atomic import LOCK_FILE, atomic_file, lock_folder, write_folder
from vlmo.progress import Progress

MANY_BAD = 0.01
"""Share of quarantined rows above which the report warns; `filter_invalid_rows` stops a run at the same share."""
QUARANTINE_FILE = "quarantine.jsonl"
LAYOUT = 1

_SPLIT_ORDER = ("train", "validation", "test")
_BATCH_ROWS = 1000
_BATCH_BYTES = 1 << 26
"""Rows are written when so many wait: Arrow's binary columns hold at most 2 GB in a batch."""
_FILE_SIZE = "256MB"
_IMAGE = {"bytes": Value("binary"), "path": Value("string")}  # `datasets` puts files into what is an `Image` to it
_FACTS = {
    "_split": Value("string"),
    "_absent": Value("bool"),
    "_reason": Value("string"),
    "_captions": Value("int32"),
    "_empty": Value("string"),
}
"""Columns of a part beside those of the set: why a record gives no row, number of captions, numbers of empty ones."""


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    Attributes:
        removed_captions: Empty captions that were taken out of rows that stayed.
        absent: Records that are left out, such as a link that could not be downloaded, by reason.
        expected: The published size, if there is one.
        shared_with_train: Rows whose unique column has a value that is in "train" too.
        licences: Rows by their terms.
    """

    rows: int = 0
    captions: int = 0
    quarantined: int = 0
    removed_captions: int = 0
    absent: dict[str, int] = field(default_factory=dict)
    expected: int | None = None
    shared_with_train: int = 0
    licences: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The contents of a prepared folder: `layout` is its version, `sources` the folders that it was read from.

    `already`: the folder was there before, so that nothing was done.
    """

    name: str
    folder: Path
    layout: int
    licence: str
    sources: list[str]
    splits: dict[str, SplitSummary]
    labels: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    already: bool = False

    HEADER = ("split", "rows", "captions", "quarantined", "known size")

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table below `HEADER`: a line for each split."""
        table: list[tuple[str, ...]] = []
        for split, counts in self.splits.items():
            numbers = (counts.rows, counts.captions, counts.quarantined, counts.expected)
            table.append((split, *("" if number is None else f"{number:,}" for number in numbers)))
        return table

    def lines(self) -> list[str]:
        """Return warnings, notes, the terms, and where the folder is."""
        warnings, notes, terms = [], list(self.notes), Counter[str]()
        for split, counts in self.splits.items():
            bad, total = counts.quarantined, counts.rows + counts.quarantined
            if counts.expected is not None and counts.rows != counts.expected:
                known = f"{counts.rows:,} rows" + (f" ({bad:,} quarantined)" if bad else "")
                warnings.append(f"{split} has {known}; the whole set has {counts.expected:,}")
            if bad > MANY_BAD * total:
                warnings.append(f"{bad / total:.1%} of {split} cannot be used; quarantine.jsonl says why")
            if counts.shared_with_train:
                warnings.append(f"{counts.shared_with_train:,} rows of {split} are in train too")
            notes += [f"{split}: {count:,} records left out: {reason}" for reason, count in counts.absent.items()]
            if count := counts.removed_captions:
                notes.append(f"{split}: {count:,} empty captions removed; quarantine.jsonl lists them")
            terms.update(counts.licences)
        rows = ", ".join(f"{licence} {count:,}" for licence, count in terms.most_common())
        done = "was prepared before and is as it was; remove it to prepare it anew" if self.already else "is ready"
        return [
            *(f"warning: {warning}" for warning in warnings),
            *(f"note: {note}" for note in notes),
            *([f"labels: {len(self.labels):,}"] if self.labels else []),
            f"licence: {self.licence}" + (f" ({rows})" if len(terms) > 1 else ""),
            f"{self.folder} {done}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `prepared.json`."""
        facts = dataclasses.asdict(self) | {"quarantined": sum(each.quarantined for each in self.splits.values())}
        return {name: value for name, value in facts.items() if name not in ("folder", "already")}

    @classmethod
    def from_json(cls, facts: dict[str, Any], *, folder: Path) -> Summary:
        """Return the summary of a folder that was prepared before."""
        names = ("name", "layout", "licence", "labels", "sources", "notes")
        splits = {split: SplitSummary(**counts) for split, counts in facts["splits"].items()}
        return cls(folder=folder, splits=splits, already=True, **{name: facts[name] for name in names})


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
        summary = Summary.from_json(json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8")), folder=out)
        held = f"{summary.name} from {', '.join(summary.sources)} (layout {summary.layout})"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{out / SUMMARY_FILE} is no summary of a prepared folder ({error!r}); choose another --out, or remove it"
        ) from error
    if held != (asked := f"{name} from {root} (layout {LAYOUT})"):
        raise ValueError(f"{out} holds {held}, not {asked}; choose another --out, or remove it")
    return summary


@dataclass(frozen=True)
class _PartWriter(torch.utils.data.Dataset):
    """Reads, validates and writes parts, in a worker; gives the number of records, or the error."""

    name: str
    features: Features
    needs_image: bool
    needs_caption: bool

    def __getitem__(self, job: tuple[Path, Part]) -> int | Exception:
        file, part = job
        try:
            if not file.exists():
                self._write(file, part)
            with pa.memory_map(str(file)) as source:
                return sum(batch.num_rows for batch in pa.ipc.open_stream(source))
        except (ValueError, OSError, LookupError) as error:
            return error

    def _write(self, file: Path, part: Part) -> None:
        images = image_columns(self.features)
        validate = ImageValidator(images if self.needs_image else [])
        stored = {name: _IMAGE if isinstance(feature, Image) else feature for name, feature in self.features.items()}
        schema = Features({**stored, **_FACTS}).arrow_schema
        waiting, size = [], 0
        with atomic_file(file) as aside, aside.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for record in part.rows():
                waiting.append(self._validated(record, validate))
                size += sum(len(cell["bytes"] or b"") for name in images if (cell := waiting[-1].get(name)))
                if len(waiting) >= _BATCH_ROWS or size > _BATCH_BYTES:
                    writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                    waiting, size = [], 0
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))

    def _validated(self, record: Record, validate: ImageValidator) -> dict[str, Any]:
        facts: dict[str, Any] = {"_split": record.split, "_absent": False}
        if isinstance(record, Absent):
            return facts | {"_absent": True, "_reason": record.reason}
        if isinstance(record, BadRow):
            cells = {"image": {"bytes": None, "path": record.path}, "image_id": record.image_id, "source": self.name}
            return facts | cells | {"_reason": record.reason}
        values = record.values
        if values.keys() != self.features.keys():
            raise KeyError(f"row {values['image_id']} has columns {list(values)}; expected {list(self.features)}")
        verdict = Verdict.of(values, faults=validate(values), needs_caption=self.needs_caption)
        if verdict.reason is not None:
            image = values["image"] and {"bytes": None, "path": values["image"]["path"]}
            cells = {"image": image, "image_id": values["image_id"], "source": values["source"]}
            return facts | cells | {"_reason": verdict.reason}
        captions = verdict.kept(values["captions"])
        counts = {"_captions": len(captions), "_empty": json.dumps(verdict.empty) if verdict.empty else None}
        return values | facts | counts | {"captions": captions}


def _write_parts(found: SetOnDisk, *, name: str, folder: Path, num_proc: int, progress: Progress) -> list[Path]:
    """Return the parts' files in order, each of them written now or by an interrupted run."""
    writer = _PartWriter(name, found.features, found.needs_image, found.needs_caption)
    files: list[Path] = []

    def jobs() -> Iterator[tuple[Path, Part]]:
        for number, part in enumerate(found.parts):
            facts = f"{LAYOUT} {writer} {part.key}"
            files.append(folder / f"{number:06}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.arrow")
            yield files[-1], part

    num_parts, records = len(found.parts), 0
    if not num_parts:
        raise ValueError(f"there are no rows of {name} below --root")
    progress.update(name, 0, num_parts)
    results = start_workers(writer, sampler=jobs(), num_workers=num_proc if num_proc > 1 else 0)
    try:
        for done, result in enumerate(results, start=1):
            if isinstance(result, Exception):
                raise result
            records += result
            progress.update(name, done, num_parts, note=f"{records:,} rows")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "a process ended without a word, most often for want of memory. Finished parts are kept: run the same "
            f"again, with fewer processes than {num_proc}."
        ) from error
    return files


def _assemble(files: list[Path], found: SetOnDisk, *, name: str, root: Path, out: Path) -> Summary:
    """Write the folder `out` from the parts; ValueError if no row is valid."""
    rows: Any = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    unique = found.unique
    columns = [*_FACTS, "licence", *([unique] if unique else [])]
    facts: Any = arrow_table(rows, columns).to_pandas(strings_to_categorical=True)
    present, valid = ~facts["_absent"], facts["_reason"].isna()
    repeated = facts[valid].duplicated(["_split", unique]) if unique else facts[valid]["_absent"]
    kept = valid & ~repeated.reindex(facts.index, fill_value=False)
    if not kept.any():
        reasons = facts["_reason"][present & ~valid].tolist()
        for file in files:  # what is bad may be repaired
            file.unlink()
        why = f"the first one: {reasons[0]}" if reasons else "there are none"
        raise ValueError(f"{root}: not one row of {name} can be used; {why}")
    names = {*facts["_split"].unique(), *found.known_sizes}
    order = [*(split for split in _SPLIT_ORDER if split in names), *sorted(names.difference(_SPLIT_ORDER))]
    trained = facts[unique][kept & (facts["_split"] == "train")] if unique else []
    splits: dict[str, Dataset] = {}
    lines, summaries = [], {}
    for split in order:
        own = facts["_split"] == split
        chosen = facts[own & kept]
        flagged = facts.index[own & present & (~kept | facts["_empty"].notna())]
        numbers = (own & present).cumsum() - 1  # of rows in the split as it was read
        for row, cells in zip(flagged.tolist(), rows.select(flagged.tolist()), strict=True):
            reason = cells["_reason"]
            if reason is None and not kept[row]:
                reason = f"{unique} {cells[unique or 'image_id']} repeats that of an earlier row"
            verdict = Verdict(reason, json.loads(cells["_empty"] or "[]"))
            lines += verdict.lines(cells, number=int(numbers[row]), split=split)
        absent, licences = (counted.value_counts() for counted in (facts["_reason"][own & ~present], chosen["licence"]))
        summaries[split] = SplitSummary(
            rows=len(chosen),
            captions=int(chosen["_captions"].sum()),
            quarantined=int((own & present & ~kept).sum()),
            removed_captions=sum(len(json.loads(empty)) for empty in chosen["_empty"].dropna()),
            absent={reason: int(count) for reason, count in absent.items() if count},
            expected=found.known_sizes.get(split),
            shared_with_train=int(chosen[unique].isin(trained).sum()) if unique and split != "train" else 0,
            licences={licence: int(count) for licence, count in licences.items() if count},
        )
        if len(chosen):
            splits[split] = select_rows(rows.select_columns(list(found.features)), chosen.index.tolist())
    summary = Summary(
        name, out, LAYOUT, found.licence, [str(root)], summaries, labels=found.labels, notes=list(found.notes)
    )
    with write_folder(out) as folder:
        DatasetDict(cast(Any, splits)).save_to_disk(str(folder), max_shard_size=_FILE_SIZE)
        for split in splits:
            DatasetInfo(features=found.features).write_to_directory(str(folder / split))
        (folder / QUARANTINE_FILE).write_text(to_lines(lines), encoding="utf-8")
        text = json.dumps(summary.to_json(), indent=2, ensure_ascii=False)
        (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    return summary
