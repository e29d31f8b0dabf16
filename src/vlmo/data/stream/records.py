"""Records of one shard, from any place in it: a tar file in webdataset's layout, or a parquet file.

Shards are opened through fsspec and read from front to back. What is wrong with a shard or a record is a `Bad`, never
an exception: the run goes on with what follows.
"""

from __future__ import annotations

import errno
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vlmo.data.files import PICTURE_SUFFIXES
from vlmo.data.sampler import stable_id

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image")
"""Names under which parquet files hold pictures, the first one found counts."""
CAPTION_COLUMNS = ("txt", "caption", "TEXT", "text")

# What a sample says under names of its own.
_TOLD_BY_SAMPLE = ("caption", "captions", "key", "status", "error_message")
_BATCH_ROWS = 64
_BUFFER = 1 << 18  # bytes that a tar file is read in
_WAITS = (1.0, 4.0, 16.0)  # seconds before a remote shard is opened again


class Offset(NamedTuple):
    """Where a record begins in its shard."""

    index: int = 0
    """Number of the record, bad ones counted."""
    byte: int = 0
    """Of its first header, in tar files."""


_FIRST = Offset()


@dataclass(frozen=True)
class Sample:
    """One record as it is stored."""

    shard: str
    index: int
    key: str
    image: bytes | None
    captions: tuple[str, ...]
    path: str | None = None
    """Where the picture lies, if the record names it and does not hold it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else the record says, if it was asked for."""

    @property
    def sample_id(self) -> int:
        """The same number wherever and whenever the record is read."""
        return sample_id(self.shard, self.index)


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used (kind "row"), or the end of what can be read of a shard ("shard")."""

    kind: str
    shard: str
    index: int
    key: str
    reason: str

    def line(self) -> dict[str, Any]:
        """What the quarantine file says of it."""
        return {"kind": self.kind, "row": self.index, "image_id": self.key, "path": self.shard, "reason": self.reason}


Record = Sample | Bad


def sample_id(shard: str, index: int) -> int:
    """63 bits that name a record."""
    return stable_id(f"{shard}#{index}")


def read_shard(
    shard: str, *, start: Offset = _FIRST, pictures: bool = True, details: bool = False
) -> Iterator[tuple[Record, Offset | None]]:
    """Each record from `start` on, with the place of the one after it; None after the last one that can be read.

    Remote shards are opened again, a few times, where the network fails.

    Args:
        shard: Path or URL that ends in .tar or .parquet.
        pictures: Whether the pictures are wanted; parquet files without them are read faster.
        details: Whether everything else that a record says is wanted.

    Raises:
        ValueError: The process has too many open files.
    """
    waits = iter(() if is_local(shard) else _WAITS)
    while True:
        try:
            with cast(Any, fsspec.open(shard, "rb")) as file:
                for record, after in _records(file, shard, start=start, pictures=pictures, details=details):
                    yield record, after
                    if after is None:
                        return
                    start = after
            return
        except _failures() as error:
            if getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}:
                raise ValueError(f"{shard}: too many open files; raise `ulimit -n` or lower streams.lanes") from error
            pause = (
                None
                if isinstance(error, FileNotFoundError | PermissionError | pa.ArrowException)
                else next(waits, None)
            )
            if pause is None:
                yield _rest_is_lost(shard, start, error), None
                return
            time.sleep(pause)


def is_local(shard: str) -> bool:
    """Whether it is a path of this machine."""
    return "://" not in shard


def _failures() -> tuple[type[Exception], ...]:
    # aiohttp, under fsspec's object stores, has errors of its own; it is imported only where one is used.
    client = getattr(sys.modules.get("aiohttp"), "ClientError", OSError)
    return (OSError, EOFError, pa.ArrowException, client)


def _records(
    file: IO[bytes], shard: str, *, start: Offset, pictures: bool, details: bool
) -> Iterator[tuple[Record, Offset | None]]:
    if shard.endswith(".tar"):
        yield from _tar_records(file, shard, start=start, details=details)
    else:
        yield from _parquet_records(file, shard, start=start, pictures=pictures, details=details)


def _rest_is_lost(shard: str, start: Offset, error: Exception) -> Bad:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    how_far = "it cannot be read" if start.index == 0 else f"it cannot be read any further than record {start.index}"
    return Bad("shard", shard, start.index, "", f"{how_far}: {reason}")


# ---------------------------------------------------------------------------------------------------------------- tar


class _Member(tarfile.TarInfo):
    """A header. One that is cut off or damaged is an error: `tarfile` itself takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end, as it should be
            raise tarfile.ReadError("not a tar file, cut off or damaged here") from error


def split_name(name: str) -> tuple[str, str]:
    """What the members of one sample have in common (the path up to the first dot of the name), and the rest."""
    folder, slash, file = name.rpartition("/")
    key = f"{folder}{slash}{file.split('.')[0]}"
    return key, name[len(key) :].lower()


def _tar_records(
    file: IO[bytes], shard: str, *, start: Offset, details: bool
) -> Iterator[tuple[Record, Offset | None]]:
    file.seek(start.byte)
    key: str | None = None
    parts: dict[str, bytes] = {}
    place, end = start, start.byte
    try:
        with cast(Any, tarfile.open(fileobj=file, mode="r|", tarinfo=_Member, bufsize=_BUFFER)) as tar:
            while (member := tar.next()) is not None:
                end = start.byte + tar.offset
                tar.members = []  # else all of them are kept
                if not member.isfile():
                    continue
                found, suffix = split_name(member.name)
                if found != key:
                    if key is not None:
                        place = Offset(place.index + 1, start.byte + member.offset)
                        yield _tar_record(shard, place.index - 1, key, parts, details=details), place
                    key, parts = found, {}
                if suffix in PICTURE_SUFFIXES or suffix in {".txt", ".json"}:
                    parts[suffix] = tar.extractfile(member).read()
    except tarfile.TarError as error:
        if key is not None:
            index, place = place.index, Offset(place.index + 1, end)
            yield _tar_record(shard, index, key, parts, details=details), place
        yield _rest_is_lost(shard, place, error), None
        return
    if key is not None:
        yield _tar_record(shard, place.index, key, parts, details=details), None


def _tar_record(shard: str, index: int, key: str, parts: dict[str, bytes], *, details: bool) -> Record:
    picture = next((data for suffix, data in parts.items() if suffix in PICTURE_SUFFIXES), None)
    try:
        captions = _tar_captions(parts)
        told = json.loads(parts[".json"]) if details and ".json" in parts else {}
        metadata = {name: value for name, value in told.items() if name not in _TOLD_BY_SAMPLE}
    except (ValueError, AttributeError, TypeError) as error:
        return Bad("row", shard, index, key, f"its caption cannot be read: {error}")
    return Sample(shard, index, key, picture, captions, metadata=metadata)


def _tar_captions(parts: dict[str, bytes]) -> tuple[str, ...]:
    if ".txt" in parts:
        return _texts(parts[".txt"].decode())
    if ".json" in parts:
        found = json.loads(parts[".json"])
        return _texts(found.get("captions", found.get("caption")))
    return ()


def _texts(value: Any) -> tuple[str, ...]:
    """Texts that are not empty."""
    texts = [value] if isinstance(value, str) else value or []
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"expected a text or a list of texts, found {value!r:.60}")
    return tuple(text for text in texts if text.strip())


# ------------------------------------------------------------------------------------------------------------ parquet


def _parquet_records(
    file: IO[bytes], shard: str, *, start: Offset, pictures: bool, details: bool
) -> Iterator[tuple[Record, Offset | None]]:
    with pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        columns = {
            "image": _first(IMAGE_COLUMNS, names) if pictures else None,
            "captions": _first((*CAPTION_COLUMNS, "captions"), names),
            "key": _first(("key",), names),
            "status": _first(("status",), names),
        }
        found = {meaning: name for meaning, name in columns.items() if name is not None}
        others = [name for name in names if details and name not in {*found.values(), *_TOLD_BY_SAMPLE}]
        for index, row in _rows(opened, [*found.values(), *others], start=start.index):
            values = {meaning: row[name] for meaning, name in found.items()}
            values["metadata"] = {name: row[name] for name in others}
            # img2dataset keeps rows of pictures that could not be had.
            if values.get("status", "success") == "success":
                yield _parquet_record(shard, index, values), Offset(index + 1)


def _first(wanted: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _rows(opened: pq.ParquetFile, columns: list[str], *, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows from number `start` on; groups before it are not read."""
    first = 0
    for group in range(opened.num_row_groups):
        end = first + opened.metadata.row_group(group).num_rows
        if end > start:
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                skipped = min(len(batch), max(0, start - first))
                yield from enumerate(batch.slice(skipped).to_pylist(), start=first + skipped)
                first += len(batch)
        first = end


def _parquet_record(shard: str, index: int, values: dict[str, Any]) -> Record:
    key, image = values.get("key"), values.get("image")
    key = str(index) if key is None else str(key)
    try:
        captions = _texts(values.get("captions"))
    except TypeError as error:
        return Bad("row", shard, index, key, f"its caption cannot be read: {error}")
    path = image.get("path") if isinstance(image, dict) else image
    data = image.get("bytes") if isinstance(image, dict) else image
    return Sample(
        shard,
        index,
        key,
        data if isinstance(data, bytes) else None,
        captions,
        path=path if isinstance(path, str) else None,
        metadata=values["metadata"],
    )
