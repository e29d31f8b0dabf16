"""A server of files on loopback which misbehaves as it is asked to, and the published files that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import torch
from safetensors.torch import load_file
from tests.parity.cases import reference_file
from tests.parity.plain_vlmo import write_vocabulary

COCO, VQA = "vlmo_base_patch16_384_coco.pt", "vlmo_base_patch16_480_vqa.pt"


def write_published(folder: Path) -> Path:
    """The tiny reference checkpoints under names of published files, with their vocabulary."""
    folder.mkdir()
    for name, state in ((COCO, "irtr"), (VQA, "vqa")):
        torch.save({"state_dict": load_file(reference_file(state))}, folder / name)
    write_vocabulary(folder / "vocab.txt")
    return folder


@dataclass
class Site:
    """What a server has and does, and the requests that it got: name and start of the range."""

    files: dict[str, bytes]
    requests: list[tuple[str, int]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers ends."""
    ranges: bool = True
    tag: str | None = '"first"'
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of answers with weights, over the right ones; an empty one is left out."""
    moved: dict[str, str] = field(default_factory=dict)
    address: str = ""
    answers: Event = field(default_factory=Event)
    """Requests wait for it."""


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, name = self.site, self.path.rpartition("/")[2]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and site.ranges else 0
        if "If-Range" in self.headers and self.headers["If-Range"] != site.tag:
            start = 0
        site.requests.append((name, start))
        site.answers.wait()
        if self.path in site.moved:
            self.send_response(302)
            self.send_header("Location", site.moved[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name not in site.files:
            self.send_error(404)
            return
        content = site.files[name]
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        headers = {"Content-Type": "application/octet-stream", "ETag": site.tag or ""}
        headers["Content-Length"] = str(len(content) - start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if name.endswith((".pt", ".pth")):
            headers |= site.headers
        for header, value in headers.items():
            if value:
                self.send_header(header, value)
        self.end_headers()
        end = start + site.cuts.pop(0) if site.cuts else None
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """Serve the files of a folder on a free port."""
    site = Site({file.name: file.read_bytes() for file in folder.iterdir()})
    site.answers.set()
    with running(type("Handler", (_Handler,), {"site": site})) as site.address:
        yield site


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on a free port; gives the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
