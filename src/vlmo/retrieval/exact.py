"""Exact search: columns and vectors of images in memory, compared one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Float32, Int64

from vlmo.retrieval.filters import photos_passing
from vlmo.retrieval.hits import Ranking
from vlmo.retrieval.options import PhotoFilter
from vlmo.retrieval.words import OwnWords, Rows, join_rows

# Vectors at a time, so that they stay in the processor's cache.
_GATHERED = 2048
# Steps of BM25 up to the best score, within which similarity decides: smaller differences come from
# the lengths of file names.
_BM25_STEPS = 4


@dataclass(frozen=True)
class ExactImages:
    """Images of an index, or some of them.

    Attributes:
        table: Columns, a row an image.
        vectors: Their vectors, L2-normalized.
        own_words: Words of images' own texts by row, filled as they are asked for.
        find_word: Rows that have a word, with their scores by BM25; None if the index has no words.
    """

    table: pa.Table
    vectors: Float32[np.ndarray, "image dim"]
    own_words: dict[int, OwnWords] = field(default_factory=dict)
    find_word: Callable[[str], Rows] | None = None

    def nearest(
        self,
        vector: Float32[np.ndarray, " dim"] | None,
        *,
        top: int,
        photos: PhotoFilter,
        ids: pa.Array | None,
    ) -> Ranking:
        """Return the most similar images, best first; without a vector those taken last, the newest first.

        Args:
            photos: Conditions that the images meet.
            ids: Ids that the images are among; None: any.
        """
        rows = np.flatnonzero(self.passing(photos, ids))
        if vector is None:
            return self._newest(rows, top=top)
        similarities = self._similarities(vector, rows)
        # A partial sort first: a full one takes longer than the similarities themselves.
        if top < len(rows):
            best = np.argpartition(-similarities, top - 1)[:top]
        else:
            best = np.arange(len(rows))
        # Stable, so that equal similarities keep their order.
        best = best[np.argsort(-similarities[best], kind="stable")]
        return Ranking(self.table, rows[best], similarities[best], own=self.own_words)

    def matching(
        self,
        words: Sequence[str],
        *,
        vector: Float32[np.ndarray, " dim"],
        top: int,
        every_word: bool,
        passing: Bool[np.ndarray, " image"],
    ) -> Ranking:
        """Return images that have any of some words, or every one, those with the best matches first."""
        # Callers ask whether the index has words.
        assert self.find_word is not None
        rows, scores, shares = join_rows([self.find_word(word) for word in words], every=every_word)
        passed = passing[rows]
        return self.order_matches(
            rows[passed], scores[passed], shares[passed], vector=vector, top=top
        )

    def order_matches(
        self,
        rows: Int64[np.ndarray, " match"],
        scores: Float[np.ndarray, " match"],
        shares: Float[np.ndarray, " match"],
        *,
        vector: Float32[np.ndarray, " dim"],
        top: int,
    ) -> Ranking:
        """Return rows that words have found by their BM25 scores in steps, and within a step by similarity."""
        similarities = self._similarities(vector, rows)
        step = -np.ceil(_BM25_STEPS * scores / scores.max(initial=0))
        # lexsort goes by its last key first.
        best = np.lexsort((-similarities, step))[:top]
        shown_shares = shares[best].tolist()
        return Ranking(self.table, rows[best], similarities[best], shown_shares, self.own_words)

    def passing(self, photos: PhotoFilter, ids: pa.Array | None) -> Bool[np.ndarray, " image"]:
        """Return which images meet conditions of photographs, and are among some ids."""
        passed = photos_passing(photos, self.table)
        if ids is not None:
            passed &= np.asarray(pc.is_in(self.table["id"], value_set=ids))
        return passed

    def _newest(self, rows: Int64[np.ndarray, " row"], *, top: int) -> Ranking:
        dates = self.table.select(["taken", "id"]).append_column("is_dated", is_dated(self.table))
        # The id at last, so that the order is the same at every call.
        order = [("is_dated", "descending"), ("taken", "descending"), ("id", "ascending")]
        best = np.asarray(pc.select_k_unstable(dates.take(rows), top, order))
        return Ranking(self.table, rows[best], np.zeros(len(best)))

    def _similarities(
        self, vector: Float32[np.ndarray, " dim"], rows: Int64[np.ndarray, " row"]
    ) -> Float32[np.ndarray, " row"]:
        # One thread: a matrix product takes several, which then spin while the model could use their cores.
        vector = np.asarray(vector, np.float32)
        # A part of most is read more slowly than all.
        if 2 * len(rows) > len(self.vectors):
            return np.vecdot(self.vectors, vector)[rows]
        blocks = np.split(rows, range(_GATHERED, len(rows), _GATHERED))
        return np.concatenate([np.vecdot(self.vectors[block], vector) for block in blocks])


def is_dated(images: pa.Table) -> pa.ChunkedArray:
    """Return 0 for images whose date is that of the file alone, and 1 for all others."""
    if "taken_from" in images.schema.names:
        sources = images["taken_from"].cast(pa.string())
    else:
        sources = pa.chunked_array([pa.nulls(len(images), pa.string())])
    return pc.not_equal(sources, "file").fill_null(fill_value=True).cast(pa.int8())
