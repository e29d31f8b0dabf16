"""Options of the commands, read by tyro; an error of the user is one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

ModelFolder = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="MODEL_FOLDER",
        help="Folder that a run leaves under model/, a name that vlmo models lists, or hf://USER/NAME.",
    ),
]
Device = Annotated[
    str | None, tyro.conf.arg(help="cpu, cuda, cuda:N or mps; by default a GPU if there is one.", metavar="DEVICE")
]


@dataclass(frozen=True)
class EngineOptions:
    """Options of an `Encoder`."""

    engine: Literal["torch", "onnx", "openvino"] | None = None
    """PyTorch, or ONNX Runtime or OpenVINO on the CPU, whose first use exports the model into the cache. By default
    PyTorch, and for int8 the faster of the other two that is installed."""
    precision: Literal["float32", "int8"] = "float32"
    """int8 is for the engines onnx and openvino (docs/engines.md)."""
    device: Device = None

    def __post_init__(self) -> None:
        """Validate before torch is imported."""
        if self.precision == "int8" and self.engine == "torch":
            raise ValueError("--precision int8 belongs to the engines onnx and openvino; leave out --engine torch")


Engines = Annotated[EngineOptions, tyro.conf.arg(name="")]


def parse(cli: Callable[..., Any], arguments: Sequence[str], **settings: Any) -> Any:
    """Return what `cli`, tyro's or that of a tyro app, makes of `arguments`; `settings` go to it.

    Raises:
        ValueError: The arguments cannot be read; the message is tyro's, with the nearest options that exist.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return cli(args=arguments, config=(tyro.conf.PositionalMetavarFromFieldName,), **settings)
    except SystemExit as end:
        if not end.code:  # --help
            raise
    lines = [line.strip("│| ") for line in box.getvalue().splitlines()[1:]]  # without the frame that tyro draws
    parts = [line if line.strip("─-+╰╯") else ";" for line in lines]
    raise ValueError(" ".join(parts).replace(" ;", ";").replace(".;", ";").strip("; "))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0)[0]


def check_new_file(file: Path | None, *, option: str, suffix: str = "") -> None:
    """Raise ValueError, before the work, if its result cannot be written to `file`, or that has another suffix."""
    if file is None:
        return
    if suffix and file.suffix.lower() != suffix:
        raise ValueError(f"{option} {file}: give a name that ends with {suffix}")
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder; name a file")
    above = next(parent for parent in file.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{option} {file}: {above} is no folder, or there is no permission to write in it")


def check_given(files: Iterable[str | Path | None], *, expected: str) -> None:
    """Raise ValueError, before torch is imported, if an input is not there; patterns and URLs are left to others."""
    for file in files:
        if file is None or re.search(r"[*?\[{]|://|::", str(file)):
            continue
        with contextlib.suppress(RuntimeError):  # "~" and no name of a user
            if Path(file).expanduser().exists():
                continue
        raise ValueError(f"there is nothing at {file}; give {expected}")
