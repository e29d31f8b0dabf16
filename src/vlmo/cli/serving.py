"""`vlmo serve`: a model folder and an index over HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vlmo.cli.parsing import ModelFolder, hide_loading_bars
from vlmo.released import find_model


@dataclass(frozen=True)
class ServeOptions:
    """Serve a model over HTTP, with a web page: vlmo serve MODEL_FOLDER [--index DIR] [--vqa VQA_MODEL_FOLDER]."""

    folder: ModelFolder
    index: Path | None = None
    """Index that vlmo index has made with this model; without it nothing is searched."""
    vqa: Path | None = None
    """Folder of a second model, which answers questions about images."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. 0.0.0.0: all that do."""
    port: int = 8000
    """0: any that is free; the log says which."""
    device: str | None = None
    """cpu, cuda or cuda:N; by default a GPU if there is one."""
    queue: int = 64
    """Requests that are let in at a time; one more is answered 503."""
    max_batch: int = 32
    """Rows of one call of the model."""
    max_wait_ms: float = 5.0
    """Milliseconds that a row waits for those of other clients."""
    max_request_mb: float = 16.0
    """Megabytes (2**20 bytes) of a request."""
    max_pixels: int = 25_000_000
    """Width x height of an image in a request."""
    api_key_file: Path | None = None
    """File with the key that clients must send; by default the environment's VLMO_API_KEY, or none."""
    cors_origin: tuple[str, ...] = ()
    """Origins of other pages that may call the service, such as https://example.org."""
    server_name: tuple[str, ...] = ()
    """Names that requests may call this server by, beside localhost; without it, any on an address that is not
    loopback."""


def serve_command(options: ServeOptions) -> None:
    """Run `vlmo serve`."""
    folder = Path(find_model(options.folder))
    hide_loading_bars()
    try:
        from vlmo.serving.parts import load_parts
        from vlmo.serving.server import bind, read_key, serve
        from vlmo.serving.settings import Settings
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}. Serving needs more packages: pip install 'vlmo[serve]'") from error
    if not 0 < options.max_request_mb < math.inf:
        raise ValueError(f"--max-request-mb {options.max_request_mb}: give a number of megabytes above 0")
    settings = Settings(
        request_bytes=int(options.max_request_mb * 2**20),
        pixels=options.max_pixels,
        queue=options.queue,
        max_batch=options.max_batch,
        max_wait=options.max_wait_ms / 1000,
        api_key=read_key(options.api_key_file),
        cors_origins=options.cors_origin,
        server_names=options.server_name,
    )
    with bind(options.host, options.port) as bound:
        serve(bound, load_parts(folder, index=options.index, vqa=options.vqa, device=options.device), settings)
