"""Latency and throughput of `vlmo serve` with many clients on this machine, and its memory over time.

    python benchmarks/serving.py --model vlmo-small --out benchmarks/results/serving.json
    python benchmarks/serving.py --model vlmo-small --soak 3600 --out benchmarks/results/soak.json

The index has the drawings of emoji-pairs and, up to the wanted number, vectors around theirs. Each client sends its
next request when it has the answer to the last one. Clients and server share the machine's cores: `client_cpu_seconds`
is what the clients took of them. All stays on the loopback address.
"""

import asyncio
import functools
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import tyro
from rich.console import Console

from surroundings import surroundings, write_result
from vlmo.data.sources import open_source
from vlmo.export.sessions import Precision
from vlmo.retrieval import Encoder, build_index
from vlmo.retrieval.approximate import make_approximate
from vlmo.retrieval.facts import INDEX_FILE, read_facts
from vlmo.retrieval.graphs_engine import EngineName
from vlmo.retrieval.options import APPROXIMATE_FROM
from vlmo.retrieval.store import Store

_CHUNK = 5000
_NOISE = 0.5
"""Length of what is added to a vector of length one: its neighbours stay around it, and no two are equal."""
_WARM_UP = 3.0
_SOAK_SHARE = 0.5
_KEPT_OPEN = 4.0
"""Seconds without a request that the server surely keeps a connection open."""
_READY = 300.0
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Options:
    """Loads a server on this machine."""

    model: Path
    """Model that retrieves: a folder or a name."""
    vectors: int = 100_000
    """Images in the index."""
    drawings: int = 500
    """Number of them that are real ones."""
    clients: int = 32
    """Requests that are under way at any time, 1 to 256."""
    seconds: float = 20.0
    """Seconds of each measurement, up to 600; three more before it do not count."""
    rerank: int = 32
    """Candidates that the fusion encoder scores where there is reranking."""
    modes: tuple[str, ...] = ("vectors", "auto")
    """Modes of search, each with and without reranking."""
    top: int = 10
    """Results of a request."""
    queue: int = 64
    """Places of the server."""
    engine: EngineName = "torch"
    """Software that the server runs the model with."""
    precision: Precision = "float32"
    """Of the engines onnx and openvino."""
    soak: float = 0.0
    """Seconds of a mixed load at half of the capacity after the measurements, up to 7200."""
    index: Path | None = None
    """Folder that keeps the index for the next run; by default it is made anew and removed."""
    out: Path | None = None
    """JSON file for the result."""

    def __post_init__(self) -> None:
        limits = (self.clients, 1, 256), (self.seconds, 0, 600), (self.soak, 0, 7200)
        if (
            any(not low <= value <= high for value, low, high in limits)
            or self.vectors < self.drawings
        ):
            raise SystemExit(
                "clients are 1 to 256, seconds up to 600, soak up to 7200, vectors no fewer than drawings"
            )


@dataclass
class Load:
    """Responses that clients have seen."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def summary(self, *, wall: float) -> dict[str, Any]:
        """Percentiles in milliseconds, and answers a second."""
        p50, p95, p99 = np.percentile(self.seconds or [float("nan")], [50, 95, 99]) * 1000
        return {
            "p50_ms": round(float(p50), 2),
            "p95_ms": round(float(p95), 2),
            "p99_ms": round(float(p99), 2),
            "requests": len(self.seconds),
            "requests_per_second": round(len(self.seconds) / wall, 1),
            "statuses": dict(self.statuses),
            "errors": sum(number for status, number in self.statuses.items() if status != "200"),
        }


# ---------------------------------------------------------------------------------------------------------- the index


def make_index(options: Options, folder: Path, *, console: Console) -> dict[str, Any]:
    """An index of the wanted size, unless it is there; what it says of itself."""
    if not (folder / INDEX_FILE).is_file():
        encoder = Encoder(options.model)
        with tempfile.TemporaryDirectory() as name:
            _write_drawings(Path(name), number=options.drawings)
            build_index(encoder, [name], out=folder, store_bytes=True)
        store = Store(folder, dim=encoder.dim)
        _grow(store, options.vectors)
        store.optimize(lookups=True)
        made = make_approximate(
            store, encoder, least=APPROXIMATE_FROM, before=None, console=console
        )
        facts = read_facts(folder)
        facts.images = store.table.count_rows()
        facts.approximate = made
        facts.write(folder)
    facts = read_facts(folder)
    return {
        "images": facts.images,
        "dim": facts.model["dim"],
        "approximate": facts.approximate,
    }


def _write_drawings(folder: Path, *, number: int) -> None:
    rows = open_source("emoji-pairs", split="test")
    lines = []
    for place in range(min(number, len(rows))):
        (folder / f"{place:05}.png").write_bytes(rows[place]["image"]["bytes"])
        lines.append(
            json.dumps({"image": f"{place:05}.png", "captions": list(rows[place]["captions"])})
        )
    (folder / "captions.jsonl").write_text("\n".join(lines))


def _grow(store: Store, number: int) -> None:
    """Adds copies of the rows under new names, each with a vector near that of its original."""
    rows = store.table.search().limit(store.table.count_rows()).to_arrow()
    vectors = np.array(rows["vector"].to_pylist(), dtype=np.float32)
    random_numbers = np.random.default_rng(0)
    for start in range(len(rows), number, _CHUNK):
        count = min(_CHUNK, number - start)
        chosen = random_numbers.integers(len(rows), size=count)
        noise = random_numbers.normal(size=(count, vectors.shape[1]))
        noise *= _NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        moved = vectors[chosen] + noise
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        part = rows.take(pa.array(chosen))
        names = [f"{start + place:024x}" for place in range(count)]
        values = pa.array(moved.astype(np.float32).ravel())
        columns = {name: part[name] for name in part.column_names}
        columns |= {"id": pa.array(names), "path": pa.array(names)}
        columns["vector"] = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        store.table.add(pa.table(columns))


# --------------------------------------------------------------------------------------------------------- the server


@contextmanager
def running_server(options: Options, index: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`vlmo serve` as a process of its own; its port. It must end with 0 when it is asked to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [
        str(options.model),
        "--index",
        str(index),
        "--port",
        str(port),
        "--queue",
        str(options.queue),
    ]
    arguments += ["--engine", options.engine, "--precision", options.precision]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmo.cli", "serve", *arguments], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _READY
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server does not start; run vlmo serve to see why")
            time.sleep(0.1)
        yield port, process
        process.terminate()
        if process.wait(timeout=_TIMEOUT) != 0:
            raise SystemExit(f"the server ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        return asyncio.run(_ask_once(port, request("GET", "/healthz")))[0] == "200"
    except OSError:
        return False


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that the server and its decoders have."""
    return sum(each.memory_info().rss for each in _processes(process))


def _processor_seconds(process: subprocess.Popen[bytes]) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in _processes(process))


def _processes(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    server = psutil.Process(process.pid)
    return [server, *server.children()]


# -------------------------------------------------------------------------------------------------------- the clients


def request(method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    """A request as it goes over the wire. A client of few instructions leaves the cores to the server."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes
) -> tuple[str, bytes]:
    """Status and body of the answer."""
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    return head.split(b" ", 2)[1].decode(), await reader.readexactly(length)


async def _ask_once(port: int, sent: bytes) -> tuple[str, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await ask(reader, writer, sent)
    finally:
        writer.close()


async def _client(
    port: int,
    next_request: Callable[[], bytes],
    *,
    begin: float,
    end: float,
    every: float,
    delay: float,
    load: Load,
) -> None:
    await asyncio.sleep(delay)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (start := time.monotonic()) < end:
        try:
            async with asyncio.timeout(_TIMEOUT):
                status, _ = await ask(reader, writer, next_request())
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            status = type(error).__name__
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if start >= begin:
            load.seconds.append(time.monotonic() - start)
            load.statuses[status] += 1
        await asyncio.sleep(max(start + every - time.monotonic(), 0.0))
        if every > _KEPT_OPEN:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def run_clients(
    port: int,
    next_request: Callable[[], bytes],
    *,
    clients: int,
    seconds: float,
    warm_up: float,
    load: Load,
    every: float = 0.0,
) -> None:
    """Keeps as many requests as clients under way; with `every`, each client sends one in so many seconds, in turn."""
    begin = time.monotonic() + warm_up
    times, apart = {"begin": begin, "end": begin + seconds, "every": every}, every / clients
    parts = [
        _client(port, next_request, **times, delay=number * apart, load=load)
        for number in range(clients)
    ]
    await asyncio.gather(*parts)


def requests_of(
    texts: Sequence[str], *, top: int, rerank: int, images: Sequence[str] = (), mode: str = "auto"
) -> Callable[[], bytes]:
    """Gives a request after another: a text at random; with images a mixture that has every kind of work in it."""
    choose = random.Random(0)

    def text(rerank: int) -> bytes:
        return request(
            "POST",
            "/v1/search",
            {"text": choose.choice(texts), "top": top, "rerank": rerank, "mode": mode},
        )

    def mixed() -> bytes:
        kind = choose.random()
        if kind < 0.1:
            return text(rerank)
        if kind < 0.2:
            return request("POST", "/v1/search", {"image": choose.choice(images), "top": top})
        return text(0)

    return mixed if images else lambda: text(rerank)


# ------------------------------------------------------------------------------------------------------- measurements


def measure(
    options: Options,
    port: int,
    process: subprocess.Popen[bytes],
    *,
    mode: str,
    rerank: int,
    warm_up: float,
) -> dict[str, Any]:
    """Figures of text search by a mode with `rerank` candidates."""
    texts = [row["captions"][0] for row in open_source("emoji-pairs", split="test")]
    load, before, own = Load(), _processor_seconds(process), _own_seconds()
    rows_before = _batch_rows(port)
    asyncio.run(
        run_clients(
            port,
            requests_of(texts, top=options.top, rerank=rerank, mode=mode),
            clients=options.clients,
            seconds=options.seconds,
            warm_up=warm_up,
            load=load,
        )
    )
    rows, calls = (
        after - early for after, early in zip(_batch_rows(port), rows_before, strict=True)
    )
    return load.summary(wall=options.seconds) | {
        "mode": mode,
        "rerank": rerank,
        "rows_per_call": round(rows / max(calls, 1), 2),
        "server_cpu_seconds": round(_processor_seconds(process) - before, 2),
        "client_cpu_seconds": round(_own_seconds() - own, 2),
        "server_resident_mb": round(resident(process) / 2**20),
    }


def soak(options: Options, port: int, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Memory of the server during a mixed load at half of the capacity: words, reranking and images."""
    import base64

    rows = open_source("emoji-pairs", split="test")
    texts = [row["captions"][0] for row in rows]
    images = [base64.b64encode(rows[place]["image"]["bytes"]).decode() for place in range(50)]
    load, full, memory = Load(), Load(), []
    next_request = requests_of(texts, top=options.top, rerank=options.rerank, images=images)
    clients = functools.partial(run_clients, port, next_request, clients=options.clients)
    asyncio.run(clients(seconds=options.seconds, warm_up=min(_WARM_UP, options.seconds), load=full))
    capacity = full.statuses["200"] / options.seconds
    if not capacity:
        raise SystemExit(f"the server answers nothing of the mixed load: {dict(full.statuses)}")

    async def watch() -> None:
        start = time.monotonic()
        while True:
            memory.append((round(time.monotonic() - start, 1), round(resident(process) / 2**20, 1)))
            await asyncio.sleep(max(options.soak / 240, 0.2))

    async def both() -> None:
        watching = asyncio.create_task(watch())
        every = options.clients / (_SOAK_SHARE * capacity)
        await clients(seconds=options.soak, warm_up=0.0, load=load, every=every)
        watching.cancel()

    asyncio.run(both())
    held = [megabytes for _, megabytes in memory]
    fifth = max(len(held) // 5, 1)
    return load.summary(wall=options.soak) | {
        "capacity_requests_per_second": round(capacity, 1),
        "resident_mb_after_a_fifth": round(float(np.median(held[fifth : 2 * fifth] or held)), 1),
        "resident_mb_of_the_last_fifth": round(float(np.median(held[-fifth:])), 1),
        "resident_mb_highest": max(held),
        "resident_mb": memory,
    }


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _batch_rows(port: int) -> tuple[float, float]:
    """Rows that went through a model so far, and calls."""
    _, text = asyncio.run(_ask_once(port, request("GET", "/metrics")))
    sums = [
        [
            float(line.split()[-1])
            for line in text.decode().splitlines()
            if line.startswith(f"vlmo_batch_rows_{part}{{")
        ]
        for part in ("sum", "count")
    ]
    return sum(sums[0]), sum(sums[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints figures, and writes them with `--out`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, args=arguments, description=__doc__)
    console = Console(stderr=True)
    load = os.getloadavg()[0]
    packages = ("vlmo", "torch", "onnxruntime", "openvino", "lancedb", "fastapi", "uvicorn")
    result: dict[str, Any] = surroundings("serving.py", arguments, packages=packages) | {
        "load_average": load
    }
    with tempfile.TemporaryDirectory() as name:
        index = options.index or Path(name) / "index"
        result |= {"index": make_index(options, index, console=console), "clients": options.clients}
        with running_server(options, index) as (port, process):
            warm_up = min(_WARM_UP, options.seconds)
            result["search"] = [
                measure(options, port, process, mode=mode, rerank=rerank, warm_up=warm_up)
                for mode in options.modes
                for rerank in (0, options.rerank)
            ]
            print(json.dumps(result["search"], indent=1))
            if options.soak:
                result["soak"] = soak(options, port, process)
                shown = {
                    key: value for key, value in result["soak"].items() if key != "resident_mb"
                }
                print(json.dumps(shown, indent=1))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
