"""Embeds the images of tasks: what is read, what comes out, and the executor of this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import decode_image, image_bytes
from vlmo.data.quarantine import Bad
from vlmo.retrieval.sources import Found, Reader, Record
from vlmo.retrieval.store import Known, encoded_schema

if TYPE_CHECKING:  # processes of a cluster that only read need no model
    from vlmo.export.sessions import Pixels
    from vlmo.retrieval.encoder import Encoder

_THUMBNAIL = 256
"""Longest side of thumbnails, in pixels."""
_QUALITY = 85
_GROUP, _GROUP_BYTES = 128, 64 << 20
"""Images, and bytes of images, that are read at a time; the next ones are decoded while the model works on these."""


@dataclass(frozen=True)
class Task:
    """Files that are new or changed, or one shard, saved data set or video that is.

    Attributes:
        found: Files to read, or the shard.
        known: Stamps and hashes of those of its images that the table has, by their ids.
    """

    found: Sequence[Found]
    known: Mapping[str, Known] = field(default_factory=dict)

    @property
    def shard(self) -> Found | None:
        """The shard; None of files."""
        first = self.found[0]
        return None if first.kind == "file" else first


class Encoded(NamedTuple):
    """Result of embedding an image; images with the same bytes share it."""

    vector: Float32[np.ndarray, " dim"]
    thumbnail: bytes
    width: int
    height: int


class Group(NamedTuple):
    """Some images of a task that were read.

    Attributes:
        records: Images to embed; `replaces` tells which of them the table has an older row of.
        unchanged: Ids of those that the table has already.
        bad: Images that cannot be used.
        size: Bytes that were read.
    """

    records: list[Record]
    unchanged: list[str]
    bad: list[Bad]
    size: int


class Rows(NamedTuple):
    """Embedded images, `num_encoded` of which went through the model."""

    records: Sequence[Record]
    encoded: Sequence[Encoded]
    captions: Sequence[Float32[np.ndarray, "caption dim"]]
    num_encoded: int

    def as_table(self) -> pa.Table:
        """Rows as `Store.write` takes them."""
        vectors = np.stack([each.vector for each in self.encoded])
        same = ("id", "place", "origin", "shard", "stamp", "hash", "path")
        columns = {name: [getattr(record, name) for record in self.records] for name in same} | {
            "bytes": [record.data if record.keep_bytes else None for record in self.records],
            "captions": [list(record.captions) for record in self.records],
            "thumbnail": [each.thumbnail for each in self.encoded],
            "width": [each.width for each in self.encoded],
            "height": [each.height for each in self.encoded],
            "metadata": [json.dumps(record.metadata, ensure_ascii=False) for record in self.records],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
            "caption_vectors": [each.astype(np.float32).tobytes() for each in self.captions],
        }
        return pa.table(columns, schema=encoded_schema(vectors.shape[1]))


class Finished(NamedTuple):
    """All rows of a shard were yielded."""

    shard: Found


Step = Group | Rows | Finished
Lookup = Callable[[Sequence[str]], Mapping[str, Encoded]]
"""From hashes to those results that the index has already."""
Executor = Callable[[Iterable[Task], Reader, Lookup], Iterator[Step]]
"""Works on all tasks; images with bytes that the lookup knows are not embedded again."""


def local_executor(encoder: Encoder, *, batch: int) -> Executor:
    """Return the executor of this process, which puts `batch` images through the model at a time."""
    embedder = RecordEncoder(encoder, batch=batch)

    def run(tasks: Iterable[Task], reader: Reader, lookup: Lookup) -> Iterator[Step]:
        embedding: Iterator[Step] = iter(())  # of the group before, while the next one is decoded
        results: dict[str, Encoded] = {}
        for task in tasks:
            for group in read_groups(task, reader):
                yield group
                known = dict(lookup([record.hash for record in group.records]))
                started = embedder.start(record for record in group.records if record.hash not in known)
                yield from embedding
                results = known | {digest: results[digest] for digest in started if digest in results}
                embedding = embedder.embed(group.records, started, results=results)
            if task.shard is not None:
                yield from embedding
                yield Finished(task.shard)
        yield from embedding

    return run


def read_groups(task: Task, reader: Reader) -> Iterator[Group]:
    """Read the images of a task, a few hundred at a time."""
    shard = task.shard
    group = Group([], [], [], 0)
    for record in _read_files(task.found, reader) if shard is None else reader.records(shard):
        if isinstance(record, Bad):
            group.bad.append(record)
            continue
        known = task.known.get(record.id)
        if known == (record.stamp, record.hash):
            group.unchanged.append(record.id)
        else:
            group.records.append(replace(record, replaces=known is not None))
        group = group._replace(size=group.size + record.size)
        if len(group.records) >= _GROUP or group.size >= _GROUP_BYTES or len(group.unchanged) >= 16 * _GROUP:
            yield group
            group = Group([], [], [], 0)
    yield group


def _read_files(files: Sequence[Found], reader: Reader) -> Iterator[Record | Bad]:
    waiting: list[Found] = []
    for found in files:
        waiting.append(found)
        if sum(each.size for each in waiting) >= _GROUP_BYTES or len(waiting) >= _GROUP // 2:
            yield from reader.files(waiting)
            waiting = []
    yield from reader.files(waiting)


_Decoded: TypeAlias = "tuple[Pixels, bytes, int, int]"
"""Pixels for the model, and the thumbnail, width and height of `Encoded`."""


class RecordEncoder:
    """Decodes images in threads, and embeds them with their captions.

    Args:
        encoder: The model.
        batch: Images that go through it at a time.
    """

    def __init__(self, encoder: Encoder, *, batch: int) -> None:
        self._encoder, self._batch = encoder, batch

    def start(self, records: Iterable[Record]) -> dict[str, Future[_Decoded]]:
        """Begin to decode the images, by their hashes."""
        first = {record.hash: record for record in records}
        return {digest: self._encoder.pool.submit(self._decode, record) for digest, record in first.items()}

    def embed(
        self, records: Sequence[Record], started: dict[str, Future[_Decoded]], *, results: dict[str, Encoded]
    ) -> Iterator[Group | Rows]:
        """Yield the rows of images, a batch at a time; images with the same bytes are embedded once.

        Args:
            records: The images.
            started: Result of `start`; a decoded image is dropped when it has been embedded.
            results: Results by hash that exist already; it gets those of this call.
        """
        same: dict[str, list[Record]] = {}
        for record in records:
            same.setdefault(record.hash, []).append(record)
        again = [record for digest, twins in same.items() if digest in results for record in twins]
        fresh = [digest for digest in same if digest not in results]
        for start in range(0, len(fresh), self._batch):
            hashes = fresh[start : start + self._batch]
            found = self.finish([same[digest][0] for digest in hashes], [started.pop(digest) for digest in hashes])
            embedded: list[Record] = []
            bad: list[Bad] = []
            for digest, result in zip(hashes, found, strict=True):
                if isinstance(result, Bad):
                    first = same[digest][0].place  # which the reason may name; others have the same bytes
                    bad += [record.bad(result.reason.replace(first, record.place)) for record in same[digest]]
                else:
                    results[digest] = result
                    embedded += same[digest]
            if bad:
                yield Group([], [], bad, 0)
            yield from self._rows(embedded, results, num_encoded=sum(not isinstance(each, Bad) for each in found))
        yield from self._rows(again, results, num_encoded=0)

    def _rows(self, records: list[Record], results: dict[str, Encoded], *, num_encoded: int) -> Iterator[Rows]:
        """Yield the rows, if there are any; a caption that several images have is embedded once."""
        if records:
            texts = list(dict.fromkeys(caption for record in records for caption in record.captions))
            numbers = {text: number for number, text in enumerate(texts)}
            vectors = self._encoder.embed_texts(texts)
            captions = [vectors[[numbers[caption] for caption in record.captions]] for record in records]
            yield Rows(records, [results[record.hash] for record in records], captions, num_encoded)

    def finish(self, records: Sequence[Record], started: Sequence[Future[_Decoded]]) -> list[Encoded | Bad]:
        """Embed the images, or tell why they cannot be decoded."""
        decoded: list[_Decoded | Bad] = []
        for record, future in zip(records, started, strict=True):
            try:
                decoded.append(future.result())
            except ValueError as error:
                decoded.append(record.bad(str(error)))
        vectors = iter(self._encoder.embed_pixels([each[0] for each in decoded if not isinstance(each, Bad)]))
        return [each if isinstance(each, Bad) else Encoded(next(vectors), *each[1:]) for each in decoded]

    def _decode(self, record: Record) -> _Decoded:
        image = decode_image({"bytes": record.data, "path": record.place})
        small = image.copy()
        small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return self._encoder.pixels(image), image_bytes(small, "JPEG", quality=_QUALITY), *image.size
