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

if TYPE_CHECKING:
    from datasets import Dataset

ADVICE = "save, copy or prepare the set again"
_MAX_BYTES = 1 << 24  # of the files beside the rows
# Other types and depths than expected, and what Arrow finds in the rows.
_ERRORS = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError, MemoryError)


def saved_splits(folder: Path) -> list[str]:
    """Return the names of the splits in a folder; empty where it is itself one, or not a saved set.

    Raises:
        ValueError: The list of splits is damaged.
    """
    file = folder / "dataset_dict.json"
    if not file.is_file():
        return []
    with naming_damage(file, advice=ADVICE):
        splits = json.loads(read_about(file))["splits"]
        if outside := [split for split in splits if Path(split).name != split or split == ".."]:
            raise ValueError(f"{outside[0]!r:.80} is no folder in it")
        return list(splits)


def open_saved(folder: Path) -> Dataset | None:
    """Open the rows of a split; None without any, as then `datasets` writes no file and cannot read that itself.

    Raises:
        ValueError: It is damaged.
    """
    from datasets import Dataset  # takes a second

    with naming_damage(folder, advice=ADVICE):
        files = [each["filename"] for each in json.loads(read_about(folder / "state.json"))["_data_files"]]
        if lost := [name for name in files if Path(name).name != name or not (folder / name).is_file()]:
            raise ValueError(f"{len(lost)} of {len(files)} files are not in it, such as {lost[0]!r:.80}")
        if not files:
            return None
        read_about(folder / "dataset_info.json")  # `datasets` reads it whatever its size
        dataset = Dataset.load_from_disk(str(folder))
        dataset.data.table.validate(full=True)  # places outside the file would be read
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
