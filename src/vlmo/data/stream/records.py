"""Records of one shard, from any record on: a tar file in webdataset's layout, or a parquet file.

Shards are opened through fsspec and read from front to back. An error of a shard or a record is a `Bad`, never an
exception: the run goes on with what follows.
"""

from __future__ import annotations

import errno
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vlmo.data.decoding import is_range, range_path
from vlmo.data.listing import IMAGE_SUFFIXES, is_remote, regular_file
from vlmo.data.rows import Bad, open_saved, saved_splits
from vlmo.data.sampler import stable_id
from vlmo.data.tables import column_of

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image")
"""Names under which parquet files hold images, the first one found counts."""
CAPTION_COLUMNS = ("txt", "caption", "TEXT", "text")

MAX_MEMBER_BYTES = 1 << 28
"""Largest image in a tar or parquet file that is read."""
_MAX_SKIPPED_BYTES = 1 << 36  # of a member that is no image, such as a video
_MAX_TEXT_BYTES = 1 << 24  # of .txt and .json; JSON in memory takes twenty times its bytes
_MAX_NAME_BYTES = 1 << 13  # of long names and other facts of a header, which older `tarfile` reads in quadratic time
_MAX_CAPTIONS, _MAX_FACTS = 1000, 500  # of a record
_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
"""File systems that a record of a saved set may name; others read this machine or need more than a path."""

# Facts that a sample holds under names of its own.
_OWN_NAMES = ("caption", "captions", "key", "status", "error_message")
_SAVED_CAPTIONS = ("captions", "caption", "text")
_SAVED_KEYS = ("image_id", "key", "id")
_BATCH_ROWS = 64
_BUFFER = 1 << 18  # bytes that a tar file is read in
_WAITS = (1.0, 4.0, 16.0)  # seconds before a remote shard is opened again

# Hostile JSON nests too deep, a hostile header claims gigabytes, another type stands where a text is expected.
_RECORD_ERRORS = (ValueError, AttributeError, TypeError, OverflowError, RecursionError, MemoryError)


class Offset(NamedTuple):
    """A record's number in its shard (bad ones counted), and in tar files the byte where its first header begins."""

    index: int = 0
    byte: int = 0


@dataclass(frozen=True)
class Sample:
    """One record as it is stored.

    Attributes:
        path: Path of the image, if the record names it and does not hold it, or is asked for ranges alone.
        metadata: Further facts of the record, if they were asked for.
    """

    shard: str
    index: int
    key: str
    image: bytes | None
    captions: tuple[str, ...]
    path: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sample_id(self) -> int:
        """The same number wherever and whenever the record is read."""
        return sample_id(self.shard, self.index)


Record = Sample | Bad


def sample_id(shard: str, index: int) -> int:
    """Return 63 bits that name a record."""
    return stable_id(f"{shard}#{index}")


class _Options(NamedTuple):
    images: bool | Literal["ranges"]
    details: bool
    absent: bool


def read_shard(
    shard: str,
    *,
    start: Offset | None = None,
    images: bool | Literal["ranges"] = True,
    details: bool = False,
    absent: bool = False,
) -> Iterator[tuple[Record, Offset | None]]:
    """Yield each record from `start` on, with the offset of the one after it; None after the last one.

    Remote shards are opened again, a few times, where the network fails.

    Args:
        shard: Path or URL that ends in .tar or .parquet.
        images: Read images; parquet files without them are read faster. "ranges" gives the image of a tar member as
            the `path` of its bytes (`range_path`).
        details: Give everything else that a record says as `metadata`.
        absent: Give rows that img2dataset could not download, which are passed over else, as `Bad` of kind "absent".

    Raises:
        ValueError: The process has too many open files.
    """
    start, options = start or Offset(), _Options(images, details, absent)
    read = _tar_records if shard.lower().endswith(".tar") else _parquet_records
    waits = iter(_WAITS if is_remote(shard) else ())
    # aiohttp, under fsspec's object stores, has errors of its own; it is imported only where one is used.
    client_error = getattr(sys.modules.get("aiohttp"), "ClientError", OSError)
    while True:
        try:
            if not is_remote(shard):
                regular_file(Path(shard))
            with cast(Any, fsspec.open(shard, "rb")) as file:
                for record, after in read(file, shard, start, options):
                    yield record, after
                    if after is None:
                        return
                    start = after
            return
        except (OSError, EOFError, MemoryError, UnicodeDecodeError, pa.ArrowException, client_error) as error:
            if getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}:
                raise ValueError(f"{shard}: too many open files; raise `ulimit -n` or lower streams.lanes") from error
            is_final = isinstance(
                error, FileNotFoundError | PermissionError | MemoryError | UnicodeDecodeError | pa.ArrowException
            )
            pause = None if is_final else next(waits, None)
            if pause is None:
                yield _rest_is_lost(shard, start, error), None
                return
            time.sleep(pause)


def _rest_is_lost(shard: str, start: Offset, error: Exception) -> Bad:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    how_far = "it cannot be read" if start.index == 0 else f"it cannot be read any further than record {start.index}"
    return Bad("shard", shard, start.index, "", f"{how_far}: {reason}")


def _record(
    shard: str,
    index: int,
    key: str,
    image: Any,
    captions: Any,
    metadata: dict[str, Any],
    *,
    why_not: Callable[[str], str | None] | None = None,
) -> Record:
    """Return the sample, or why it cannot be read: each fact becomes a column of an index, each caption is encoded.

    Args:
        image: Its bytes, its path, or a cell of both.
        why_not: Says what is wrong with a path.
    """

    def bad(reason: str) -> Bad:
        return Bad("row", shard, index, key, reason)

    texts = [captions] if isinstance(captions, str) else [] if captions is None else captions
    try:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"expected a text or a list of texts, found {captions!r:.60}")
        "".join(texts).encode()  # an error for half a character, which JSON may hold and nobody takes
    except _RECORD_ERRORS as error:
        return bad(f"the caption of {key} cannot be read: {error}")
    texts = tuple(text for text in texts if text.strip())
    cell = image if isinstance(image, dict) else {"bytes": image, "path": image}
    data = cell.get("bytes") if isinstance(cell.get("bytes"), bytes) else None
    path = cell.get("path") if data is None and isinstance(cell.get("path"), str) else None
    if data is not None and len(data) > MAX_MEMBER_BYTES:
        return bad(f"its image has {len(data):,} bytes; at most {MAX_MEMBER_BYTES:,} are read")
    if path is not None and why_not is not None and (reason := why_not(path)):
        return bad(f"its image {path!r:.80} {reason}")
    facts = sum(value is not None for value in metadata.values())
    if len(texts) > _MAX_CAPTIONS or facts > _MAX_FACTS:
        most = f"at most {_MAX_CAPTIONS:,} and {_MAX_FACTS:,} are read"
        return bad(f"{len(texts):,} captions and {facts:,} further facts; {most}")
    return Sample(shard, index, key, data, texts, path=path, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------- tar


_TEXTS = (".txt", ".json")
# Headers whose contents are a longer name, or other facts of the next member.
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class _Member(tarfile.TarInfo):
    """A header. One that is cut off or damaged is an error: `tarfile` itself takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end, as it should be
            raise tarfile.ReadError("not a tar file, cut off or damaged here") from error
        if member.type in _EXTENDED and member.size > _MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a header here claims {member.size:,} bytes; write the tar without xattrs")
        return member

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, *_: Any) -> None:  # noqa: A002
        """Leave the map of a sparse member, in front of its data, unread: that takes quadratic time, as its data do."""
        cast(Any, next).sparse = []


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into the key of its sample (the path up to the first dot of the file name) and the rest."""
    folder, slash, file = name.rpartition("/")
    key = f"{folder}{slash}{file.split('.')[0]}"
    return key, name[len(key) :].lower()


def _tar_records(
    file: IO[bytes], shard: str, start: Offset, options: _Options
) -> Iterator[tuple[Record, Offset | None]]:
    file.seek(start.byte)
    key: str | None = None
    parts: dict[str, bytes | str] = {}
    fault, error, index, end = None, None, start.index, start.byte
    try:
        with cast(
            Any, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member, bufsize=_BUFFER, errors="backslashreplace")
        ) as tar:
            while (member := tar.next()) is not None:
                end = start.byte + tar.offset
                tar.members = []  # else all of them are kept
                if member.size > _MAX_SKIPPED_BYTES:  # tarfile would look for its end for years
                    raise tarfile.ReadError(f"{member.name!r:.80} claims {member.size:,} bytes")
                if not member.isfile():
                    continue
                found, suffix = split_name(member.name)
                if found != key:
                    if key is not None:
                        record, index = _tar_record(shard, index, key, parts, fault, options), index + 1
                        yield record, Offset(index, start.byte + member.offset)
                    key, parts, fault = found, {}, None
                limit = _MAX_TEXT_BYTES if suffix in _TEXTS else MAX_MEMBER_BYTES
                if suffix not in IMAGE_SUFFIXES and suffix not in _TEXTS:
                    parts[suffix] = b""
                elif member.issparse() or member.size > limit:
                    large = f"claims {member.size:,} bytes; at most {limit:,} are read"
                    sparse = "is a sparse file; write the tar without --sparse"
                    fault = f"{member.name} {sparse if member.issparse() else large}"
                elif suffix in IMAGE_SUFFIXES and options.images == "ranges":
                    parts[suffix] = range_path(shard, start=start.byte + member.offset_data, length=member.size)
                else:
                    parts[suffix] = tar.extractfile(member).read()
    # tarfile lets through what it finds in facts of a header.
    except (tarfile.TarError, IndexError, *_RECORD_ERRORS) as caught:
        error = caught
    if key is not None:
        record, index = _tar_record(shard, index, key, parts, fault, options), index + 1
        yield record, None if error is None else Offset(index, end)
    if error is not None:
        yield _rest_is_lost(shard, Offset(index, end), error), None


def _tar_record(
    shard: str, index: int, key: str, parts: dict[str, bytes | str], fault: str | None, options: _Options
) -> Record:
    if fault is not None:
        return Bad("row", shard, index, key, fault)
    image = next((data for suffix, data in parts.items() if suffix in IMAGE_SUFFIXES), None)
    if image is None and options.images == "ranges":
        return Bad("row", shard, index, key, f"{key} has no image, only {', '.join(parts)}")
    text, encoded = cast(bytes | None, parts.get(".txt")), cast(bytes | None, parts.get(".json"))
    try:
        facts = json.loads(encoded) if encoded is not None and (options.details or text is None) else {}
        captions = facts.get("captions", facts.get("caption")) if text is None else text.decode()
        metadata = {name: value for name, value in facts.items() if options.details and name not in _OWN_NAMES}
        json.dumps(metadata, ensure_ascii=False).encode()
    except _RECORD_ERRORS as error:
        return Bad("row", shard, index, key, f"the caption of {key} cannot be read: {error}")
    return _record(shard, index, key, image, captions, metadata)


# ------------------------------------------------------------------------------------------------------------ parquet


def _parquet_records(
    file: IO[bytes], shard: str, start: Offset, options: _Options
) -> Iterator[tuple[Record, Offset | None]]:
    folder = None if is_remote(shard) else Path(shard).parent

    def outside(path: str) -> str | None:
        return None if is_confined(path, folder) else "lies outside the shard's folder"

    with pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        columns = {
            "image": column_of(names, IMAGE_COLUMNS) if options.images else None,
            "captions": column_of(names, (*CAPTION_COLUMNS, "captions")),
            "key": column_of(names, ("key",)),
            "status": column_of(names, ("status",)),
        }
        found = {meaning: name for meaning, name in columns.items() if name is not None}
        others = [name for name in names if options.details and name not in {*found.values(), *_OWN_NAMES}]
        for index, row in _rows(opened, [*found.values(), *others], start=start.index):
            if isinstance(row, Exception):
                yield Bad("row", shard, index, str(index), f"it cannot be read: {row}"), Offset(index + 1)
                continue
            values = {meaning: row[name] for meaning, name in found.items()}
            metadata = {name: row[name] for name in others}
            key = str(index) if values.get("key") is None else str(values["key"])
            # img2dataset keeps rows of images that could not be had.
            if (status := values.get("status", "success")) == "success":
                image, captions = values.get("image"), values.get("captions")
                yield _record(shard, index, key, image, captions, metadata, why_not=outside), Offset(index + 1)
            elif options.absent:
                yield Bad("absent", shard, index, key, str(status)), Offset(index + 1)


def _rows(
    opened: pq.ParquetFile, columns: list[str], *, start: int
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Yield rows from number `start` on, or why one has no Python values; groups before it are not read."""
    first = 0
    for group in range(opened.num_row_groups):
        end = first + opened.metadata.row_group(group).num_rows
        if end > start:
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                skipped = min(len(batch), max(0, start - first))
                yield from enumerate(_python_rows(batch.slice(skipped)), start=first + skipped)
                first += len(batch)
        first = end


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | Exception]:
    try:
        return batch.to_pylist()
    except _RECORD_ERRORS as error:  # dates that Python has not, texts that are no UTF-8
        if len(batch) == 1:
            return [error]
        return [row for start in range(len(batch)) for row in _python_rows(batch.slice(start, 1))]


def is_confined(path: str, folder: Path | None) -> bool:
    """Return True for a relative path that stays in its folder (None: remote): no URL, no `..`, no link out of it."""
    if is_remote(path) or is_range(path) or "::" in path or PurePosixPath(path).is_absolute():
        return False
    if "\0" in path or ".." in Path(path).parts:
        return False
    return folder is None or (folder / path).resolve().is_relative_to(folder.resolve())


# --------------------------------------------------------------------------------------------------------- saved sets


def read_saved(folder: Path) -> Iterator[Record]:
    """Yield each row of a folder that `save_to_disk` wrote, of all its splits; the split is among the metadata.

    Errors of the folder (OSError, ValueError) are a `Bad` of kind "shard", errors of a row one of kind "row".
    """
    from datasets import Image

    index = 0
    try:
        for part in saved_splits(folder).values() or [folder]:
            dataset, split = open_saved(part), None if part == folder else part.name
            images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
            for table in dataset.with_format("arrow").iter(_BATCH_ROWS):  # sounds and videos would be decoded else
                for row in (row for batch in cast(pa.Table, table).to_batches() for row in _python_rows(batch)):
                    if isinstance(row, Exception):
                        yield Bad("row", str(folder), index, str(index), f"it cannot be read: {row}")
                    else:
                        yield _saved_record(row, str(folder), index, images=images, split=split)
                    index += 1
    except (OSError, *_RECORD_ERRORS) as error:
        yield _rest_is_lost(str(folder), Offset(index), error)


def _saved_record(row: dict[str, Any], folder: str, index: int, *, images: list[str], split: str | None) -> Record:
    name = "image" if "image" in images or not images else images[0]
    key = next((str(row[key]) for key in _SAVED_KEYS if row.get(key) is not None), str(index))
    captions = next((row[name] for name in _SAVED_CAPTIONS if row.get(name)), None)
    metadata = {key: value for key, value in row.items() if key not in (*images, name, *_SAVED_CAPTIONS)}
    metadata |= {} if split is None else {"split": split}

    def in_no_store(path: str) -> str | None:
        is_known = not is_remote(path) or path.partition("://")[0] in _STORES
        return None if is_known else f"is in no store of {', '.join(_STORES)}"

    return _record(folder, index, key, row.get(name), captions, metadata, why_not=in_no_store)
