"""The command line: `vlmo quickstart | train | evaluate | recipes | import | export`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import itertools
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import transformers
import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError

from vlmo.training.errors import TrainingError

_USAGE_ERROR = 2
Options = TypeVar("Options")


@dataclass(frozen=True)
class TrainOptions:
    """Where a run lives, and the recipe that it follows."""

    recipe: Annotated[Any, tyro.conf.arg(name="")]
    run_dir: Path
    """Run folder; a run that was interrupted goes on where it was."""
    device: str | None = None
    """cpu, cuda or cuda:N; by default a GPU if there is one."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Figures of a model folder."""

    task: Literal["retrieval"] = "retrieval"
    """What to measure."""
    source: str = "emoji-pairs"
    """A built-in name or a path (docs/data.md)."""
    split: str = "test"
    """Part of the source."""
    rerank: int | None = None
    """Candidates of each query that the fusion encoder reorders, 0 for none; by default 16 if the model can judge."""
    rerank_weight: float | None = None
    """Share of the matching score in the new order, 0 to 1; by default the model's."""
    out: Path | None = None
    """JSON file for the figures."""
    write_card: bool = False
    """Put the figures into the folder's README.md."""


@dataclass(frozen=True)
class RecipesOptions:
    """Cards and settings."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Recipe to show; all by default."""
    json: bool = False
    """Print its settings alone, as JSON."""


@dataclass(frozen=True)
class ImportOptions:
    """Other people's weights as a model folder."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """Checkpoint of VLMo, BEiT or BEiT-3 (.pt, .pth, .safetensors), or a folder with config.json and weights."""
    out: Annotated[Path | None, tyro.conf.Positional] = None
    """New model folder."""
    kind: Literal["auto", "vlmo", "beit", "hf-beit", "beit3"] = "auto"
    """Layout of the file; by default the one that its keys tell."""
    image_size: int | None = None
    """Pixels of a picture's side; position tables are resized to it."""
    text_length: int | None = None
    """Longest text in tokens, a multiple of 8; by default that of the file."""
    num_attention_heads: int | None = None
    """Where the tensors do not tell it."""
    vocabulary: Path | None = None
    """BERT's vocab.txt or a folder with it, by default from the model hub; for BEiT-3 its SentencePiece file."""
    labels: Path | None = None
    """Names of the answers or classes: JSON, JSON lines, or one a line."""
    allow_partial: bool = False
    """Leave out keys that nobody knows, and start anew what is missing, instead of stopping."""


@dataclass(frozen=True)
class ExportOptions:
    """A model folder in another form."""

    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """Model folder."""
    to: Literal["official", "onnx"] = "official"
    """The published VLMo layout, or ONNX."""
    out: Path | None = None
    """New file (official: .pt or .safetensors) or new folder (onnx)."""
    int8: bool = False
    """onnx: also write variants with dynamic int8 quantisation."""
    recall_on: str | None = None
    """onnx: a source whose recall is measured with each variant, such as emoji-pairs."""


@dataclass(frozen=True)
class QuickstartOptions:
    """All stages on small real data, figures and a report."""

    run_dir: Path = Path("runs/quickstart")
    """Folder for all runs and the report; interrupted work goes on where it was."""
    scale: float = 1.0
    """Share of the steps of each stage; small values only show that everything works."""


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
    transformers.logging.disable_progress_bar()  # "Loading weights" and the like, many times a run
    try:
        _dispatch(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    except ModuleNotFoundError as error:
        hint = "" if "pip install" in str(error) else _QUICKSTART_HINT
        _fail(f"{error}{hint}")
    except (ValueError, OSError, SafetensorError) as error:
        _fail(str(error))
    except TrainingError as error:
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)


_STDERR = Console(stderr=True)
_QUICKSTART_HINT = ". Training and evaluating need more packages: pip install 'vlmo[quickstart]'"


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help"}:
        Console().print(_overview(), highlight=False)
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"vlmo {version('vlmo')}\n")
        return
    name, *rest = arguments
    if name not in _COMMANDS:
        raise ValueError(f"no command {name!r}; did you mean {_nearest(name, _COMMANDS)!r}? All: vlmo --help")
    _COMMANDS[name](rest)


def _quickstart(arguments: list[str]) -> None:
    """All stages on small real data: models, figures and a report in about ten minutes on two CPU cores."""
    options = _parse(QuickstartOptions(), arguments, prog="vlmo quickstart")
    from vlmo.recipes.quickstart import run_quickstart

    run_quickstart(options.run_dir, scale=options.scale, console=Console())


def _train(arguments: list[str]) -> None:
    """Train one recipe: vlmo train NAME [--init MODEL_FOLDER] [--run-dir FOLDER] [--optimizer.lr 1e-4 ...]."""
    from vlmo.distributed import is_main
    from vlmo.recipes import build, find_recipe
    from vlmo.training import launch

    name, rest = _positional(arguments, what="recipe", command="train", hint="vlmo recipes lists them")
    recipe_function = find_recipe(name)
    default = TrainOptions(recipe=recipe_function(), run_dir=Path("runs") / name)
    card = inspect.getdoc(recipe_function) or name
    about = card.splitlines()[0]
    description = f"{about} (The whole card: vlmo recipes {name}.)"
    options = _parse(default, rest, prog=f"vlmo train {name}", description=description)
    with launch(options.device):
        trainer = build(
            options.recipe,
            run_dir=options.run_dir,
            console=Console(),
            title=name,
            about=about,
            original=default.recipe,
            device=options.device,
        )
        result = trainer.fit()
        writes = is_main()
    if result.status == "stopped":
        sys.exit(0)
    if writes:
        Console().print(f"{result.status}: {result.steps} steps; model folder {result.model_dir}", highlight=False)


def _evaluate(arguments: list[str]) -> None:
    """Figures of a model folder: vlmo evaluate MODEL_FOLDER --task retrieval [--source NAME] [--rerank K]."""
    folder, rest = _positional(arguments, what="model folder", command="evaluate", hint="a run leaves one under model/")
    options = _parse(EvaluateOptions(), rest, prog="vlmo evaluate MODEL_FOLDER")
    from vlmo.recipes.retrieval import evaluate_folder, figures_table, write_card_figures, write_figures

    result = evaluate_folder(
        folder,
        source=options.source,
        split=options.split,
        rerank=options.rerank,
        rerank_weight=options.rerank_weight,
        console=_STDERR,
    )
    Console().print(figures_table(result))
    if options.out is not None:
        write_figures(result, options.out)
    if options.write_card:
        given = [
            f" --{name} {value}"
            for name, value in (("rerank", options.rerank), ("rerank-weight", options.rerank_weight))
            if value is not None
        ]
        command = f"`vlmo evaluate --split {options.split}{''.join(given)}`"
        write_card_figures(folder, result, source=options.source, split=options.split, measured_by=command)


def _recipes(arguments: list[str]) -> None:
    """List every recipe with its card; vlmo recipes NAME shows one with its settings, --json the settings alone."""
    from vlmo.recipes import RECIPES, find_recipe

    options = _parse(RecipesOptions(), arguments, prog="vlmo recipes")
    console = Console(soft_wrap=True)
    if options.json:
        if options.name is None:
            raise ValueError("vlmo recipes --json needs the name of a recipe")
        sys.stdout.write(find_recipe(options.name)().to_json() + "\n")
        return
    for name in [options.name] if options.name else RECIPES:
        card = inspect.getdoc(find_recipe(name)) or ""
        console.print(f"[bold]{name}[/bold]", highlight=False)
        console.print(textwrap.indent(card, "  "), markup=False, highlight=False)
        console.print()
    if options.name:
        console.print(find_recipe(options.name)().to_json(), markup=False)


def _import(arguments: list[str]) -> None:
    """Other people's weights as a model folder: vlmo import FILE OUT [--image-size N] [--vocabulary PATH]."""
    options = _parse(ImportOptions(), arguments, prog="vlmo import")
    if options.file is None or options.out is None:
        raise ValueError("vlmo import needs a checkpoint and a new folder: vlmo import FILE OUT (vlmo import --help)")
    from vlmo.interop.importing import import_checkpoint

    report = import_checkpoint(
        options.file,
        options.out,
        kind=options.kind,
        image_size=options.image_size,
        text_length=options.text_length,
        num_attention_heads=options.num_attention_heads,
        vocabulary=options.vocabulary,
        labels=options.labels,
        allow_partial=options.allow_partial,
    )
    console = Console(soft_wrap=True)
    table = Table(show_header=False)
    for word, value in report.rows():
        table.add_row(word, escape(value))
    console.print(table)
    console.print("\n".join([*report.lines(), f"model folder {options.out}"]), markup=False, highlight=False)


def _export(arguments: list[str]) -> None:
    """A model folder in another form: vlmo export FOLDER --to official|onnx --out PATH."""
    options = _parse(ExportOptions(), arguments, prog="vlmo export")
    if options.folder is None or options.out is None:
        raise ValueError("vlmo export needs a model folder and --out (vlmo export --help)")
    console = Console(soft_wrap=True)
    if options.to == "onnx":
        try:
            from vlmo.recipes.onnx_export import export_onnx

            export_onnx(options.folder, options.out, int8=options.int8, recall_on=options.recall_on, console=console)
        except ModuleNotFoundError as error:
            hint = "ONNX needs more packages: pip install 'vlmo[quickstart,onnx]'"
            raise ModuleNotFoundError(f"{error}. {hint}") from error
        return
    if options.int8 or options.recall_on is not None:
        raise ValueError("--int8 and --recall-on belong to --to onnx")
    from vlmo.interop.exporting import export_official

    report = export_official(options.folder, options.out)
    lines = [f"note: {note}" for note in report.notes]
    lines.append(f"{report.num_tensors} tensors in {report.file}")
    console.print("\n".join(lines), markup=False, highlight=False)


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": _quickstart,
    "train": _train,
    "evaluate": _evaluate,
    "recipes": _recipes,
    "import": _import,
    "export": _export,
}


def _overview() -> str:
    lines = ["usage: vlmo COMMAND ...", ""]
    lines += [f"  {name:<12}{inspect.getdoc(command)}".rstrip(".") for name, command in _COMMANDS.items()]
    return "\n".join([*lines, "", "vlmo COMMAND --help shows the options of a command."]).replace("[", r"\[")


def _positional(arguments: list[str], *, what: str, command: str, hint: str) -> tuple[str, list[str]]:
    if arguments and arguments[0] in {"-h", "--help"}:
        Console().print(inspect.getdoc(_COMMANDS[command]), markup=False, highlight=False)
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"vlmo {command} needs a {what} first ({hint})")
    return arguments[0], arguments[1:]


def _parse(default: Options, arguments: list[str], *, prog: str, description: str | None = None) -> Options:
    """`default` with the options of the command line. Wrong ones raise ValueError with the nearest right one."""
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
        nearest = _nearest(flag, _flags(type(default), parse))
        raise ValueError(f"{prog}: no option {flag!r}; did you mean {nearest!r}? All: {prog} --help")
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


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0)[0]


def _fail(message: str, *, code: int = _USAGE_ERROR) -> None:
    sys.stderr.write(f"vlmo: {' '.join(message.split())}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
