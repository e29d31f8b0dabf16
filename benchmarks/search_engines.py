"""Ways to search among vectors: tables and indexes of LanceDB, indexes of FAISS in memory, and the project's."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import numpy as np
import psutil
from jaxtyping import Float32, Int64
from numpy import ndarray

from serving import Options as ServerOptions
from serving import resident, running_server
from vectors import BLOCK, NEAREST, Vectors
from vlmo.released import SMALL
from vlmo.retrieval import Encoder, Index
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.in_memory import FILE
from vlmo.retrieval.index import INDEX_FILE, VERSION
from vlmo.retrieval.store import Store

Vector = Float32[ndarray, "dim"]
Found = Int64[ndarray, "found"]


class Engine(Protocol):
    """One way to search."""

    figures: dict[str, Any]
    """Parameters, seconds and bytes, known before the first query."""

    def search(self, query: Vector) -> Found:
        """Positions of the nearest vectors."""
        ...

    def as_client(self) -> None:
        """Called in the thread of each client before its first query."""


def work_of(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, on the clock and of the processor."""
    before, began = os.times(), time.perf_counter()
    call()
    wall, after = time.perf_counter() - began, os.times()
    own = after.user + after.system - before.user - before.system
    return {"seconds": round(wall, 2), "cpu_seconds": round(own, 2)}


# ---------------------------------------------------------------------------------------------- LanceDB


def index_parameters(rows: int) -> dict[str, int]:
    """Partitions, how many of them a query reads, and how many times too many candidates get their exact distance."""
    partitions = max(1, round(math.sqrt(rows)))
    nprobes = min(partitions, max(20, round(4 * math.sqrt(partitions))))
    return {"partitions": partitions, "nprobes": nprobes, "refine_factor": 20}


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class LanceTable:
    """A table of LanceDB with numbers and vectors of float32, searched row by row."""

    def __init__(self, vectors: Vectors, *, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        rows, dim = vectors.shape
        schema = pa.schema([pa.field("row", pa.int64()), pa.field("vector", pa.list_(pa.float32(), dim))])

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, rows, BLOCK):
                block = vectors[start : start + BLOCK]
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim)
                yield pa.record_batch([pa.array(np.arange(start, start + len(block))), column], schema=schema)

        def write() -> None:
            self.table = lancedb.connect(folder).create_table("vectors", data=batches(), schema=schema)

        self.folder = folder
        self.figures = {"write": work_of(write), "bytes": {"vectors": bytes_of(folder)}}

    def search(self, query: Vector) -> Found:
        """Compares with every row."""
        return self._rows(self._query(query).bypass_vector_index())

    def _query(self, query: Vector) -> Any:
        return self.table.search(query, vector_column_name="vector").distance_type("cosine").limit(NEAREST)

    def _rows(self, query: Any) -> Found:
        return query.select(["row", "_distance"]).to_arrow()["row"].to_numpy()

    def as_client(self) -> None:
        """Nothing to do."""


class LanceIndex(LanceTable):
    """The same table with an index of RaBitQ codes, one bit a dimension, whose candidates get their exact distance."""

    def __init__(self, table: LanceTable) -> None:
        from lancedb.index import IvfRq

        self.table, before = table.table, table.figures["bytes"]["vectors"]
        self.parameters = index_parameters(self.table.count_rows())
        config = IvfRq(distance_type="cosine", num_partitions=self.parameters["partitions"])
        built = work_of(lambda: self.table.create_index("vector", config=config))
        held = {"vectors": before, "index": bytes_of(table.folder) - before}
        self.figures = {"kind": "IVF_RQ", "parameters": self.parameters, "build": built, "bytes": held}

    def search(self, query: Vector) -> Found:
        """Reads some partitions of the index."""
        nprobes, refine = self.parameters["nprobes"], self.parameters["refine_factor"]
        return self._rows(self._query(query).nprobes(nprobes).refine_factor(refine))


# ---------------------------------------------------------------------------------------------- the project


class InMemory:
    """An index folder as the service opens it, up to whole results: vectors by FAISS, columns in memory."""

    def __init__(self, vectors: Vectors, *, folder: Path, serves: bool) -> None:
        import pyarrow as pa

        store, dim = Store(folder, dim=vectors.shape[1]), vectors.shape[1]
        store.table.add_columns(pa.schema({"taken": pa.string()}))
        schema = store.table.schema
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            names = [str(start + number) for number in range(len(block))]
            own: dict[str, Any] = {"id": [f"{int(name):024x}" for name in names], "hash": names}
            own |= {
                "path": [f"/photos/2021/{name}.jpg" for name in names],
                "taken": ["2021-06-14T12:00:00"] * len(names),
            }
            own |= {"width": [4000] * len(names), "height": [3000] * len(names)}
            columns = [pa.array(own.get(each.name, [None] * len(names)), each.type) for each in schema]
            columns[schema.names.index("vector")] = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dim)
            store.table.add(pa.table(columns, schema=schema))
        store.optimize(lookups=False)
        # Without captions no text is embedded.
        made: list[Any] = []
        built = work_of(lambda: made.append(make_approximate(store, None, least=1, before=None, console=None)))
        encoder = Encoder(SMALL)  # whose vectors these are not: only their index is searched
        model = {"folder": SMALL, "fingerprint": encoder.fingerprint, "dim": vectors.shape[1]}
        facts = {"version": VERSION, "model": model, "inputs": [], "approximate": made[0]}
        (folder / INDEX_FILE).write_text(json.dumps(facts))
        service = start_service(folder) if serves else {}
        before, began = psutil.Process().memory_info().rss, time.perf_counter()
        self.index = Index(folder, in_memory=True)
        self.search(np.array(vectors[0]))
        opened = {"open_seconds": round(time.perf_counter() - began, 2)}
        grown = (psutil.Process().memory_info().rss - before) >> 20
        sizes = {"index": sum(file.stat().st_size for file in folder.glob(FILE))}  # 0: searched exactly
        self.figures = {"build": built, "service": service, **opened, "memory_mb": grown, "bytes": sizes}
        self.figures["parameters"] = made[0].get("memory")

    def search(self, query: Vector) -> Found:
        """Whole results."""
        return np.array([int(hit.id, 16) for hit in self.index.nearest(query, top=NEAREST)])

    def as_client(self) -> None:
        """Nothing to do."""


def start_service(folder: Path) -> dict[str, float]:
    """Seconds until `vlmo serve` has answered from an index, and the memory that it has then."""
    began = time.perf_counter()
    with running_server(ServerOptions(model=Path(SMALL)), folder) as (port, process):
        with urlopen(f"http://127.0.0.1:{port}/v1/about") as answer:  # whose samples are results of a search
            assert json.load(answer)["samples"]
        seconds = time.perf_counter() - began
        return {"start_seconds": round(seconds, 2), "resident_mb": resident(process) >> 20}


# ---------------------------------------------------------------------------------------------- FAISS


class Faiss:
    """An index of FAISS in memory."""

    def __init__(self, index: Any, codes: Any = None, **figures: Any) -> None:
        self.index, self.codes, self.figures = index, codes, figures

    def read_more(self) -> bool:
        """Read a tenth more partitions of the codes for a query; False if all are read."""
        nprobes = min(self.codes.nlist, math.ceil(1.1 * self.codes.nprobe))
        more, self.codes.nprobe = nprobes > self.codes.nprobe, nprobes
        self.figures["parameters"] = self.figures["parameters"] | {"nprobes": nprobes}
        return more

    def search(self, query: Vector) -> Found:
        """As the index does it."""
        return self.index.search(query[None], NEAREST)[1][0]

    def as_client(self) -> None:
        """Clients share the cores; FAISS counts its threads for each of them."""
        import faiss

        faiss.omp_set_num_threads(1)


def add(index: Any, vectors: Vectors) -> None:
    """Adds vectors to an index of FAISS, block by block."""
    for start in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))


def faiss_engines(
    vectors: Vectors, *, threads: int, graph: bool, wants: Callable[[str], bool]
) -> Iterator[tuple[str, Faiss]]:
    """Exact search, RaBitQ codes with exact distances of the candidates, and a graph; all in memory."""
    import faiss

    faiss.omp_set_num_threads(threads)
    rows, dim = vectors.shape
    flat = faiss.IndexFlatIP(dim)
    written = work_of(lambda: add(flat, vectors))
    held = {"vectors": rows * dim * 4}
    yield "faiss exact", Faiss(flat, build=written, bytes=held)

    parameters = index_parameters(rows)
    for name, codes in (("faiss RaBitQ", "RaBitQfs"), ("faiss SQ8", "SQ8")):
        if not wants(name):
            continue
        index = faiss.index_factory(dim, f"IVF{parameters['partitions']},{codes}", faiss.METRIC_INNER_PRODUCT)
        built = work_of(lambda index=index: train_and_add(index, vectors))
        index.nprobe = parameters["nprobes"]
        refined = faiss.IndexRefine(index, flat)
        refined.k_factor = parameters["refine_factor"]
        sizes = held | {"index": len(faiss.serialize_index(index))}
        yield name, Faiss(refined, index, kind=f"IVF, {codes}", parameters=parameters, build=built, bytes=sizes)

    if graph and wants("faiss HNSW"):
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
        built = work_of(lambda: add(index, vectors))
        held = {"index": len(faiss.serialize_index(index))}
        parameters = {"m": 32, "ef_construction": 200, "ef": 128}
        yield "faiss HNSW", Faiss(index, kind="HNSW", parameters=parameters, build=built, bytes=held)


def train_and_add(index: Any, vectors: Vectors) -> None:
    """k-means on a random 256 vectors a partition, the most that FAISS takes by default, then adds all."""
    count = min(len(vectors), index.cp.max_points_per_centroid * index.nlist)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), size=count, replace=False))
    index.train(np.ascontiguousarray(vectors[rows]))
    add(index, vectors)
