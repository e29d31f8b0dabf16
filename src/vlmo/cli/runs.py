"""`vlmo quickstart`, `vlmo train`, `vlmo finetune` and `vlmo recipes`."""

from __future__ import annotations

import functools
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from vlmo.cli.parsing import Device, ModelFolder, UnknownOption, parse
from vlmo.lazy import need_package
from vlmo.terminal import say, table

# Short names of options of a run.
_COMMON = {
    "--lr": "--optimizer.lr",
    "--batch-size": "--loader.global-batch-size",
    "--output-dir": "--run-dir",
    "--data": "--data.source",
}
_COMMON_HELP = (
    "  --data DATA         built-in name or path of the training data",
    "  --lr RATE           highest learning rate",
    "  --batch-size ROWS   rows of a step",
    "  --steps N           length of the run; the warm-up keeps its share",
    "  --output-dir DIR    run folder, by default runs/NAME; a run that was interrupted goes on there",
    "  --import MODULE     module with tasks and recipes of your own, here or installed; every command takes it",
)


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run, and the recipe that it follows.

    Attributes:
        run_dir: Run folder; a run that was interrupted goes on where it was.
        dry_run: Only say what the run will need: memory and operations.
        processes: With dry_run: number of processes.
        hang_seconds: With several processes: after how long without progress in a step a process prints its stacks and
            ends. Reading the data, an evaluation and a save may take four times as long.
    """

    recipe: Annotated[Any, tyro.conf.arg(name="")]
    run_dir: Path
    device: Device = None
    dry_run: bool = False
    processes: int = 1
    # The same as vlmo.training.parallel.HANG_SECONDS, which lies beside torch.
    hang_seconds: float = 1800.0


def quickstart(
    run_dir: Path = Path("runs/quickstart"),
    *,
    scale: float = 1.0,
    seed: int = 0,
    fast: bool = False,
) -> None:
    """Train all stages on scenes of shapes in 14 to 35 minutes on two cores; --fast: search with a ready model.

    Args:
        run_dir: Folder for all runs and the report; interrupted work goes on where it was.
        scale: Share of the steps of each stage, and of the test scenes; small values only show that everything works.
        seed: Seed of all stages; results vary with it.
        fast: Train nothing: index 5,277 icons and drawings, and search them with the model that comes with the
            package.
    """
    if fast and scale != 1:
        raise ValueError(
            "--scale shortens the training, and --fast leaves it out; give one of them"
        )
    if fast:
        from vlmo.demo.fast import run_fast_start

        run_fast_start(run_dir / "fast", console=Console())
        return
    from vlmo.demo.quickstart import run_quickstart

    run_quickstart(run_dir, scale=scale, seed=seed, console=Console())


def train_help() -> None:
    """Show how `vlmo train` is called, the common options, and every recipe."""
    options = ["Options beside those of vlmo train NAME --help:", *_COMMON_HELP]
    say("usage: vlmo train NAME [OPTIONS]", "", *options, "", "Recipes:", *_task_table())


def train(
    name: tyro.conf.Positional[str], *, arguments: tyro.conf.Suppress[tuple[str, ...]] = ()
) -> None:
    """Train a recipe: vlmo train NAME [--init MODEL_FOLDER] [--run-dir FOLDER] [--optimizer.lr 1e-4 ...].

    Args:
        name: Recipe; vlmo recipes lists them, and vlmo train NAME --help every setting with its default.
        arguments: The other words; every setting of the recipe is an option.
    """
    # Wrong options are refused before the slow imports.
    common = _common_options(arguments)
    from vlmo.recipes import describe, find_recipe

    about = describe(name).splitlines()[0]
    recipe = find_recipe(name)
    description = f"{about} (The whole description: vlmo recipes {name}.)"
    folder = Path("runs") / name
    options = _run_options(
        recipe, *common, prog=f"vlmo train {name}", about=description, run_dir=folder
    )
    _run(options, original=recipe, name=name, about=about)


def finetune(
    folder: ModelFolder,
    *,
    data: str | None = None,
    patterns: Annotated[tuple[str, ...], tyro.conf.arg(name="data.streams.patterns")] = (),
    task: str | None = None,
    arguments: tyro.conf.Suppress[tuple[str, ...]] = (),
) -> None:
    """Fine-tune a model on own data: vlmo finetune MODEL --data DATA [--lr 3e-5] [--batch-size 32] [--steps 500].

    Args:
        data: Captions, questions, sentences about two images, classes or masks (docs/data.md), which tell the task.
        patterns: Shards of images with captions, .tar or .parquet, that are read as a stream (docs/data.md, "Streams"):
            paths, wildcards, braces, folders, URLs. --data, if given too, are then measured on alone.
        task: retrieval, vqa, nlvr2, classification, segmentation or captioning, where the data do not tell it.
            Every option of vlmo train is one here too: --lr, --batch-size, --steps, --output-dir, --dry-run, ...
        arguments: The other words.
    """
    common = _common_options(arguments)
    from vlmo.recipes.finetune import finetune_recipe
    from vlmo.tasks.result import data_name

    _check_options(common, task=task)
    # Opens the data, whose columns tell the task.
    recipe, about = finetune_recipe(folder, data, task=task, streams=patterns)
    folder = folder.resolve()
    # A run leaves its model in a folder of that name.
    base = folder.parent if folder.name == "model" else folder
    name = f"{base.name}-{data_name(data or 'streams')}"
    run = _run_options(
        recipe, *common, prog="vlmo finetune", about=about, run_dir=Path("runs") / name
    )
    loader = run.recipe.loader
    trainer = run.recipe.trainer
    rate = run.recipe.optimizer.lr
    choice = f"batches of {loader.global_batch_size}, {trainer.max_steps:,} steps, learning rate {rate:g}"
    Console(stderr=True, soft_wrap=True).print(
        f"{about} Chosen: {choice}.", markup=False, highlight=False
    )
    _run(run, original=recipe, name=name, about=about)


def _check_options(common: tuple[list[str], int | None], *, task: str | None) -> None:
    """Raise ValueError for options that cannot be read, before the data are, which tell the task if nothing else does.

    Options of a task are then taken if one of the tasks has them.
    """
    from vlmo.recipes import find_recipe
    from vlmo.tasks.registry import evaluated_tasks, find_task

    # Any recipe will do: these options are those that all recipes share.
    any_recipe = replace(find_recipe("shapes-stage3"), evaluate_on=None)
    kinds = [*evaluated_tasks().values()]
    if task is not None:
        kinds = [find_task(task)]
    # Without options of a task, all tasks take the same ones.
    if not any(word.startswith("--task.") for word in common[0]):
        kinds = kinds[:1]
    faults = []
    for kind in kinds:
        recipe = replace(any_recipe, task=kind())
        try:
            _run_options(recipe, *common, prog="vlmo finetune", about="", run_dir=Path())
        except UnknownOption as error:
            faults.append(error)
        else:
            return
    raise faults[0]


def _run_options(
    recipe: Any, arguments: list[str], steps: int | None, *, prog: str, about: str, run_dir: Path
) -> TrainOptions:
    from vlmo.recipes.schema import scaled, without_void_defaults

    default = TrainOptions(recipe=recipe, run_dir=run_dir)
    # The warm-up keeps its share of the steps.
    if steps is not None:
        default = replace(default, recipe=scaled(recipe, scale=steps / recipe.trainer.max_steps))
    options = parse(
        functools.partial(tyro.cli, TrainOptions),
        arguments,
        prog=prog,
        short_names=(*_COMMON, "--steps"),
        default=default,
        description=about,
    )
    return replace(options, recipe=without_void_defaults(recipe, options.recipe))


def _run(options: TrainOptions, *, original: Any, name: str, about: str) -> None:
    if options.dry_run:
        _show_needs(options, original=original, name=name)
        return
    need_package("datasets", extra="train", user="vlmo train")
    from vlmo.distributed import is_main
    from vlmo.run import build
    from vlmo.training import explained_faults, launch

    # A run that fails here has no training state to name.
    saved = lambda **_: "nothing was saved yet; the same command goes on"  # noqa: E731
    with launch(options.device, hang_seconds=options.hang_seconds):
        with explained_faults(
            lambda: f"{name}: before the first step", run_dir=None, last_saved=saved
        ):
            trainer = build(
                options.recipe,
                run_dir=options.run_dir,
                console=Console(),
                title=name,
                about=about,
                original=original,
                device=options.device,
            )
        result = trainer.fit()
        writes = is_main()
    if result.status == "stopped":
        sys.exit(0)
    if writes:
        kind = "model" if options.recipe.lora.rank is None else "adapter"
        Console().print(
            f"{result.status}: {result.steps} steps; {kind} folder {result.model_dir}",
            highlight=False,
        )


def _show_needs(options: TrainOptions, *, original: Any, name: str) -> None:
    from vlmo.recipes.schema import missing_sources
    from vlmo.run.estimate import estimate
    from vlmo.run.start import check_start

    recipe = options.recipe
    processes = options.processes
    # The estimate validates the recipe.
    needs = estimate(recipe, processes=processes)
    missing = check_start(recipe, original)
    whose = f"each of {processes:,} processes" if processes > 1 else "one process"
    Console().print(needs.table(title=f"{name}: needs of {whose}"), highlight=False)
    # Shards may be URLs, which only a run opens.
    if not recipe.data.streams.patterns:
        absent = ", ".join(missing_sources(recipe.data.source))
        if absent:
            missing.append(
                f"Not there yet of its data: {absent}; see docs/published-sets.md, or give --data."
            )
    say(*missing)


def _common_options(arguments: Sequence[str]) -> tuple[list[str], int | None]:
    """Return arguments with the whole names of options, and the number of `--steps`, if it is given."""
    words = []
    steps = None
    rest = iter(arguments)
    for word in rest:
        option, mark, value = word.partition("=")
        option = option.replace("_", "-")
        if option.endswith("epochs"):
            raise ValueError(
                f"{option}: a run is as long as --steps says; an epoch has rows / --batch-size of them"
            )
        if option == "--lora.rank":
            need_package("peft", extra="lora", user="LoRA")
        if option in _COMMON:
            words.append(f"{_COMMON[option]}{mark}{value}")
        elif option != "--steps":
            words.append(word)
        else:
            # Both `--steps 100` and `--steps=100` are in use.
            number = value if mark else next(rest, "")
            if not number.isdecimal() or not int(number):
                raise ValueError(f"--steps is {number or 'empty'}; give a number from 1 up")
            steps = int(number)
    return words, steps


def _task_table() -> list[str]:
    from vlmo.recipes import task_table

    return table([("task", "sizes: a recipe is called SIZE-TASK", "what it trains"), *task_table()])


def recipes(
    name: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    defaults: Annotated[bool, tyro.conf.arg(name="all")] = False,
) -> None:
    """List the recipes by task; vlmo recipes NAME shows one with its settings, and those of the paper beside them.

    Args:
        name: Recipe to show; all by default.
        defaults: Also show settings that are the defaults.
    """
    from vlmo.recipes import find_entry
    from vlmo.recipes.schema import settings

    if name is None:
        say(*_task_table())
        return
    entry = find_entry(name)
    values = settings(entry.recipe, defaults=True)
    # What the paper gives is shown beside the recipe's value, even if that is the default.
    shown = settings(entry.recipe, defaults=defaults).keys() | entry.paper.keys()
    rows = [("setting", "value", "in the paper" if entry.paper else "")]
    for path, value in values.items():
        if path in shown:
            paper = entry.paper.get(path)
            rows.append((path, json.dumps(value), "" if paper is None else str(paper)))
    Console().print(f"[bold]{name}[/bold]", highlight=False)
    say(*textwrap.indent(entry.describe(name), "  ").split("\n"), "", *table(rows))
