"""The command line: `vlmo COMMAND`, such as `vlmo quickstart`; `vlmo --help` lists the commands."""

from __future__ import annotations

import argparse
import atexit
import errno
import functools
import gc
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.logging import RichHandler
from safetensors import SafetensorError
from tyro.extras import SubcommandApp

from vlmo.cli import folders, runs, searching, tasks
from vlmo.cli.parsing import parse
from vlmo.cli.waiting import choose_waiting
from vlmo.lazy import install_command, need_package
from vlmo.terminal import nearest, without_controls

_COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": runs.quickstart,
    "train": runs.train,
    "finetune": runs.finetune,
    "evaluate": tasks.evaluate,
    "verify": tasks.verify,
    "predict": tasks.predict,
    "caption": tasks.caption,
    "index": searching.index,
    "embed": searching.embed,
    "search": searching.search,
    "map": searching.map_,
    "serve": searching.serve,
    "photos": searching.photos,
    "data prepare": tasks.prepare,
    "data false-captions": tasks.false_captions,
    "recipes": runs.recipes,
    "models": folders.models,
    "import": folders.import_,
    "merge": folders.merge,
    "export": folders.export,
}
"""Function of each command: its arguments are the options, and its docstring the help."""
_EXTRAS = {
    **dict.fromkeys(("finetune", "evaluate", "verify", "data"), ("train", "datasets")),
    **dict.fromkeys(("index", "search", "embed"), ("retrieval", "lancedb")),
    "serve": ("serve", "uvicorn"),
    "map": ("map", "sklearn"),
    "photos": ("photos", "watchfiles"),
    "quickstart": ("quickstart", "emoji"),
}
"""Optional packages that a command cannot do without: the extra, and one of them that others do not bring."""


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return without_controls(super().formatMessage(record))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors of the user are one line on stderr and exit code 2."""
    if arguments is None:  # a process of its own
        choose_waiting()
        gc.set_threshold(
            20_000
        )  # imports leave no garbage, and looking for it takes a sixth of their time
        # Looking for garbage among all that was imported would take seconds; not to look makes Triton list its leaks.
        atexit.register(lambda: "triton" in sys.modules or gc.freeze())
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in (
        "httpx",
        "datasets",
        "transformers",
        "filelock",
        "fsspec",
        "onnxscript",
        "onnx_ir",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", module=r"PIL\."
    )  # remarks on files: those that cannot be read have a reason
    os.environ.setdefault(
        "HF_HUB_DISABLE_PROGRESS_BARS", "1"
    )  # "Loading weights" and the like, many times a run
    if not sys.stderr.isatty():  # bars are for terminals; in a file they are noise
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        _dispatch(_import_modules(arguments))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    except ModuleNotFoundError as error:
        extra, _ = _EXTRAS.get(arguments[0], ("train", ""))
        hint = f". This needs more packages: {install_command(extra)}"
        _fail(str(error) if "pip install" in str(error) else f"{error}{hint}")
    except OSError as error:
        reason = (
            f"{error.filename}: {error.strerror}"
            if error.filename
            else error.strerror or str(error)
        )
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        _fail(f"{reason}; free some space and run again" if is_full else reason)
    except (ValueError, EOFError, SafetensorError) as error:
        _fail(str(error))
    except RuntimeError as error:
        from vlmo.training import TrainingError  # beside torch, which takes seconds to import

        if not isinstance(error, TrainingError):
            raise
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)


def _import_modules(arguments: list[str]) -> list[str]:
    """Import the modules that `--import MODULE` names, which may lie in the working directory; return the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", action="append", default=[], dest="modules", metavar="MODULE")
    known, others = parser.parse_known_args(arguments)
    for name in known.modules:
        sys.path.append(here := str(Path.cwd()))
        try:
            importlib.import_module(name)
        except (
            ModuleNotFoundError,
            TypeError,
            ValueError,
        ) as error:  # of a relative name, of an empty one
            raise ValueError(
                f"--import {name}: {error}; name a module that is installed or lies here"
            ) from error
        finally:
            sys.path[:] = [
                entry for entry in sys.path if entry is not here
            ]  # the module may have added others
    return others


def _dispatch(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        sys.stdout.write(f"vlmo {version('vlmo')}\n")
        return
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    words = arguments[:2] if arguments[:1] == ["data"] else arguments[:1]
    name = " ".join(word for word in words if not word.startswith("-"))
    others = arguments[len(name.split()) :]
    if name in {"", "data"}:
        parse(_app(name).cli, others or ["--help"], prog=f"vlmo {name}".strip())
    elif name not in _COMMANDS:
        raise ValueError(
            f"no command {name!r}; did you mean {nearest(name, _COMMANDS)}? All: vlmo --help"
        )
    else:
        call = _read_command(name, others)
        if words[0] in _EXTRAS:  # checked before anything is downloaded or computed
            extra, package = _EXTRAS[words[0]]
            need_package(package, extra=extra, user=f"vlmo {name}")
        call()


def _read_command(name: str, others: list[str]) -> Callable[[], None]:
    """Return the call that a command and the words after it stand for; ValueError if they cannot be read."""
    asks_help = not {"-h", "--help"}.isdisjoint(others)
    if name in {"train", "finetune"} and others and not asks_help and others[0].startswith("-"):
        wanted = "finetune MODEL --data DATA" if name == "finetune" else "train RECIPE"
        raise ValueError(f"{others[0]} stands where a name is expected: vlmo {wanted} [OPTIONS]")
    if (
        name == "train" and others and not others[0].startswith("-")
    ):  # its options are the settings of the recipe
        return functools.partial(runs.train, others[0], arguments=tuple(others[1:]))
    if name == "train" and asks_help:
        return runs.train_help
    read = functools.partial(tyro.cli, _deferred(_COMMANDS[name]))
    if name == "finetune" and not asks_help:
        call, rest = parse(read, others, prog="vlmo finetune", return_unknown_args=True)
        return functools.partial(call, arguments=tuple(rest))
    if name == "search":  # "-people" is a part of the query, and no option
        others = [f" {word}" if re.match("-(?!-|h$|$)", word) else word for word in others]
    return parse(read, others, prog=f"vlmo {name}")


def _app(group: str) -> SubcommandApp:
    """Return the app that lists the commands, or those of a group."""
    app = SubcommandApp()
    for name, function in _COMMANDS.items():
        start, _, word = name.rpartition(" ")
        if start == group:
            app.command(name=word)(_deferred(function))
    if not group:
        app.command(
            _app("data"),
            name="data",
            help="Data sets: prepare published ones, make false captions.",
        )
    return app


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[..., None]]:
    """Return a function that returns the call, so that `parse` reads tyro's errors and not those of the command."""

    @functools.wraps(function)
    def deferred(*args: Any, **options: Any) -> Callable[..., None]:
        return functools.partial(function, *args, **options)

    return deferred


def _fail(message: str, *, code: int = 2) -> None:
    sys.stderr.write(f"vlmo: {' '.join(without_controls(message).split())}\n")
    sys.exit(code)
