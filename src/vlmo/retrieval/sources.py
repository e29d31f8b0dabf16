"""Inputs of an index: find images, shards and saved data sets on a disk or in an object store, and read them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from vlmo.data import listing
from vlmo.data.capture import captured, dated
from vlmo.data.decoding import MAX_FILE_BYTES, read_info, read_path
from vlmo.data.rows import SAVED_FILES, read_about
from vlmo.data.stream.records import Bad, Sample, read_saved, read_shard
from vlmo.data.tables import find_table
from vlmo.retrieval.metadata import Annotation, MetadataTable, clean_metadata, read_takeout
from vlmo.retrieval.words import ImageRow

Kind = Literal["file", "shard", "dataset", "unreadable", "skipped"]

# What object stores call the time or the version of a file.
_VERSIONS = (
    "etag",
    "ETag",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "generation",
    "created",
)
# Changes when rows get other columns, so that the next run reads, and does not embed, all images
# again.
_LAYOUT = 3
_MISNAMED = "its name is not UTF-8; give it another one"
_EXPECTED = "give a folder, an image, or a .tar or .parquet file"


class Found(NamedTuple):
    """An image file, a shard, a saved data set, or a folder that cannot be listed.

    Attributes:
        path: Absolute path or URI.
        stamp: Changes when the content does, as far as its size and time show.
        size: In bytes.
        root: The folder below which names count, for a table of metadata.
        changed: Time of a local file's last change in seconds since 1970.
        reason: Why it is "unreadable".
    """

    path: str
    kind: Kind
    stamp: str
    size: int
    root: str
    changed: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Record:
    """An image as it was read: the bytes of its file, and the columns of its row that are known without decoding it."""

    row: ImageRow
    data: bytes = field(repr=False)


def image_id(path: str) -> str:
    """Return the id of the image of a file, or of a record "SHARD#KEY"."""
    return _digest(path.encode("utf-8", "surrogatepass"), length=24)


def as_origin(path: str) -> str:
    """Return an input as it is remembered: a URI, or an absolute path, which may hold wildcards."""
    path = path.removeprefix("file://")
    return path if listing.is_remote(path) else os.path.abspath(Path(path).expanduser())  # noqa: PTH100 (links stay)


def read_uri(path: str) -> bytes:
    """Read a file, or a piece of one (`range_path`).

    Raises:
        OSError: It cannot be read, or has more than `MAX_FILE_BYTES`.
    """
    if not listing.is_remote(path):
        return read_path(path)
    files, name = listing.open_file_system(path)
    try:
        with cast("Any", files).open(name, "rb") as file:
            # A store may send more than it has listed.
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise OSError(
                errno.EFBIG, f"it has more than the {MAX_FILE_BYTES:,} bytes that are read", path
            )
        return data
    except (OSError, ValueError):
        raise
    except Exception as error:
        # Clients of object stores have errors of their own.
        raise OSError(f"{type(error).__name__}: {error}") from error


def find(
    origin: str, *, skipped: Counter[str] | None = None, mounts: set[Path] | None = None
) -> Iterator[Found]:
    """List everything below an input, in the order of names, then log what images are skipped.

    Args:
        origin: Result of `as_origin`: a folder, a file, a pattern of either, or a folder that `datasets` saved. Matches
            of a pattern that are no images or shards, or begin with a dot, are passed over, as in a folder.
        skipped: Takes the numbers of images in formats that are not read, by their suffixes.
        mounts: Takes folders on another disk than the folder that holds them.

    Raises:
        ValueError: There is nothing, or something that holds no images by its name.
        OSError: It is a pipe or a device.
    """
    unread = Counter[str]()
    sources = _find_remote(origin) if listing.is_remote(origin) else _find_local(origin, mounts)
    for source in sources:
        if source.kind == "skipped":
            unread[Path(source.path).suffix.lower()] += 1
        else:
            yield source
    listing.warn_of_skipped(origin, unread.items())
    if skipped is not None:
        skipped.update(unread)


def _find_local(origin: str, mounts: set[Path] | None) -> Iterator[Found]:
    path = Path(origin)
    if os.path.lexists(origin) or not listing.has_wildcards(origin, braces=True):
        if not path.exists():
            raise ValueError(f"there is nothing at {path}; {_EXPECTED}")
        listing.regular_file(path)
        # A file that is named outright may be hidden.
        kind = _kind(path.name.lstrip("."))
        if path.is_dir():
            yield from _below(path, seen=set(), mounts=mounts)
        elif kind is None or kind == "skipped":
            names = ", ".join((*sorted(listing.IMAGE_SUFFIXES), *listing.SHARD_SUFFIXES))
            raise ValueError(f"{path} is no image by its name, and no shard ({names})")
        else:
            yield _local(path, kind, root=path.parent)
        return
    files, _ = listing.open_file_system(origin)
    try:
        matches = {
            match for pattern in listing.expand_braces(origin) for match in files.glob(pattern)
        }
    # fsspec's ** goes to any depth.
    except RecursionError as error:
        raise ValueError(
            f"{origin} cannot be listed: folders are nested too deeply; give the folder itself"
        ) from error
    if not matches:
        raise ValueError(f"{origin} matches nothing; {_EXPECTED}")
    seen: set[tuple[int, int]] = set()
    # Links last, as in a folder: what they lead to may be among the others.
    for match in sorted(map(Path, matches), key=lambda path: (path.is_symlink(), str(path))):
        if match.is_dir() and not match.name.startswith("."):
            yield from _below(match, seen=seen, mounts=mounts)
        elif (
            match.is_file()
            and (kind := _kind(match.name, has_tar=match.with_suffix(".tar").is_file)) is not None
        ):
            yield _local(match, kind, root=match.parent)


def was_deleted(origin: str) -> bool:
    """Return True if an earlier input was one file, and only this file is gone, not the disk that it was on."""
    path = Path(origin)
    if listing.is_remote(origin) or listing.has_wildcards(origin, braces=True) or path.exists():
        return False
    return (
        _kind(f"a{path.suffix}") is not None and path.parent.is_dir() and any(path.parent.iterdir())
    )


def folder_identity(origin: str) -> str | None:
    """Return device and number of a folder, which an empty mount point does not share with its disk; else None."""
    with contextlib.suppress(OSError, ValueError):
        status = Path(origin).stat()
        if stat.S_ISDIR(status.st_mode):
            return f"{status.st_dev}-{status.st_ino}"
    return None


def _below(
    folder: Path, *, seen: set[tuple[int, int]], mounts: set[Path] | None
) -> Iterator[Found]:
    lost: dict[Path, str] = {}
    for path in listing.walk(folder, seen=seen, lost=lost, mounts=mounts):
        if path.name in SAVED_FILES and path.is_file():
            # That of a split belongs to the whole, unless the split itself was given.
            if path.parent == folder or not (path.parent.parent / "dataset_dict.json").is_file():
                saved = path.parent
                try:
                    files = [
                        file for pattern in ("*.arrow", "*/*.arrow") for file in saved.glob(pattern)
                    ]
                    size = sum(file.stat().st_size for file in files)
                    states = map(
                        read_about,
                        [path, *filter(Path.is_file, sorted(saved.glob("*/state.json")))],
                    )
                    stamp = _digest(b"\n".join(states), length=24)
                    yield Found(str(saved), "dataset", stamp, size, str(folder))
                except OSError as error:
                    lost[saved] = f"the state.json in it cannot be read: {error.strerror}"
        elif (kind := _kind(path.name, has_tar=path.with_suffix(".tar").is_file)) is not None:
            # It was removed in the meantime.
            with contextlib.suppress(FileNotFoundError):
                yield _local(path, kind, root=folder)
    for path, reason in lost.items():
        yield Found(str(path), "unreadable", "", 0, str(folder), reason=reason)


def _local(path: Path, kind: Kind, *, root: Path) -> Found:
    status = path.stat()
    return Found(
        str(path),
        kind,
        f"{status.st_size}-{status.st_mtime_ns}",
        status.st_size,
        str(root),
        status.st_mtime,
    )


def _find_remote(origin: str) -> Iterator[Found]:
    opened, path = listing.open_file_system(origin)
    files: Any = opened
    try:
        if listing.has_wildcards(path, braces=True):
            details = {}
            for pattern in listing.expand_braces(path):
                details |= files.glob(pattern, detail=True)
        else:
            details = files.find(path, detail=True)
    except Exception as error:
        raise ValueError(f"{origin} cannot be listed: {error}") from error
    # Stores list in an order of their own; two runs must see the same one.
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
            yield Found(files.unstrip_protocol(name), kind, f"{size}-{versions}", size, root)


def _kind(name: str, *, has_tar: Callable[[], bool] = lambda: False) -> Kind | None:
    """Return the kind by the name; beside a tar, img2dataset leaves parquet without images."""
    suffix = f".{name.rpartition('.')[2].lower()}"
    if name.rpartition("/")[2].startswith("."):
        return None
    if suffix in listing.IMAGE_SUFFIXES:
        return "file"
    if suffix in listing.UNREAD_SUFFIXES:
        return "skipped"
    return (
        "shard"
        if suffix in listing.SHARD_SUFFIXES and not (suffix == ".parquet" and has_tar())
        else None
    )


@dataclass(frozen=True)
class Reader:
    """Reads images with their captions and metadata.

    Attributes:
        keep_bytes: The index is to hold the bytes of files too; those of records in shards it holds in any case.
        table: A table about the images of all folders; None: that of the folder that is listed, if it has one.
    """

    keep_bytes: bool = False
    table: MetadataTable | None = None
    ocr: bool = False
    _tables: dict[str, MetadataTable | None] = field(default_factory=dict, repr=False)

    def stamp(self, source: Found) -> str:
        """Return a text that changes when the file or its metadata may have changed."""
        return f"{source.stamp}-{_stamp(self._annotation(source), self.keep_bytes, self.ocr)}"

    def read_shard(self, source: Found) -> Iterator[Record | Bad]:
        """Read a shard or saved data set from front to back; its last record may be a `Bad` of kind "shard"."""
        if (
            source.kind == "unreadable"
            or source.path != source.path.encode(errors="ignore").decode()
        ):
            yield Bad("shard", source.path, 0, "", source.reason or _MISNAMED)
            return
        records = (record for record, _ in read_shard(source.path, details=True))
        samples = read_saved(Path(source.path)) if source.kind == "dataset" else records
        keys: set[str] = set()
        for sample in samples:
            if isinstance(sample, Bad):
                yield sample
                continue
            # Keys name images in the index, so that two records need two.
            key = sample.key if sample.key not in keys else f"{sample.key}#{sample.index}"
            keys.add(key)
            yield self._sample(sample, source, key)

    def _annotation(self, source: Found) -> Annotation:
        table = self.table
        if table is None and not listing.is_remote(source.path):
            if source.root not in self._tables:
                file = find_table(Path(source.root))
                self._tables[source.root] = None if file is None else MetadataTable(file)
            table = self._tables[source.root]
        below = source.path.removeprefix(source.root).lstrip("/")
        about = Annotation() if table is None else table.about(below, source.path)
        if source.kind != "file":
            return about
        columns: dict[str, bool | float | str | None] = {
            "album": below.rpartition("/")[0] or source.root.rstrip("/").rpartition("/")[2]
        }
        if source.changed is None:
            return about._replace(file=columns)
        beside = read_takeout(Path(source.path))
        columns |= beside.metadata
        return Annotation(
            tuple(dict.fromkeys((*about.captions, *beside.captions))), about.metadata, columns
        )

    def read_file(self, source: Found) -> Record | Bad:
        """Read an image file."""
        if source.path != source.path.encode(errors="ignore").decode():
            return Bad("row", source.path, 0, source.path, _MISNAMED)
        try:
            data = read_uri(source.path)
        except OSError as error:
            return Bad(
                "row", source.path, 0, source.path, f"cannot be read: {error.strerror or error}"
            )
        about = self._annotation(source)
        stamp = f"{source.stamp}-{_stamp(about, self.keep_bytes, self.ocr)}"
        # Later ones replace earlier ones: the file's date is the last resort, a table knows best. Columns that only the
        # file gives come first.
        columns = dict(about.file)
        # Outside of the stamp, as zones differ.
        if source.changed is not None:
            columns |= {**dated(source.changed, source="file"), **about.file}
        columns |= captured(read_info(data))
        if "taken" in about.metadata:
            columns["taken_from"] = "table"
        about = about._replace(metadata={**columns, **about.metadata})
        return _record(source, source.path, data, about, stamp=stamp, keep_bytes=self.keep_bytes)

    def _sample(self, sample: Sample, source: Found, key: str) -> Record | Bad:
        name = path = f"{source.path}#{key}"
        data = sample.image
        keep_bytes = True
        if data is None and sample.path is not None:
            path = sample.path
            keep_bytes = self.keep_bytes
            # A relative path counts from the folder of the parquet file.
            if not listing.is_remote(path) and not path.startswith("/"):
                path = f"{source.path.rpartition('/')[0]}/{path}"
            try:
                data = read_uri(path)
            except (OSError, ValueError) as error:
                return sample.bad(f"{path} cannot be read: {error}")
        if data is None:
            return sample.bad("it has no image")
        about = Annotation(sample.captions, clean_metadata(sample.metadata))
        stamp = _stamp(about, keep_bytes, self.ocr)
        record = _record(source, name, data, about, stamp=stamp, keep_bytes=keep_bytes)
        record.row["path"] = path
        return record


def _record(
    source: Found,
    name: str,
    data: bytes,
    about: Annotation,
    *,
    stamp: str,
    keep_bytes: bool,
) -> Record:
    row = {
        "id": image_id(name),
        "path": name,
        "shard": None if source.kind == "file" else source.path,
        "stamp": stamp,
        "hash": _digest(data, length=32),
        "bytes": data if keep_bytes else None,
        "captions": about.captions,
        "metadata": about.metadata,
    }
    return Record(row, data)


def _digest(data: bytes, *, length: int) -> str:
    return hashlib.sha256(data).hexdigest()[:length]


def _stamp(*parts: object) -> str:
    return _digest(json.dumps((_LAYOUT, *parts), sort_keys=True).encode(), length=16)
