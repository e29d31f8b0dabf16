"""Approximate search in memory by FAISS, in a file beside the table: codes of all vectors, and half floats.

Product quantisation to four bits for four numbers each: scanned in two thirds of the time of RaBitQ's codes of the same
size, as the distances to a query are looked up in one table for all partitions (benchmarks/search.py).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vlmo.folder.atomic import atomic_file
from vlmo.retrieval.store import Approximate, Store, plain

FILE = "vectors.faiss"
"""Its name in the folder of an index."""
_TRAINED_WITH, _ITERATIONS = 64, 10
"""Vectors a partition that k-means takes, and its iterations."""


def has_faiss() -> bool:
    """Return True if FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def write_memory(store: Store, *, partitions: int) -> None:
    """Write `FILE` of all vectors of a table, whose size is a multiple of 4; takes 1.6 GB for a million of 768.

    ValueError if the system refuses it, as where the disk is full.
    """
    import faiss

    total, dim = store.table.count_rows(), store.dim
    sample = np.linspace(0, total - 1, min(total, _TRAINED_WITH * partitions)).astype(int)
    rows = store.table.take_offsets(np.unique(sample).tolist()).select(["vector"]).to_arrow()
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    codes: Any = faiss.index_factory(dim, f"IVF{partitions},PQ{dim // 4}x4fs", faiss.METRIC_INNER_PRODUCT)
    codes.by_residual, codes.cp.niter, codes.cp.max_points_per_centroid = False, _ITERATIONS, _TRAINED_WITH
    codes.cp.min_points_per_centroid = codes.pq.cp.min_points_per_centroid = 1  # no warnings of small sets
    whole = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexRefine(codes, whole)
    index.train(vectors)
    for batch in store.scan(["vector"]):
        index.add(batch["vector"].flatten().to_numpy().reshape(-1, dim))
    try:
        with atomic_file(store.folder / FILE) as aside:
            faiss.write_index(index, str(aside))
    except RuntimeError as error:
        raise ValueError(f"{store.folder / FILE} cannot be written ({plain(error)}); free space, run again") from error


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
    ) -> tuple[Int64[np.ndarray, " found"], Float32[np.ndarray, " found"]]:
        """Return positions of the most similar vectors, and their cosines in half precision, best first."""
        base, factor = self._faiss.SearchParametersIVF(nprobe=search.nprobes), max(2, search.candidates / top)
        how = self._faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
        self._faiss.omp_set_num_threads(1)  # of the calling thread: others search, or run the model, on the other cores
        cosines, places = self._index.search(np.asarray(vector, np.float32)[None], min(top, len(self)), params=how)
        found = places[0] >= 0
        return places[0][found], cosines[0][found]
