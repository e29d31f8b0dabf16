"""Reads, decodes and embeds images, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from PIL import Image

from vlmo.data.decoding import EncodedImage, image_bytes
from vlmo.data.rows import Bad
from vlmo.data.tables import cut_texts
from vlmo.retrieval.encoder import THUMBNAIL, Encoder
from vlmo.retrieval.ocr import read_text
from vlmo.retrieval.sources import Found, Reader, Record
from vlmo.retrieval.words import OCR_COLUMN, ImageRow

if TYPE_CHECKING:
    from vlmo.export.sessions import Pixels

ENCODED = ("vector", "thumbnail", "width", "height")
_READERS = 8
# Bytes of images, and images that have not changed, from which on a batch is full.
_MAX_BYTES = 64 << 20
_MAX_UNCHANGED = 2048


class Work(NamedTuple):
    """Image files to embed, or one shard or saved data set.

    Attributes:
        known: Stamps and hashes of those of its images that the index has, by their ids.
    """

    found: Sequence[Found]
    known: Mapping[str, tuple[str, str]] = {}

    @property
    def shard(self) -> Found | None:
        """The shard; None of files."""
        return None if self.found[0].kind == "file" else self.found[0]


@dataclass
class Batch:
    """Images that were read, and then embedded.

    Attributes:
        records: The images; none once they have been embedded.
        rows: Rows of those that could be decoded, as `Store.write` takes them.
        unchanged: Ids of images that the index has already.
        bad: What cannot be used.
        size: Bytes that were read.
        num_encoded: Images that went through the model.
        finished: The shard that ends with this batch.
    """

    records: list[Record] = field(default_factory=list)
    rows: list[ImageRow] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    size: int = 0
    num_encoded: int = 0
    finished: Found | None = None


Encoded: TypeAlias = dict[str, Any]
"""Columns of a row that embedding an image gives: `ENCODED`."""
Lookup = Callable[[Sequence[str]], dict[str, Encoded]]
"""From hashes to the results of those images that are embedded already."""
_Decoded: TypeAlias = "tuple[Pixels, Encoded]"


def embed_works(
    works: Iterable[Work],
    encoder: Encoder,
    *,
    reader: Reader,
    batch: int,
    lookup: Lookup = lambda _: {},
) -> Iterator[Batch]:
    """Read and embed images, `batch` at a time; the next ones are decoded while the model works on these.

    Images whose bytes the lookup knows are not embedded again.
    """
    # One batch ahead: processors decode it while the model works on the one before.
    waiting: tuple[Batch, dict[str, Encoded], dict[str, Future[_Decoded]]] | None = None
    for read in chain(_read(works, reader, batch=batch), [None]):
        ahead = None
        if read is not None:
            # By hash: equal files in a batch are decoded and embedded once.
            images = {record.row["hash"]: record.data for record in read.records}
            known = lookup(list(images))
            new = [digest for digest in images if digest not in known]
            futures = {
                digest: encoder.pool.submit(_decode, encoder, images[digest], ocr=reader.ocr)
                for digest in new
            }
            ahead = read, known, futures
        if waiting is not None:
            yield embed_decoded(encoder, *waiting)
        waiting = ahead


def _read(works: Iterable[Work], reader: Reader, *, batch: int) -> Iterator[Batch]:
    for work in works:
        part = Batch()
        if work.shard is None:
            records = _read_files(work.found, reader, batch)
        else:
            records = reader.read_shard(work.shard)
        for record in records:
            if isinstance(record, Bad):
                part.bad.append(record)
                continue
            if work.known.get(record.row["id"]) == (record.row["stamp"], record.row["hash"]):
                part.unchanged.append(record.row["id"])
            else:
                part.records.append(record)
            part.size += len(record.data)
            is_large = part.size >= _MAX_BYTES or len(part.unchanged) >= _MAX_UNCHANGED
            if is_large or len(part.records) >= batch:
                yield part
                part = Batch()
        part.finished = work.shard
        yield part


def _read_files(files: Sequence[Found], reader: Reader, batch: int) -> Iterator[Record | Bad]:
    waiting: list[Found] = []
    # Of all batches: to start threads takes longer than to read small files.
    with ThreadPoolExecutor(_READERS) as workers:
        for file in files:
            waiting.append(file)
            if len(waiting) >= batch or sum(file.size for file in waiting) >= _MAX_BYTES:
                yield from workers.map(reader.read_file, waiting)
                waiting = []
        yield from workers.map(reader.read_file, waiting)


def _decode(encoder: Encoder, data: bytes, *, ocr: bool) -> _Decoded:
    encoded = EncodedImage({"bytes": data, "path": None})
    # Text is read at full size; the model and thumbnails need far fewer pixels.
    image = encoded.decode() if ocr else encoded.decode_to(encoder.least_side)
    small = image.copy()
    # reducing_gap: a cheap reduction to twice the size comes before the filter.
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
    columns: Encoded = {"thumbnail": image_bytes(small, "JPEG", quality=85)}
    columns["width"], columns["height"] = encoded.size
    if ocr:
        columns[OCR_COLUMN] = read_text(image)
    return encoder.pixels(image), columns


def embed_decoded(
    encoder: Encoder,
    read: Batch,
    known: dict[str, Encoded],
    decoding: Mapping[str, Future[_Decoded]],
) -> Batch:
    """Embed the images of a batch whose results are not known yet; those that cannot be decoded become `bad`."""
    decoded = {}
    reasons = {}
    for digest, future in decoding.items():
        try:
            decoded[digest] = future.result()
        except ValueError as error:
            reasons[digest] = str(error)
    vectors = encoder.embed_pixels([pixels for pixels, _ in decoded.values()])
    results = dict(known)
    for (digest, (_, encoded)), vector in zip(decoded.items(), vectors, strict=True):
        results[digest] = {"vector": vector, **encoded}
    for row in (record.row for record in read.records):
        if row["hash"] in results:
            result = dict(results[row["hash"]])
            metadata = dict(row["metadata"])
            if OCR_COLUMN in result:
                metadata[OCR_COLUMN] = result.pop(OCR_COLUMN)
            captions, metadata = cut_texts(row["captions"], metadata)
            read.rows.append(row | result | {"captions": captions, "metadata": metadata})
        else:
            reason = reasons[row["hash"]].replace("bytes in memory", row["path"])
            read.bad.append(Bad("row", row["shard"] or row["path"], 0, row["path"], reason))
    read.records = []
    read.num_encoded = len(decoded)
    return read
