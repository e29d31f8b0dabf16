"""Folders and files that are whole or not there, whatever interrupts their writing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ASIDE, _REPLACED, _REMOVED = ".vlmo-aside", ".vlmo-replaced", ".vlmo-removed"


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Yields a new empty folder, which takes the name `target` when the block ends well, in the place of any before it.

    A crash at any moment leaves `target` as it was, missing at worst (only when one folder replaces another, for the
    time between two renames; the next write brings it back), never in part. What a crash leaves beside it begins with a
    dot. An exception leaves `target` as it was, and nothing beside it.
    """
    target = target.resolve()  # a link to a folder stays a link
    aside, replaced = path_aside(target), _hidden(target, _REPLACED)
    if replaced.exists() and not target.exists():
        replaced.replace(target)  # the last write ended between its two renames
    for leftover in (aside, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _flush_to_disk(path)
        if target.exists():
            target.replace(replaced)  # a folder that holds files cannot be replaced in one go
        aside.replace(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # it may have filled the disk
        if replaced.exists() and not target.exists():
            replaced.replace(target)
        raise
    _flush_to_disk(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def path_aside(target: Path) -> Path:
    """Where `write_folder` lets a folder grow; for other processes that write into it."""
    return _hidden(target.resolve(), _ASIDE)


def remove_folder(target: Path) -> None:
    """Removes a folder in such an order that a crash never leaves half of it under its name."""
    doomed = _hidden(target, _REMOVED)
    target.replace(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Removes what crashes of the two functions above have left in `parent`."""
    for suffix in (_ASIDE, _REPLACED, _REMOVED):
        for leftover in parent.glob(f".*{suffix}"):
            shutil.rmtree(leftover)


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def write_file(path: Path, text: str) -> None:
    """Puts `text` into `path`: a crash leaves the old content or the new."""
    aside = path.with_name(f"{path.name}.aside")
    try:
        aside.write_text(text, encoding="utf-8")
        _flush_to_disk(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _flush_to_disk(path.parent)


def need_writable(folder: Path) -> None:
    """Makes the folder if need be.

    Raises:
        ValueError: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise ValueError(
            f"nothing can be written in {folder} ({error.strerror or error}); make room or give this user the right to,"
            " or name another folder"
        ) from None


def _flush_to_disk(path: Path) -> None:
    """Returns when the file, or the names in the folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
