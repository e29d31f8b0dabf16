"""Reads, decodes and embeds images a batch at a time, and keeps their rows on the disk on the way into an index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import decode_image, image_bytes
from vlmo.data.rows import Bad
from vlmo.retrieval.sources import Found, Reader, Record
from vlmo.retrieval.store import Store, encoded_schema

if TYPE_CHECKING:
    from vlmo.export.sessions import Pixels
    from vlmo.retrieval.encoder import Encoder

_THUMBNAIL, _QUALITY = 256, 85
"""Longest side of thumbnails in pixels, and their JPEG quality."""
PENDING_FILE = "pending.arrows"
"""A stream of Arrow for each batch that is not in the tables yet, one behind the other."""
_PENDING_ROWS, _PENDING_BYTES = 4096, 128 << 20
"""Pending rows and bytes from which on they go into the table."""
_MAX_BYTES, _MAX_UNCHANGED = 64 << 20, 2048
"""Bytes of images, and images that have not changed, from which on a batch is full."""


class Work(NamedTuple):
    """Image files to embed, or one shard, saved data set or video.

    Attributes:
        found: The files, or the shard.
        known: Stamps and hashes of those of its images that the index has, by their ids.
    """

    found: Sequence[Found]
    known: Mapping[str, tuple[str, str]] = {}

    @property
    def shard(self) -> Found | None:
        """The shard; None of files."""
        return None if self.found[0].kind == "file" else self.found[0]


class Encoded(NamedTuple):
    """Result of embedding an image; images with the same bytes share it."""

    vector: Float32[np.ndarray, " dim"]
    thumbnail: bytes
    width: int
    height: int


@dataclass
class Batch:
    """Images that were read, and then embedded.

    Attributes:
        records: The images; without those that cannot be decoded once they have been embedded.
        encoded: Their results; None where the lookup had none for bytes that it knows.
        captions: Vectors of their captions.
        unchanged: Ids of images that the index has already.
        bad: What cannot be used.
        size: Bytes that were read.
        num_encoded: Images that went through the model.
        finished: The shard that ends with this batch.
    """

    records: list[Record] = field(default_factory=list)
    encoded: list[Encoded | None] = field(default_factory=list)
    captions: list[Float32[np.ndarray, "caption dim"]] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    size: int = 0
    num_encoded: int = 0
    finished: Found | None = None

    def as_rows(self) -> pa.Table:
        """Rows as `Store.write` takes them, once all are encoded."""
        encoded = [each for each in self.encoded if each is not None]
        vectors = np.stack([each.vector for each in encoded])
        same = ("id", "place", "origin", "shard", "stamp", "hash", "path")
        columns = {name: [getattr(record, name) for record in self.records] for name in same} | {
            "bytes": [record.data if record.keep_bytes else None for record in self.records],
            "captions": [list(record.captions) for record in self.records],
            "thumbnail": [each.thumbnail for each in encoded],
            "width": [each.width for each in encoded],
            "height": [each.height for each in encoded],
            "metadata": [json.dumps(record.metadata, ensure_ascii=False) for record in self.records],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
            "caption_vectors": [each.astype(np.float32).tobytes() for each in self.captions],
        }
        return pa.table(columns, schema=encoded_schema(vectors.shape[1]))


Lookup = Callable[[Sequence[str]], Mapping[str, Encoded | None]]
"""From hashes to the results of those images that are embedded already."""


_Decoded: TypeAlias = "tuple[Pixels, bytes, int, int]"
"""Pixels for the model, and thumbnail, width and height of `Encoded`."""
_Results: TypeAlias = Mapping[str, Encoded | str | None]
"""By hash; texts are reasons why an image cannot be decoded."""


def embed_works(
    works: Iterable[Work], encoder: Encoder, *, reader: Reader, lookup: Lookup, batch: int
) -> Iterator[Batch]:
    """Read and embed images, `batch` at a time; the next ones are decoded while the model works on these.

    Images whose bytes the lookup knows, or that stand in the same batch or the one before, are not embedded again.
    """
    results: _Results = {}
    waiting: tuple[Batch, _Results, dict[str, Future[_Decoded]]] | None = None
    for read in chain(_read(works, reader, batch=batch), [None]):
        ahead = None
        if read is not None:
            known = lookup([record.hash for record in read.records])
            skipped = known.keys() | (waiting[2].keys() if waiting else ())
            first = {record.hash: record for record in reversed(read.records) if record.hash not in skipped}
            ahead = read, known, {digest: encoder.pool.submit(_decode, encoder, first[digest]) for digest in first}
        if waiting is not None:
            read, known, decoding = waiting
            fresh = embed_decoded(encoder, decoding)
            _complete(read, {**results, **known, **fresh}, encoder=encoder)
            read.num_encoded = sum(isinstance(result, Encoded) for result in fresh.values())
            results = fresh
            yield read
        waiting = ahead


def _read(works: Iterable[Work], reader: Reader, *, batch: int) -> Iterator[Batch]:
    """Yield the images of works as they were read; the last batch of each shard says that it is finished."""
    for work in works:
        part = Batch()
        for record in (
            _read_files(work.found, reader, batch=batch) if work.shard is None else reader.read_shard(work.shard)
        ):
            if isinstance(record, Bad):
                part.bad.append(record)
                continue
            if work.known.get(record.id) == (record.stamp, record.hash):
                part.unchanged.append(record.id)
            else:
                part.records.append(record)
            part.size += record.size
            if len(part.records) >= batch or part.size >= _MAX_BYTES or len(part.unchanged) >= _MAX_UNCHANGED:
                yield part
                part = Batch()
        part.finished = work.shard
        yield part


def _read_files(files: Sequence[Found], reader: Reader, *, batch: int) -> Iterator[Record | Bad]:
    waiting: list[Found] = []
    for found in files:
        waiting.append(found)
        if len(waiting) >= batch or sum(each.size for each in waiting) >= _MAX_BYTES:
            yield from reader.read_files(waiting)
            waiting = []
    yield from reader.read_files(waiting)


def _decode(encoder: Encoder, record: Record) -> _Decoded:
    image = decode_image({"bytes": record.data, "path": None})
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return encoder.pixels(image), image_bytes(small, "JPEG", quality=_QUALITY), *image.size


def embed_decoded(encoder: Encoder, decoding: Mapping[str, Future[_Decoded]]) -> dict[str, Encoded | str]:
    """Embed images by their hashes; of those that cannot be decoded, return the reasons."""
    decoded, results = {}, {}
    for digest, future in decoding.items():
        try:
            decoded[digest] = future.result()
        except ValueError as error:
            results[digest] = str(error)
    vectors = encoder.embed_pixels([pixels for pixels, *_ in decoded.values()])
    for (digest, (_, *rest)), vector in zip(decoded.items(), vectors, strict=True):
        results[digest] = Encoded(vector, *rest)
    return results


def _complete(read: Batch, results: _Results, *, encoder: Encoder) -> None:
    """Put results into a batch, and vectors of its captions; a caption that several images have is embedded once."""
    for record in read.records:
        if isinstance(reason := results[record.hash], str):
            reason = reason.replace("bytes in memory", record.place)
            read.bad.append(Bad("row", record.shard or record.place, 0, record.place, reason))
    read.records = [record for record in read.records if not isinstance(results[record.hash], str)]
    read.encoded = [cast("Encoded | None", results[record.hash]) for record in read.records]
    texts = list(dict.fromkeys(caption for record in read.records for caption in record.captions))
    numbers = {text: number for number, text in enumerate(texts)}
    vectors = encoder.embed_texts(texts)
    read.captions = [vectors[[numbers[caption] for caption in record.captions]] for record in read.records]


class Pending:
    """Rows on their way into a store, which takes thousands at a time: each of its commits costs more than the last.

    A process that is killed loses the batch in the model and no other. Rows that an earlier one left behind are put
    into the table first.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._path = store, store.folder / PENDING_FILE
        self._tables: list[pa.Table] = []
        self._encoded: dict[str, Encoded] = {}
        if self._path.is_file():
            data = pa.BufferReader(self._path.read_bytes())
            try:
                while data.tell() < data.size():
                    self._tables.append(pa.ipc.open_stream(data).read_all())
            except (pa.ArrowInvalid, OSError, EOFError):
                pass  # the batch that was being written
            self.flush()

    def encoded(self, hashes: Sequence[str]) -> dict[str, Encoded]:
        """Vectors and thumbnails of images with these bytes, as far as there are any."""
        found = {digest: self._encoded[digest] for digest in hashes if digest in self._encoded}
        missing = sorted({digest for digest in hashes if digest not in found})
        for row in self._store.rows("hash", missing, columns=["hash", "vector", "thumbnail", "width", "height"]):
            vector = np.array(row["vector"], dtype=np.float32)
            found[row["hash"]] = Encoded(vector, row["thumbnail"], row["width"], row["height"])
        return found

    def add(self, batch: Batch) -> None:
        """Take the rows of a batch; when this returns, a killed process does not lose them."""
        if not batch.records:
            return
        table, sink = batch.as_rows(), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        try:
            with self._path.open("ab") as file:
                file.write(sink.getvalue())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk has no name
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._tables.append(table)
        self._encoded |= {record.hash: each for record, each in zip(batch.records, batch.encoded, strict=True) if each}
        if sum(map(len, self._tables)) >= _PENDING_ROWS or sum(each.nbytes for each in self._tables) >= _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put everything into the table."""
        if self._tables:
            rows = pa.concat_tables(self._tables)
            # Of an id that stands twice, as hostile keys of a shard do, the last row alone: merging two is refused.
            last = {id: number for number, id in enumerate(rows["id"].to_pylist())}  # noqa: A001
            self._store.write(rows if len(last) == len(rows) else rows.take(sorted(last.values())))
        self._tables, self._encoded = [], {}
        self._path.unlink(missing_ok=True)
