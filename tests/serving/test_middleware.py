import asyncio
import functools
import logging
import socket
import time
from dataclasses import replace
from functools import partial

import httpx
import pytest
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.toy_service import address_of, running
from vlmo.serving.app import create_app
from vlmo.serving.middleware import Guard, Metrics
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
@pytest.mark.parametrize("key", [None, "Bearer wrong", KEY, "Bearer é"])
def test_without_the_key_nothing_is_shown(guarded, path, key) -> None:
    headers = {} if key is None else {"authorization": key.encode()}
    response = guarded.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["message"] == "the API key is missing or wrong"


def test_with_the_key_all_is_shown_and_page_and_health_need_none(guarded) -> None:
    assert guarded.get("/v1/about", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    for path in ("/", "/docs", "/healthz", "/static/style.css", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    assert KEY not in repr(Settings(api_key=KEY))


def status_of(
    path: str,
    *,
    settings: Settings,
    scheme: str = "http",
    method: str = "GET",
    **headers: str | None,
) -> int:
    """Status of a request, from the middleware before an app that answers 200; None is no header."""
    statuses = []
    guard = Guard(PlainTextResponse(""), settings=settings, metrics=METRICS, stopping=lambda: False)
    given = [(name, value) for name, value in headers.items() if value is not None]
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given]
    scope = {"type": "http", "method": method, "path": path, "scheme": scheme, "headers": raw}

    async def receive() -> dict:
        return {"type": "http.request"}

    async def send(message: dict) -> None:
        statuses.append(message.get("status"))

    asyncio.run(guard(scope, receive, send))
    return statuses[0]


METRICS, JOB = Metrics(), "/v1/map"
SEARCHED = settings(max_examples=300, derandomize=True, deadline=None, database=None)
LOCAL = Settings(server_name=("localhost", "127.0.0.1", "::1", "photos.example"))
OWN_HOSTS = "localhost localhost:8000 LocalHost:1 localhost:65535 127.0.0.1:80 [::1] [::1]:8000 photos.example:443"
OTHER_HOSTS = """
evil.example localhost.evil.example localhost:8000.evil.example localhost:8000@evil.example evil@localhost:8000
a:b@localhost localhost:evil localhost: localhost:0 localhost:08000 localhost:65536 localhost:99999999 localhost:-1
localhost:+80 localhost:8_000 localhost:8000:8000 localhost/ localhost:8000/path localhost#a localhost?a localhost.
http://localhost localhost,evil.example localhost%00 ::1 [::1 ::1] [::1]evil.example [::1]:evil [::1]8000 [::1%25lo]
[::1%lo]:8000 [127.0.0.1] [localhost] [[::1]] 127.1 2130706433 0x7f.1 127.0.0.1.evil.example 127.0.0.1\\@evil.example
photos.example.evil.example xphotos.example loc\xe4lhost localhost:\xb2
"""


def test_names_of_the_server_are_compared_whole() -> None:
    for host in OWN_HOSTS.split():
        assert status_of("/", settings=LOCAL, host=host) == 200, host
    odd = ["", "localhost ", "localhost\t:80", "localhost\x00", "localhost evil.example", None]
    for host in [*OTHER_HOSTS.split(), *odd]:
        assert status_of("/", settings=LOCAL, host=host) == 421, host
    # The settings have no names.
    assert status_of("/", settings=Settings(), host="evil.example") == 200


@SEARCHED
@given(
    st.tuples(*[st.text(st.characters(max_codepoint=255), max_size=3)] * 3),
    st.sampled_from(OWN_HOSTS.split()),
)
def test_no_other_text_beside_a_name_and_a_port_passes(parts, host) -> None:
    before, between, behind = parts
    place = host.rfind(":")
    host = f"{before}{host[:place]}{between}{host[place:]}{behind}"
    name, colon, port = host.rpartition(":")
    is_port = port.isascii() and port.isdigit() and port[0] != "0" and int(port) < 2**16
    names = {"localhost", "127.0.0.1", "[::1]", "photos.example"}
    is_own = host.lower() in names or (colon and is_port and name.lower() in names)
    assert status_of("/", settings=LOCAL, host=host) == (200 if is_own else 421)


# Scheme of the server, Host, Origin, Sec-Fetch-Site.
OWN_PAGES = [
    ("http", "localhost:8000", None, None),  # no browser
    ("http", "localhost:8000", None, "none"),  # typed by a person
    ("http", "localhost:8000", None, "same-origin"),
    ("http", "localhost:8000", "http://localhost:8000", None),
    ("http", "localhost:8000", "http://localhost:8000", "same-origin"),
    ("http", "localhost", "http://localhost:80", None),
    ("http", "[::1]:8000", "http://[::1]:8000", None),
    ("https", "photos.example", "https://photos.example", None),
    ("https", "photos.example:443", "https://photos.example", None),
    ("http", "photos.example", "https://photos.example", "same-origin"),  # behind a proxy for TLS
]
OTHER_PAGES = [
    ("http", "localhost:8000", None, "cross-site"),  # such as an image of another page
    ("http", "localhost:8000", None, "same-site"),
    ("http", "localhost:8000", None, "Same-Origin, cross-site"),
    ("http", "localhost:8000", None, ""),
    ("http", "localhost:8000", "http://localhost:8000", "cross-site"),
    ("http", "localhost:8000", "https://evil.example", "same-origin"),  # which no browser sends
    ("http", "photos.example", "https://photos.example", None),
    ("http", "photos.example", "https://photos.example:80", "same-origin"),
    ("https", "photos.example", "http://photos.example", None),
    ("ws", "photos.example", "ws://photos.example", None),
]
OTHER_ORIGINS = """
null http://evil.example http://localhost http://localhost:8001 https://localhost:8000 http://127.0.0.1:8000
http://localhost:8000.evil.example http://localhost:8000@evil.example http://evil.example@localhost:8000
http://a:b@localhost:8000 http://localhost:8000/ http://localhost:8000/path http://localhost:8000?a
http://localhost:8000#a http://localhost:80000 http://localhost:08000 http://localhost:8000:8000 http://localhost.:8000
http://[ http:/localhost:8000 http:localhost:8000 //localhost:8000 localhost:8000 ://localhost:8000
http://localhost:8000,http://evil.example http://http://localhost:8000 http://[localhost]:8000 http://[::1%25lo]:8000
file://localhost:8000 ftp://localhost:8000 blob:http://localhost:8000 javascript://localhost:8000
chrome-extension://localhost:8000 http://localhost:8000\\evil http://evil\\@localhost:8000 http://localhost:\xb28000
"""


def test_pages_of_other_origins_start_no_work() -> None:
    origins = ["", *OTHER_ORIGINS.split()]
    pages = [("http", "localhost:8000", origin, None) for origin in origins]
    named = replace(LOCAL, cors_origin=("*",))
    for expected, cases in ((200, OWN_PAGES), (403, [*OTHER_PAGES, *pages])):
        for case in cases:
            scheme, host, origin, site = case
            sent = {"scheme": scheme, "host": host, "origin": origin, "sec_fetch_site": site}
            for method in ("GET", "POST"):
                assert status_of(JOB, settings=LOCAL, method=method, **sent) == expected, case
            assert status_of("/", settings=LOCAL, **sent) == 200  # a link to the page
            assert status_of(JOB, settings=named, **sent) == 200


@SEARCHED
@given(st.tuples(*[st.text(st.characters(max_codepoint=255), max_size=2)] * 4))
def test_no_other_text_is_the_servers_origin(parts) -> None:
    one, two, three, four = parts
    origin = f"{one}http://{two}localhost{three}:8000{four}"
    is_own = origin.startswith("http://") and origin.lower() == "http://localhost:8000"
    status = status_of(JOB, settings=LOCAL, host="localhost:8000", origin=origin)
    assert status == (200 if is_own else 403)


def test_all_routes_that_work_are_closed_to_other_pages(anybody) -> None:
    """Others show files of the package, or that the server runs."""
    routes = anybody.get("/openapi.json").json()["paths"]
    paths = {(path, method) for path, methods in routes.items() for method in methods}
    assert len(paths) > 15
    for path, method in sorted({*paths, ("/metrics", "get")} - {("/healthz", "get")}):
        response = anybody.request(method, path, headers={"Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 403, path
        assert "access-control-allow-origin" not in response.headers


def test_origins_that_were_named_may_call() -> None:
    named, allowed = "https://page.example", "access-control-allow-origin"
    with TestClient(app_of(cors_origin=(named,))) as client:
        for origin in (named, "https://other.example"):
            asked = {"origin": origin, "access-control-request-method": "POST"}
            headers = client.options("/v1/search", headers=asked).headers
            assert headers.get(allowed) == (named if origin == named else None)
        response = client.post("/v1/search", json={"text": "a"}, headers={"origin": named})
        assert (response.status_code, response.headers[allowed]) == (404, named)


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
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "the body has more than 4,000 values"


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
        transport = httpx.ASGITransport(app=app_of(**SMALL))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            bodies = [slowly(19_000) for _ in range(4)]
            slow = [client.post("/v1/search", content=body, headers=JSON) for body in bodies]
            first = await asyncio.gather(*slow)
            return [*first, await client.get("/healthz")]

    *slow, healthy = asyncio.run(ask())
    assert sorted(response.status_code for response in slow) == [408, 408, 503, 503]
    assert healthy.status_code == 200


@pytest.mark.parametrize("more", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_client_that_is_still_sending_reads_why_its_body_is_refused(more) -> None:
    """As browsers do, which send all of it before they read."""
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n\r\n"
    chunk = b" " * 50_000 if "Length" in more else b"c350\r\n" + b" " * 50_000 + b"\r\n"
    connect = partial(socket.create_connection, timeout=30)
    with running(app_of(**SMALL)) as server, connect(address_of(server)) as client:
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
def test_body_that_cannot_be_read_is_an_error_of_the_client(anybody, headers, content, status):
    response = anybody.post("/v1/search", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "code"}


def test_wrong_routes_are_json_errors(anybody) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("PUT", "/", 405)):
        response = anybody.request(method, path)
        assert (response.status_code, bool(response.json()["detail"])) == (status, True)


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
    safe = {"x-content-type-options": "nosniff", "x-frame-options": "DENY"}
    safe |= {"referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin"}
    for path in ("/", "/v1/about", "/nothing", "/static/page.js"):
        headers = anybody.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers.items() >= safe.items()


def test_static_files_end_where_their_folder_ends(anybody) -> None:
    for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", ""):
        assert anybody.get(f"/static/{path}").status_code == 404
