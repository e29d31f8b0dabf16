"""Records of one shard, from any record on: a tar file in webdataset's layout, or a parquet file; and of saved sets.

Shards are opened through fsspec and read from front to back. An error of a shard or a record is a `Bad`, never an
exception: the run goes on with what follows.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
import json
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vlmo.data.decoding import is_range, range_path
from vlmo.data.listing import IMAGE_SUFFIXES, is_remote, regular_file
from vlmo.data.rows import Bad, open_saved, saved_splits
from vlmo.data.sampler import stable_id
from vlmo.data.tables import CAPTION_COLUMNS, MAX_CAPTIONS, column_of, file_columns, image_column

MAX_MEMBER_BYTES = 1 << 28
"""Largest image in a tar or parquet file that is read."""
# Of a member that is no image, such as a video.
_MAX_SKIPPED_BYTES = 1 << 36
# Of .txt and .json; JSON in memory takes twenty times its bytes.
_MAX_TEXT_BYTES = 1 << 24
# Of long names and other facts of a header, which older `tarfile` reads in quadratic time.
_MAX_NAME_BYTES = 1 << 13
_MAX_FACTS = 500  # of a record
# Characters of a key in parquet, which names the image in an index; those that repeat get a number.
_MAX_KEY = 1000
_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
"""File systems that a record of a saved set may name; others read this machine or need more than a path."""

# Facts that a sample holds under names of its own.
_OWN_NAMES = ("caption", "captions", "key", "status", "error_message")
_KEYS = ("key", "image_id", "id")
_TEXTS = (".txt", ".json")
_BATCH_ROWS = 64
# Bytes that a tar file is read in.
_BUFFER = 1 << 18
# Seconds before a remote shard is opened again.
_WAITS = (1.0, 4.0, 16.0)

# Hostile JSON nests too deep, a hostile header claims gigabytes, another type stands where a text is expected.
_RECORD_ERRORS = (ValueError, AttributeError, TypeError, OverflowError, RecursionError, MemoryError)

_LOCAL_ERRORS = (OSError, EOFError, MemoryError, UnicodeDecodeError, pa.ArrowException)
# Opening again does not help; other errors of a remote shard may be the network's.
_FINAL_ERRORS = (FileNotFoundError, PermissionError, MemoryError, ValueError, pa.ArrowException)

Images = bool | Literal["ranges"]


class Offset(NamedTuple):
    """A record's number in its shard (bad ones counted), and in tar files the byte where its first header begins."""

    index: int = 0
    byte: int = 0


BEGIN = Offset()


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

    def bad(self, reason: str) -> Bad:
        """Return the same record as one that cannot be used."""
        return Bad("row", self.shard, self.index, self.key, reason)


Record = Sample | Bad


def sample_id(shard: str, index: int) -> int:
    """Return 63 bits that name a record."""
    return stable_id(f"{shard}#{index}")


def read_shard(
    shard: str, *, start: Offset = BEGIN, images: Images = True, details: bool = False
) -> Iterator[tuple[Record, Offset | None]]:
    """Yield the records from `start` on, with the offset of the one after it; None where nothing more can be read.

    Remote shards are opened again, a few times, where the network fails.

    Args:
        shard: Path or URL that ends in .tar or .parquet.
        images: Read images; parquet files without them are read faster. "ranges" gives the image of a tar member as
            the `path` of its bytes (`range_path`).
        details: Give everything else that a record says as `metadata`.

    Raises:
        ValueError: The process has too many open files.
    """
    read = _tar_records if shard.lower().endswith(".tar") else _parquet_records
    waits = iter(_WAITS if is_remote(shard) else ())
    # Clients of object stores have errors of their own.
    errors = (Exception,) if is_remote(shard) else _LOCAL_ERRORS
    while True:
        try:
            if not is_remote(shard):
                regular_file(Path(shard))
            with cast(Any, fsspec.open(shard, "rb")) as file:
                for record, after in read(file, shard, start, images=images, details=details):
                    yield record, after
                    # After an error in the middle, the shard is read on from here.
                    start = after or start
            return
        except errors as error:
            if getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}:
                raise ValueError(
                    f"{shard}: too many open files; raise `ulimit -n` or lower streams.lanes"
                ) from error
            pause = None if isinstance(error, _FINAL_ERRORS) else next(waits, None)
            if pause is None:
                yield _rest_is_lost(shard, start, error), None
                return
            time.sleep(pause)


def _rest_is_lost(shard: str, start: Offset, error: BaseException) -> Bad:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    further = f" any further than record {start.index}" if start.index else ""
    return Bad("shard", shard, start.index, "", f"it cannot be read{further}: {reason}")


def _sample(
    shard: str, index: int, key: str, image: Any, captions: Any, metadata: dict[str, Any]
) -> Sample:
    texts = [captions] if isinstance(captions, str) else [] if captions is None else captions
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"expected a text or a list of texts as captions, found {captions!r:.60}")
    # Captions that are empty would be invalid examples.
    texts = tuple(text for text in texts if text.strip())
    # Facts become columns of an index, and captions are encoded.
    facts = sum(value is not None for value in metadata.values())
    if len(texts) > MAX_CAPTIONS or facts > _MAX_FACTS:
        most = f"at most {MAX_CAPTIONS:,} and {_MAX_FACTS:,} are read"
        raise ValueError(f"{len(texts):,} captions and {facts:,} further facts; {most}")
    # A cell of `datasets` holds bytes and path; other writers put one of them in the column itself.
    cell = image if isinstance(image, dict) else {"bytes": image, "path": image}
    data = cell.get("bytes") if isinstance(cell.get("bytes"), bytes) else None
    path = cell.get("path") if data is None and isinstance(cell.get("path"), str) else None
    if data is not None and len(data) > MAX_MEMBER_BYTES:
        raise ValueError(
            f"its image has {len(data):,} bytes; at most {MAX_MEMBER_BYTES:,} are read"
        )
    return Sample(shard, index, key, data, texts, path=path, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------- tar


# Headers whose contents are a longer name, or other facts of the next member.
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class _Header(tarfile.TarInfo):
    """A header. One that is cut off or damaged is an error: `tarfile` itself takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                # The end, as it should be.
                raise
            raise tarfile.ReadError("not a tar file, cut off or damaged here") from error
        if header.type in _EXTENDED and header.size > _MAX_NAME_BYTES:
            raise tarfile.ReadError(
                f"a header here claims {header.size:,} bytes; write the tar without xattrs"
            )
        return header

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, *_: Any) -> None:  # noqa: A002
        """Leave the map of a sparse member, in front of its data, unread: that takes quadratic time, as its data do."""
        cast(Any, next).sparse = []


def _tar_records(
    file: IO[bytes], shard: str, start: Offset, *, images: Images, details: bool
) -> Iterator[tuple[Record, Offset | None]]:
    if start.byte and file.seek(0, io.SEEK_END) == start.byte:
        # A tar may lack the blocks that say that it ends.
        return
    file.seek(start.byte)
    index = start.index
    members = _members(file, shard, start.byte, images=images)
    # webdataset's layout: files of a sample stand together, and share their key.
    for key, group in itertools.groupby(members, lambda member: member[0]):
        files = list(group)
        parts = {suffix: content for _, suffix, content, _ in files}
        end = files[-1][3]
        if key is None:
            yield _rest_is_lost(shard, Offset(index, end), parts[""]), None
            return
        try:
            record = _tar_sample(shard, index, key, parts, images=images, details=details)
        except _RECORD_ERRORS as error:
            record = Bad("row", shard, index, key, f"{key} cannot be read: {error}")
        index += 1
        yield record, Offset(index, end)


def _members(
    file: IO[bytes], shard: str, first: int, *, images: Images
) -> Iterator[tuple[str | None, str, Any, int]]:
    """Yield key, suffix, content and end of files: bytes, a path, or why it is not read. Last, None and an error.

    The key of its sample is the path up to the first dot of the file name.
    """
    end = first
    options = {"tarinfo": _Header, "bufsize": _BUFFER, "errors": "backslashreplace"}
    try:
        # As a stream: remote shards are read from front to back.
        with cast(Any, tarfile).open(fileobj=file, mode="r|", **options) as tar:
            while (header := tar.next()) is not None:
                end = first + tar.offset
                # Else all of them are kept.
                tar.members = []
                # `tarfile` would look for its end for years.
                if header.size > _MAX_SKIPPED_BYTES:
                    raise tarfile.ReadError(f"{header.name!r:.80} claims {header.size:,} bytes")
                folder, slash, name = header.name.rpartition("/")
                # Hidden, such as ._0.jpg of macOS.
                if not header.isfile() or name.startswith("."):
                    continue
                # webdataset splits at the first dot: 1.jpg and 1.seg.png belong to one sample.
                key = f"{folder}{slash}{name.split('.')[0]}"
                suffix = header.name[len(key) :].lower()
                is_image = suffix in IMAGE_SUFFIXES
                content = _refusal(header, limit=MAX_MEMBER_BYTES if is_image else _MAX_TEXT_BYTES)
                if not is_image and suffix not in _TEXTS:
                    content = b""
                elif content is None and is_image and images == "ranges":
                    start = first + header.offset_data
                    content = range_path(shard, start=start, length=header.size)
                elif content is None:
                    content = tar.extractfile(header).read()
                yield key, suffix, content, end
    # tarfile lets through what it finds in facts of a header.
    except (tarfile.TarError, IndexError, *_RECORD_ERRORS) as error:
        yield None, "", error, end


def _refusal(header: tarfile.TarInfo, *, limit: int) -> ValueError | None:
    """Return why a member is not read; None for one that is."""
    if header.issparse():
        return ValueError(f"{header.name} is a sparse file; write the tar without --sparse")
    if header.size > limit:
        return ValueError(f"{header.name} claims {header.size:,} bytes; at most {limit:,} are read")
    return None


def _tar_sample(
    shard: str, index: int, key: str, parts: dict[str, Any], *, images: Images, details: bool
) -> Sample:
    image = None
    for suffix, content in parts.items():
        if isinstance(content, Exception):
            raise content
        if suffix in IMAGE_SUFFIXES and image is None:
            image = content
    if image is None and images == "ranges":
        raise ValueError(f"it has no image, only {', '.join(parts)}")
    text = parts.get(".txt")
    encoded = parts.get(".json")
    facts = json.loads(encoded) if encoded is not None and (details or text is None) else {}
    # An error for half a character, which JSON may hold.
    json.dumps(facts, ensure_ascii=False).encode()
    # A text file stands for the caption; JSON holds one, several, or further facts.
    captions = facts.get("captions", facts.get("caption")) if text is None else text.decode()
    metadata = {name: value for name, value in facts.items() if details and name not in _OWN_NAMES}
    return _sample(shard, index, key, image, captions, metadata)


# ---------------------------------------------------------------------------------------------- parquet and saved sets


def _parquet_records(
    file: IO[bytes], shard: str, start: Offset, *, images: Images, details: bool
) -> Iterator[tuple[Record, Offset]]:
    check_path = functools.partial(
        _check_confined, folder=None if is_remote(shard) else Path(shard).parent
    )
    with pq.ParquetFile(file) as opened:
        columns, others = _columns(opened.schema_arrow, images=bool(images), details=details)
        batches = _batches(opened, [*columns.values(), *others], start=start.index)
        for record in _row_records(
            batches, columns, others, shard=shard, start=start.index, check_path=check_path
        ):
            yield record, Offset(record.index + 1)


def read_saved(folder: Path) -> Iterator[Record]:
    """Yield the rows of a folder that `save_to_disk` wrote, of all its splits; the split is among the metadata.

    Errors of the folder (OSError, ValueError) are a `Bad` of kind "shard", errors of a row one of kind "row".
    """
    shard = str(folder)
    start = 0
    try:
        for split, part in (saved_splits(folder) or {None: folder}).items():
            table = open_saved(part).data.table
            columns, others = _columns(table.schema, images=True, details=True)
            batches = table.to_batches(max_chunksize=_BATCH_ROWS)
            for record in _row_records(
                batches, columns, others, shard=shard, start=start, check_path=_check_store
            ):
                start = record.index + 1
                if isinstance(record, Sample) and split is not None:
                    yield replace(record, metadata={**record.metadata, "split": split})
                else:
                    yield record
    except (OSError, *_RECORD_ERRORS) as error:
        yield _rest_is_lost(shard, Offset(start), error)


def _columns(schema: pa.Schema, *, images: bool, details: bool) -> tuple[dict[str, str], list[str]]:
    """Return the columns of what a sample holds, by its role, and those of its metadata."""
    columns = {
        "image": image_column(schema) if images else None,
        "status": column_of(schema.names, ("status",)),
        "captions": column_of(schema.names, CAPTION_COLUMNS),
        "key": column_of(schema.names, _KEYS),
    }
    used = {columns["image"], columns["captions"], *file_columns(schema), *_OWN_NAMES}
    others = [name for name in schema.names if details and name not in used]
    return {role: name for role, name in columns.items() if name is not None}, others


def _batches(opened: pq.ParquetFile, columns: list[str], *, start: int) -> Iterator[pa.RecordBatch]:
    first = 0
    for group in range(opened.num_row_groups):
        end = first + opened.metadata.row_group(group).num_rows
        if end > start:
            for batch in opened.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
            ):
                # Parquet is read by row groups: rows before the start are dropped.
                yield batch.slice(min(len(batch), max(0, start - first)))
                first += len(batch)
        first = end


def _row_records(
    batches: Iterable[pa.RecordBatch],
    columns: dict[str, str],
    others: list[str],
    *,
    shard: str,
    start: int,
    check_path: Callable[[str], None],
) -> Iterator[Record]:
    rows = itertools.chain.from_iterable(map(_python_rows, batches))
    for index, row in enumerate(rows, start=start):
        key = str(index)
        try:
            if isinstance(row, Exception):
                raise row
            values = {role: row[name] for role, name in columns.items()}
            if values.get("image") is None and str(values.get("status")).startswith("failed"):
                # img2dataset keeps rows of images that could not be had.
                continue
            key = key if values.get("key") is None else str(values["key"])[:_MAX_KEY]
            metadata = {name: row[name] for name in others}
            record = _sample(
                shard, index, key, values.get("image"), values.get("captions"), metadata
            )
            if record.path is not None:
                check_path(record.path)
        except _RECORD_ERRORS as error:
            record = Bad("row", shard, index, key, f"it cannot be read: {error}")
        yield record


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | Exception]:
    try:
        return batch.to_pylist()
    except _RECORD_ERRORS as error:  # dates that Python has not, texts that are no UTF-8
        if len(batch) == 1:
            return [error]
        return [row for start in range(len(batch)) for row in _python_rows(batch.slice(start, 1))]


def _check_confined(path: str, *, folder: Path | None) -> None:
    """Check that a relative path stays in its folder (None: remote): no URL, no `..`, no link out of it."""
    parts = PurePosixPath(path)
    leaves = (
        parts.is_absolute()
        or ".." in parts.parts
        or is_remote(path)
        or is_range(path)
        or "::" in path
    )
    if (
        leaves
        or "\0" in path
        or (folder and not (folder / path).resolve().is_relative_to(folder.resolve()))
    ):
        raise ValueError(f"its image {path!r:.80} lies outside the shard's folder")


def _check_store(path: str) -> None:
    if is_remote(path) and path.partition("://")[0] not in _STORES:
        raise ValueError(f"its image {path!r:.80} is in no store of {', '.join(_STORES)}")
