"""The command line: `vlmo COMMAND`, such as `vlmo quickstart`; `vlmo --help` lists the commands."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from safetensors import SafetensorError
from tyro.extras import SubcommandApp

from vlmo.cli import folders, runs, searching, serving, tasks
from vlmo.cli.parsing import nearest, parse
from vlmo.cli.waiting import choose_waiting
from vlmo.lazy import install_command
from vlmo.terminal import without_controls

_STDERR = Console(stderr=True)
# Options and function of each command. The first line of the options' docstring is what `vlmo --help` shows.
_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "quickstart": (runs.QuickstartOptions, runs.quickstart_command),
    "train": (runs.TrainName, lambda given: runs.train(given.name, [])),
    "finetune": (runs.FinetuneOptions, lambda _: runs.finetune([])),
    "evaluate": (tasks.EvaluateOptions, tasks.evaluate_command),
    "predict": (tasks.PredictOptions, tasks.predict_command),
    "index": (searching.IndexOptions, searching.index_command),
    "search": (searching.SearchOptions, searching.search_command),
    "embed": (searching.EmbedOptions, searching.embed_command),
    "duplicates": (searching.DuplicatesOptions, searching.duplicates_command),
    "clusters": (searching.ClustersOptions, searching.clusters_command),
    "serve": (serving.ServeOptions, serving.serve_command),
    "data prepare": (tasks.PrepareOptions, tasks.prepare_command),
    "recipes": (runs.RecipesOptions, runs.recipes_command),
    "models": (folders.ModelsOptions, folders.models_command),
    "import": (folders.ImportOptions, folders.import_command),
    "merge": (folders.MergeOptions, folders.merge_command),
    "export": (folders.ExportOptions, folders.export_command),
    "release": (folders.ReleaseOptions, folders.release_command),
}

_EXTRAS = {
    **dict.fromkeys(("index", "search", "embed", "duplicates", "clusters"), "retrieval"),
    "serve": "serve",
    "data": "train",
    "export": "quickstart,onnx",
}
"""Optional packages that a command needs; `quickstart` those that are not here."""
_SENTENCES = {
    errno.ENOENT: "there is no {}",
    errno.EISDIR: "{} is a folder; name a file",
    errno.ENOTDIR: "{} cannot be: a part of its path is no folder",
    errno.EEXIST: "{} exists already; choose another place",
    errno.ENOSPC: "no space is left for {}",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "no permission for {}; choose another place, or change its rights"),
    errno.EROFS: "{} lies on a disk that is read only; choose another place",
}
"""Errors of the system about a file, in words."""


class _Formatter(logging.Formatter):
    """Messages without control characters, which names of files may hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return without_controls(super().formatMessage(record))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors of the user are one line on stderr and exit code 2."""
    if arguments is None:  # a process of its own
        choose_waiting()
        atexit.register(gc.freeze)  # a search for garbage among all that was imported would take seconds
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    handler = RichHandler(console=_STDERR, show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "datasets", "transformers", "filelock", "fsspec", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on files: those that cannot be read have a reason
    if not sys.stderr.isatty():  # bars are for terminals; in a file they are noise
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        _dispatch(_import_modules(arguments))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    except ModuleNotFoundError as error:
        hint = f". This needs more packages: {install_command(_EXTRAS.get(arguments[0], 'quickstart'))}"
        _fail(str(error) if "pip install" in str(error) else f"{error}{hint}")
    except OSError as error:
        sentence = _SENTENCES.get(error.errno or 0, "{}: {}").format(error.filename, error.strerror)
        _fail(sentence if error.filename else error.strerror or str(error))
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
    others, words = list[str](), iter(arguments)
    for word in words:
        option, mark, value = word.partition("=")
        if option != "--import":
            others.append(word)
            continue
        name = value if mark else next(words, "")
        sys.path.append(here := str(Path.cwd()))
        try:
            if name.startswith("."):
                raise ValueError("the name is relative")
            importlib.import_module(name)
        except (ModuleNotFoundError, ValueError) as error:
            raise ValueError(f"--import {name}: {error}; name a module that is installed or lies here") from error
        finally:
            sys.path[:] = [entry for entry in sys.path if entry is not here]  # the module may have added others
    return others


def _dispatch(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        sys.stdout.write(f"vlmo {version('vlmo')}\n")
        return
    command = arguments[0] if arguments and not arguments[0].startswith("-") else None
    words = [name.split()[0] for name in _COMMANDS]
    if command is not None and command not in words:
        raise ValueError(f"no command {command!r}; did you mean {nearest(command, words)!r}? All: vlmo --help")
    if command == "train" and arguments[1:] and not arguments[1].startswith("-"):
        runs.train(arguments[1], arguments[2:])  # its options are the settings of the recipe
        return
    if command == "train" and arguments[1:] and set(arguments[1:]) <= {"-h", "--help"}:
        runs.train_help()
        return
    if command == "finetune" and not {"-h", "--help"} & set(arguments):
        runs.finetune(arguments[1:])
        return
    options = parse(_app(command).cli, arguments or ["--help"], prog="vlmo")
    if vars(options).get("precision") == "int8" and vars(options).get("engine") == "torch":  # before torch is imported
        raise ValueError("--precision int8 belongs to the engines onnx and openvino; leave out --engine torch")
    run = next(run for kind, run in _COMMANDS.values() if kind is type(options))
    run(options)


def _app(command: str | None) -> SubcommandApp:
    """All commands; or one, so that tyro suggests its options alone."""
    app, data = SubcommandApp(), SubcommandApp()
    data.command(name="prepare")(tasks.PrepareOptions)
    for name, (options, _) in _COMMANDS.items():
        if command not in {None, name.split()[0]}:
            continue
        if name == "data prepare":
            app.command(data, name="data", help="Published data sets: vlmo data prepare NAME --root DIR --out DIR.")
        else:
            app.command(name=name)(options)
    return app


def _fail(message: str, *, code: int = 2) -> None:
    sys.stderr.write(f"vlmo: {' '.join(without_controls(message).split())}\n")
    sys.exit(code)
