"""The approximate index above a size, and its recall against the exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from lancedb.index import IvfSq
from lancedb.table import Table
from rich.console import Console

from vlmo.retrieval.index import Approximate, nearest_ids
from vlmo.retrieval.store import DISTANCE, Store, one_line

_KIND = "IVF_SQ"
_PER_PARTITION = 1024
"""Vectors in a partition, about; those of a few partitions are compared with each query."""
_AT = 10
_QUERIES = 200
_ENOUGH = 0.98
"""Recall at which no more partitions are looked through."""
_PROBES = (8, 16, 32, 64, 128)
_REFINE = 4
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


@dataclass(frozen=True)
class Made:
    """An approximate index that is there.

    Attributes:
        search: How it is asked.
        recall: What it finds when it is asked so.
        made_for: Number of vectors when its partitions were made.
    """

    search: Approximate
    recall: Recall
    made_for: int

    def facts(self) -> dict[str, Any]:
        """For `index.json`."""
        return {"search": asdict(self.search), "recall": asdict(self.recall), "made_for": self.made_for}


def make_approximate(
    store: Store, *, least: int, before: dict[str, Any] | None, console: Console | None
) -> Made | None:
    """An approximate index of the pictures' vectors, and of the captions' where there are as many, and its recall.

    As many partitions are looked through as the recall needs.

    Args:
        least: Number of pictures from which on there is one.
        before: What `facts` of the last run said; an index that has not grown much since is only measured again.
    """
    total = store.pictures.count_rows()
    if total < least:
        return None
    made_for = 0 if before is None else before["made_for"]
    if total > _GROWN * made_for or not _has_index(store.pictures):
        if console is not None:
            console.print(f"building the approximate index of {total} vectors", highlight=False)
        _build(store.pictures, store=store)
        made_for = total
    captions = store.captions.count_rows()
    if captions >= least and not _has_index(store.captions):
        _build(store.captions, store=store)
    queries, asked_with = _sample(store)
    search, recall = _measured(store.pictures, queries, partitions=max(1, made_for // _PER_PARTITION))
    return Made(search, Recall(_AT, recall, len(queries), asked_with), made_for)


def _has_index(table: Table) -> bool:
    return any("vector" in index.columns for index in table.list_indices())


def _build(table: Table, *, store: Store) -> None:
    with one_line(store.folder):
        partitions = max(1, table.count_rows() // _PER_PARTITION)
        table.create_index("vector", config=IvfSq(distance_type=DISTANCE, num_partitions=partitions))


def _sample(store: Store) -> tuple[Float32[np.ndarray, "query dim"], str]:
    """Vectors of captions, as people ask with words; without captions, those of pictures."""
    captions = store.captions.count_rows()
    table, asked_with = (store.captions, "captions") if captions >= _QUERIES else (store.pictures, "pictures")
    total = captions if asked_with == "captions" else store.pictures.count_rows()
    rows = np.linspace(0, total - 1, min(_QUERIES, total)).astype(int).tolist()
    with one_line(store.folder):
        found = table.take_offsets(rows).select(["vector"]).to_arrow()["vector"]
    return np.array(found.to_pylist(), dtype=np.float32), asked_with


def _measured(table: Table, queries: Float32[np.ndarray, "query dim"], *, partitions: int) -> tuple[Approximate, float]:
    exact = [set(nearest_ids(table, query, top=_AT, search=None)) for query in queries]
    search, recall = Approximate(_KIND, _PROBES[0], refine=_REFINE), 0.0
    for nprobes in _PROBES:
        search = Approximate(_KIND, min(nprobes, partitions), refine=_REFINE)
        recall = _recall(exact, [nearest_ids(table, query, top=_AT, search=search) for query in queries])
        if recall >= _ENOUGH or nprobes >= partitions:
            break
    return search, recall


def _recall(exact: Sequence[set[str]], found: Sequence[Sequence[str]]) -> float:
    return float(np.mean([len(truth & set(ids)) / len(truth) for truth, ids in zip(exact, found, strict=True)]))
