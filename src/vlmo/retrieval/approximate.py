"""The approximate index above a size, and its recall against the exact search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32
from lancedb.index import IvfRq
from lancedb.table import Table
from rich.console import Console

from vlmo.retrieval.index import Approximate, nearest_ids
from vlmo.retrieval.store import DISTANCE, Store, one_line

# One bit a number, and the vectors themselves for the best candidates. Of LanceDB's types, the one that is built in
# minutes for a million vectors on two cores and finds 99 of 100 of the truly nearest (benchmarks/search.py).
_KIND = "IVF_RQ"
_AT = 10
_QUERIES = 100
ENOUGH = 0.97
"""Recall below which twice as many partitions are looked through, and twice as many candidates compared."""
_MOST_CANDIDATES = 3200
_GROWN = 2.0
"""Partitions are made anew when there are so many times as many vectors as they were made for."""


@dataclass(frozen=True)
class Recall:
    """Share of the truly nearest pictures that the approximate index finds.

    Attributes:
        at: How many nearest pictures of each query count.
        value: 0 to 1.
        queries: How many queries.
        asked_with: What the queries were: vectors of captions, or of pictures.
    """

    at: int
    value: float
    queries: int
    asked_with: str

    @property
    def is_low(self) -> bool:
        """Whether it stayed below `ENOUGH`, although as much was tried as there is to try."""
        return self.value < ENOUGH


@dataclass(frozen=True)
class Made:
    """An approximate index that is there.

    Attributes:
        search: How it is asked.
        recall: What it finds when it is asked so.
        made_for: Number of vectors when its partitions were made.
        captions: How that of the captions is asked; None without one.
        captions_made_for: Number of captions when its partitions were made.
    """

    search: Approximate
    recall: Recall
    made_for: int
    captions: Approximate | None
    captions_made_for: int

    def facts(self) -> dict[str, Any]:
        """For `index.json`."""
        return asdict(self)


def make_approximate(
    store: Store, *, least: int, before: dict[str, Any] | None, console: Console | None
) -> Made | None:
    """An approximate index of the pictures, and of the captions where there are as many, with its recall.

    An index whose table has not grown to twice its size stays, and is only measured again: LanceDB has added the new
    rows to it.

    Args:
        least: Number of rows from which on there is one.
        before: What `Made.facts` of the last run said.
    """
    if store.pictures.count_rows() < least:
        return None
    made_for = _made_for(store, store.pictures, before, "made_for", console=console)
    captions, captions_made_for = None, 0
    if store.captions.count_rows() >= least:
        captions_made_for = _made_for(store, store.captions, before, "captions_made_for", console=console)
        captions = _search_for(captions_made_for)
    queries, asked_with = _sample(store)
    exact = _exactly_nearest(store, queries)
    search = _search_for(made_for)
    recall = _recall(store, queries, exact, search)
    while recall < ENOUGH and (wider := _wider(search, partitions=_partitions(made_for))) != search:
        search, recall = wider, _recall(store, queries, exact, wider)
    return Made(search, Recall(_AT, recall, len(queries), asked_with), made_for, captions, captions_made_for)


def _made_for(store: Store, table: Table, before: dict[str, Any] | None, name: str, *, console: Console | None) -> int:
    """The number of vectors that the table's index was made for; it is made where there is none that fits."""
    total, made_for = table.count_rows(), 0 if before is None else before[name]
    with one_line(store.folder):
        there = any("vector" in index.columns for index in table.list_indices())
        if there and total <= _GROWN * made_for:
            return made_for
        if console is not None:
            console.print(f"building the approximate index of {total} vectors", highlight=False)
        config = IvfRq(distance_type=DISTANCE, num_partitions=_partitions(total))
        table.create_index("vector", config=config)
    return total


def _partitions(total: int) -> int:
    return max(1, round(math.sqrt(total)))


def _search_for(total: int) -> Approximate:
    partitions = _partitions(total)
    return Approximate(_KIND, nprobes=min(partitions, max(20, round(4 * math.sqrt(partitions)))))


def _wider(search: Approximate, *, partitions: int) -> Approximate:
    """Twice as much of each, as far as there is more: one bit a number may be too coarse for a few candidates."""
    return replace(
        search,
        nprobes=min(2 * search.nprobes, partitions),
        candidates=min(2 * search.candidates, _MOST_CANDIDATES),
    )


def _sample(store: Store) -> tuple[Float32[np.ndarray, "query dim"], str]:
    """Vectors of captions, as people ask with words; without captions, those of pictures."""
    captions = store.captions.count_rows()
    table, asked_with = (store.captions, "captions") if captions >= _QUERIES else (store.pictures, "pictures")
    rows = np.linspace(0, table.count_rows() - 1, _QUERIES).astype(int).tolist()
    with one_line(store.folder):
        found = table.take_offsets(sorted(set(rows))).select(["vector"]).to_arrow()["vector"]
    return np.array(found.to_pylist(), dtype=np.float32), asked_with


def _exactly_nearest(store: Store, queries: Float32[np.ndarray, "query dim"]) -> list[set[str]]:
    """Ids of the nearest pictures of each query, in one pass over the table."""
    best = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    names = np.zeros((len(queries), 0), dtype=object)
    for batch in store.scan(["id", "vector"]):
        vectors = batch["vector"].flatten().to_numpy().reshape(len(batch), -1)
        best = np.concatenate([best, queries @ vectors.T], axis=1)
        ids = np.array(batch["id"].to_pylist(), dtype=object)
        names = np.concatenate([names, np.broadcast_to(ids, (len(queries), len(ids)))], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :_AT]
        best, names = np.take_along_axis(best, order, axis=1), np.take_along_axis(names, order, axis=1)
    return [set(row) for row in names]


def _recall(
    store: Store, queries: Float32[np.ndarray, "query dim"], exact: Sequence[set[str]], search: Approximate
) -> float:
    with one_line(store.folder):
        found = [nearest_ids(store.pictures, query, top=_AT, search=search) for query in queries]
    return float(np.mean([len(truth & set(ids)) / len(truth) for truth, ids in zip(exact, found, strict=True)]))
