"""Approximate index of the vectors of a large table, and its recall against the exact search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from jaxtyping import Float32
from lancedb.index import IvfRq
from lancedb.table import Table
from rich.console import Console

from vlmo.retrieval.store import DISTANCE, Approximate, Store, one_line

# Of LanceDB's types, the one that is built in minutes for a million vectors on two cores and finds 99 of 100 of the
# truly nearest (benchmarks/search.py): one bit a number, and the vectors themselves for the best candidates.
_QUERIES, _AT = 100, 10
"""Queries whose recall is measured, and number of their nearest images that count."""
ENOUGH = 0.97
"""Recall below which twice as many partitions are searched, and twice as many candidates compared."""
_MOST_CANDIDATES = 3200
_GROWN = 2.0
"""Growth of the number of vectors from which on the partitions are made anew."""


def make_approximate(
    store: Store, *, least: int, before: Mapping[str, Any] | None, console: Console | None
) -> dict[str, Any] | None:
    """Build an approximate index of the images, and of the captions where there are as many, and measure its recall.

    An index whose table has not grown to twice its size stays, and is only measured again: LanceDB has added the new
    rows to it.

    Args:
        store: The tables.
        least: Number of rows from which on there is one.
        before: Result of the last run.
        console: Console for progress.

    Returns:
        What `index.json` says: parameters of searches (`Approximate`) of "images" and of "captions" (None without an
        index of them); "recall", with the share ("value") of the nearest images ("at") that it finds, the number of
        "queries", and what they are vectors of ("asked_with").
    """
    if store.images.count_rows() < least:
        return None
    before = before or {}
    search = _make(store, store.images, before=before.get("images"), console=console)
    captions = None
    if store.captions.count_rows() >= least:
        captions = _make(store, store.captions, before=before.get("captions"), console=console)
    queries, asked_with = _sample(store)
    exact = _exactly_nearest(store, queries)
    recall = _recall(store, queries, exact, search)
    while recall < ENOUGH:
        # Twice as much of each, as far as there is more: one bit a number may be too coarse for a few candidates.
        nprobes = min(2 * search.nprobes, search.partitions)
        wider = replace(search, nprobes=nprobes, candidates=min(2 * search.candidates, _MOST_CANDIDATES))
        if wider == search:
            break
        search, recall = wider, _recall(store, queries, exact, wider)
    measured = {"at": _AT, "value": recall, "queries": len(queries), "asked_with": asked_with}
    return {"images": asdict(search), "captions": captions and asdict(captions), "recall": measured}


def _make(store: Store, table: Table, *, before: Mapping[str, int] | None, console: Console | None) -> Approximate:
    """Build the table's index unless it has one that fits; return the parameters to begin with."""
    total = table.count_rows()
    partitions = 0 if before is None else before["partitions"]
    with one_line(store.folder):
        has_index = any("vector" in index.columns for index in table.list_indices())
        if total > _GROWN * partitions**2 or not has_index:
            if console is not None:
                console.print(f"building the approximate index of {total} vectors", highlight=False)
            partitions = max(1, round(math.sqrt(total)))
            table.create_index("vector", config=IvfRq(distance_type=DISTANCE, num_partitions=partitions))
    return Approximate(partitions, nprobes=min(partitions, max(20, round(4 * math.sqrt(partitions)))))


def _sample(store: Store) -> tuple[Float32[np.ndarray, "query dim"], str]:
    """Vectors of captions, as people search with words; without captions, those of images."""
    captions = store.captions.count_rows()
    table, asked_with = (store.captions, "captions") if captions >= _QUERIES else (store.images, "images")
    rows = np.linspace(0, table.count_rows() - 1, _QUERIES).astype(int).tolist()
    with one_line(store.folder):
        found = table.take_offsets(sorted(set(rows))).select(["vector"]).to_arrow()["vector"]
    return np.array(found.to_pylist(), dtype=np.float32), asked_with


def _exactly_nearest(store: Store, queries: Float32[np.ndarray, "query dim"]) -> list[set[str]]:
    """Ids of the nearest images of each query, in one pass over the table."""
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
        found = [store.nearest(store.images, query, top=_AT, columns=["id"], search=search) for query in queries]
    pairs = zip(exact, [{row["id"] for row in rows} for rows in found], strict=True)
    return float(np.mean([len(truth & ids) / len(truth) for truth, ids in pairs]))
