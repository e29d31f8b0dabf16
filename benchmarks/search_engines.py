"""Indexes that search among the same vectors: the project's, FAISS's and usearch's.

An index is built into a file and opened from it. Codes or a graph give candidates, whose vectors in half floats, those
of the project's own file, decide. A search takes one thread.
"""

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from numpy import ndarray
from usearch.index import Index as Graph

from serving import Options as ServerOptions
from serving import resident, running_server
from vectors import BLOCK, NEAREST, Vectors
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Index
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.facts import INDEX_FILE, VERSION
from vlmo.retrieval.in_memory import FILE, MemoryVectors, write_memory
from vlmo.retrieval.store import Approximate, Store

Vector = Float32[ndarray, "dim"]
Positions = Int64[ndarray, "position"]
FACTORIES = {
    "FAISS RaBitQ": "IVF{partitions},RaBitQfs",
    "FAISS 4 bits": "IVF{partitions},PQ{dim}x4fs",
    "FAISS HNSW, SQ8": "HNSW32_SQ8",
}
"""FAISS's indexes. Four bits for each dimension are scanned like those of its IndexIVFSQFastScan, which 1.15 lacks."""
USEARCH, OURS, PROJECT = "usearch HNSW, int8", "vlmo, in memory", "project"
LINKS, EXPANSION = 32, 128
"""Of both graphs: links of a vector, and candidates for them."""
_TRAINED_WITH, _LEAST_EFFORT, _GROWTH, _WIDEST_GRAPH = 64, 8, 1.1, 4096


@dataclass(frozen=True)
class Setting:
    """Partitions that a search reads, or width of its walk in a graph; and candidates that are compared exactly."""

    effort: int
    candidates: int


class Engine(ABC):
    """One way to search.

    Args:
        most: Largest effort; 0 for what has no settings.
    """

    def __init__(self, most: int = 0) -> None:
        efforts = [round(_LEAST_EFFORT * _GROWTH**step) for step in range(100)]
        self.efforts = [effort for effort in efforts if effort < most] + [most] * (most > 0)
        self.setting = Setting(most, NEAREST)

    @abstractmethod
    def search(self, query: Vector) -> Positions:
        """Return positions of the nearest vectors."""


def work_of(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, on the clock and of the processor."""
    before, began = os.times(), time.perf_counter()
    call()
    wall, after = time.perf_counter() - began, os.times()
    processor = after.user + after.system - before.user - before.system
    return {"seconds": round(wall, 2), "cpu_seconds": round(processor, 2)}


def blocks_of(vectors: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield parts that fit into memory, with the position of their first vector."""
    for start in range(0, len(vectors), BLOCK):
        yield start, np.ascontiguousarray(vectors[start : start + BLOCK])


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---------------------------------------------------------------------------------------------- the project


def build_project(vectors: Vectors, folder: Path) -> dict[str, Any]:
    """Write an index folder as `vlmo index` does, of images without captions."""
    store = Store(folder, dim=vectors.shape[1])
    store.table.add_columns(pa.schema({"taken": pa.string()}))
    schema = store.table.schema
    for start, block in blocks_of(vectors):
        names = [str(start + number) for number in range(len(block))]
        columns: dict[str, Any] = {
            "id": [f"{int(name):024x}" for name in names],
            "hash": names,
            "path": [f"/photos/2021/{name}.jpg" for name in names],
            "taken": ["2021-06-14T12:00:00"] * len(names),
            "width": [4000] * len(names),
            "height": [3000] * len(names),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(block.reshape(-1)), block.shape[1]
            ),
        }
        rows = [pa.array(columns.get(each.name, [None] * len(names)), each.type) for each in schema]
        store.table.add(pa.table(rows, schema=schema))
    store.optimize(lookups=False)
    table_bytes, made = bytes_of(folder), list[Any]()
    # Without captions no text is embedded.
    whole = work_of(
        lambda: made.append(make_approximate(store, None, least=1, before=None, console=None))
    )
    encoder = Encoder(SMALL)  # whose vectors these are not: only their index is searched
    model = {"folder": SMALL, "fingerprint": encoder.fingerprint, "dim": store.dim}
    facts = {"version": VERSION, "model": model, "inputs": [], "approximate": made[0]}
    (folder / INDEX_FILE).write_text(json.dumps(facts))
    index_bytes = bytes_of(folder) - table_bytes - (folder / FILE).stat().st_size
    again = work_of(lambda: write_memory(store, partitions=made[0]["search"]["partitions"]))
    codes = (folder / FILE).stat().st_size - 2 * vectors.size
    return {
        "all": whole,
        "file": again,
        "table_bytes": table_bytes,
        "index_bytes": index_bytes,
        "code_bytes": codes,
    }


class Stored(Engine):
    """The project's table on disk, by LanceDB: its index, or with no settings every vector."""

    def __init__(self, folder: Path, *, partitions: int = 0) -> None:
        super().__init__(partitions)
        self._store, self._partitions = Store(folder), partitions

    def search(self, query: Vector) -> Positions:
        """Ask LanceDB."""
        how = (
            Approximate(self._partitions, self.setting.effort, self.setting.candidates)
            if self._partitions
            else None
        )
        rows = self._store.nearest(query, top=NEAREST, columns=["id"], search=how)
        return np.array([int(name, 16) for name in rows["id"].to_pylist()])


class InMemory(Engine):
    """The project's file of vectors, by FAISS."""

    def __init__(self, folder: Path, *, partitions: int) -> None:
        super().__init__(partitions)
        self._vectors, self._partitions = MemoryVectors(folder), partitions

    def search(self, query: Vector) -> Positions:
        """Read some partitions."""
        how = Approximate(self._partitions, self.setting.effort, self.setting.candidates)
        return self._vectors.nearest(query, top=NEAREST, search=how)[0]


class Results(Engine):
    """Whole results of an index folder as the service gives them, with the settings that `vlmo index` chose."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._index = Index(folder, in_memory=True)

    def search(self, query: Vector) -> Positions:
        """Find images."""
        return np.array([int(hit.id, 16) for hit in self._index.nearest(query, top=NEAREST)])


def start_service(folder: Path) -> dict[str, float]:
    """Seconds until `vlmo serve` has answered from an index, and the memory that it has then."""
    began = time.perf_counter()
    with running_server(ServerOptions(model=Path(SMALL)), folder) as (port, process):
        with urlopen(
            f"http://127.0.0.1:{port}/v1/about"
        ) as answer:  # whose samples are results of a search
            assert json.load(answer)["samples"]
        seconds = time.perf_counter() - began
        return {"start_seconds": round(seconds, 2), "resident_mb": resident(process) >> 20}


# ---------------------------------------------------------------------------------------------- peers


def build_faiss(vectors: Vectors, file: Path, *, factory: str) -> dict[str, Any]:
    """Write an index of FAISS, trained like the project's: on 64 vectors a partition, in ten iterations."""
    partitions, dim = round(math.sqrt(len(vectors))), vectors.shape[1]
    index = faiss.index_factory(
        dim, factory.format(partitions=partitions, dim=dim), faiss.METRIC_INNER_PRODUCT
    )
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = EXPANSION
    else:
        index.cp.niter, index.cp.max_points_per_centroid = 10, _TRAINED_WITH
    sample = np.unique(
        np.linspace(0, len(vectors) - 1, min(len(vectors), _TRAINED_WITH * partitions)).astype(int)
    )

    def build() -> None:
        index.train(np.ascontiguousarray(vectors[sample]))
        for _, block in blocks_of(vectors):
            index.add(block)

    built = work_of(build)
    faiss.write_index(index, str(file))
    return {"file": built, "code_bytes": file.stat().st_size}


class Faiss(Engine):
    """An index of FAISS, whose candidates are compared in half floats."""

    def __init__(self, file: Path, project: faiss.IndexRefine) -> None:
        self._codes, self._project = (
            faiss.read_index(str(file)),
            project,
        )  # both live as long as what refers to them
        self._is_graph = isinstance(self._codes, faiss.IndexHNSW)
        super().__init__(_WIDEST_GRAPH if self._is_graph else self._codes.nlist)
        self._index = faiss.IndexRefine(self._codes, project.refine_index)

    def search(self, query: Vector) -> Positions:
        """Read some partitions, or walk in a graph."""
        faiss.omp_set_num_threads(1)
        effort = self.setting.effort
        if self._is_graph:
            base = faiss.SearchParametersHNSW(efSearch=effort)
        else:
            base = faiss.SearchParametersIVF(nprobe=effort)
        factor = self.setting.candidates / NEAREST
        how = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
        return self._index.search(query[None], NEAREST, params=how)[1][0]


def build_usearch(vectors: Vectors, file: Path) -> dict[str, Any]:
    """Write usearch's graph of vectors in bytes."""
    graph = Graph(
        ndim=vectors.shape[1], metric="cos", dtype="i8", connectivity=LINKS, expansion_add=EXPANSION
    )

    def build() -> None:
        for start, block in blocks_of(vectors):
            graph.add(np.arange(start, start + len(block)), block, threads=os.cpu_count() or 1)

    built = work_of(build)
    graph.save(str(file))
    return {"file": built, "code_bytes": file.stat().st_size}


class Usearch(Engine):
    """usearch's graph, whose candidates are compared in half floats."""

    def __init__(self, file: Path, project: faiss.IndexRefine) -> None:
        super().__init__(_WIDEST_GRAPH)
        graph = Graph.restore(str(file))
        assert graph is not None
        self._graph, self._project = graph, project

    def search(self, query: Vector) -> Positions:
        """Walk in the graph."""
        self._graph.expansion_search = self.setting.effort
        keys = self._graph.search(query, self.setting.candidates, threads=1).keys.astype(np.int64)
        scores = self._project.refine_index.reconstruct_batch(keys) @ query
        return keys[np.argsort(-scores)[:NEAREST]]


# ---------------------------------------------------------------------------------------------- all


def build_engine(name: str, vectors: Vectors, folder: Path) -> dict[str, Any]:
    """Write what a peer reads, and return its bytes and the seconds."""
    file = folder / f"{name}.index"
    if name == USEARCH:
        return build_usearch(vectors, file)
    return build_faiss(vectors, file, factory=FACTORIES[name])


def open_engines(folder: Path, peers: Sequence[str]) -> dict[str, Engine]:
    """Open what was built, by name."""
    index = folder / PROJECT
    partitions = json.loads((index / INDEX_FILE).read_text())["approximate"]["search"]["partitions"]
    whole = faiss.read_index(str(index / FILE), faiss.IO_FLAG_MMAP_IFC)
    engines: dict[str, Engine] = {
        "vlmo, exact on disk": Stored(index),
        "vlmo, LanceDB's IVF_RQ on disk": Stored(index, partitions=partitions),
        OURS: InMemory(index, partitions=partitions),
    }
    for name in peers:
        engines[name] = (Usearch if name == USEARCH else Faiss)(folder / f"{name}.index", whole)
    return engines
