import asyncio
import functools
import logging
import socket
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.serving.toy_service import address_of, running
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts
from vlmo.serving.schemas import MAX_TEXTS
from vlmo.serving.settings import Settings

KEY = "a-secret"
SMALL = {"max_request_mb": 20_000 / 2**20, "buffered_bytes": 50_000, "body_seconds": 0.5}
JSON = {"content-type": "application/json"}


@functools.cache
def app_of(**settings):
    return create_app(Parts(), Settings(**settings))


@pytest.fixture(scope="module")
def anybody():
    """A client of a server without a key, a model or an index."""
    with TestClient(app_of()) as client:
        yield client


@pytest.fixture(scope="module")
def guarded():
    with TestClient(app_of(api_key=KEY)) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/about", "/metrics", "/v1/thumbnails/x", "/nothing"])
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": "Bearer é"}]
)
def test_without_the_key_nothing_is_shown(guarded, path, headers) -> None:
    response = guarded.get(path, headers={name: value.encode() for name, value in headers.items()})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["message"] == "the API key is missing or wrong"


def test_with_the_key_all_is_shown_and_page_and_health_need_none(guarded) -> None:
    assert guarded.get("/v1/about", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    for path in ("/", "/docs", "/healthz", "/static/style.css", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    assert KEY not in repr(Settings(api_key=KEY))


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://testserver", 404), ("http://evil.example", 403), ("null", 403), ("http://[", 403), (None, 404)],
)
def test_posts_of_other_origins_are_refused(anybody, origin, status) -> None:
    headers = {} if origin is None else {"origin": origin}
    response = anybody.post("/v1/search", json={"text": "a"}, headers=headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


def test_origins_that_were_named_may_call() -> None:
    with TestClient(app_of(cors_origin=("https://page.example",))) as client:
        asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
        assert client.options("/v1/search", headers=asked).headers["access-control-allow-origin"] == asked["origin"]
        response = client.post("/v1/search", json={"text": "a"}, headers={"origin": asked["origin"]})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (404, asked["origin"])
        asked["origin"] = "https://other.example"
        assert "access-control-allow-origin" not in client.options("/v1/search", headers=asked).headers


MANY = 100_000


@pytest.mark.parametrize(
    "content",
    [
        b'{"input": [' + b"[]," * MANY + b"[]]}",
        b"{" + b",".join(b'"%d": 1' % key for key in range(MANY)) + b"}",
        b'{"texts": [' + b'"",' * MANY,
        b'{"text": "\\""' + b"[" * MANY,
    ],
)
def test_body_of_very_many_values_is_not_parsed(anybody, content) -> None:
    response = anybody.post("/v1/embeddings", content=content, headers=JSON)
    assert (response.status_code, response.json()["error"]["message"]) == (422, "the body has more than 4,000 values")


def test_values_are_not_counted_inside_of_texts(anybody) -> None:
    texts = [f'{number},[{{"' + '\\"[{,' * 100 for number in range(MAX_TEXTS)]
    assert anybody.post("/v1/embeddings", json={"input": texts}).status_code == 404


def test_full_queue_parses_no_body() -> None:
    app = app_of(queue=1)
    with TestClient(app) as client:
        app.state.vlmo.admitted = 1
        assert client.post("/v1/search", content=b"{", headers=JSON).status_code == 503


def test_slow_body_is_given_up_and_all_bodies_together_are_bounded() -> None:
    async def slowly(size: int):
        yield b" " * size
        await asyncio.sleep(30)

    async def ask() -> list[httpx.Response]:
        app = app_of(**SMALL)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver") as client:
            slow = [client.post("/v1/search", content=slowly(19_000), headers=JSON) for _ in range(4)]
            first = await asyncio.gather(*slow)
            return [*first, await client.get("/healthz")]

    *slow, healthy = asyncio.run(ask())
    assert sorted(response.status_code for response in slow) == [408, 408, 503, 503]
    assert healthy.status_code == 200


@pytest.mark.parametrize(
    "more", ["Content-Length: 300000", "Content-Length: 99999999999", "Transfer-Encoding: chunked"]
)
def test_client_that_is_still_sending_reads_why_its_body_is_refused(more) -> None:
    """As browsers do, which send all of it before they read."""
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n\r\n"
    chunk = b" " * 50_000 if "Length" in more else b"c350\r\n" + b" " * 50_000 + b"\r\n"
    with running(app_of(**SMALL)) as server, socket.create_connection(address_of(server), timeout=30) as client:
        client.sendall(head.encode())
        for _ in range(6):
            time.sleep(0.05)
            client.sendall(chunk)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the request has more than 20,000 bytes" in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({}, b"{}", 415),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"text=a", 415),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({"content-type": "application/json; charset=latin-1"}, b"{", 422),
        (JSON, b"", 422),
        (JSON, b"{", 422),
        (JSON, b"null", 422),
        (JSON, b"[]", 422),
        (JSON, b"\xff\xfe", 422),
        (JSON, b'{"text": "\x00"}', 422),
        (JSON, b'{"text": NaN}', 422),
        (JSON, b"[" * 10_000, 422),
        (JSON, b'{"text": "a", "top": 1' + b"0" * 5000 + b"}", 422),
    ],
)
def test_body_that_cannot_be_read_is_an_error_of_the_client(anybody, headers, content, status) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = anybody.post("/v1/search", content=content, headers=raw)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/search", 405), ("PUT", "/", 405)]
)
def test_wrong_routes_are_json_errors(anybody, method, path, status) -> None:
    response = anybody.request(method, path)
    assert response.status_code == status
    assert response.json()["detail"]


def test_failure_inside_is_logged_and_its_traceback_is_not_shown(caplog) -> None:
    app = create_app(Parts())

    @app.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("the secret of the house")

    with TestClient(app, raise_server_exceptions=False) as client, caplog.at_level(logging.ERROR):
        response = client.get("/v1/broken")
    assert response.status_code == 500
    error = {"message": "the server failed", "type": "server_error", "code": "500"}
    assert response.json() == {"error": error, "detail": "its log says why"}
    assert "the secret of the house" in caplog.text


def test_stopping_server_refuses_work_and_says_so() -> None:
    app = create_app(Parts())
    with TestClient(app) as client:
        app.state.vlmo.stopping = True
        response = client.post("/v1/search", json={"text": "a"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"]["message"] == "the server is stopping"
        healthy = client.get("/healthz")
        assert (healthy.status_code, healthy.json()) == (503, {"status": "stopping"})
        app.state.vlmo.stopping = False
        assert client.get("/healthz").json() == {"status": "ready"}


def test_every_answer_has_the_headers_that_keep_pages_safe(anybody) -> None:
    for path in ("/", "/v1/about", "/nothing", "/static/page.js"):
        headers = anybody.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_static_files_end_where_their_folder_ends(anybody) -> None:
    for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", ""):
        assert anybody.get(f"/static/{path}").status_code == 404
