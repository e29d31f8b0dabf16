"""Reranking in LanceDB: `table.search(vector).rerank(VLMoReranker("vlmo-small"), "a cat")`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from lancedb.rerankers import Reranker

from vlmo.data.decoding import ImageCell, decode_image
from vlmo.model.reranking import rerank_score
from vlmo.retrieval import Encoder


class VLMoReranker(Reranker):
    """Orders LanceDB's images for a text by similarity and the fusion encoder's match.

    It is the order of `Searcher`. The column `_relevance_score` holds the mixed score; images that
    cannot be read come last, with minus infinity.

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
        """Order results of a search by vector or words for the text that `rerank` was given.

        ValueError for another query than a text, or results without the column.
        """
        if not isinstance(query, str) or self.column not in vector_results.column_names:
            raise ValueError(
                f"the query is {query!r:.50}, and images are in {self.column!r}; give a text and a "
                "column"
            )
        values = vector_results[self.column].to_pylist()
        rows = []
        images = []
        for row, value in enumerate(values):
            cell: ImageCell = {"bytes": value, "path": None}
            if isinstance(value, str):
                cell = {"bytes": None, "path": value}
            # Images that cannot be read have no pixels.
            with contextlib.suppress(ValueError, OSError):
                images.append(self.encoder.both_pixels(decode_image(cell)))
                rows.append(row)
        vectors = self.encoder.embed_pixels([to_embed for to_embed, _ in images])
        similarity = vectors @ self.encoder.embed_texts([query])[0]
        log_odds = self.encoder.match_pairs([(to_match, query) for _, to_match in images])
        # Images that cannot be read come last.
        scores = np.full(len(values), -np.inf, dtype=np.float32)
        scores[rows] = rerank_score(
            similarity,
            np.asarray(log_odds),
            weight=self.weight,
            scale=self.encoder.inverse_temperature,
        )
        # LanceDB reads the order of rows, and this column.
        results = vector_results.append_column("_relevance_score", pa.array(scores))
        results = results.sort_by([("_relevance_score", "descending")])
        return self._keep_relevance_score(results)

    rerank_fts = rerank_vector

    def rerank_hybrid(
        self, query: str, vector_results: pa.Table, fts_results: pa.Table
    ) -> pa.Table:
        """Order the results of both searches together."""
        merge = self._merge_and_keep_scores if self.score == "all" else self.merge_results
        return self.rerank_vector(query, merge(vector_results, fts_results))
