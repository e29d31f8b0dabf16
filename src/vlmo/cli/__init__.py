"""The command line: `vlmo COMMAND`, such as `vlmo quickstart`; `vlmo --help` lists the commands."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from rich.console import Console
from rich.logging import RichHandler
from safetensors import SafetensorError

from vlmo.cli.ablating import ablate_command
from vlmo.cli.folders import export_command, import_command, release_command
from vlmo.cli.parsing import nearest
from vlmo.cli.runs import quickstart_command, recipes_command, train_command
from vlmo.cli.searching import embed_command, index_command, search_command
from vlmo.cli.serving import serve_command
from vlmo.cli.tasks import data_command, evaluate_command, predict_command

_USAGE_ERROR = 2
_STDERR = Console(stderr=True)
_QUICKSTART_HINT = ". Training and evaluating need more packages: pip install 'vlmo[quickstart]'"
_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": quickstart_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "index": index_command,
    "search": search_command,
    "embed": embed_command,
    "serve": serve_command,
    "data": data_command,
    "recipes": recipes_command,
    "ablate": ablate_command,
    "import": import_command,
    "export": export_command,
    "release": release_command,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; errors of the user are one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=_STDERR, show_path=False)]
    )
    for noisy in ("httpx", "datasets", "transformers", "filelock", "fsspec", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not sys.stderr.isatty():  # bars are for terminals; in a file they are noise
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        _dispatch(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    except ModuleNotFoundError as error:
        hint = "" if "pip install" in str(error) else _QUICKSTART_HINT
        _fail(f"{error}{hint}")
    except PermissionError as error:
        _fail(f"no permission for {error.filename or error}; choose another place, or change its rights")
    except (ValueError, OSError, SafetensorError) as error:
        _fail(str(error))
    except RuntimeError as error:
        if not _ends_a_run(error):
            raise
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help"}:
        Console().print(_overview(), highlight=False)
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"vlmo {version('vlmo')}\n")
        return
    name, *rest = arguments
    if name not in _COMMANDS:
        raise ValueError(f"no command {name!r}; did you mean {nearest(name, _COMMANDS)!r}? All: vlmo --help")
    _COMMANDS[name](rest)


def _overview() -> str:
    lines = ["usage: vlmo COMMAND ...", ""]
    lines += [f"  {name:<12}{inspect.getdoc(command)}".rstrip(".") for name, command in _COMMANDS.items()]
    return "\n".join([*lines, "", "vlmo COMMAND --help shows the options of a command."]).replace("[", r"\[")


def _ends_a_run(error: RuntimeError) -> bool:
    """Whether it is a TrainingError; looked up only now, because it lives beside torch."""
    from vlmo.training.errors import TrainingError

    return isinstance(error, TrainingError)


def _fail(message: str, *, code: int = _USAGE_ERROR) -> None:
    sys.stderr.write(f"vlmo: {' '.join(message.split())}\n")
    sys.exit(code)
