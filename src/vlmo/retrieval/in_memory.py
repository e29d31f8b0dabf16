"""Approximate search in memory by FAISS, in a file beside the table: codes of all vectors, and half floats.

Product quantisation to four bits for four numbers each: scanned in two thirds of the time of RaBitQ's codes of the same
size, as the distances to a query are looked up in one table for all partitions (benchmarks/search.py).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from vlmo.folder.atomic import atomic_file
from vlmo.retrieval.hits import Ranking
from vlmo.retrieval.store import Approximate, Store

FILE = "vectors.faiss"
"""Its name in the folder of an index."""
# Vectors a partition that k-means takes, and its iterations.
_TRAINED_WITH = 64
_ITERATIONS = 10


def has_faiss() -> bool:
    """Return True if FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def write_memory(store: Store, *, partitions: int) -> None:
    """Write `FILE` of all vectors of a table, whose size is a multiple of 4; takes 1.6 GB for a million of 768.

    OSError if the system refuses it, as where the disk is full.
    """
    faiss: Any = importlib.import_module("faiss")
    total = store.table.count_rows()
    dim = store.dim
    # Evenly over the table: images of one folder stand together, and look alike.
    sample = np.linspace(0, total - 1, min(total, _TRAINED_WITH * partitions)).astype(int)
    rows = store.table.take_offsets(np.unique(sample).tolist()).select(["vector"]).to_arrow()
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    codes: Any = faiss.index_factory(
        dim, f"IVF{partitions},PQ{dim // 4}x4fs", faiss.METRIC_INNER_PRODUCT
    )
    # Codes of the vectors themselves: one look-up table a query serves all partitions.
    codes.by_residual = False
    codes.cp.niter = _ITERATIONS
    codes.cp.max_points_per_centroid = _TRAINED_WITH
    # No warnings of small sets.
    codes.cp.min_points_per_centroid = 1
    codes.pq.cp.min_points_per_centroid = 1
    # Half floats of the best candidates are compared again: codes alone are too coarse.
    whole = faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index = faiss.IndexRefine(codes, whole)
    index.train(vectors)
    for batch in store.scan(["vector"]):
        index.add(batch["vector"].flatten().to_numpy().reshape(-1, dim))
    # Not by its name: FAISS does not look whether the last bytes have reached a full disk.
    with atomic_file(store.folder / FILE) as aside, aside.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


class MemoryVectors:
    """The vectors of `FILE`, in the order of the table that it was written from. Threads may share one.

    The half floats are mapped, so that opening is fast and the system may give their memory to others.

    Raises:
        RuntimeError: FAISS cannot read the file.
    """

    def __init__(self, folder: Path) -> None:
        import faiss

        self._faiss: Any = faiss
        self._index: Any = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC)

    def __len__(self) -> int:
        return self._index.ntotal

    def nearest(
        self, vector: Float32[np.ndarray, " dim"], *, top: int, search: Approximate
    ) -> tuple[Int64[np.ndarray, " rank"], Float32[np.ndarray, " rank"]]:
        """Return positions of the most similar vectors, and their cosines in half precision, best first."""
        parameters = self._faiss.IndexRefineSearchParameters(
            k_factor=max(2, search.candidates / top),
            base_index_params=self._faiss.SearchParametersIVF(nprobe=search.nprobes),
        )
        # Of the calling thread: others search, or run the model, on the other cores.
        self._faiss.omp_set_num_threads(1)
        query = np.asarray(vector, np.float32)[None]
        # Both (1, top).
        cosines, positions = self._index.search(query, min(top, len(self)), params=parameters)
        # FAISS fills up with -1 where there are too few.
        is_valid = positions[0] >= 0
        return positions[0][is_valid], cosines[0][is_valid]


@dataclass(frozen=True)
class CodedImages:
    """Columns of images in memory, with FAISS's vectors of them and how these are searched."""

    table: pa.Table
    vectors: MemoryVectors
    search: Approximate

    def nearest(self, vector: Float32[np.ndarray, " dim"], *, top: int) -> Ranking | None:
        """Return the most similar images; None if the partitions that are searched have too few."""
        rows, similarities = self.vectors.nearest(vector, top=top, search=self.search)
        if len(rows) < min(top, len(self.vectors)):
            return None
        return Ranking(self.table, rows, similarities)
