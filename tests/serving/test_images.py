"""Images by address: only from allowed names, and from the very public address that was checked."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from vlmo.serving import images
from vlmo.serving.images import Fetcher, is_public_address
from vlmo.serving.schemas import ServiceError

ANSWERS = {
    "/image?size=1": (200, b"bytes"),
    "/moved": (302, b""),
    "/missing": (404, b"no"),
    "/large": (200, b"x" * 200_000),
}


class Handler(http.server.BaseHTTPRequestHandler):
    hosts: list[str] = []

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        status, body = ANSWERS[self.path]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://169.254.169.254/latest")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fetcher(monkeypatch) -> Iterator[Fetcher]:
    """Allows images.example, whose public address is played by a server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setitem(images._PORTS, "http", server.server_port)
        yield Fetcher(
            ["Images.Example"],
            max_bytes=100_000,
            resolve=lambda *_: ["127.0.0.1"],
            is_public=lambda address: address == "127.0.0.1",
        )
        server.shutdown()


def refused(fetcher: Fetcher, url: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        fetcher.fetch(url)
    return caught.value


def test_allowed_host_is_asked_by_its_name(fetcher) -> None:
    assert fetcher.fetch("http://IMAGES.example/image?size=1") == b"bytes"
    assert Handler.hosts[-1].startswith("images.example")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [("/moved", 422, "answered 302"), ("/missing", 422, "answered 404"), ("/large", 413, "more than 100,000 bytes")],
)
def test_redirects_errors_and_large_answers_are_refused(fetcher, path, status, reason) -> None:
    error = refused(fetcher, f"http://images.example{path}")
    assert error.status == status
    assert reason in error.reason


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/image",
        "http://images.example.evil.example/image",
        "http://sub.images.example/image",
        "http://user@images.example/image",
        "http://images.example:8080/image",
        "http://images.example:99999/image",
        "http://[::1/image",
        "https://127.0.0.1/image",
        "file://images.example/etc/passwd",
        "http://images.example/a b",
        "http://images.example/\r\nX: y",
        "http://images.example\\@127.0.0.1/",
    ],
)
def test_addresses_that_are_not_allowed_are_refused(fetcher, url) -> None:
    Handler.hosts.clear()
    assert refused(fetcher, url).status in {403, 422}
    assert Handler.hosts == []


def test_nothing_is_fetched_without_a_list() -> None:
    error = refused(Fetcher([], max_bytes=1), "http://images.example/image")
    assert (error.status, error.reason) == (403, "this server fetches nothing")


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], []])
def test_name_with_a_private_address_is_refused_without_connecting(addresses, monkeypatch) -> None:
    monkeypatch.setattr(images.socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    fetcher = Fetcher(["images.example"], max_bytes=1, resolve=lambda *_: addresses)
    assert refused(fetcher, "https://images.example/").reason == "images.example is not on the public internet"


def test_name_is_resolved_once_and_that_address_is_connected_to(monkeypatch) -> None:
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])  # a name that changes its mind after the check
    connected = []

    def connect(address: tuple[str, int], **_: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(images.socket, "create_connection", connect)
    fetcher = Fetcher(["images.example"], max_bytes=1, resolve=lambda *_: next(answers))
    assert "refused" in refused(fetcher, "https://images.example/").reason
    assert connected == [("93.184.215.14", 443)]


def test_unknown_name_is_an_error_of_the_client(monkeypatch) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise images.socket.gaierror(-2, "Name or service not known")

    assert refused(Fetcher(["nowhere.example"], max_bytes=1, resolve=resolve), "http://nowhere.example/").status == 422


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_address(address) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_private_address(address) -> None:
    assert not is_public_address(address)
