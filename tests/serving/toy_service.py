"""A tiny trained model with an index of drawings, one that answers questions, and a server that runs them."""

import base64
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from tests.checkpoints.toy_folder import folder_writer, text_processor
from tests.forkserver import start, start_command
from tests.integrations.toy_gallery import CAPTIONS, COLORS, drawings, trained_folder
from tests.killing import wait_until
from vlmo import VLMoForImageCaptioning, VLMoForVisualQuestionAnswering
from vlmo.retrieval import build_index
from vlmo.serving.server import bind

START_S = 300  # until a server answers on a busy machine; torch alone takes seconds to import


def make_gallery(parent: Path) -> SimpleNamespace:
    """Folders of a `model`, of its `index` of drawings, with captions and three columns, and of two others by task."""
    model = trained_folder(parent / "model")
    images = parent / "images"
    images.mkdir()
    rows = []
    for number, (image, captions) in enumerate(zip(drawings(), CAPTIONS, strict=True)):
        name = f"{captions[0].replace(' ', '_')}.png"
        image.save(images / name)
        # Two of each month.
        moment = datetime(2020, 1 + number // 2, 10 + number % 2, 12).timestamp()
        os.utime(images / name, (moment, moment))
        color = COLORS[number // (len(CAPTIONS) // len(COLORS))]
        row = {"image": name, "captions": captions, "color": color}
        rows.append(json.dumps(row | {"number": number, "even": number % 2 == 0}))
    (images / "captions.jsonl").write_text("\n".join(rows))
    build_index(model, [images], out=parent / "index")
    write = folder_writer(parent, text_processor())
    vqa, _ = write(VLMoForVisualQuestionAnswering, id2label=dict(enumerate(COLORS)))
    captioning, _ = write(VLMoForImageCaptioning)
    others = {"vqa": Path(vqa), "captioning": Path(captioning)}
    return SimpleNamespace(model=model, index=parent / "index", **others)


def photo_folder(folder: Path, *, number: int) -> Path:
    """Photographs of several forms in the albums Italy/Rome and Winter, ten of each month of 2021 from January on."""
    for each in range(number):
        album = folder / ("Italy/Rome", "Winter")[each % 2]
        album.mkdir(parents=True, exist_ok=True)
        width, height = ((96, 64), (64, 96), (64, 64), (160, 48))[each // 2 % 4]
        taken = Image.Exif()
        taken[306] = f"2021:{1 + each // 10:02}:{1 + each % 10:02} 12:00:00"
        image = drawings()[each % len(CAPTIONS)].resize((width, height))
        image.save(album / f"photo {each:03}.png", exif=taken)
    return folder


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post(client: TestClient, path: str, **body: Any) -> dict:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@contextmanager
def running(app: Any, **options: Any) -> Iterator[uvicorn.Server]:
    """The app on a free port of this machine, on a thread."""
    bound = bind("127.0.0.1", 0)
    settings = {"http": "h11", "log_config": None, "ws": "none"} | options
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        wait_until(lambda: server.started, within_s=START_S, meanwhile=thread.is_alive)
        yield server
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def address_of(server: uvicorn.Server) -> tuple[str, int]:
    return server.servers[0].sockets[0].getsockname()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of the app, which `running` runs."""
    with running(app, log_level="warning") as server:
        yield f"http://127.0.0.1:{address_of(server)[1]}"


def _serve_when_told(arguments: list[str], go: Path) -> None:
    """`vlmo serve` whose model does nothing until there is a file `go`."""
    from vlmo.cli import main
    from vlmo.serving.batcher import Batcher

    take = Batcher._take

    def wait_and_take(batcher: Batcher) -> list:
        while not go.exists():
            time.sleep(0.02)
        return take(batcher)

    Batcher._take = wait_and_take
    main(["serve", *arguments])


class ServerProcess:
    """`vlmo serve`, or another `command`, as its own process on a free port of this machine.

    With `go`, the model waits until that file is there; or `run` takes the command's words and that file.
    """

    def __init__(
        self,
        *arguments: str | Path,
        command: str = "serve",
        go: Path | None = None,
        run: Callable[..., None] = _serve_when_told,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        words = [*map(str, arguments), "--port", str(self.port)]
        self.process = start_command(command, *words) if go is None else start(run, words, go)

    def __enter__(self) -> Self:
        wait_until(self._is_ready, within_s=START_S, meanwhile=self.process.is_alive)
        return self

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def stop(self, signum: int = signal.SIGTERM) -> None:
        self.process.send_signal(signum)
