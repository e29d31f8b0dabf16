"""Approximate index of the vectors of a large table, and its recall against the exact search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from lancedb.index import IvfRq
from rich.console import Console

from vlmo.folder import JsonObject
from vlmo.retrieval.in_memory import MemoryVectors, has_faiss, write_memory
from vlmo.retrieval.index import MAX_BYTES
from vlmo.retrieval.store import DISTANCE, Approximate, Store, one_line

if TYPE_CHECKING:
    from vlmo.retrieval.encoder import Encoder

# Of LanceDB's types, the one that is built in minutes for a million vectors on two cores and finds 99 of 100 of the
# truly nearest (benchmarks/search.py): one bit a number, and the vectors themselves for the best candidates.
# Queries whose recall is measured, and number of their nearest images that count.
_QUERIES = 100
_AT = 10
ENOUGH = 0.97
"""Recall below which twice as many partitions are searched, and twice as many candidates compared."""
_ENOUGH_IN_MEMORY = 0.98
_MOST_CANDIDATES = 3200
# Growth of the number of vectors from which on the partitions are made anew.
_GROWN = 2.0


def make_approximate(
    store: Store,
    encoder: Encoder,
    *,
    least: int,
    before: JsonObject | None,
    console: Console | None,
) -> JsonObject | None:
    """Build an approximate index of the images, and measure its recall.

    An index whose table has not grown to twice its size stays, and is only measured again: LanceDB has added the new
    rows to it.

    Args:
        encoder: Embeds captions, as people search with words.
        least: Number of images from which on there is one.

    Returns:
        What `index.json` says: "search", parameters of searches (`Approximate`); "recall", with the share ("value") of
        the nearest images ("at") that it finds, the number of "queries", and what these are ("asked_with"); with FAISS
        "memory": "version" of the table that its vectors are of, "search" and "recall".
    """
    total = store.table.count_rows()
    if total < least:
        return None
    partitions = 0 if before is None else before["search"]["partitions"]
    partitions = _build_partitions(store, total, partitions, console=console)
    nprobes = min(partitions, max(20, round(4 * math.sqrt(partitions))))
    search = Approximate(partitions, nprobes)
    queries, asked_with = _queries(store, encoder)
    exact = _nearest_ids(store, queries, None)
    search, recall = _widen(
        search, exact, lambda search: _nearest_ids(store, queries, search), enough=ENOUGH
    )
    measured = {"at": _AT, "value": recall, "queries": len(queries), "asked_with": asked_with}
    made: JsonObject = {"search": asdict(search), "recall": measured}
    # Four bytes a number, and codes of four numbers; vectors that fit into memory are searched exactly.
    if has_faiss() and store.dim % 4 == 0 and 4 * store.dim * total > MAX_BYTES:
        made["memory"] = _make_memory(store, queries, exact, partitions=partitions)
    return made


def _build_partitions(store: Store, total: int, partitions: int, *, console: Console | None) -> int:
    """Make the partitions anew if there are none, or the table has outgrown them; return their number."""
    with one_line(store.folder):
        has_index = any("vector" in index.columns for index in store.table.list_indices())
        # Their number is the square root of the number of rows that they were made of.
        if has_index and total <= _GROWN * partitions**2:
            return partitions
        if console is not None:
            console.print(f"building the approximate index of {total} vectors", highlight=False)
        # The usual rule for inverted files: as many partitions as images in one.
        partitions = max(1, round(math.sqrt(total)))
        config = IvfRq(distance_type=DISTANCE, num_partitions=partitions)
        store.table.create_index("vector", config=config)
        return partitions


def _make_memory(
    store: Store,
    queries: Float32[np.ndarray, "query dim"],
    exact: list[set[str]],
    *,
    partitions: int,
) -> JsonObject:
    version = store.table.version
    write_memory(store, partitions=partitions)
    ids = pa.chunked_array([batch["id"] for batch in store.scan(["id"])])
    # Half as many partitions again as for captions alone: queries may be less like the images than those measured.
    nprobes = min(partitions, max(20, round(6 * math.sqrt(partitions))))
    search = Approximate(partitions, nprobes, candidates=400)
    vectors = MemoryVectors(store.folder)

    def find(search: Approximate) -> list[set[str]]:
        return [
            set(ids.take(vectors.nearest(query, top=_AT, search=search)[0]).to_pylist())
            for query in queries
        ]

    search, recall = _widen(search, exact, find, enough=_ENOUGH_IN_MEMORY)
    return {"version": version, "search": asdict(search), "recall": recall}


def _widen(
    search: Approximate,
    exact: Sequence[set[str]],
    find: Callable[[Approximate], list[set[str]]],
    *,
    enough: float,
) -> tuple[Approximate, float]:
    """Search more, as far as there is more, until the recall is enough; return the parameters and the recall."""
    while True:
        pairs = zip(exact, find(search), strict=True)
        # Recall at 10: the share of the truly nearest ten among the ten that were found.
        recall = float(np.mean([len(truth & nearest) / len(truth) for truth, nearest in pairs]))
        # Twice as much of each: one bit a number may be too coarse for a few candidates.
        nprobes = min(2 * search.nprobes, search.partitions)
        wider = replace(
            search, nprobes=nprobes, candidates=min(2 * search.candidates, _MOST_CANDIDATES)
        )
        if recall >= enough or wider == search:
            return search, recall
        search = wider


def _queries(store: Store, encoder: Encoder) -> tuple[Float32[np.ndarray, "query dim"], str]:
    # Evenly over the table, as it is in the order of folders.
    numbers = np.linspace(0, store.table.count_rows() - 1, _QUERIES).astype(int).tolist()
    with one_line(store.folder):
        rows = (
            store.table.take_offsets(sorted(set(numbers))).select(["captions", "vector"]).to_arrow()
        )
    captions = [texts[0] for texts in rows["captions"].to_pylist() if texts]
    if len(captions) == len(rows):
        return encoder.embed_texts(captions), "captions"
    return np.array(rows["vector"].to_pylist(), dtype=np.float32), "images"


def _nearest_ids(
    store: Store, queries: Float32[np.ndarray, "query dim"], search: Approximate | None
) -> list[set[str]]:
    with one_line(store.folder):
        tables = [store.nearest(query, top=_AT, columns=["id"], search=search) for query in queries]
    return [set(rows["id"].to_pylist()) for rows in tables]
