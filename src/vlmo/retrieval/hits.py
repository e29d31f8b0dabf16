"""Images that were found, and rankings of them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from vlmo.data.tables import cut_texts
from vlmo.retrieval.store import RESERVED
from vlmo.retrieval.words import ImageRow, Metadata, OwnWords, own_words

_NO_METADATA = RESERVED | {"_distance", "_rowid"}
# Images whose words are kept, 40 MB.
_KEPT_TEXTS = 2**16


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        id: Its id in the index; the same as long as the image stays where it is.
        score: Value that results are ordered by: the sum of reciprocal ranks where words were found, the mixed score in
            nats after reranking, else the similarity.
        similarity: Cosine of the vectors of query and image.
        match: Log-odds that the text belongs to the image; None where it was not reranked.
        words: Share of the query's words that its texts have; None where none was found, or asked for.
        presence: Probability that it shows the text of the query (`Background`); None for other queries.
        path: Its file, or "SHARD#KEY" of a record in a shard.
        metadata: Every other column.
        hash: Digest of its bytes when it was indexed.
    """

    id: str
    score: float
    similarity: float
    match: float | None
    path: str
    captions: tuple[str, ...]
    metadata: Metadata
    width: int
    height: int
    hash: str = field(default="", compare=False, repr=False)
    words: float | None = None
    presence: float | None = None

    @property
    def is_dated(self) -> bool:
        """False if nothing but the time of its file says when the image was taken."""
        return bool(self.metadata.get("taken")) and self.metadata.get("taken_from") != "file"


@dataclass(frozen=True)
class Ranking:
    """Images in order, best first, as rows of a table: only those that are shown become a `Hit`."""

    images: pa.Table
    places: Int64[np.ndarray, " rank"]
    similar: Float[np.ndarray, " rank"]
    shares: Sequence[float] = ()
    """`Hit.words` of each, if words have found them."""
    own: dict[int, OwnWords] = field(default_factory=dict)

    @functools.cached_property
    def ranks(self) -> dict[str, int]:
        """Ids in this order, and their ranks from 0 on."""
        ids = self.images["id"].take(self.places).to_pylist()
        return {image_id: rank for rank, image_id in enumerate(ids)}

    def hits(self, ids: Collection[str]) -> list[Hit]:
        """Return those of some ids, in this order."""
        ranks = [rank for image_id, rank in self.ranks.items() if image_id in ids]
        hits = []
        for rank, row in zip(ranks, self.images.take(self.places[ranks]).to_pylist(), strict=True):
            share = self.shares[rank] if self.shares else None
            hits.append(hit_of(row, float(self.similar[rank]), share))
        return hits

    def own_words(self, id: str) -> OwnWords:  # noqa: A002
        """`own_words` of an image."""
        place = int(self.places[self.ranks[id]])
        if place not in self.own:
            if len(self.own) >= _KEPT_TEXTS:
                self.own.clear()
            (row,) = self.images.slice(place, 1).to_pylist()
            self.own[place] = own_words(row["path"], row["captions"] or (), row)
        return self.own[place]


NO_RANKING = Ranking(pa.table({"id": pa.array([], pa.string())}), np.arange(0), np.zeros(0))


def hit_of(row: ImageRow, similarity: float, words: float | None = None) -> Hit:
    """Return the image of a row of the table."""
    metadata = {}
    for name, value in row.items():
        if isinstance(value, float) and value.is_integer():
            # Columns of numbers hold floats.
            value = int(value)
        if name not in _NO_METADATA:
            metadata[name] = value
    # An earlier version may have written the row, without bounds.
    captions, metadata = cut_texts(row["captions"] or (), metadata)
    return Hit(
        id=row["id"],
        score=similarity,
        similarity=similarity,
        match=None,
        path=row["path"],
        captions=captions,
        metadata=metadata,
        width=row["width"],
        height=row["height"],
        hash=row["hash"],
        words=words,
    )
