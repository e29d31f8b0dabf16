"""Attack `vlmo serve` with hostile, costly and too many requests, slow and idle clients, and SIGTERM under load.

    python -m attacks.service --out attacks/results/service.json          # two hours
    python -m attacks.service --scale 0.01                                # a trial

Run it from the repository's folder, on an idle machine: times are part of the promises. A small model, an index of
drawings and the server are made for it; all stays on the loopback address. Exits with 1 if a promise is broken.
"""

import asyncio
import base64
import itertools
import json
import math
import random
import resource
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from attacks.common import Attack, run_attack
from attacks.hostile import (
    REFUSED,
    TAKEN,
    Hostile,
    costly_image,
    damaged,
    encoded,
    hostile_requests,
    many_keys,
    many_lists,
    png_bomb,
    proper_requests,
    request,
)
from tests.serving.toy_service import ServerProcess, make_gallery

KEY = "k" * 20
SLOWEST_S, GIVES_UP_S = 5.0, 120.0
LONGEST_REFUSAL = 2000
HEALTHY_S = 0.3  # of /healthz while hostile images are decoded, in a full attack
PATIENCE_S = 5.0  # least of the service at a small scale, so that a busy machine is no slow client
CLIENTS, HOSTILE_CLIENTS, QUEUE = 64, 8, 32
FILES, IDLE = 1024, 1500
"""Open files that the server may have, and connections that send nothing."""
PEAK_BYTES = 900 * 2**20
"""Two images of 25 million pixels are decoded at a time; with transparency that takes four copies of four bytes a
pixel. The bombs would take from two gigabytes up."""
MEMORY = 1.10
"""Memory afterwards, as a share of that before; under a steady load, of that after a sixth of the time."""
BACK_WITHIN_S, STOPS_WITHIN_S = 60.0, 30.0


@dataclass
class Answers:
    """Answers that clients have got."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Requests whose answer breaks a promise, with that answer."""

    def note(
        self,
        sent: bytes,
        status: int | None,
        head: bytes,
        seconds: float,
        *,
        may_be_none: bool = False,
    ) -> None:
        """Count an answer."""
        self.statuses[str(status)] += 1
        self.seconds.append(seconds)
        refused = status == 503 and b"\r\nretry-after: " in head
        if (status is None and not may_be_none) or (
            status is not None and status >= 500 and not refused
        ):
            self.wrong.append(f"{status} after {seconds:.2f} s: {sent[:300]!r}")

    def measured(self) -> dict:
        """Return the numbers for a result."""
        slowest, median = (round(of(self.seconds), 3) for of in (max, statistics.median))
        return {
            "statuses": dict(self.statuses),
            "slowest_s": slowest,
            "median_s": median,
            "wrong": self.wrong[:5],
        }


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to the server, and break the connection off at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(port: int, sent: bytes, *, hangs_up: bool = False) -> tuple[int | None, bytes, bytes]:
    """Return status, head and body of an answer; the status is None if the connection ends before all of it came."""
    async with connected(port) as (reader, writer):
        writer.write(sent)
        if hangs_up:
            writer.write_eof()
        head = b""
        with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(GIVES_UP_S):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if head.split()[1] == b"100":
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
                body = b"" if sent[:4] == b"HEAD" else await reader.readexactly(int(length or 0))
                return int(head.split()[1]), head, body
        return None, head, b""


async def ask_all(
    port: int, requests: Iterator[Hostile], answers: Answers, *, clients: int
) -> None:
    """Send all requests, those of several clients at a time."""

    async def client() -> None:
        for each in requests:
            began = time.monotonic()
            status, head, body = await ask(port, each.sent, hangs_up=each.hangs_up)
            answers.note(
                each.sent, status, head, time.monotonic() - began, may_be_none=each.hangs_up
            )
            if status is not None and status >= 400 and len(body) > LONGEST_REFUSAL:
                answers.wrong.append(f"{status} with {len(body)} bytes: {each.sent[:300]!r}")

    await asyncio.gather(*(client() for _ in range(clients)))


async def probe(port: int, stop: asyncio.Event) -> list[float]:
    """Ask /healthz ten times a second until `stop`, and return how long each answer took; inf for no answer of 200."""
    seconds = []
    while not stop.is_set():
        began = time.monotonic()
        status, _, _ = await ask(port, request("GET", "/healthz"))
        seconds.append(time.monotonic() - began if status == 200 else math.inf)
        await asyncio.sleep(0.1)
    return seconds


async def load(
    port: int,
    *,
    clients: int,
    seconds: float,
    rate: float | None,
    watch: Callable[[float], None],
    images: float = 0.1,
) -> Answers:
    """Ask usual questions for a time: `rate` a second by the clock, or each as soon as the last is answered."""
    answers, start, ask_next = Answers(), time.monotonic(), usual(random.Random(0), images=images)

    async def client(number: int) -> None:
        for turn in itertools.count():
            due = start + (0.0 if rate is None else (turn * clients + number) / rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            if (began := time.monotonic()) > start + seconds:
                return
            sent = next(ask_next)
            status, head, _ = await ask(port, sent)
            answers.note(sent, status, head, time.monotonic() - began)

    running = [asyncio.create_task(client(number)) for number in range(clients)]
    while not all(task.done() for task in running):
        await asyncio.wait(running, timeout=min(1.0, seconds / 20))
        watch(time.monotonic() - start)
    await asyncio.gather(*running)
    return answers


def authorized(path: str, body: bytes) -> bytes:
    """Return a request with the key."""
    return request("POST", path, body, heads=f"Authorization: Bearer {KEY}\r\n")


def image_request(data: bytes) -> bytes:
    """Return a search by an image."""
    return authorized("/v1/search", json.dumps({"image": base64.b64encode(data).decode()}).encode())


def usual(choose: random.Random, *, images: float = 0.1) -> Iterator[bytes]:
    """Yield requests of clients of good will, a share of them with images, without end."""
    while True:
        body = {
            "text": f"a red {choose.choice(('bar', 'circle'))}",
            "rerank": choose.choice((0, 0, 0, 8)),
        }
        yield (
            image_request(encoded())
            if choose.random() < images
            else authorized("/v1/search", json.dumps(body).encode())
        )


def memory_of(server: ServerProcess, name: str) -> int:
    """Bytes of the server and its decoders by the system's record: VmRSS (now) or VmHWM (the most so far)."""
    pids = [
        server.process.pid,
        *(each.pid for each in psutil.Process(server.process.pid).children()),
    ]
    lines = [
        line.split()
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    ]
    return sum(int(line[1]) * 1024 for line in lines if line[0] == f"{name}:")


def attack_with_requests(attack: Attack, server: ServerProcess, *, scale: float) -> None:
    """10,000 hostile requests and 200 hostile images."""
    choose, number = attack.choose, max(round(10_000 * scale), 100)
    shown = itertools.count(1)

    def counted(requests: Iterator[Hostile], title: str, total: int) -> Iterator[Hostile]:
        for each in itertools.islice(requests, total):
            attack.progress.update(title, next(shown), total)
            yield each

    peak = memory_of(server, "VmHWM")
    answers = Answers()
    requests = counted(hostile_requests(choose, key=KEY), "hostile requests", number)
    asyncio.run(ask_all(server.port, requests, answers, clients=HOSTILE_CLIENTS))
    kept = not answers.wrong and max(answers.seconds) <= SLOWEST_S
    attack.promise("hostile requests", kept=kept, requests=number, **answers.measured())

    names = {name: (make, 422) for name, make in REFUSED.items()} | {
        name: (make, 200) for name, make in TAKEN.items()
    }
    number = max(round(200 * scale), len(names) + 4)
    damage = itertools.repeat(("damaged", (lambda: damaged(choose), 0)))
    images = [
        (name, image_request(make()), expected)
        for name, (make, expected) in itertools.islice(
            itertools.chain(names.items(), damage), number
        )
    ]
    large = [
        {"image": base64.b64encode(png_bomb(4992, 5000, bits=8, color=6)).decode()}
    ] * 4  # decoded a few at a time
    large_request = authorized("/v1/embeddings", json.dumps({"input": large}).encode())

    async def send_all(port: int) -> tuple[list[str], list[float], list[float]]:
        wrong, seconds, stop = [], [], asyncio.Event()
        health = asyncio.create_task(probe(port, stop))
        for turn, (name, sent, expected) in enumerate(images):
            began = time.monotonic()
            status, _, body = await ask(port, sent)
            seconds.append(time.monotonic() - began)
            reasoned = status == 200 or b"no usable image: " in body[:400]
            if not (status == expected or (not expected and status in {200, 422})) or not reasoned:
                wrong.append(f"{name}: {status} {body[:200]!r}")
            attack.progress.update("hostile images", turn + 1, number)
        status, _, _ = await ask(port, large_request)
        stop.set()
        return wrong + [f"four large images: {status}"] * (status != 200), seconds, await health

    wrong, seconds, health = asyncio.run(send_all(server.port))
    grown = memory_of(server, "VmHWM") - peak
    healthy = max(health) <= (HEALTHY_S if scale >= 1 else SLOWEST_S)
    kept = not wrong and max(seconds) <= SLOWEST_S and grown <= PEAK_BYTES and healthy
    measured = {
        "slowest_s": max(seconds),
        "health_checks": len(health),
        "slowest_health_check_s": max(health),
    }
    attack.promise(
        "hostile images", kept=kept, images=number, **measured, wrong=wrong, peak_mb=grown >> 20
    )


def attack_with_load(attack: Attack, server: ServerProcess, *, scale: float) -> None:
    """Ten minutes at twice the capacity, an hour at half of it, and SIGTERM in the middle of it all."""
    full = asyncio.run(
        load(server.port, clients=16, seconds=max(60 * scale, 1), rate=None, watch=lambda _: None)
    )
    capacity = len(full.seconds) / max(60 * scale, 1)

    def watched(title: str, seconds: float, memory: list[int]) -> Callable[[float], None]:
        def watch(now: float) -> None:
            memory.append(memory_of(server, "VmRSS"))
            attack.progress.update(title, min(round(now), round(seconds)), round(seconds))

        return watch

    for title, clients, seconds, factor in (
        ("overload", CLIENTS, 600, 2.0),
        ("half load", 16, 3600, 0.5),
    ):
        seconds, memory = max(seconds * scale, 1), []
        watch, rate = watched(title, seconds, memory), factor * capacity
        answers = asyncio.run(
            load(server.port, clients=clients, seconds=seconds, rate=rate, watch=watch)
        )
        is_over, part = (
            factor > 1,
            max(len(memory) // 6, 1),
        )  # a refusal says when to come again: `note`
        early, late = (
            round(statistics.median(each)) >> 20
            for each in (memory[part : 2 * part], memory[-part:])
        )
        expected = {"200", "503"} if is_over else {"200"}
        kept = (
            not answers.wrong
            and set(answers.statuses) <= expected
            and (is_over or late <= MEMORY * early)
        )
        measured = {
            "capacity_per_s": round(capacity, 1),
            "seconds": seconds,
            "early_mb": early,
            "late_mb": late,
        }
        attack.promise(title, kept=kept, **measured, **answers.measured())


def attack_with_costly_requests(attack: Attack, server: ServerProcess, *, scale: float) -> None:
    """Bodies that cost much to parse, images that cost much to decode, and idle connections, beside searches."""
    costly = [{"image": base64.b64encode(costly_image()).decode()}] * 16
    images = authorized("/v1/embeddings", json.dumps({"input": costly}).encode())
    size = min(max(round(1_300_000 * scale), 100_000), 1_300_000)  # of up to 16 MB
    lists, keys = (
        authorized("/v1/embeddings", many_lists(3 * size)),
        authorized("/v1/search", many_keys(size)),
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * IDLE), hard), hard))
    for name, requests in {
        "costly bodies": [lists, *[keys] * 24],
        "costly images": [images] * CLIENTS,
        "idle connections": [b""] * IDLE,
    }.items():
        peak, seconds = memory_of(server, "VmHWM"), min(max(60 * scale, 1), 60)
        searches, others = asyncio.run(searches_beside(server.port, requests, seconds=seconds))
        kept = (
            set(searches.statuses) == {"200"}
            and max(searches.seconds) <= SLOWEST_S
            and not others.wrong
        )
        measured = {
            "others": dict(others.statuses),
            "grown_mb": (memory_of(server, "VmHWM") - peak) >> 20,
        }
        attack.promise(name, kept=kept, requests=len(requests), **measured, **searches.measured())


async def searches_beside(
    port: int, requests: Sequence[bytes], *, seconds: float
) -> tuple[Answers, Answers]:
    """Send all requests and search by words, again and again, for some seconds; return the answers to both.

    500 requests a second are sent, so that these clients leave the searches time to be sent too.
    """
    searches, others = Answers(), Answers()

    async def send(sent: bytes, number: int) -> None:
        await asyncio.sleep(number / 500)
        began = time.monotonic()
        status, head, _ = await ask(port, sent)
        others.note(sent, status, head, time.monotonic() - began, may_be_none=True)

    running = [asyncio.create_task(send(each, number)) for number, each in enumerate(requests)]
    end, search = (
        time.monotonic() + seconds,
        authorized("/v1/search", json.dumps({"text": "a red bar"}).encode()),
    )
    while (began := time.monotonic()) < end:
        status, head, _ = await ask(port, search)
        searches.note(search, status, head, time.monotonic() - began)
        await asyncio.sleep(0.1)
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return searches, others


def attack_with_slow_clients(attack: Attack, server: ServerProcess, *, times: float) -> None:
    """Clients that are slow to send or to read, beside others: these are answered, and those lose their connections."""
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    echoed = {
        "image": base64.b64encode(encoded() + bytes(4 << 20)).decode()
    }  # the answer has 5 MB too
    body = {"query": "a red bar", "documents": [echoed], "return_documents": True}
    large = authorized("/v1/rerank", json.dumps(body).encode())
    kinds = {
        "head": (b"GET / HT", 1, 0),
        "body": (large[:600], 1, 0),
        "deaf": (large, 0, 0),
        "reader": (large, 0, 16),
    }
    before, wait = len([*descriptors.iterdir()]), max(60 * times, PATIENCE_S) + 3
    memory, over = [memory_of(server, "VmRSS") >> 20], asyncio.Event()

    async def slow(sent: bytes, written: int, read: int) -> None:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", server.port))
            await loop.sock_sendall(connection, sent)
            while not over.is_set():
                await asyncio.sleep(wait / 50)
                with suppress(OSError):
                    connection.send(b"a" * written)
                    connection.recv(read)

    async def both() -> tuple[Answers, int]:
        slow_ones = [asyncio.create_task(slow(*kind)) for kind in kinds.values() for _ in range(8)]
        # Words alone: the slow ones have images, and may hold all of the queue's places for these.
        answers = await load(
            server.port, clients=2, seconds=wait * 0.98, rate=10, watch=lambda _: None, images=0
        )
        deadline = time.monotonic() + (
            0 if times >= 1 else SLOWEST_S
        )  # a trial may run on a busy machine
        while (left := len([*descriptors.iterdir()]) - before) > 0 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        memory.append(memory_of(server, "VmRSS") >> 20)
        over.set()
        await asyncio.gather(*slow_ones)
        return answers, left

    answers, left = asyncio.run(both())
    kept = set(answers.statuses) == {"200"} and max(answers.seconds) <= SLOWEST_S and left <= 0
    attack.promise(
        "slow clients",
        kept=kept,
        clients=8 * len(kinds),
        connections_left=left,
        memory_mb=memory,
        **answers.measured(),
    )


def attack_with_sigterm(attack: Attack, server: ServerProcess) -> None:
    """SIGTERM, twice at once as from a launcher and a terminal, while all places are taken."""
    body = json.dumps({"text": "a red bar", "rerank": 24}).encode()
    answers, metrics = (
        Answers(),
        request("GET", "/metrics", heads=f"Authorization: Bearer {KEY}\r\n"),
    )

    async def client() -> None:
        began = time.monotonic()
        status, head, _ = await ask(server.port, authorized("/v1/search", body))
        answers.note(body, status, head, time.monotonic() - began)

    async def stop() -> tuple[int, float]:
        clients = [asyncio.create_task(client()) for _ in range(QUEUE)]
        running = 0
        while running + len(answers.seconds) < QUEUE:
            _, _, text = await ask(server.port, metrics)
            running = int(float(text.partition(b"\nvlmo_queue_length ")[2].partition(b"\n")[0]))
        began = time.monotonic()
        server.stop(signal.SIGTERM)
        await asyncio.sleep(0.02)
        server.stop(signal.SIGTERM)
        await asyncio.gather(*clients)
        await asyncio.to_thread(server.process.join, 2 * STOPS_WITHIN_S)
        return running, time.monotonic() - began

    running, seconds = asyncio.run(stop())
    kept = (
        running > 0
        and set(answers.statuses) == {"200"}
        and server.process.exitcode == 0
        and seconds <= STOPS_WITHIN_S
    )
    measured = {
        "running": running,
        "seconds": round(seconds, 2),
        "exit_code": server.process.exitcode,
    }
    attack.promise("SIGTERM under load", kept=kept, **measured, **answers.measured())


def serve_with_times(arguments: list[str], file: Path) -> None:
    """Run `vlmo serve` with few files, whose patience with slow clients is multiplied by the number in the file."""
    from vlmo.cli import main
    from vlmo.serving import server
    from vlmo.serving.settings import Settings

    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    times, plain = float(file.read_text()), server.serve
    names = ("header_seconds", "body_seconds", "answer_seconds")

    def changed(settings: Settings) -> Settings:
        return replace(
            settings, **{name: max(times * vars(settings)[name], PATIENCE_S) for name in names}
        )

    server.serve = lambda bound, parts, settings: plain(bound, parts, changed(settings))
    main(["serve", *arguments])


def run(attack: Attack, folder: Path, scale: float) -> None:
    """Attack a server of a small gallery: with requests, images, connections, and load for ten minutes and an hour."""
    gallery = make_gallery(folder)
    key, times = folder / "key", max(scale, 0.05)
    key.write_text(KEY)
    (folder / "times").write_text(str(min(times, 1.0)))
    words = (
        gallery.model,
        "--index",
        gallery.index,
        "--vqa",
        gallery.vqa,
        "--queue",
        QUEUE,
        "--api-key-file",
        key,
    )
    with ServerProcess(*words, go=folder / "times", run=serve_with_times) as server:
        searches = (Hostile(sent) for sent in itertools.islice(usual(random.Random(0)), 200))
        warm_up = itertools.chain(searches, *(proper_requests(key=KEY) for _ in range(10)))
        asyncio.run(ask_all(server.port, warm_up, Answers(), clients=HOSTILE_CLIENTS))
        before = memory_of(server, "VmRSS")
        attack_with_requests(attack, server, scale=scale)
        attack_with_slow_clients(attack, server, times=min(times, 1.0))
        attack_with_costly_requests(attack, server, scale=scale)
        deadline = time.monotonic() + BACK_WITHIN_S
        while memory_of(server, "VmRSS") > MEMORY * before and time.monotonic() < deadline:
            time.sleep(0.2)
        after = memory_of(server, "VmRSS")
        attack.promise(
            "memory comes back",
            kept=after <= MEMORY * before,
            before_mb=before >> 20,
            after_mb=after >> 20,
        )
        attack_with_load(attack, server, scale=scale)
        attack_with_sigterm(attack, server)
        logged = [line for line in server.process.stderr.splitlines() if "Traceback" in line]
        attack.promise("no traceback in the log", kept=not logged, tracebacks=len(logged))


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print what was kept and broken, and write it with `--out`."""
    run_attack(
        run,
        name="service",
        description=__doc__,
        packages=("vlmo", "torch", "lancedb", "fastapi", "uvicorn", "pillow"),
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
