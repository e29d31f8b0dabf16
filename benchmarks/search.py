"""Search among a million vectors at equal recall: an index folder in memory and on disk, FAISS and usearch.

    python benchmarks/search.py --work build/search --prepare
    python benchmarks/search.py --work build/search --out benchmarks/results/search.json

For each engine and kind of query, the setting that reaches recall@10 of 0.98 in the least time is chosen on one half of
the queries; recall and latency, one query after the other on one thread, are of the other half. Engines take turns.
Embedding a query is not part of it. Exact neighbors come from whole products in float32. The vectors are made
(`vectors.py`), or read from an .npy file or from the column `vector` of a parquet file.

The whole results of the index folder, as the service gives them, have the settings that `vlmo index` chose, and are
asked for by 32 clients at once, too; with them come the seconds until a service answers, its model's included, and its
memory. The process keeps to `--threads` cores; files are in the machine's page cache.
"""

import bisect
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from search_engines import (
    FACTORIES,
    OURS,
    PROJECT,
    USEARCH,
    Engine,
    Results,
    Setting,
    build_engine,
    build_project,
    open_engines,
    start_service,
)
from surroundings import surroundings, write_result
from vectors import FileVectors, MadeVectors, Neighbours, Questions, Vectors, hardness, read_vectors

RECALL, A_SECOND, STARTED_SECONDS = 0.98, 500.0, 20.0
"""Bars: recall of every engine; searches a second of all clients, and seconds until the service answers."""
CANDIDATES = (10, 50, 100, 200, 400, 800)
_HARDNESS_AMONG = 100_000


@dataclass(frozen=True)
class Options:
    """Times searches by an index folder, FAISS and usearch."""

    size: int = 1_000_000
    """Number of vectors."""
    vectors: Path | None = None
    """An .npy file (rows, dim), or a parquet file with a column `vector`, instead of made vectors."""
    queries: Path | None = None
    """The same for queries; by default the last rows of `vectors` are queries."""
    dim: int = 768
    """Width of made vectors."""
    query_count: int = 2000
    """Queries of each kind; settings are chosen on half of them."""
    clients: int = 32
    """Clients that ask at once."""
    seconds: float = 10.0
    """A run of queries ends after this time, even if not all were asked."""
    turns: int = 3
    """Times that each engine is asked all queries."""
    threads: int = 2
    """Cores that the process keeps to."""
    peers: tuple[str, ...] = (*FACTORIES, USEARCH)
    """Engines beside the project's."""
    work: Path | None = None
    """Folder of vectors and indexes, 12 KB a vector, which a later call finds there; by default a temporary one."""
    prepare: bool = False
    """Make vectors and indexes and choose the settings, and end: a later call with this `work` has only to ask."""
    out: Path | None = None
    """JSON file for the result."""


# ---------------------------------------------------------------------------------------------- measuring


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    return {
        f"p{share}_ms": round(float(np.percentile(seconds, share)) * 1e3, 2) for share in (50, 99)
    }


def one_by_one(engine: Engine, asked: Questions, *, seconds: float) -> dict[str, float]:
    """Recall and latency of queries that wait for each other."""
    taken: list[float] = []
    hits, work = 0, time.process_time()
    for query, truth in zip(asked.vectors, asked.truth, strict=True):
        began = time.perf_counter()
        positions = engine.search(query)
        taken.append(time.perf_counter() - began)
        hits += len(np.intersect1d(positions, truth))
        if sum(taken) > seconds:
            break
    cpu = (time.process_time() - work) / len(taken)
    recall = hits / (len(taken) * asked.truth.shape[1])
    return (
        {"queries": len(taken), "recall@10": recall}
        | latency(taken)
        | {"cpu_ms": round(cpu * 1e3, 2)}
    )


def at_once(engine: Engine, queries: Vectors, *, clients: int, seconds: float) -> dict[str, float]:
    """Latency and throughput of clients that each ask again as soon as they are answered."""
    left, taken = iter(queries), list[float]()
    began = time.perf_counter()

    def ask() -> None:
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


def choose(engine: Engine, asked: Questions, *, seconds: float) -> Setting:
    """Return the setting that reaches the recall with the least work of the processor, or else the largest."""
    best, least = Setting(engine.efforts[-1], CANDIDATES[-1]), float("inf")

    def measure(setting: Setting) -> dict[str, float]:
        engine.setting = setting
        return one_by_one(engine, asked, seconds=seconds)

    for candidates in CANDIDATES:
        reached = bisect.bisect_left(
            engine.efforts,
            RECALL,
            key=lambda effort: measure(Setting(effort, candidates))["recall@10"],
        )
        if reached < len(engine.efforts):
            setting = Setting(engine.efforts[reached], candidates)
            if (cost := measure(setting)["cpu_ms"]) < least:
                best, least = setting, cost
    return best


def median_of(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each number over the turns."""
    return {name: round(float(np.median([turn[name] for turn in turns])), 4) for name in turns[0]}


# ---------------------------------------------------------------------------------------------- what is asked


def write_vectors(source: MadeVectors | FileVectors, folder: Path, options: Options) -> None:
    """Write the vectors, the queries and their exact neighbors."""
    shape = (options.size, source.dim)
    vectors = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=np.float32, shape=shape
    )
    queries = source.queries(options.query_count)
    neighbors, seen = {kind: Neighbours(each) for kind, each in queries.items()}, 0
    for block in source.blocks(options.size):
        vectors[seen : seen + len(block)] = block
        seen += len(block)
        for each in neighbors.values():
            each.see(block)
    vectors.flush()
    arrays = {f"{kind} queries": each for kind, each in queries.items()}
    arrays |= {f"{kind} truth": each.rows.numpy() for kind, each in neighbors.items()}
    np.savez(folder / "queries.npz", **arrays)  # last: what is there is whole


def source_of(options: Options) -> MadeVectors | FileVectors:
    """The vectors that the options name."""
    if options.vectors is None:
        return MadeVectors(dim=options.dim)
    source = FileVectors(
        read_vectors(options.vectors),
        asked=None if options.queries is None else read_vectors(options.queries),
    )
    free = len(source.vectors) - (options.query_count if options.queries is None else 0)
    if options.size > free:
        raise SystemExit(
            f"--size asks for {options.size:,} vectors; {options.vectors} has {free:,} to search"
        )
    return source


def read_questions(folder: Path) -> tuple[dict[str, Questions], dict[str, Questions]]:
    """Return the queries to choose settings on, and those to time, by kind."""
    with np.load(folder / "queries.npz") as arrays:
        kinds = [name.removesuffix(" truth") for name in arrays if name.endswith(" truth")]
        queries = {kind: arrays[f"{kind} queries"] for kind in kinds}
        truth = {kind: arrays[f"{kind} truth"] for kind in kinds}
    half = {kind: len(queries[kind]) // 2 for kind in kinds}
    first = {
        kind: Questions(queries[kind][: half[kind]], truth[kind][: half[kind]]) for kind in kinds
    }
    second = {
        kind: Questions(queries[kind][half[kind] :], truth[kind][half[kind] :]) for kind in kinds
    }
    return first, second


# ---------------------------------------------------------------------------------------------- command


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """Read a JSON file, which is made if it is not there."""
    if not file.exists():
        file.write_text(json.dumps(make()))
        print(file.name, file.read_text(), file=sys.stderr)
    return json.loads(file.read_text())


def prepare(folder: Path, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make what is not there yet; return seconds and bytes, and the chosen settings by engine and kind."""
    if not (folder / "queries.npz").exists():
        write_vectors(source_of(options), folder, options)
    vectors, (first, _) = np.load(folder / "vectors.npy", mmap_mode="r"), read_questions(folder)
    built = {
        OURS: kept(folder / f"{OURS}.built.json", lambda: build_project(vectors, folder / PROJECT))
    }
    for name in options.peers:
        built[name] = kept(
            folder / f"{name}.built.json", lambda name=name: build_engine(name, vectors, folder)
        )
    settings = {}
    for name, engine in open_engines(folder, options.peers).items():
        if engine.efforts:
            settings[name] = kept(
                folder / f"{name}.settings.json",
                lambda engine=engine: {
                    kind: asdict(choose(engine, each, seconds=options.seconds))
                    for kind, each in first.items()
                },
            )
    return built, settings


def measure(
    folder: Path, settings: Mapping[str, Any], options: Options
) -> dict[str, dict[str, Any]]:
    """Return recall and latency by engine and kind, the engines by turns."""
    _, asked = read_questions(folder)
    turns: dict[str, dict[str, list[dict[str, float]]]] = {}
    engines = open_engines(folder, options.peers) | {
        "vlmo, whole results": Results(folder / PROJECT)
    }
    for turn in range(options.turns + 1):
        for name, engine in engines.items():
            for kind, each in asked.items():
                if name in settings:
                    engine.setting = Setting(**settings[name][kind])
                # The first turn warms up.
                measured = one_by_one(
                    engine, each, seconds=options.seconds if turn else options.seconds / 10
                )
                if turn:
                    turns.setdefault(name, {}).setdefault(kind, []).append(measured)
    return {
        name: {kind: median_of(each) for kind, each in kinds.items()}
        for name, kinds in turns.items()
    }


def serve(folder: Path, options: Options) -> dict[str, Any]:
    """Return what the project promises of whole results: searches by clients at once, and the start of a service."""
    _, asked = read_questions(folder)
    mixed = np.concatenate([each.vectors for each in asked.values()])
    mixed = mixed[np.random.default_rng(0).permutation(len(mixed))]
    clients = at_once(
        Results(folder / PROJECT), mixed, clients=options.clients, seconds=options.seconds
    )
    service = start_service(folder / PROJECT)
    met = clients["a_second"] >= A_SECOND and service["start_seconds"] < STARTED_SECONDS
    bars = {"a_second": A_SECOND, "start_seconds": STARTED_SECONDS}
    return {f"{options.clients} clients": clients, "service": service, "bars": bars, "met": met}


def table_of(result: Mapping[str, Any]) -> str:
    """Return the result in Markdown."""
    lines = [
        "| engine | build, CPU s | codes, MB | queries | setting | recall@10 | p50 ms | p99 ms |",
        "|" + " --- |" * 8,
    ]
    for name, kinds in result["engines"].items():
        built = result["built"].get(name, {"file": {"cpu_seconds": 0}, "code_bytes": 0})
        for kind, each in kinds.items():
            setting = result["settings"].get(name, {}).get(kind, {}).values()
            cells = [
                name,
                f"{built['file']['cpu_seconds']:.0f}",
                f"{built['code_bytes'] / 1e6:.0f}",
                kind,
            ]
            cells += [" / ".join(map(str, setting)), f"{each['recall@10']:.4f}"]
            cells += [f"{each['p50_ms']:.2f}", f"{each['p99_ms']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
    packages = ("lancedb", "faiss-cpu", "usearch", "pyarrow", "numpy", "torch")
    result = surroundings("search.py", arguments, packages=packages) | {
        "load_average": os.getloadavg()[0]
    }
    with cores(options.threads), tempfile.TemporaryDirectory() as name:
        folder = options.work or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        built, settings = prepare(folder, options)
        if options.prepare:
            return result
        _, asked = read_questions(folder)
        sample = np.load(folder / "vectors.npy", mmap_mode="r")[:_HARDNESS_AMONG]
        result |= {
            "vectors": {
                "source": "made by vectors.py" if options.vectors is None else options.vectors.name,
                "dim": sample.shape[1],
                f"hardness_among_{len(sample)}": {
                    k: hardness(each.vectors, sample) for k, each in asked.items()
                },
            },
            "recall": RECALL,
            "built": built,
            "settings": settings,
            "engines": measure(folder, settings, options),
            "service": serve(folder, options),
        }
    print(table_of(result))
    write_result(result, options.out)
    return result


if __name__ == "__main__":
    main()
