"""The commands and requests of docs/serving.md, word for word but for the ports, on a miniature folder of images."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.e2e.test_tutorial import blocks
from tests.integrations.toy_gallery import drawings
from tests.serving.toy_service import make_gallery, served
from vlmo.cli import main
from vlmo.serving import server
from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts
from vlmo.serving.settings import Settings

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SH = "".join(blocks("sh", page=PAGE)).replace("\\\n", "")


def lines(program: str) -> list[list[str]]:
    """Every line that starts so, as words."""
    found = re.findall(rf"^{program} .*", SH, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in found]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the page is followed."""
    folder = tmp_path_factory.mktemp("page")
    gallery = make_gallery(folder / "gallery")
    shutil.copytree(gallery.model, folder / "runs" / "mine" / "model")
    for task in ("vqa", "captioning"):
        shutil.copytree(vars(gallery)[task], folder / "models" / task)
    (folder / "photos").mkdir()
    table = ["image,caption,year,album"]
    for number, image in enumerate(drawings()[:6]):
        image.save(folder / "photos" / f"{number}.png")
        table.append(f"{number}.png,a drawing,{2018 + number},{'Rome' if number % 2 else 'Oslo'}")
    (folder / "photos" / "captions.csv").write_text("\n".join(table))
    drawings()[0].save(folder / "umbrella.jpg")
    drawings()[1].save(folder / "dog.jpg")
    return folder


@pytest.fixture(scope="module")
def services(place) -> list[Parts]:
    """What each `vlmo serve` of the page would serve, after its `vlmo index`."""
    served = []

    def serve(_bound: socket.socket, parts: Parts, _settings: Settings) -> None:
        served.append(parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(server, "serve", serve)
        for words in lines("vlmo"):
            # Another process may have the ports of the page.
            words = ["0" if word == "8080" else word for word in words]
            main(words if words[0] != "serve" or "--port" in words else [*words, "--port", "0"])
    return served


@pytest.fixture(scope="module")
def client(services) -> Iterator[TestClient]:
    with TestClient(create_app(services[1]), base_url="http://localhost:8000") as client:
        yield client


def requests() -> list[list[str]]:
    """What curl is given on each line of the page, a body that is piped to it as `-d`."""
    found = []
    for line in SH.splitlines():
        body, _, piped = line.rpartition(" | ")
        if piped.startswith("curl "):
            words = shlex.split(piped, comments=True)[1:]
            found.append([*words[:1], "-d", shlex.split(body)[1]] if "--json" in words else words)
    return found


def sent(words: list[str], client: TestClient) -> httpx.Response:
    """What curl would send for these words."""
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options.keys() <= {"-H", "-d"}, "the test does not know other options of curl"
    body = re.sub(r"\$\(base64 -w0 (\S+)\)", lambda found: _coded(found[1]), options["-d"])
    headers = {"Content-Type": "application/json"}
    return client.post(words[0].removeprefix("localhost:8000"), content=body, headers=headers)


def _coded(file: str) -> str:
    return base64.b64encode(Path(file).read_bytes()).decode()


def test_servers_start_with_what_the_page_says(services):
    search = {"encoder", "index"}
    expected = (search, {*search, "answerer", "captioner"}, {"answerer"})
    for parts, names in zip(services, expected, strict=True):
        loaded = {name for name, part in vars(parts).items() if part is not None}
        assert loaded - {"is_behind"} == names


def test_requests_are_answered(place, client, monkeypatch):
    monkeypatch.chdir(place)
    asked = requests()
    assert len(asked) == 5
    for words in asked:
        answer = sent(words, client)
        assert answer.status_code == 200, (words, answer.text)
        assert answer.json()
    found = sent(asked[0], client).json()["hits"]
    assert [hit["metadata"]["album"] for hit in found] == ["Rome"] * 2  # of 2021 and 2023
    assert sent(asked[1], client).json()["hits"][0]["similarity"] > 0.99  # the same image
    assert len(sent(asked[3], client).json()["data"]) == 2
    assert len(sent(asked[4], client).json()["results"]) == 2


def test_clients_of_other_services_work_as_they_are(place, services, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    with served(create_app(services[1])) as address:
        for code in blocks("python", page=PAGE):
            exec(code.replace("http://localhost:8000", address), names)
            with names["client"]:  # closes it
                pass
    assert len(names["text"]) == len(names["image"]) == services[1].encoder.dim
    index, score = capsys.readouterr().out.split()
    assert index == "0"
    assert 0 <= float(score) <= 1


def test_endpoints_of_the_table_are_those_of_the_service(client):
    there = {path.replace("{id}", "ID") for path in client.get("/openapi.json").json()["paths"]}
    cells = re.findall(r"^\| (`(?:POST|GET)[^|]*)\|", PAGE.read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"/[\w/]+", " ".join(cells))) == there
