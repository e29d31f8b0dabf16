"""A tiny trained model with an index of drawings, one that answers questions, and a server that runs them."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from tests.forkserver import start, start_command
from tests.integrations.toy_gallery import CAPTIONS, COLORS, drawings, trained_folder
from tests.toy_model import shaken
from vlmo import VLMoConfig, VLMoForVisualQuestionAnswering, VLMoProcessor
from vlmo.retrieval import build_index

SRC = Path(__file__).parents[2] / "src"
START_S = 300
"""Until a server process answers on a busy machine; torch alone takes seconds to import."""


@dataclass(frozen=True)
class Gallery:
    """Folders of a model, of its index, and of a model for questions."""

    model: Path
    index: Path
    vqa: Path


def make_gallery(parent: Path) -> Gallery:
    """A drawing of each color and shape, with its captions and three columns."""
    model = trained_folder(parent / "model")
    images = parent / "images"
    images.mkdir()
    rows = []
    for number, (image, captions) in enumerate(zip(drawings(), CAPTIONS, strict=True)):
        name = f"{captions[0].replace(' ', '_')}.png"
        image.save(images / name)
        color = COLORS[number // (len(CAPTIONS) // len(COLORS))]
        row = {"image": name, "captions": captions, "color": color, "number": number, "even": number % 2 == 0}
        rows.append(json.dumps(row))
    (images / "captions.jsonl").write_text("\n".join(rows))
    build_index(model, [images], out=parent / "index")
    return Gallery(model, parent / "index", _questions(parent / "vqa"))


def _questions(folder: Path) -> Path:
    torch.manual_seed(0)
    words = ["what color is it?", "red", "blue"] * 2
    processor = VLMoProcessor.train(words, vocab_size=60, min_frequency=1, image_size=64, max_text_length=16)
    config = VLMoConfig.tiny(vocab_size=processor.vocab_size, id2label=dict(enumerate(COLORS)))
    shaken(VLMoForVisualQuestionAnswering(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def png(image: Image.Image) -> bytes:
    """A file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def in_base64(data: bytes) -> str:
    """As JSON carries a file."""
    return base64.b64encode(data).decode()


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app on a free port of this machine, on a thread; its address."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    address = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        _wait_until_ready(address, alive=thread.is_alive)
        yield address
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


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
    """`vlmo serve` as its own process on a free port of this machine.

    With `go`, the model waits until that file is there; or `run` takes the command's words and that file.
    """

    def __init__(
        self, *arguments: str | Path, go: Path | None = None, run: Callable[[list[str], Path], None] = _serve_when_told
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        words = [*map(str, arguments), "--port", str(self.port)]
        self.process = start_command("serve", *words) if go is None else start(run, words, go)

    def __enter__(self) -> ServerProcess:
        _wait_until_ready(self.address, alive=self.process.is_alive)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Asks it to stop."""
        self.process.send_signal(signum)

    def memory(self, name: str) -> int:
        """Bytes of the server and its decoders by the system's record: VmRSS (now) or VmHWM (the most so far)."""
        pids = [self.process.pid, *(each.pid for each in psutil.Process(self.process.pid).children())]
        lines = [line.split() for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line[1]) * 1024 for line in lines if line[0] == f"{name}:")


def _wait_until_ready(address: str, *, alive) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert alive(), "the server has ended"
        assert time.monotonic() < deadline
        try:
            if httpx.get(f"{address}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
