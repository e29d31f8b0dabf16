import concurrent.futures
import contextlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from tests.killing import wait_until
from tests.serving.toy_service import ServerProcess, address_of, running
from tests.test_cli import refused
from vlmo.cli import main
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts
from vlmo.serving.server import _connections, _Patient, _Server, bind, read_key, serve, with_names
from vlmo.serving.settings import Settings

PATIENCE_S = 60
HASTY_S = 1.0  # the patience of a server with little of it
CONNECTIONS = 8


@pytest.fixture(scope="module")
def go(tmp_path_factory) -> Path:
    """A file; while it is not there, the slow server answers no search."""
    return tmp_path_factory.mktemp("server") / "go"


@pytest.fixture(scope="module")
def slow(gallery, go: Path) -> Iterator[ServerProcess]:
    with ServerProcess(gallery.model, "--index", gallery.index, "--queue", "1", go=go) as process:
        yield process


def search(server: ServerProcess) -> httpx.Response:
    body = {"text": "a red circle", "top": 1}
    return httpx.post(f"{server.address}/v1/search", json=body, timeout=PATIENCE_S)


def metrics(server: ServerProcess) -> str:
    return httpx.get(f"{server.address}/metrics", timeout=PATIENCE_S).text


def wait_until_there_are(server: ServerProcess, number: int) -> None:
    wait_until(lambda: f"vlmo_queue_length {number}.0" in metrics(server), within_s=PATIENCE_S)


def test_client_that_goes_away_gives_its_place_back(slow, go) -> None:
    with socket.create_connection(("127.0.0.1", slow.port), timeout=PATIENCE_S) as connection:
        head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 13"
        connection.sendall(f'{head}\r\n\r\n{{"text": "a"}}'.encode())
        wait_until_there_are(slow, 1)
    wait_until_there_are(slow, 0)  # although it was not answered
    assert 'status="499"' in metrics(slow)
    go.touch()
    assert search(slow).status_code == 200
    go.unlink()
    # The text of the one who left was not encoded.
    assert 'vlmo_batch_rows_sum{kind="texts"} 1.0' in metrics(slow)


def test_full_queue_is_503_and_sigterm_finishes_what_runs_and_ends_with_0(slow, go) -> None:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        running = threads.submit(search, slow)
        wait_until_there_are(slow, 1)
        refused = search(slow)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["message"] == "the queue is full"
        with httpx.Client(base_url=slow.address) as kept:
            assert kept.get("/healthz").status_code == 200
            slow.stop(signal.SIGTERM)
            wait_until(lambda: refuses_connections(slow), within_s=PATIENCE_S)
        assert not running.done()
        go.touch()
        assert running.result(PATIENCE_S).status_code == 200
    assert slow.process.wait(PATIENCE_S) == 0
    log = slow.process.stderr
    assert "Traceback" not in log
    assert "engine torch float32, 24 images, no API key is needed" in " ".join(log.split())
    assert log.split()[-1] == "stopped"


def _serve_and_never_decode(arguments: list[str], begun: Path) -> None:
    """`vlmo serve` with no patience, where neither an uploaded image nor one of the index is ever decoded."""
    from vlmo.data.examples import EncodedImage
    from vlmo.serving import decoder, server

    def start(decoders: decoder.Decoders, slot: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(3600)"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        decoders._processes[slot] = process
        begun.touch()
        return process

    def decode(*_: object, **__: object) -> None:
        begun.touch()
        threading.Event().wait()

    decoder.Decoders._start, EncodedImage.decode_to = start, decode
    server._CLOSING_S, plain = 3.0, server.serve
    server.serve = lambda bound, parts, settings: plain(bound, parts, replace(settings, grace=1.0))
    main(["serve", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "code"), [("POST", "search", 0), ("GET", "images/{}", 1)]
)
def test_server_ends_in_time_whatever_it_decodes(gallery, tmp_path, method, path, code) -> None:
    begun, words = tmp_path / "begun", (gallery.model, "--index", gallery.index)
    with (
        ServerProcess(*words, run=_serve_and_never_decode, go=begun) as stuck,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        body = {"text": "a", "rerank": 0}
        first = httpx.post(f"{stuck.address}/v1/search", json=body).json()["hits"][0]
        address = f"{stuck.address}/v1/{path.format(first['id'])}"
        options = {"json": {"image": "aGk="}, "timeout": PATIENCE_S}
        asked = threads.submit(httpx.request, method, address, **options)
        wait_until(begun.exists, within_s=PATIENCE_S)
        stuck.stop(signal.SIGTERM)
        assert stuck.process.wait(PATIENCE_S) == code
        assert asked.result(PATIENCE_S).status_code == 503
        assert asked.result().json()["error"]["message"] == "the server is stopping"
    assert "Traceback" not in stuck.process.stderr


def refuses_connections(server: ServerProcess) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S).close()
    except OSError:
        return True
    return False


@pytest.fixture(scope="module")
def hasty() -> Iterator[uvicorn.Server]:
    """A server with a protocol of short patience; that of the command has ten seconds."""

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    settings = Settings(header_seconds=HASTY_S)
    hasty = type("Hasty", (_Patient,), {"settings": settings, "most": CONNECTIONS})
    with running(app, http=hasty, lifespan="off") as server:
        yield server


def test_head_that_never_ends_is_given_up(hasty) -> None:
    for began in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
        start = time.monotonic()
        with socket.create_connection(address_of(hasty), timeout=PATIENCE_S) as connection:
            if began:
                connection.sendall(began)
            assert connection.recv(1000) == b""
        # Clocks differ by little.
        assert HASTY_S <= time.monotonic() - start + 0.05 < PATIENCE_S / 2
    with httpx.Client(base_url=f"http://127.0.0.1:{address_of(hasty)[1]}") as client:
        assert client.get("/").status_code == 204
        time.sleep(1.5 * HASTY_S)
        # The connection was kept, after more than the patience.
        assert client.get("/").status_code == 204


def test_connection_is_kept_open_for_longer_than_clients_and_proxies_reuse_it(monkeypatch) -> None:
    configs = []
    monkeypatch.setattr(_Server, "run", lambda self, **_: configs.append(self.config))
    serve(bind("127.0.0.1", 0), Parts(), Settings())
    assert configs[0].timeout_keep_alive > 60  # httpx and Node: 5, aiohttp: 15, proxies: 60


def test_idle_connections_make_room_for_requests(hasty, caplog) -> None:
    with contextlib.ExitStack() as opened:
        idle = []
        for _ in range(3 * CONNECTIONS):
            connection = socket.create_connection(address_of(hasty), timeout=PATIENCE_S)
            idle.append(opened.enter_context(connection))
        assert httpx.get(f"http://127.0.0.1:{address_of(hasty)[1]}").status_code == 204
        assert len(hasty.server_state.connections) <= CONNECTIONS
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""  # the oldest
    (line,) = caplog.messages
    assert line == f"more than {CONNECTIONS} connections: closing those without a request"


@pytest.mark.parametrize(
    ("limits", "changed", "connections"),
    [
        ((256, 4096), (1400, 4096), 1000),
        ((256, resource.RLIM_INFINITY), (1400, resource.RLIM_INFINITY), 1000),
        ((1024, 1024), (1024, 1024), 624),
        ((9999, 9999), None, 1000),
    ],
)
def test_connections_fit_the_limit_on_open_files(monkeypatch, limits, changed, connections) -> None:
    set_to = [None]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: set_to.append(pair))
    assert _connections() == connections
    assert set_to[-1] == changed


def test_far_too_few_open_files_are_an_error(monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(ValueError, match=r"only 300 files .* needs 1400"):
        _connections()


def test_answers_are_sent_without_delay(hasty) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address_of(hasty)[1]}") as client:
        assert client.get("/").status_code == 204
        assert hasty.server_state.connections
        for connection in hasty.server_state.connections:
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_errors_before_the_start_are_one_line(capsys, gallery, tmp_path) -> None:
    model, key, bad_key = gallery.model, tmp_path / "key", tmp_path / "bad key"
    key.write_text("\n")
    bad_key.write_bytes(b"k\xff")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, reason in (
            ((), "MODEL_FOLDER"),
            ((tmp_path,), "no config.json"),
            ((model, "--index", tmp_path), "it has no index.json"),
            ((model, "--vqa", model), "vlmo finetune"),
            ((gallery.vqa, "--index", gallery.index), "give it alone, or as --vqa"),
            ((gallery.captioning, "--vqa", gallery.vqa), "give it alone, or as --captioning"),
            ((model, "--queue", 0), "queue is 0"),
            ((model, "--max-pixel", 5), "--max-pixel"),
            ((model, "--api-key-file", key), "is empty"),
            ((model, "--api-key-file", bad_key), "one line of ASCII"),
            ((model, "--port", 99999), "--port 99999 is none"),
            ((model, "--port", -5), "--port -5 is none"),
            ((model, "--port", taken.getsockname()[1]), "cannot be bound"),
        ):
            line = ["serve", *map(str, words), *([] if "--port" in words else ["--port", "0"])]
            assert reason in refused(line, capsys)


def test_key_comes_from_the_file_or_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("VLMO_API_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("VLMO_API_KEY", "from the environment")
    assert read_key(None) == "from the environment"
    (tmp_path / "key").write_text("from the file\n")
    assert read_key(tmp_path / "key") == "from the file"


HERE = ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("given", "host", "names"),
    [
        (("a.example",), "127.0.0.1", (*HERE, "127.0.0.1", "a.example")),
        ((), "0.0.0.0", ()),
        (("A.example",), "0.0.0.0", (*HERE, "A.example")),
        (("A.example",), "::", (*HERE, "A.example")),
        (("A.example",), "192.0.2.7", (*HERE, "192.0.2.7", "A.example")),
    ],
)
def test_server_knows_this_machines_names_and_those_that_are_given(given, host, names) -> None:
    settings = with_names(Settings(server_name=given), host=host)
    assert settings.server_name == names
    with TestClient(create_app(Parts(), settings)) as client:
        for name in ("127.0.0.1:8000", "[::1]:8000", "LOCALHOST", "a.example"):
            assert client.get("/healthz", headers={"host": name}).status_code == 200
        status = client.get("/healthz", headers={"host": "evil.example"}).status_code
        assert status == (421 if names else 200)


WRONG = dict.fromkeys(("queue", "max_batch", "max_pixels"), (0,))
WRONG["max_request_mb"] = (float("nan"), float("inf"))
WRONG["api_key"] = ("", "two\nlines", "ü")
WRONG["cors_origin"] = (("a.example",), ("https://a.example/",), ("https://A.example",))
WRONG["server_name"] = (("",), ("a.example:80",), ("http://a.example",), ("[::1]",), ("[::1",))


@pytest.mark.parametrize("name", WRONG)
def test_settings_name_what_is_wrong(name) -> None:
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=name.replace("api_key", "one line of ASCII")):
            Settings(**{name: value})
