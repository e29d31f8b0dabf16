"""Folders that `datasets` saved, and files of data that may be damaged."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vlmo.data.listing import regular_file
from vlmo.data.tables import SPLITS

if TYPE_CHECKING:
    from datasets import Dataset

SAVED_FILES = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes of a `Dataset` and of a `DatasetDict`; a folder with one is a saved set."""
ADVICE = "save, copy or prepare the set again"
_MAX_BYTES = 1 << 24  # of the files beside the rows
# Other types and depths than expected, and what Arrow finds in the rows.
_ERRORS = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError, MemoryError)


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
    return {split if named.count(name) > 1 else name: folder / split for split, name in zip(kept, named, strict=True)}


def _is_empty(folder: Path) -> bool:
    with contextlib.suppress(OSError, *_ERRORS):  # damage is found by whoever opens this split
        return json.loads(read_about(folder / "state.json"))["_data_files"] == []
    return False


def open_saved(folder: Path) -> Dataset:
    """Open the rows of a split; ValueError if it is damaged, or empty, which `datasets` itself cannot read."""
    from datasets import Dataset  # takes a second

    if _is_empty(folder):
        raise ValueError(f"{folder}: the set is empty, it has no row")
    with naming_damage(folder, advice=ADVICE):
        files = [each["filename"] for each in json.loads(read_about(folder / "state.json"))["_data_files"]]
        if lost := [name for name in files if Path(name).name != name or not (folder / name).is_file()]:
            raise ValueError(f"{len(lost)} of {len(files)} files are not in it, such as {lost[0]!r:.80}")
        read_about(folder / "dataset_info.json")  # `datasets` reads it whatever its size
        dataset = Dataset.load_from_disk(str(folder))
        dataset.data.table.validate(full=True)  # an offset outside the file would be read
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
    except (OSError, pa.ArrowException, *_ERRORS) as error:
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"{where} is damaged ({kind}{error}); {advice}") from error
