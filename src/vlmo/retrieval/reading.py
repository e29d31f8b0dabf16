"""From what was found to pictures: files by themselves, records of shards, rows of saved data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmo.data.stream.records import Bad, Sample, read_shard
from vlmo.retrieval.columns import clean_metadata
from vlmo.retrieval.pictures import Picture
from vlmo.retrieval.places import Found, is_remote, picture_id, read_place
from vlmo.retrieval.store import RESERVED
from vlmo.retrieval.tables import NOTHING, MetadataTable, Told, Unmatched, table_of_folder, unmatched

MAX_BYTES = 256_000_000
"""Largest file that is read as a picture."""
_READERS = 8
_HASH_LENGTH = 32


@dataclass(frozen=True)
class Reader:
    """Reads pictures with what is told about them.

    Attributes:
        keep_bytes: Whether the index is to hold the bytes of files too; those of records it holds in any case.
        table: A table about the pictures of all folders; None: that of each folder, if it has one.
    """

    keep_bytes: bool = False
    table: MetadataTable | None = None
    _tables: dict[str, MetadataTable | None] = field(default_factory=dict, repr=False)

    def stamp(self, found: Found) -> str:
        """Changes when the file, or what is told of it, may have changed."""
        return f"{found.stamp}-{_digest(self._told(found), self.keep_bytes)}"

    def unmatched(self) -> Unmatched | None:
        """Names in tables that no file had whose stamp was asked for here."""
        tables = [*self._tables.values(), self.table]
        return unmatched(table for table in tables if table is not None)

    def files(self, files: Iterable[Found]) -> list[Picture | Bad]:
        """Reads files side by side."""
        with ThreadPoolExecutor(_READERS) as workers:
            return list(workers.map(self._file, files))

    def records(self, found: Found) -> Iterator[Picture | Bad]:
        """Reads a shard or a saved data set from front to back; its last record may be a `Bad` of kind "shard"."""
        if found.kind == "dataset":
            from vlmo.data.stream.records import read_saved

            samples = read_saved(Path(found.place))
        else:
            samples = (record for record, _ in read_shard(found.place, details=True))
        seen: set[str] = set()
        for sample in samples:
            yield sample if isinstance(sample, Bad) else self._record(sample, found, seen=seen)

    def _told(self, found: Found) -> Told:
        table = self.table
        if table is None and not is_remote(found.place):
            if found.root not in self._tables:
                self._tables[found.root] = table_of_folder(Path(found.root))
            table = self._tables[found.root]
        return NOTHING if table is None else table.about(found.place.removeprefix(found.root).lstrip("/"))

    def _file(self, found: Found) -> Picture | Bad:
        if (readable := found.place.encode("utf-8", "backslashreplace").decode()) != found.place:
            return Bad("row", readable, 0, readable, "its name is not UTF-8; give it another one")
        if found.size > MAX_BYTES:
            return Bad("row", found.place, 0, found.place, f"{found.size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            data = read_place(found.place)
        except OSError as error:
            return Bad("row", found.place, 0, found.place, f"cannot be read: {error.strerror or error}")
        told = self._told(found)
        return Picture(
            id=picture_id(found.place),
            place=found.place,
            origin=found.origin,
            shard=None,
            stamp=self.stamp(found),
            hash=content_hash(data),
            data=data,
            path=None if self.keep_bytes else found.place,
            keep_bytes=self.keep_bytes,
            captions=told.captions,
            metadata=told.metadata,
        )

    def _record(self, sample: Sample, found: Found, *, seen: set[str]) -> Picture | Bad:
        key = sample.key if sample.key not in seen else f"{sample.key}#{sample.index}"
        seen.add(key)
        place = f"{found.place}#{key}"
        data, path = sample.image, None
        if data is None and sample.path is not None:
            path = _beside(sample.path, shard=found.place)
            try:
                data = read_place(path)
            except (OSError, ValueError) as error:
                return Bad("row", found.place, sample.index, sample.key, f"{path} cannot be read: {error}")
        if data is None:
            return Bad("row", found.place, sample.index, sample.key, "it has no picture")
        told = Told(sample.captions, clean_metadata(sample.metadata, reserved=RESERVED))
        return Picture(
            id=picture_id(place),
            place=place,
            origin=found.origin,
            shard=found.place,
            stamp=_digest(told, self.keep_bytes or path is None),
            hash=content_hash(data),
            data=data,
            path=None if self.keep_bytes else path,
            keep_bytes=self.keep_bytes or path is None,
            captions=told.captions,
            metadata=told.metadata,
        )


def content_hash(data: bytes) -> str:
    """Of a file's bytes; the same bytes are embedded once."""
    return hashlib.sha256(data).hexdigest()[:_HASH_LENGTH]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _beside(path: str, *, shard: str) -> str:
    """A picture's path in a parquet file counts from the folder of that file."""
    if is_remote(path) or path.startswith("/"):
        return path
    return f"{shard.rpartition('/')[0]}/{path}"
