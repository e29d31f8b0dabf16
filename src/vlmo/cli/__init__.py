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
from vlmo.lazy import install_command, need_package
from vlmo.terminal import suggestion, without_controls

# Function of each command: its arguments are the options, and its docstring the help.
_COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": runs.quickstart,
    "train": runs.train,
    "finetune": runs.finetune,
    "evaluate": tasks.evaluate,
    "benchmark": tasks.benchmark,
    "predict": tasks.predict,
    "caption": tasks.caption,
    "index": searching.index,
    "embed": searching.embed,
    "search": searching.search,
    "serve": searching.serve,
    "photos": searching.photos,
    "data prepare": tasks.prepare,
    "recipes": runs.recipes,
    "models": folders.models,
    "import": folders.import_,
    "merge": folders.merge,
    "export": folders.export,
}
# Optional packages that a command cannot do without: the extra, and one of them that others do not
# bring.
_EXTRAS = {
    "finetune": ("train", "datasets"),
    "evaluate": ("train", "datasets"),
    "benchmark": ("train", "datasets"),
    "data": ("train", "datasets"),
    "index": ("retrieval", "lancedb"),
    "search": ("retrieval", "lancedb"),
    "embed": ("retrieval", "lancedb"),
    "serve": ("serve", "uvicorn"),
    "photos": ("photos", "watchfiles"),
    "quickstart": ("quickstart", "emoji"),
}


# They log requests, downloads and steps of an export at the level INFO.
_NOISY_LOGGERS = (
    "httpx",
    "datasets",
    "transformers",
    "filelock",
    "fsspec",
    "onnxscript",
    "onnx_ir",
)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return without_controls(super().formatMessage(record))


def _system_message(error: OSError) -> str:
    """Return an error of the system in one line, with what to do where a disk is full."""
    message = error.strerror or str(error)
    if error.filename:
        message = f"{error.filename}: {message}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        message += "; free some space and run again"
    return message


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors of the user are one line on stderr and exit code 2."""
    if arguments is None:
        arguments = sys.argv[1:]
        _tune_process()
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Remarks on files: those that cannot be read have a reason.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # "Loading weights" and the like, many times a run.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Bars are for terminals; in a file they are noise.
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        _dispatch(_import_modules(list(arguments)))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    except ModuleNotFoundError as error:
        extra, _ = _EXTRAS.get(arguments[0], ("train", ""))
        message = str(error)
        if "pip install" not in message:
            message += f". This needs more packages: {install_command(extra)}"
        _fail(message)
    except OSError as error:
        _fail(_system_message(error))
    except (ValueError, EOFError, SafetensorError) as error:
        _fail(str(error))
    except RuntimeError as error:
        # It lies beside torch, which takes seconds to import.
        from vlmo.training import TrainingError

        if not isinstance(error, TrainingError):
            raise
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)  # as shells report SIGINT


def _tune_process() -> None:
    """Make start and end of a process of its own faster."""
    # OpenMP's threads spin while they wait, and take the cores that other programs need. These rounds are within 2 % of
    # GNU's own 300,000 on an idle machine. PyTorch reads it when it is imported.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"
    # Imports leave no garbage, and looking for it takes a sixth of their time.
    gc.set_threshold(20_000)
    # Looking for garbage among all that was imported would take seconds; not to look makes Triton list its leaks.
    atexit.register(lambda: "triton" in sys.modules or gc.freeze())


def _import_modules(arguments: list[str]) -> list[str]:
    """Import the modules that `--import MODULE` names, which may lie in the working directory; return the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", action="append", default=[], dest="modules", metavar="MODULE")
    options, others = parser.parse_known_args(arguments)
    for name in options.modules:
        folder = str(Path.cwd())
        # Behind all others, so that a file here shadows no package.
        sys.path.append(folder)
        try:
            importlib.import_module(name)
        # TypeError and ValueError are those of relative and empty names.
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            raise ValueError(
                f"--import {name}: {error}; name a module that is installed or lies here"
            ) from error
        finally:
            # The module may have added others.
            sys.path[:] = [entry for entry in sys.path if entry is not folder]
    return others


def _dispatch(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        sys.stdout.write(f"vlmo {version('vlmo')}\n")
        return
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    # The commands of `vlmo data` have two words.
    words = arguments[:2] if arguments[:1] == ["data"] else arguments[:1]
    name = " ".join(word for word in words if not word.startswith("-"))
    others = arguments[len(name.split()) :]
    if name in {"", "data"}:
        parse(_app(name).cli, others or ["--help"], prog=f"vlmo {name}".strip())
    elif name not in _COMMANDS:
        raise ValueError(f"no command {name!r}{suggestion(name, _COMMANDS)} All: vlmo --help")
    else:
        call = _read_command(name, others)
        # Checked before anything is downloaded or computed.
        if words[0] in _EXTRAS:
            extra, package = _EXTRAS[words[0]]
            need_package(package, extra=extra, user=f"vlmo {name}")
        call()


def _read_command(name: str, others: list[str]) -> Callable[[], None]:
    """Return the call that a command and the words after it stand for; ValueError if they cannot be read."""
    asks_help = not {"-h", "--help"}.isdisjoint(others)
    if name in {"train", "finetune"} and others and not asks_help and others[0].startswith("-"):
        wanted = "finetune MODEL --data DATA" if name == "finetune" else "train RECIPE"
        raise ValueError(f"{others[0]} stands where a name is expected: vlmo {wanted} [OPTIONS]")
    # The options of a recipe are its settings.
    if name == "train" and others and not others[0].startswith("-"):
        return functools.partial(runs.train, others[0], arguments=tuple(others[1:]))
    if name == "train" and asks_help:
        return runs.train_help
    read = functools.partial(tyro.cli, _deferred(_COMMANDS[name]))
    # The other words are read once the data have told the task, and so the recipe.
    if name == "finetune" and not asks_help:
        call, rest = parse(read, others, prog="vlmo finetune", return_unknown_args=True)
        return functools.partial(call, arguments=tuple(rest))
    # "-people" is a part of the query, and no option.
    if name == "search":
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
            help="Data sets: prepare published ones.",
        )
    return app


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[..., None]]:
    """Return a function that returns the call, so that `parse` reads tyro's errors and not those of the command."""

    @functools.wraps(function)
    def deferred(*args: Any, **options: Any) -> Callable[..., None]:
        return functools.partial(function, *args, **options)

    return deferred


# 2 is argparse's code for wrong arguments; failed runs have 1.
def _fail(message: str, *, code: int = 2) -> None:
    # One line, whatever line ends the message has.
    sys.stderr.write(f"vlmo: {' '.join(without_controls(message).split())}\n")
    sys.exit(code)
