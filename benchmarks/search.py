"""Search among 10 thousand to a million vectors: LanceDB, as an index folder uses it, beside FAISS on the same vectors.

    python benchmarks/search.py --out benchmarks/results/search.json
    python benchmarks/search.py --vectors embeddings.npy --sizes 100000
    python benchmarks/search.py --sizes 1000000 --engines "vlmo in memory" "faiss RaBitQ"

For each size: seconds to write and to build, bytes, and of single queries one after the other recall@10 against exact
search, median and 99th percentile of the latency; then of the same queries from 32 clients at once. Embedding a query
is not part of it. Exact neighbours come from whole products in float32. The vectors are made (`vectors.py`), or read
from an .npy file or from the column `vector` of a parquet file.

"vlmo in memory" is a whole result of the index folder, as the service gives it, beside FAISS's positions of vectors;
with it come the seconds until a service of the largest index answers, its model's included, and its resident memory.
The process keeps to `--threads` cores. LanceDB reads its table and index from a folder, FAISS holds all in memory; the
files are in the machine's page cache. The bar is for LanceDB's index at the largest size, by its worst kind of query.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from search_engines import Engine, Faiss, InMemory, LanceIndex, LanceTable, faiss_engines
from surroundings import surroundings, write_result
from vectors import FileVectors, MadeVectors, Neighbours, Questions, Vectors, hardness, read_vectors

RECALL_BAR, P99_BAR_MS = 0.97, 50.0
IN_MEMORY, PEER = "vlmo in memory", "faiss RaBitQ"
RECALL_IN_MEMORY, A_SECOND, STARTED_SECONDS = 0.98, 500.0, 20.0
WARM_UP, WARM_UP_SECONDS = 20, 1.0
_HARDNESS_AMONG = 100_000


@dataclass(frozen=True)
class Options:
    """Times searches by LanceDB and FAISS."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of vectors."""
    vectors: Path | None = None
    """An .npy file (rows, dim), or a parquet file with a column `vector`, instead of made vectors."""
    queries: Path | None = None
    """The same for queries; by default the last rows of `vectors` are queries."""
    dim: int = 768
    """Width of made vectors."""
    query_count: int = 500
    """Queries of each kind."""
    clients: int = 32
    """Clients that ask at once."""
    seconds: float = 10.0
    """A run of queries ends after this time, even if not all were asked."""
    threads: int = 2
    """Cores that the process keeps to."""
    engines: tuple[str, ...] = ()
    """Names of those to measure; by default all."""
    graphs_up_to: int = 10_000
    """Largest size for which FAISS builds an HNSW graph too, which takes far longer than the other indexes."""
    work: Path | None = None
    """Folder for vectors and tables meanwhile, about 7 KB a vector; by default a temporary one."""
    out: Path | None = None
    """JSON file for the result."""


# ---------------------------------------------------------------------------------------------- measuring


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    return {f"p{share}_ms": round(float(np.percentile(seconds, share)) * 1e3, 2) for share in (50, 99)}


def one_by_one(engine: Engine, asked: Questions, *, seconds: float) -> dict[str, float]:
    """Recall and latency of queries that wait for each other."""
    began = time.perf_counter()
    for query in asked.vectors[:WARM_UP]:
        engine.search(query)
        if time.perf_counter() - began > WARM_UP_SECONDS:
            break
    taken: list[float] = []
    hits, work = 0, os.times()
    for query, truth in zip(asked.vectors, asked.truth, strict=True):
        began = time.perf_counter()
        found = engine.search(query)
        taken.append(time.perf_counter() - began)
        hits += len(np.intersect1d(found, truth))
        if sum(taken) > seconds:
            break
    after = os.times()
    cpu = (after.user + after.system - work.user - work.system) / len(taken)
    recall = hits / (len(taken) * asked.truth.shape[1])
    return {"queries": len(taken), "recall@10": round(recall, 4)} | latency(taken) | {"cpu_ms": round(cpu * 1e3, 2)}


def at_once(engine: Engine, queries: Vectors, *, clients: int, seconds: float) -> dict[str, float]:
    """Latency and throughput of clients that each ask again as soon as they are answered."""
    left, taken = iter(queries), list[float]()
    began = time.perf_counter()

    def ask() -> None:
        engine.as_client()
        for query in left:  # one iterator for all: each query is asked once
            start = time.perf_counter()
            engine.search(query)
            taken.append(time.perf_counter() - start)
            if time.perf_counter() - began > seconds:
                return

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(ask) for _ in range(clients)]
    wall = time.perf_counter() - began
    for each in running:
        each.result()
    return {"queries": len(taken), "a_second": round(len(taken) / wall, 1)} | latency(taken)


def reach(recall: float, engine: Faiss, asked: Mapping[str, Questions], *, seconds: float) -> None:
    """Let a peer read partitions until it has a recall, by the queries that are timed, so that it is timed with it."""
    while min(one_by_one(engine, each, seconds=seconds)["recall@10"] for each in asked.values()) < recall:
        if not engine.read_more():
            return


def figures_of(engine: Engine, asked: Mapping[str, Questions], *, options: Options) -> dict[str, Any]:
    """All figures of one engine."""
    single = {kind: one_by_one(engine, each, seconds=options.seconds) for kind, each in asked.items()}
    figures = engine.figures | {"one by one": single}
    if min(each["p50_ms"] for each in single.values()) / 1e3 * options.clients > options.seconds:
        return figures  # a round of all clients would take too long
    mixed = np.concatenate([each.vectors for each in asked.values()])
    mixed = mixed[np.random.default_rng(0).permutation(len(mixed))]
    clients = at_once(engine, mixed, clients=options.clients, seconds=options.seconds)
    return figures | {f"{options.clients} clients": clients}


# ---------------------------------------------------------------------------------------------- vectors and truth


def prepare(
    source: MadeVectors | FileVectors, *, options: Options, folder: Path
) -> tuple[Vectors, dict[int, dict[str, Questions]]]:
    """Writes the vectors of the largest size to a file, and finds the exact neighbours for each size."""
    sizes = sorted(options.sizes)
    file = folder / "vectors.npy"
    vectors = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(sizes[-1], source.dim))
    queries = source.queries(options.query_count)
    neighbours = {kind: Neighbours(each) for kind, each in queries.items()}
    asked: dict[int, dict[str, Questions]] = {}
    seen = 0
    for block in source.blocks(sizes[-1]):
        vectors[seen : seen + len(block)] = block
        # A size may end within a block.
        for end in [*(size for size in sizes if seen < size < seen + len(block)), seen + len(block)]:
            for each in neighbours.values():
                each.see(vectors[each.seen : end])
            if end in sizes:
                asked[end] = {k: Questions(queries[k], each.rows.numpy().copy()) for k, each in neighbours.items()}
        seen += len(block)
    vectors.flush()
    return np.load(file, mmap_mode="r"), asked


def source_of(options: Options) -> MadeVectors | FileVectors:
    """The vectors that the options name."""
    if options.vectors is None:
        return MadeVectors(dim=options.dim)
    source = FileVectors(
        read_vectors(options.vectors), asked=None if options.queries is None else read_vectors(options.queries)
    )
    free = len(source.vectors) - (options.query_count if options.queries is None else 0)
    if max(options.sizes) > free:
        raise SystemExit(f"--sizes ask for {max(options.sizes):,} vectors; {options.vectors} has {free:,} to search")
    return source


# ---------------------------------------------------------------------------------------------- command


def measure(vectors: Vectors, asked: Mapping[str, Questions], *, folder: Path, options: Options) -> dict[str, Any]:
    """Figures of all engines for one size, one after the other."""

    def wants(name: str) -> bool:
        return not options.engines or name in options.engines

    def engines() -> Iterator[tuple[str, Engine]]:
        if wants("lancedb exact") or wants("lancedb index"):
            table = LanceTable(vectors, folder=folder)
            yield "lancedb exact", table
            if wants("lancedb index"):
                yield "lancedb index", LanceIndex(table)
        if wants(IN_MEMORY):
            yield IN_MEMORY, InMemory(vectors, folder=folder / "index", serves=len(vectors) == max(options.sizes))
        graph = len(vectors) <= options.graphs_up_to
        yield from faiss_engines(vectors, threads=options.threads, graph=graph, wants=wants)

    figures = {}
    for name, engine in engines():
        if wants(name):
            if isinstance(engine, Faiss) and name == PEER:
                reach(RECALL_IN_MEMORY, engine, asked, seconds=options.seconds)
            figures[name] = figures_of(engine, asked, options=options)
            print(f"{len(vectors):,} vectors, {name}: {figures[name]}", file=sys.stderr)
    return figures


def table_of(sizes: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    lines = ["| vectors | engine | queries | build s | recall@10 | p50 ms | p99 ms |", "|" + " --- |" * 7]
    for rows, engines in sizes.items():
        for name, found in engines.items():
            for kind, each in found["one by one"].items():
                build = found.get("build", found.get("write"))["seconds"]
                shown = [f"{each['recall@10']:.4f}", f"{each['p50_ms']:.1f}", f"{each['p99_ms']:.1f}"]
                lines.append(f"| {int(rows):,} | {name} | {kind} | {build:.1f} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def against_peer(engines: Mapping[str, Any], *, clients: int) -> dict[str, Any]:
    """Compare the project's search in memory with FAISS RaBitQ, by its worst kind of query."""
    own, peer = engines[IN_MEMORY], engines[PEER]
    worst, other = (
        {name: max(each[name] for each in found["one by one"].values()) for name in ("p50_ms", "cpu_ms")}
        for found in (own, peer)
    )
    recall = min(each["recall@10"] for each in own["one by one"].values())
    ratios = {name: round(worst[name] / max(other[name], 0.01), 3) for name in worst}
    rate = own[f"{clients} clients"].get("a_second", 0.0)
    served = own["service"]
    bars = {"recall@10": RECALL_IN_MEMORY, "p50_ratio": 1.0, "a_second": A_SECOND, "start_seconds": STARTED_SECONDS}
    met = recall >= RECALL_IN_MEMORY and ratios["p50_ms"] <= 1 and rate >= A_SECOND
    found = {"recall@10": recall, "ratios": ratios, "a_second": rate, **served}
    return {"bars": bars, **found, "met": met and served["start_seconds"] < STARTED_SECONDS}


def against_bar(engines: Mapping[str, Any]) -> dict[str, Any]:
    """Compare LanceDB's index with the bar, by its worst kind of query."""
    kinds = engines["lancedb index"]["one by one"].values()
    recall, slowest = min(each["recall@10"] for each in kinds), max(each["p99_ms"] for each in kinds)
    bars = {"recall@10": RECALL_BAR, "p99_ms": P99_BAR_MS}
    return {"bars": bars, "recall@10": recall, "p99_ms": slowest, "met": recall >= RECALL_BAR and slowest < P99_BAR_MS}


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """Keeps this process, and the threads that start meanwhile, to some cores (Linux)."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, set(sorted(allowed)[:count]))
    torch.set_num_threads(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints a table, and writes the result with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    os.environ.setdefault("LANCE_LOG", "error")
    load = os.getloadavg()[0]
    source = source_of(options)
    with cores(options.threads), tempfile.TemporaryDirectory(dir=options.work) as name:
        began, folder = time.perf_counter(), Path(name)
        result = surroundings("search.py", arguments, packages=("lancedb", "faiss-cpu", "pyarrow", "numpy", "torch"))
        vectors, asked = prepare(source, options=options, folder=folder)
        largest = max(options.sizes)
        sample = np.array(vectors[:_HARDNESS_AMONG])
        result |= {
            "load_average": load,
            "vectors": {
                "source": "made by vectors.py" if options.vectors is None else options.vectors.name,
                "dim": source.dim,
                f"hardness_among_{len(sample)}": {k: hardness(v.vectors, sample) for k, v in asked[largest].items()},
            },
            "prepare_seconds": round(time.perf_counter() - began, 1),
            "sizes": {},
        }
        for rows in sorted(options.sizes):
            found = measure(vectors[:rows], asked[rows], folder=folder / str(rows), options=options)
            result["sizes"][str(rows)] = found
            write_result(result, options.out)  # what a run that is stopped has found
        measured = result["sizes"][str(largest)]
        if "lancedb index" in measured:
            result["bar"] = against_bar(measured)
        if {IN_MEMORY, PEER} <= measured.keys():
            result["in memory beside FAISS RaBitQ"] = against_peer(measured, clients=options.clients)
        result["total_seconds"] = round(time.perf_counter() - began, 1)
    print(table_of(result["sizes"]))
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
