"""`vlmo serve`: a model folder and an index over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from vlmo.cli.parsing import Engine, ModelFolder, Precision, check_given, hide_loading_bars
from vlmo.released import find_model
from vlmo.serving.settings import Settings


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
    engine: Engine = "auto"
    precision: Precision = "float32"
    device: str | None = None
    """cpu, cuda, cuda:N or mps; by default a GPU if there is one."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    api_key_file: Path | None = None
    """File with the key that clients must send; by default the environment's VLMO_API_KEY, or none."""


def serve_command(options: ServeOptions) -> None:
    """Run `vlmo serve`."""
    folder = Path(find_model(options.folder))
    check_given([options.index], expected="an index that vlmo index has made")
    hide_loading_bars()
    from vlmo.serving.parts import load_parts
    from vlmo.serving.server import bind, read_key, serve

    settings = replace(options.settings, api_key=read_key(options.api_key_file))
    chosen = {"engine": options.engine, "precision": options.precision, "device": options.device}
    with bind(options.host, options.port) as bound:
        serve(bound, load_parts(folder, index=options.index, vqa=options.vqa, **chosen), settings)
