"""What lies where people point to: picture files, shards and saved data sets, on a disk or in an object store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
from braceexpand import braceexpand

from vlmo.data.decoding import read_path
from vlmo.data.listing import IMAGE_SUFFIXES, SHARD_SUFFIXES

Kind = Literal["file", "shard", "dataset"]

_MAGIC = frozenset("*?[{")
_SAVED = ("state.json", "dataset_dict.json")
# What object stores call the time or the version of a file.
_VERSIONS = ("etag", "ETag", "mtime", "LastModified", "last_modified", "updated", "generation", "created")
_ID_LENGTH = 24


@dataclass(frozen=True)
class Found:
    """One file with a picture, one shard, or one saved data set.

    Attributes:
        place: Absolute path or URI.
        origin: The input that led there.
        kind: What it is.
        stamp: Changes when the content does, as far as its size and time tell.
        size: In bytes.
        root: The folder below which names count, for a table of metadata.
    """

    place: str
    origin: str
    kind: Kind
    stamp: str
    size: int
    root: str


def picture_id(place: str) -> str:
    """The id of the picture of a file, or of a record "SHARD#KEY"."""
    return hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]


def is_remote(place: str) -> bool:
    """Whether it is a URI."""
    return "://" in place


def as_origin(given: str) -> str:
    """An input as it is remembered: a URI, or an absolute path, which may hold wildcards."""
    if given.startswith("file://"):
        given = given.removeprefix("file://")
    return given if is_remote(given) else os.path.abspath(Path(given).expanduser())  # noqa: PTH100 (links stay)


def find(origin: str) -> Iterator[Found]:
    """Everything below an input, in the order of names.

    Args:
        origin: What `as_origin` gave: a folder, a file, a pattern of either, or a folder that `datasets` saved. Where
            a pattern matches what is nothing of ours, or has a dot before its name, it is passed over, as in a folder.

    Raises:
        ValueError: There is nothing, or something that holds no pictures by its name.
    """
    files, path = _file_system(origin)
    if is_remote(origin):
        yield from _find_remote(files, path, origin=origin)
        return
    if os.path.lexists(origin) or _MAGIC.isdisjoint(origin):
        yield from _find_local(Path(origin), origin=origin)
        return
    matches = sorted({match for pattern in _alternatives(origin) for match in files.glob(pattern)})
    if not matches:
        raise ValueError(f"{origin} matches nothing; give folders, pictures, .tar or .parquet files that are there")
    for path in map(Path, matches):
        if path.is_dir() and not path.name.startswith("."):
            yield from _below(path, origin=origin, root=path, above=frozenset())
        elif path.is_file() and (kind := _kind(str(path), beside=matches)) is not None:
            yield _local(path, kind=kind, origin=origin, root=path.parent)


def was_deleted(origin: str) -> bool:
    """Whether an input of an earlier run was one file, and only this file is gone, not the disk that it was on."""
    path = Path(origin)
    if (
        is_remote(origin)
        or not _MAGIC.isdisjoint(origin)
        or path.exists()
        or _kind(f"a{path.suffix}", beside=()) is None
    ):
        return False
    return path.parent.is_dir() and any(path.parent.iterdir())


def read_place(place: str) -> bytes:
    """The bytes of a file, or of a piece of one (`range_path`).

    Raises:
        OSError: It cannot be read.
    """
    if not is_remote(place):
        return read_path(place)
    files, path = _file_system(place)
    return files.cat_file(path)


def _file_system(place: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{place} cannot be opened: {error}") from error


def _alternatives(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{pattern}: its braces do not match ({error})") from error


# -------------------------------------------------------------------------------------------------------------- disks


def _find_local(path: Path, *, origin: str) -> Iterator[Found]:
    if not path.exists():
        raise ValueError(f"there is nothing at {path}; give a folder, a picture, or a .tar or .parquet file")
    if path.is_file():
        yield _local(path, kind=_named_kind(str(path)), origin=origin, root=path.parent)
        return
    yield from _below(path, origin=origin, root=path, above=frozenset())


def _below(folder: Path, *, origin: str, root: Path, above: frozenset[tuple[int, int]]) -> Iterator[Found]:
    """Follows links to folders, but never into a folder that it is in already."""
    if saved := [folder / name for name in _SAVED if (folder / name).is_file()]:
        size = sum(file.stat().st_size for file in folder.rglob("*.arrow"))
        yield Found(str(folder), origin, "dataset", _stamp_of_saved(folder, saved[0]), size, str(root))
        return
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        path = folder / name
        kind = _kind(name, beside=names)
        try:
            if path.is_dir():
                yield from _below(path, origin=origin, root=root, above=above | {here})
            elif kind is not None and path.is_file():
                yield _local(path, kind=kind, origin=origin, root=root)
        except FileNotFoundError:
            continue  # it went away while we looked


def _local(path: Path, *, kind: Kind, origin: str, root: Path) -> Found:
    status = path.stat()
    stamp = f"{status.st_size}-{status.st_mtime_ns}"
    return Found(str(path), origin, kind, stamp, status.st_size, str(root))


def _stamp_of_saved(folder: Path, told: Path) -> str:
    parts = [told.read_bytes(), *(file.read_bytes() for file in sorted(folder.glob("*/state.json")))]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:_ID_LENGTH]


# ------------------------------------------------------------------------------------------------------ object stores


def _find_remote(files: Any, path: str, *, origin: str) -> Iterator[Found]:
    try:
        if not _MAGIC.isdisjoint(path):
            details: dict[str, dict] = {}
            for pattern in _alternatives(path):
                details |= files.glob(pattern, detail=True)
        else:
            details = files.find(path, detail=True)
    except OSError as error:
        raise ValueError(f"{origin} cannot be listed: {error}") from error
    names = sorted(name for name, info in details.items() if info.get("type", "file") == "file")
    beside = set(names)
    found = [(name, kind) for name in names if (kind := _kind(name, beside=beside)) is not None]
    if not names:
        raise ValueError(f"there is nothing at {origin}; give a folder, a picture, or a .tar or .parquet file")
    for name, kind in found:
        info = details[name]
        versions = "-".join(str(info[key]) for key in _VERSIONS if info.get(key) is not None)
        size = int(info.get("size") or 0)
        root = files.unstrip_protocol(path if name != path else path.rpartition("/")[0])
        yield Found(files.unstrip_protocol(name), origin, kind, f"{size}-{versions}", size, root)


def _kind(name: str, *, beside: Any) -> Kind | None:
    """What a file of a folder is by its name; None: nothing of ours."""
    if name.rpartition("/")[2].startswith("."):
        return None
    stem, dot, suffix = name.rpartition(".")
    suffix = f"{dot}{suffix}".lower()
    if suffix in IMAGE_SUFFIXES:
        return "file"
    # Beside each tar, img2dataset leaves a parquet file that tells of it and holds no pictures.
    beside_tar = suffix == ".parquet" and f"{stem}.tar" in beside
    return "shard" if suffix in SHARD_SUFFIXES and not beside_tar else None


def _named_kind(name: str) -> Kind:
    """That of a file which is named outright, also with a dot before it."""
    kind = _kind(name.rpartition("/")[2].lstrip("."), beside=())
    if kind is None:
        raise ValueError(
            f"{name} is no picture by its name ({', '.join(sorted(IMAGE_SUFFIXES))}) and no shard "
            f"({', '.join(SHARD_SUFFIXES)})"
        )
    return kind
