"""Atomic writes of files and folders: a crash leaves the old content or the new, never a part. One writer a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError

from vlmo.released.download import cache_folder

LOCK_FILE = ".lock"
_ASIDE = ".vlmo-aside"
_REPLACED = ".vlmo-replaced"
_REMOVED = ".vlmo-removed"


@contextlib.contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Yield a new empty folder, which takes the name `target` when the block ends without an error.

    A crash leaves `target` as it was, or, between the two renames by which one folder replaces
    another, missing until the next write; names that it leaves beside begin with a dot. An
    exception leaves nothing beside `target`.

    Raises:
        OSError: The system refused a file in the block; the error names `target`.
    """
    # A link to a folder stays a link.
    target = target.resolve()
    aside = path_aside(target)
    replaced = _hidden(target, _REPLACED)
    if replaced.exists() and not target.exists():
        # The last write ended between its two renames.
        replaced.replace(target)
    for leftover in (aside, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    try:
        with naming_refusal(target):
            yield aside
        # A rename may reach the disk before the content of the files.
        for path in [*aside.rglob("*"), aside]:
            _flush_to_disk(path)
        if target.exists():
            # A folder that holds files cannot be replaced in one rename.
            target.replace(replaced)
        aside.replace(target)
    except BaseException:
        # What was written may have filled the disk.
        shutil.rmtree(aside, ignore_errors=True)
        if replaced.exists() and not target.exists():
            replaced.replace(target)
        raise
    _flush_to_disk(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which takes the name `target` when the block ends without an error."""
    aside = target.with_name(f"{target.name}.aside")
    try:
        # A link of that name would be followed.
        aside.unlink(missing_ok=True)
        with naming_refusal(target):
            yield aside
            _flush_to_disk(aside)
        aside.replace(target)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    _flush_to_disk(target.parent)


def system_error(error: BaseException | None) -> OSError | None:
    """Return what the system refused, of an error of Python's, PyTorch's or safetensors'; None of any other."""
    while error is not None:
        if isinstance(error, OSError):
            return error if error.errno else None
        if isinstance(error, SafetensorError):
            match = re.search(r"\(os error (\d+)\)", str(error))
            if match:
                number = int(match[1])
                return OSError(number, os.strerror(number))
        # torch.save raises a RuntimeError of its own while the system's is handled.
        error = error.__context__ if isinstance(error, RuntimeError) else None
    return None


@contextlib.contextmanager
def naming_refusal(target: Path) -> Iterator[None]:
    """Raise OSError with the name `target` where a write is refused: a full disk is reported without one."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        refused = system_error(error)
        if refused is None or refused.filename is not None:
            raise
        raise OSError(refused.errno, refused.strerror, str(target)) from error


def write_file(path: Path, text: str) -> None:
    """Write a text file in one atomic write."""
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def cached_file(kind: str, *facts: object) -> Path:
    """Return the file in the cache folder for a result that follows from these facts and this version alone."""
    # Another version may compute something else from the same facts.
    digest = hashlib.sha256(repr((version("vlmo"), facts)).encode()).hexdigest()
    return cache_folder() / kind / digest[:32]


def keep_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a `cached_file`, perhaps while other processes do; a cache that cannot be written is left alone."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            aside = Path(folder) / file.name
            write(aside)
            _flush_to_disk(aside)
            aside.replace(file)


def path_aside(target: Path) -> Path:
    """Return the folder that `write_folder` fills before the rename; for other processes that write into it."""
    return _hidden(target.resolve(), _ASIDE)


def remove_folder(target: Path) -> None:
    """Remove a folder so that a crash never leaves a part of it under its name."""
    doomed = _hidden(target, _REMOVED)
    target.replace(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Remove folders that crashes during `write_folder` and `remove_folder` have left in `parent`."""
    for suffix in (_ASIDE, _REPLACED, _REMOVED):
        for leftover in parent.glob(f".*{suffix}"):
            shutil.rmtree(leftover)


def lock_folder(folder: Path, *, work: str) -> AcquireReturnProxy:
    """Lock the folder for this `work` until the context or the process ends; ValueError if another process does it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # The system frees the lock of a process that is killed.
        return FileLock(folder / LOCK_FILE).acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder}: another process is {work}; wait for it") from error


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _flush_to_disk(path: Path) -> None:
    # Folders too: a rename is on the disk when its folder is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
