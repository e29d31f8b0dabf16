"""`vlmo serve`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from vlmo.cli.parsing import EngineOptions, Engines, ModelFolder, check_given, hide_loading_bars
from vlmo.released import find_model
from vlmo.serving.settings import Settings


def serve(
    folder: ModelFolder,
    *,
    index: Path | None = None,
    vqa: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    engines: Engines = EngineOptions(),  # noqa: B008 - frozen
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings(),  # noqa: B008
    api_key_file: Path | None = None,
) -> None:
    """Serve a model over HTTP, with a web page: vlmo serve MODEL_FOLDER [--index DIR] [--vqa VQA_MODEL_FOLDER].

    Args:
        index: Index that vlmo index has made with this model; without it nothing is searched.
        vqa: Folder of a second model, which answers questions about images.
        host: Address to listen on; by default only this machine reaches it. 0.0.0.0: all that do.
        port: 0: any that is free; the log says which.
        api_key_file: File with the key that clients must send; by default the environment's VLMO_API_KEY, or none.
    """
    folder = Path(find_model(folder))
    check_given([index], expected="an index that vlmo index has made")
    hide_loading_bars()
    from vlmo.serving.parts import load_parts
    from vlmo.serving.server import bind, read_key
    from vlmo.serving.server import serve as run

    settings = replace(settings, api_key=read_key(api_key_file))
    with bind(host, port) as bound:
        run(bound, load_parts(folder, index=index, vqa=vqa, **vars(engines)), settings)
