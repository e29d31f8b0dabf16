"""Rows of data sets: columns, folders that `datasets` saved, and quarantine files, whose lines say what is unusable.

This file does without `datasets`, which takes a second to import, and like `pyarrow` belongs to an extra.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from vlmo.data.listing import regular_file
from vlmo.data.sampler import stable_id
from vlmo.data.tables import SPLITS
from vlmo.folder.atomic import naming_refusal

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

QuarantineLine: TypeAlias = dict[str, Any]
"""Line of a quarantine file, as `filter_invalid_rows` and `Bad.line` describe it."""
SUMMARY_FILE = "prepared.json"
"""The summary of a prepared folder, beside the folders of its splits."""
SAVED_FILES = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes of a `Dataset` and of a `DatasetDict`; a folder with one is a saved set."""
ADVICE = "save, copy or prepare the set again"
# Of the files beside the rows.
_MAX_BYTES = 1 << 24
# Other types and depths than expected.
_ERRORS = (
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def column(dataset: Dataset, name: str) -> list[Any]:
    """Return every value of one column; no other column is read."""
    return arrow_table(dataset, [name])[name].to_pylist()


def arrow_table(dataset: Dataset, names: Sequence[str]) -> pa.Table:
    """Return columns as they lie in the files; chosen rows are copied. Twenty times as fast as row by row."""
    return cast("Dataset", dataset.select_columns(list(names))).with_format("arrow")[:]


def select_rows(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """Return these rows in this order; images are not copied."""
    # The library's decorators hide the type of what comes back.
    return cast("Dataset", dataset.select(rows))


def false_captions(rows: Dataset) -> list[list[str]]:
    """Return the false versions of the captions of all rows, "" where there is none; ValueError for more or fewer."""
    counts = [len(texts or ()) for texts in column(rows, "captions")]
    if "false_captions" not in rows.column_names:
        return [[""] * count for count in counts]
    false = []
    for row, (texts, count) in enumerate(zip(column(rows, "false_captions"), counts, strict=True)):
        false.append([(text or "").strip() for text in texts or [""] * count])
        if len(false[row]) != count:
            raise ValueError(
                f"sample {row} has {count} captions and {len(false[row])} false_captions; give as many or none"
            )
    return false


def is_saved(folder: Path) -> bool:
    """Return True for a folder that `save_to_disk` wrote of a `Dataset` or a `DatasetDict`."""
    return any((folder / name).is_file() for name in SAVED_FILES)


def saved_splits(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits that have rows, by name; empty where it is itself a split, or not a saved set.

    `val` and the like are called as in `SPLITS`, unless another split has that name. ValueError if the list of splits
    is damaged, or none has rows.
    """
    file = folder / "dataset_dict.json"
    if not file.is_file():
        return {}
    with naming_damage(file, advice=ADVICE):
        splits = json.loads(read_about(file))["splits"]
        if outside := [split for split in splits if Path(split).name != split or split == ".."]:
            raise ValueError(f"{outside[0]!r:.80} is no folder in it")
        kept = [split for split in splits if not _is_empty(folder / split)]
    if not kept:
        raise ValueError(f"{folder}: the set is empty, it has no row")
    named = [SPLITS.get(split.lower(), split) for split in kept]
    return {
        split if named.count(name) > 1 else name: folder / split
        for split, name in zip(kept, named, strict=True)
    }


def _is_empty(folder: Path) -> bool:
    # Whoever opens this split reports damage.
    with contextlib.suppress(OSError, *_ERRORS):
        return json.loads(read_about(folder / "state.json"))["_data_files"] == []
    return False


def open_saved(folder: Path) -> Dataset:
    """Open the rows of a split; ValueError if it is damaged, or empty, which `datasets` itself cannot read."""
    from datasets import Dataset  # takes a second

    if _is_empty(folder):
        raise ValueError(f"{folder}: the set is empty, it has no row")
    with naming_damage(folder, advice=ADVICE):
        state = json.loads(read_about(folder / "state.json"))
        names = [file["filename"] for file in state["_data_files"]]
        lost = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if lost:
            raise ValueError(
                f"{len(lost)} of {len(names)} files are not in it, such as {lost[0]!r:.80}"
            )
        # `datasets` reads it whatever its size.
        read_about(folder / "dataset_info.json")
        dataset = Dataset.load_from_disk(str(folder))
        # An offset outside the file would be read.
        dataset.data.table.validate(full=True)
        return dataset


def read_about(file: Path) -> bytes:
    """Read a file beside the rows; OSError for a pipe, a device or one that is too large."""
    if (size := regular_file(file).st_size) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"{size:,} bytes; at most {_MAX_BYTES:,} are read", str(file))
    return file.read_bytes()


@contextlib.contextmanager
def naming_damage(where: Path, *, advice: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a ValueError that names it and says what to do."""
    try:
        yield
    except Exception as error:  # those of Arrow too
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"{where} is damaged ({kind}{error}); {advice}") from error


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used (kind "row"), or the end of what can be read of a shard ("shard")."""

    kind: str
    shard: str
    index: int
    key: str
    reason: str

    def line(self) -> QuarantineLine:
        """Return its line of the quarantine file."""
        return {
            "kind": self.kind,
            "row": self.index,
            "image_id": _as_utf8(self.key),
            "path": _as_utf8(self.shard),
            "reason": self.reason,
        }


def _as_utf8(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


class QuarantineFile:
    """Appends lines as bad records are met; a record that has a line, from another epoch or start, gets no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[int] | None = None

    def add(self, records: Iterable[Bad]) -> None:
        """Append a line a record, unless it has one."""
        if self._known is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._known = {_identity(line) for line in read_lines(self._path)}
        lines = {_identity(record.line()): record.line() for record in records}
        new = {name: line for name, line in lines.items() if name not in self._known}
        if new:
            with naming_refusal(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(to_lines(list(new.values())))
            self._known.update(new)


def read_lines(path: Path) -> list[QuarantineLine]:
    """Read the lines of an earlier run; half a line, left by a kill, is removed. A missing file is made."""
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
    with naming_damage(path, advice="remove it"):
        return [{**json.loads(line)} for line in whole.splitlines()]


def first_reasons(lines: Iterable[QuarantineLine]) -> str:
    """Return the first reasons for invalid rows in a sentence; those that are alike once."""
    reasons: dict[str, str] = {}
    counts = Counter[str]()
    for line in lines:
        if line["kind"] != "caption":
            # Sizes and names in parentheses differ from row to row.
            start = line["reason"].removeprefix(f"{line['path']}: ").partition("(")[0]
            reasons.setdefault(start, line["reason"])
            counts[start] += 1
    parts = []
    for start, reason in itertools.islice(reasons.items(), 3):
        parts.append(f"{reason} (and {counts[start] - 1} more)" if counts[start] > 1 else reason)
    if len(reasons) > 3:
        parts.append("...")
    return "; ".join(parts)


def to_lines(lines: Sequence[QuarantineLine]) -> str:
    """Return the text of a quarantine file."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _identity(line: QuarantineLine) -> int:
    return stable_id(f"{line['kind']} {line['row']} {line['image_id']} {line['path']}")
