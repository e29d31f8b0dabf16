"""Pictures on their way into an index: read, decoded, embedded, and made rows of."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from vlmo.data.decoding import decode_image
from vlmo.data.stream.records import Bad
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.store import encoded_schema

THUMBNAIL = 256
_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """A picture as it was read, not yet decoded.

    Attributes:
        id: See `picture_id`.
        place: File, or shard and key.
        origin: The input that it belongs to.
        shard: The shard or saved data set; None of a file.
        stamp: Changes when the file, or what is told of it, has changed.
        hash: Of the bytes.
        data: The file's bytes.
        path: Where it lies, if it can be read again from there.
        keep_bytes: Whether the index is to hold the bytes.
        captions: Texts.
        metadata: Further columns.
        replaces: Whether the table has an older row of it.
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
    captions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    replaces: bool = False

    def bad(self, reason: str) -> Bad:
        """What the quarantine says of it."""
        return Bad("row", self.shard or self.place, 0, self.place, reason)


class Looks(NamedTuple):
    """What is computed of the bytes alone, so that it can be taken over from another row."""

    vector: Float32[np.ndarray, " dim"]
    thumbnail: bytes
    width: int
    height: int


class _Decoded(NamedTuple):
    pixels: Tensor
    thumbnail: bytes
    width: int
    height: int


class PictureEncoder:
    """Decodes in threads and embeds; the next batch can be decoded while the model works on this one.

    Args:
        encoder: The model.
        thumbnail: Longest side of thumbnails, in pixels.
    """

    def __init__(self, encoder: Encoder, *, thumbnail: int = THUMBNAIL) -> None:
        self._encoder, self._thumbnail = encoder, thumbnail
        self._workers = ThreadPoolExecutor(os.cpu_count())

    def start(self, pictures: Sequence[Picture]) -> list[Future[_Decoded]]:
        """Begins to decode."""
        return [self._workers.submit(self._decode, picture) for picture in pictures]

    def finish(self, pictures: Sequence[Picture], started: Sequence[Future[_Decoded]]) -> list[Looks | Bad]:
        """Vectors and thumbnails, or why there is none."""
        results: list[Looks | Bad] = []
        good: list[_Decoded] = []
        decoded: list[_Decoded | Bad] = []
        for picture, waited in zip(pictures, started, strict=True):
            try:
                decoded.append(waited.result())
            except ValueError as error:
                decoded.append(picture.bad(str(error)))
        good = [found for found in decoded if isinstance(found, _Decoded)]
        vectors = iter(self._encoder.embed_pixels([found.pixels for found in good]))
        for found in decoded:
            if isinstance(found, _Decoded):
                results.append(Looks(next(vectors), found.thumbnail, found.width, found.height))
            else:
                results.append(found)
        return results

    def captions(self, pictures: Sequence[Picture]) -> list[Float32[np.ndarray, "caption dim"]]:
        """Vectors of each picture's captions; a text that several have is embedded once."""
        texts = list(dict.fromkeys(caption for picture in pictures for caption in picture.captions))
        vectors = dict(zip(texts, self._encoder.embed_texts(texts), strict=True))
        empty = np.zeros((0, self._encoder.dim), dtype=np.float32)
        return [
            np.stack([vectors[caption] for caption in picture.captions]) if picture.captions else empty
            for picture in pictures
        ]

    def _decode(self, picture: Picture) -> _Decoded:
        image = decode_image({"bytes": picture.data, "path": picture.place})
        return _Decoded(self._encoder.pixels(image), make_thumbnail(image, side=self._thumbnail), *image.size)


def make_thumbnail(image: Image.Image, *, side: int) -> bytes:
    """A JPEG file of the picture, at most `side` pixels wide and high."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def as_table(
    pictures: Sequence[Picture],
    looks: Sequence[Looks],
    caption_vectors: Sequence[Float32[np.ndarray, "caption dim"]],
    *,
    dim: int,
) -> pa.Table:
    """Rows as `Store.write` takes them."""
    vectors = np.stack([found.vector for found in looks]) if looks else np.zeros((0, dim), np.float32)
    columns = {
        "id": [picture.id for picture in pictures],
        "place": [picture.place for picture in pictures],
        "origin": [picture.origin for picture in pictures],
        "shard": [picture.shard for picture in pictures],
        "stamp": [picture.stamp for picture in pictures],
        "hash": [picture.hash for picture in pictures],
        "path": [picture.path for picture in pictures],
        "bytes": [picture.data if picture.keep_bytes else None for picture in pictures],
        "captions": [list(picture.captions) for picture in pictures],
        "thumbnail": [found.thumbnail for found in looks],
        "width": [found.width for found in looks],
        "height": [found.height for found in looks],
        "metadata": [json.dumps(picture.metadata, ensure_ascii=False) for picture in pictures],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
        "caption_vectors": [found.astype(np.float32).tobytes() for found in caption_vectors],
    }
    return pa.table(columns, schema=encoded_schema(dim))
