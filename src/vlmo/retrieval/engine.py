"""Embeds the images of tasks: what an engine is given, what it yields, and the engine of this process."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from vlmo.data.decoding import decode_image
from vlmo.data.stream.records import Bad
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.sources import Found, Reader, Record
from vlmo.retrieval.store import Known, encoded_schema

THUMBNAIL = 256
"""Longest side of thumbnails, in pixels."""
_QUALITY = 85
_GROUP, _GROUP_BYTES = 256, 64 << 20
"""Images, and bytes of images, that are in memory at a time, not yet decoded."""
_WAITING = 2
"""Batches that are decoded, or being decoded, while the model works on another."""


@dataclass(frozen=True)
class Task:
    """Files that are new or changed, or one shard or saved data set that is.

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
    """All rows of a shard were yielded; `complete` if it could be read to its end."""

    shard: Found
    complete: bool


Lookup = Callable[[Sequence[str]], Mapping[str, Encoded]]
"""From hashes to those results that the index has already."""


class Engine(Protocol):
    """Embeds images."""

    def run(self, tasks: Iterable[Task], *, reader: Reader, lookup: Lookup) -> Iterator[Group | Rows | Finished]:
        """Work on all tasks; images with bytes that `lookup` knows are not embedded again."""
        ...


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
        group = group._replace(size=group.size + len(record.data))
        if len(group.records) >= _GROUP or group.size >= _GROUP_BYTES or len(group.unchanged) >= 16 * _GROUP:
            yield group
            group = Group([], [], [], 0)
    yield group


def _read_files(files: Sequence[Found], reader: Reader) -> Iterator[Record | Bad]:
    waiting: list[Found] = []
    for found in files:
        waiting.append(found)
        if sum(each.size for each in waiting) >= _GROUP_BYTES or len(waiting) >= _GROUP // 4:
            yield from reader.files(waiting)
            waiting = []
    yield from reader.files(waiting)


_Decoded = tuple[Tensor, bytes, int, int]
"""Pixels for the model, and the thumbnail, width and height of `Encoded`."""


class RecordEncoder:
    """Decodes in threads and embeds; the next batch can be decoded while the model works on this one.

    Args:
        encoder: The model.
        thumbnail: Longest side of thumbnails, in pixels.
    """

    def __init__(self, encoder: Encoder, *, thumbnail: int = THUMBNAIL) -> None:
        self._encoder, self._thumbnail = encoder, thumbnail

    def start(self, record: Record) -> Future[_Decoded]:
        """Begin to decode."""
        return self._encoder.pool.submit(self._decode, record)

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

    def captions(self, records: Sequence[Record]) -> list[Float32[np.ndarray, "caption dim"]]:
        """Embed the captions of each image; a text that several have is embedded once."""
        texts = list(dict.fromkeys(caption for record in records for caption in record.captions))
        rows = {text: row for row, text in enumerate(texts)}
        vectors = self._encoder.embed_texts(texts)
        return [vectors[[rows[caption] for caption in record.captions]] for record in records]

    def _decode(self, record: Record) -> _Decoded:
        image = decode_image({"bytes": record.data, "path": record.place})
        small = image.copy()
        small.thumbnail((self._thumbnail, self._thumbnail), Image.Resampling.LANCZOS, reducing_gap=2.0)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=_QUALITY)
        return self._encoder.pixels(image), file.getvalue(), *image.size


@dataclass
class _Batch:
    """Images that are being decoded, and others with the same bytes as one of them."""

    records: list[Record] = field(default_factory=list)
    started: list[Future[_Decoded]] = field(default_factory=list)
    twins: dict[str, list[Record]] = field(default_factory=dict)


class LocalEngine:
    """One model in this process.

    Args:
        encoder: The model.
        batch: Images that go through it at a time.
        thumbnail: Longest side of thumbnails, in pixels.
    """

    def __init__(self, encoder: Encoder, *, batch: int, thumbnail: int = THUMBNAIL) -> None:
        self._encoder, self._size = RecordEncoder(encoder, thumbnail=thumbnail), batch

    def run(self, tasks: Iterable[Task], *, reader: Reader, lookup: Lookup) -> Iterator[Group | Rows | Finished]:
        """See `Engine.run`; an image whose bytes are on their way already is not embedded again either."""
        batches: deque[_Batch] = deque([_Batch()])
        for task in tasks:
            complete = True
            for group in read_groups(task, reader):
                yield group
                complete = complete and not any(bad.kind == "shard" for bad in group.bad)
                yield from self._add(group.records, batches, lookup=lookup)
            if task.shard is not None:
                yield from self._drain(batches)
                yield Finished(task.shard, complete)
        yield from self._drain(batches)

    def _add(self, records: list[Record], batches: deque[_Batch], *, lookup: Lookup) -> Iterator[Group | Rows]:
        known = dict(lookup([record.hash for record in records]))
        again = []
        for record in records:
            if record.hash in known:
                again.append(record)
            elif twin := next((batch for batch in batches if record.hash in batch.twins), None):
                twin.twins[record.hash].append(record)
            else:
                last = batches[-1]
                last.records.append(record)
                last.started.append(self._encoder.start(record))
                last.twins[record.hash] = []
                if len(last.records) >= self._size:
                    batches.append(_Batch())
                    if len(batches) > _WAITING:
                        known |= yield from self._embed(batches.popleft())
        if again:
            yield Rows(again, [known[record.hash] for record in again], self._encoder.captions(again), 0)

    def _drain(self, batches: deque[_Batch]) -> Iterator[Group | Rows]:
        while batches:
            yield from self._embed(batches.popleft())
        batches.append(_Batch())

    def _embed(self, batch: _Batch) -> Generator[Group | Rows, None, dict[str, Encoded]]:
        """Yield the rows of a batch; return its results by the hashes of the images."""
        found: dict[str, Encoded] = {}
        records: list[Record] = []
        for record, result in zip(batch.records, self._encoder.finish(batch.records, batch.started), strict=True):
            same = [record, *batch.twins[record.hash]]
            if isinstance(result, Bad):
                yield Group([], [], [each.bad(result.reason) for each in same], 0)
            else:
                found[record.hash] = result
                records += same
        if records:
            encoded = [found[record.hash] for record in records]
            yield Rows(records, encoded, self._encoder.captions(records), len(found))
        return found
