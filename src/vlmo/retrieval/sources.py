"""Inputs of an index: find images, videos, shards and saved data sets on a disk or in an object store; read them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from vlmo.data.decoding import MAX_FILE_BYTES, read_path
from vlmo.data.listing import (
    IMAGE_SUFFIXES,
    SHARD_SUFFIXES,
    UNREAD_SUFFIXES,
    expand_braces,
    has_wildcards,
    is_remote,
    is_visible,
    open_file_system,
    regular_file,
    walk,
    warn_of_skipped,
)
from vlmo.data.rows import SAVED_FILES, read_about
from vlmo.data.stream.records import Bad, Sample, read_shard
from vlmo.data.tables import TABLE_STEMS, find_table
from vlmo.retrieval.metadata import Annotation, MetadataTable, clean_metadata
from vlmo.retrieval.videos import VIDEO_SUFFIXES, read_key_frames

MAX_BYTES = 256_000_000
"""Largest file that is read as an image."""

Kind = Literal["file", "video", "shard", "dataset", "unreadable", "skipped"]

# What object stores call the time or the version of a file.
_VERSIONS = ("etag", "ETag", "mtime", "LastModified", "last_modified", "updated", "generation", "created")
_READERS = 8
_EXPECTED = "give a folder, an image, a video, or a .tar or .parquet file"


class Found(NamedTuple):
    """An image file, a video, a shard, a saved data set, or a folder that cannot be listed.

    Attributes:
        place: Absolute path or URI.
        origin: The input that led there.
        kind: "file", "video", "shard", "dataset" or "unreadable".
        stamp: Changes when the content does, as far as its size and time show.
        size: In bytes.
        root: The folder below which names count, for a table of metadata.
    """

    place: str
    origin: str
    kind: Kind
    stamp: str
    size: int
    root: str


@dataclass(frozen=True)
class Record:
    """An image as it was read, not yet decoded; most fields are columns of the index.

    Attributes:
        id: See `image_id`.
        place: File, or shard and key.
        origin: The input that it belongs to.
        shard: The shard, saved data set or video; None of a file.
        stamp: Changes when the file or its metadata have changed.
        hash: Digest of the bytes.
        data: The file's bytes, which the index is to hold if `keep_bytes`.
        path: File from which it can be read again, or its video; None if there is none.
        size: Bytes of the input that were read for it.
    """

    id: str
    place: str
    origin: str
    shard: str | None
    stamp: str
    hash: str
    data: bytes = field(repr=False)
    path: str | None
    keep_bytes: bool
    size: int
    captions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def image_id(place: str) -> str:
    """The id of the image of a file, or of a record "SHARD#KEY"."""
    return _digest(place.encode("utf-8", "surrogatepass"), length=24)


def as_origin(given: str) -> str:
    """An input as it is remembered: a URI, or an absolute path, which may hold wildcards."""
    given = given.removeprefix("file://")
    return given if is_remote(given) else os.path.abspath(Path(given).expanduser())  # noqa: PTH100 (links stay)


def read_place(place: str) -> bytes:
    """Read a file, or a piece of one (`range_path`).

    Raises:
        OSError: It cannot be read, or has more than `MAX_FILE_BYTES`.
    """
    if not is_remote(place):
        return read_path(place)
    files, path = open_file_system(place)
    try:
        with cast("Any", files).open(path, "rb") as file:  # a store may send more than it has listed
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"it has more than the {MAX_FILE_BYTES:,} bytes that are read", place)
        return data
    except (OSError, ValueError):
        raise
    except Exception as error:  # clients of object stores have errors of their own
        raise OSError(f"{type(error).__name__}: {error}") from error


def find(origin: str) -> Iterator[Found]:
    """List everything below an input, in the order of names, then log what images are skipped.

    Args:
        origin: Result of `as_origin`: a folder, a file, a pattern of either, or a folder that `datasets` saved. Matches
            of a pattern that are no images, videos or shards, or begin with a dot, are passed over, as in a folder.

    Raises:
        ValueError: There is nothing, or something that holds no images by its name.
        OSError: It is a pipe or a device.
    """
    skipped = Counter[str]()
    for found in _find(origin):
        if found.kind == "skipped":
            skipped[Path(found.place).suffix.lower()] += 1
        else:
            yield found
    warn_of_skipped(origin, skipped.items())


def _find(origin: str) -> Iterator[Found]:
    files, path = open_file_system(origin)
    if is_remote(origin):
        yield from _find_remote(files, path, origin=origin)
    elif os.path.lexists(origin) or not has_wildcards(origin, braces=True):
        given = Path(origin)
        if not given.exists():
            raise ValueError(f"there is nothing at {given}; {_EXPECTED}")
        regular_file(given)
        kind = _kind(given.name.lstrip("."))  # it may begin with a dot, as it was given outright
        if given.is_dir():
            yield from _below(given, origin=origin, seen=set())
        elif kind is None or kind == "skipped":
            names = ", ".join((*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES, *SHARD_SUFFIXES))
            raise ValueError(f"{given} is no image by its name, no video and no shard ({names})")
        else:
            yield _local(given, kind=kind, origin=origin, root=given.parent)
    else:
        matches = {match for pattern in expand_braces(origin) for match in files.glob(pattern)}
        if not matches:
            raise ValueError(f"{origin} matches nothing; {_EXPECTED}")
        seen: set[tuple[int, int]] = set()
        for match in sorted(map(Path, matches), key=lambda path: (path.is_symlink(), str(path))):  # as in a folder
            if match.is_dir() and not match.name.startswith("."):
                yield from _below(match, origin=origin, seen=seen)
            elif match.is_file() and (kind := _kind(match.name, has_tar=match.with_suffix(".tar").is_file)) is not None:
                yield _local(match, kind=kind, origin=origin, root=match.parent)


def was_deleted(origin: str) -> bool:
    """True if an input of an earlier run was one file, and only this file is gone, not the disk that it was on."""
    path = Path(origin)
    if is_remote(origin) or has_wildcards(origin, braces=True) or path.exists():
        return False
    return _kind(f"a{path.suffix}") is not None and path.parent.is_dir() and any(path.parent.iterdir())


def _below(folder: Path, *, origin: str, seen: set[tuple[int, int]]) -> Iterator[Found]:
    lost, real = list[Path](), folder.resolve()
    for path in walk(folder, seen=seen, lost=lost):
        if path.name in SAVED_FILES and path.is_file():
            # That of a split belongs to the whole, unless the split itself was given.
            if path.parent == folder or not (path.parent.parent / "dataset_dict.json").is_file():
                saved = path.parent
                try:
                    size = sum(file.stat().st_size for file in saved.rglob("*.arrow") if file.is_file())
                    states = [
                        read_about(file) for file in [path, *sorted(saved.glob("*/state.json"))] if file.is_file()
                    ]
                except OSError:
                    lost.append(saved)
                    continue
                yield Found(str(saved), origin, "dataset", _digest(b"\n".join(states), length=24), size, str(folder))
        elif (kind := _kind(path.name, has_tar=path.with_suffix(".tar").is_file)) is not None:
            with contextlib.suppress(FileNotFoundError):  # it was removed in the meantime
                if not (path.is_symlink() and _is_found_elsewhere(path, kind=kind, root=real, seen=seen)):
                    yield _local(path, kind=kind, origin=origin, root=folder)
    yield from (Found(str(path), origin, "unreadable", "", 0, str(folder)) for path in lost)


def _is_found_elsewhere(link: Path, *, kind: Kind, root: Path, seen: set[tuple[int, int]]) -> bool:
    """Return True if the file that a link leads to is found below `root` itself, or was by a link that is in `seen`."""
    file = link.resolve()
    if _kind(file.name) == kind and is_visible(file, root):
        return True
    status = file.stat()
    known = (status.st_dev, status.st_ino) in seen
    seen.add((status.st_dev, status.st_ino))
    return known


def _local(path: Path, *, kind: Kind, origin: str, root: Path) -> Found:
    status = path.stat()
    return Found(str(path), origin, kind, f"{status.st_size}-{status.st_mtime_ns}", status.st_size, str(root))


def _find_remote(files: Any, path: str, *, origin: str) -> Iterator[Found]:
    try:
        if has_wildcards(path, braces=True):
            matches = [files.glob(each, detail=True) for each in expand_braces(path)]
        else:
            matches = [files.find(path, detail=True)]
        details = {name: info for match in matches for name, info in match.items()}
    except OSError as error:
        raise ValueError(f"{origin} cannot be listed: {error}") from error
    names = sorted(name for name, info in details.items() if info.get("type", "file") == "file")
    if not names:
        raise ValueError(f"there is nothing at {origin}; {_EXPECTED}")
    for name in names:
        tar = f"{name.rpartition('.')[0]}.tar"
        if (kind := _kind(name, has_tar=lambda tar=tar: tar in details)) is not None:
            info = details[name]
            versions = "-".join(str(info[key]) for key in _VERSIONS if info.get(key) is not None)
            size = int(info.get("size") or 0)
            root = files.unstrip_protocol(path if name != path else path.rpartition("/")[0])
            yield Found(files.unstrip_protocol(name), origin, kind, f"{size}-{versions}", size, root)


def _kind(name: str, *, has_tar: Callable[[], bool] = lambda: False) -> Kind | None:
    """Kind by the name; "skipped" for an image in a format that is not read, None for no image, video or shard.

    Beside a tar, img2dataset leaves parquet without images.
    """
    suffix = f".{name.rpartition('.')[2].lower()}"
    if name.rpartition("/")[2].startswith("."):
        return None
    if suffix in IMAGE_SUFFIXES:
        return "file"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in UNREAD_SUFFIXES:
        return "skipped"
    return "shard" if suffix in SHARD_SUFFIXES and not (suffix == ".parquet" and has_tar()) else None


@dataclass(frozen=True)
class Reader:
    """Reads images with their captions and metadata.

    Attributes:
        keep_bytes: The index is to hold the bytes of files too; those of records it holds in any case.
        table: A table about the images of all folders; None: that of each folder, if it has one.
    """

    keep_bytes: bool = False
    table: MetadataTable | None = None
    _tables: dict[str, MetadataTable | None] = field(default_factory=dict, repr=False)

    def stamp(self, found: Found) -> str:
        """Return a text that changes when the file or its metadata may have changed."""
        return f"{found.stamp}-{_stamp(self._annotation(found), self.keep_bytes)}"

    def unmatched(self) -> str | None:
        """Return a sentence about names in tables that no file had whose stamp was asked for; None without any."""
        tables = [table for table in [*self._tables.values(), self.table] if table is not None]
        unused = [(name, table.path) for table in tables for name in table.unused()]
        if not unused:
            return None
        total, (name, path) = sum(map(len, tables)), unused[0]
        return f"{len(unused)} of {total} names in tables of metadata belong to no image, such as {name} in {path}"

    def read_files(self, files: Iterable[Found]) -> list[Record | Bad]:
        """Read image files in parallel."""
        with ThreadPoolExecutor(_READERS) as workers:
            return list(workers.map(self._file, files))

    def read_shard(self, found: Found) -> Iterator[Record | Bad]:
        """Read a shard, saved data set or video from front to back; its last record may be a `Bad` of kind "shard"."""
        if found.kind == "unreadable":
            reason = "the folder cannot be listed, or the state.json in it cannot be read"
            yield Bad("shard", found.place, 0, "", reason)
        elif found.kind == "video":
            captions, columns = self._annotation(found)
            for frame in read_key_frames(found.place):
                if isinstance(frame, Bad):
                    yield frame
                    continue
                about = Annotation(captions, {**columns, "seconds": frame.seconds})
                place = f"{found.place}#{frame.seconds:.3f}"
                yield self._record(place, frame.data, found, path=found.place, about=about, size=frame.size)
        else:
            from vlmo.data.stream.records import read_saved

            saved = found.kind == "dataset"
            keys: set[str] = set()
            shard = (record for record, _ in read_shard(found.place, details=True))
            for sample in read_saved(Path(found.place)) if saved else shard:
                if isinstance(sample, Bad):
                    yield sample
                    continue
                key = sample.key if sample.key not in keys else f"{sample.key}#{sample.index}"
                keys.add(key)
                yield self._sample(sample, found, key=key)

    def _annotation(self, found: Found) -> Annotation:
        table = self.table
        if table is None and not is_remote(found.place):
            if found.root not in self._tables:
                file = find_table(Path(found.root), stems=TABLE_STEMS[:2])
                self._tables[found.root] = None if file is None else MetadataTable(file)
            table = self._tables[found.root]
        return Annotation() if table is None else table.about(found.place.removeprefix(found.root).lstrip("/"))

    def _file(self, found: Found) -> Record | Bad:
        if (readable := found.place.encode("utf-8", "backslashreplace").decode()) != found.place:
            return Bad("row", readable, 0, readable, "its name is not UTF-8; give it another one")
        if found.size > MAX_BYTES:
            return Bad("row", found.place, 0, found.place, f"{found.size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            data = read_place(found.place)
        except OSError as error:
            return Bad("row", found.place, 0, found.place, f"cannot be read: {error.strerror or error}")
        return self._record(found.place, data, found, path=found.place, about=self._annotation(found))

    def _sample(self, sample: Sample, found: Found, *, key: str) -> Record | Bad:
        data, path = sample.image, None
        if data is None and sample.path is not None:
            path = sample.path
            if not is_remote(path) and not path.startswith("/"):  # it counts from the folder of the parquet file
                path = f"{found.place.rpartition('/')[0]}/{path}"
            try:
                data = read_place(path)
            except (OSError, ValueError) as error:
                return Bad("row", found.place, sample.index, sample.key, f"{path} cannot be read: {error}")
        if data is None:
            return Bad("row", found.place, sample.index, sample.key, "it has no image")
        about = Annotation(sample.captions, clean_metadata(sample.metadata))
        return self._record(f"{found.place}#{key}", data, found, path=path, about=about)

    def _record(
        self, place: str, data: bytes, found: Found, *, path: str | None, about: Annotation, size: int | None = None
    ) -> Record:
        keep_bytes = self.keep_bytes or path is None or found.kind == "video"
        return Record(
            id=image_id(place),
            place=place,
            origin=found.origin,
            shard=None if found.kind == "file" else found.place,
            stamp=self.stamp(found) if found.kind == "file" else _stamp(about, keep_bytes),
            hash=_digest(data, length=32),
            data=data,
            path=None if self.keep_bytes else path,
            keep_bytes=keep_bytes,
            size=len(data) if size is None else size,
            captions=about.captions,
            metadata=dict(about.metadata),
        )


def _digest(data: bytes, *, length: int) -> str:
    return hashlib.sha256(data).hexdigest()[:length]


def _stamp(*parts: Any) -> str:
    return _digest(json.dumps(parts, sort_keys=True).encode(), length=16)
