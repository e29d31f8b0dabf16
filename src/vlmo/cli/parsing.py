"""Reads the options of a command; what cannot be read is one line with the nearest right word."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from vlmo.released import find_model, known_models

Options = TypeVar("Options")


def parse_options(default: Options, arguments: list[str], *, prog: str, description: str | None = None) -> Options:
    """`default` with the options of the command line.

    Raises:
        ValueError: An option is unknown, and the nearest right one is named; or a value cannot be read.
    """
    parse = {"default": default, "prog": prog, "description": description}
    if {"-h", "--help"} & set(arguments):
        tyro.cli(type(default), args=["--help"], **parse)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            options, unknown = tyro.cli(type(default), args=arguments, return_unknown_args=True, **parse)
    except SystemExit:
        raise ValueError(f"{prog}: {_message(errors.getvalue())}") from None
    if unknown:
        flag = unknown[0].split("=")[0]
        likely = nearest(flag, _flags(type(default), parse))
        raise ValueError(f"{prog}: no option {flag!r}; did you mean {likely!r}? All: {prog} --help")
    return options


def _message(box: str) -> str:
    """The message inside the frame that tyro draws around an error: what stands between the title and the next rule."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    rules = [not re.search(r"\w", line) for line in lines]
    first = rules.index(False) if False in rules else len(lines)
    message = itertools.takewhile(lambda place: not rules[place], range(first, len(lines)))
    return " ".join(lines[place] for place in message) or "the options cannot be read"


def _flags(kind: type, parse: dict[str, Any]) -> list[str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], **parse)
    return sorted(set(re.findall(r"--[a-z][\w.-]*", text.getvalue())))


def nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """The known word that is most like `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0)[0]


def check_new_file(file: Path | None, *, option: str) -> None:
    """Looks before the work whether its result can be written.

    Raises:
        ValueError: `file` is a folder, or what should be its folder is a file.
    """
    if file is None:
        return
    if file.is_dir():
        raise ValueError(f"{option} {file} is a folder; name a file")
    above = next(parent for parent in file.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{option} {file}: {above} is no folder")


def hide_loading_bars() -> None:
    """Silences transformers' "Loading weights" and the like, many times a run; imports it, so call it late."""
    import transformers

    transformers.logging.disable_progress_bar()


def need_folder(folder: Path | None, *, command: str) -> Path:
    """The model folder that a command cannot do without; a model that comes with the package is found by its name.

    Raises:
        ValueError: There is none.
    """
    if folder is None:
        raise ValueError(f"vlmo {command} needs a model folder first (a run leaves one under model/). {known_models()}")
    return Path(find_model(folder))
