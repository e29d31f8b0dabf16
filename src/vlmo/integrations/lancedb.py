"""Reranking in LanceDB: `table.search(vector).rerank(VLMoReranker("vlmo-small"), "a red umbrella")`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
from lancedb.rerankers import Reranker

from vlmo.data.decoding import decode_image
from vlmo.model.reranking import rerank_score
from vlmo.retrieval import Encoder


class VLMoReranker(Reranker):
    """Orders images that LanceDB has found for a text by similarity and the fusion encoder's match, as `Searcher` does.

    The column `_relevance_score` holds the mixed score; images that cannot be read come last, with minus infinity.

    Args:
        column: Column with the bytes or paths of image files; "path" of an index of vlmo.
        weight: Share of the match; None: the model's `rerank_weight`.
        return_score: "all" keeps LanceDB's own scores too.

    Raises:
        ValueError: The model has no matching head, or an argument is wrong.
    """

    def __init__(
        self,
        model: str | Path | Encoder,
        *,
        column: str = "image",
        weight: float | None = None,
        return_score: str = "relevance",
    ) -> None:
        super().__init__(return_score)
        self.encoder = model if isinstance(model, Encoder) else Encoder(model)
        self.column = column
        self.weight = self.encoder.rerank_weight if weight is None else weight
        if not self.encoder.can_match or not 0 <= self.weight <= 1:
            raise ValueError(
                f"{self.encoder.folder} needs a matching head; weight {self.weight}: give 0 to 1"
            )

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Order results of a search by vector, or by words, for a text, the second argument of `rerank`."""
        return self._rerank(query, vector_results)

    rerank_fts = rerank_vector

    def rerank_hybrid(
        self, query: str, vector_results: pa.Table, fts_results: pa.Table
    ) -> pa.Table:
        """Order the results of both searches together."""
        merge = self._merge_and_keep_scores if self.score == "all" else self.merge_results
        return self._rerank(query, merge(vector_results, fts_results))

    def _rerank(self, query: str, results: pa.Table) -> pa.Table:
        if not isinstance(query, str) or self.column not in results.column_names:
            raise ValueError(
                f"the query is {query!r:.50}, and images are in {self.column!r}; give a text and a column"
            )
        pixels = [self._pixels(value) for value in results[self.column].to_pylist()]
        read = [each for each in pixels if each is not None]
        similarity = self.encoder.embed_pixels(read) @ self.encoder.embed_texts([query])[0]
        odds = self.encoder.match_pairs([(each, query) for each in read])
        mix = {"weight": self.weight, "scale": self.encoder.inverse_temperature}
        found = iter(rerank_score(similarity, np.asarray(odds), **mix))
        scores = [-math.inf if each is None else float(next(found)) for each in pixels]
        scored = results.append_column("_relevance_score", pa.array(scores, pa.float32()))
        return self._keep_relevance_score(scored.sort_by([("_relevance_score", "descending")]))

    def _pixels(self, value: bytes | str | None) -> np.ndarray | None:
        data, path = (None, value) if isinstance(value, str) else (value, None)
        try:
            return self.encoder.pixels(decode_image({"bytes": data, "path": path}))
        except (ValueError, OSError):
            return None
