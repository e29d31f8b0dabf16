"""`vlmo quickstart`, `vlmo train` and `vlmo recipes`."""

from __future__ import annotations

import functools
import os
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from vlmo.cli.parsing import hide_loading_bars, parse, without_garbage_collection


@dataclass(frozen=True)
class TrainName:
    """Train a recipe: vlmo train NAME [--init MODEL_FOLDER] [--run-dir FOLDER] [--optimizer.lr 1e-4 ...]."""

    name: tyro.conf.Positional[str]
    """Recipe; vlmo recipes lists them, and vlmo train NAME --help every setting with its default."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run, and the recipe that it follows."""

    recipe: Annotated[Any, tyro.conf.arg(name="")]
    run_dir: Path
    """Run folder; a run that was interrupted goes on where it was."""
    device: str | None = None
    """cpu, cuda or cuda:N; by default a GPU if there is one."""
    dry_run: bool = False
    """Only tell what the run will need: memory, traffic between processes, operations. Reads and writes no data."""
    processes: int | None = None
    """With dry_run: number of processes; by default those that torchrun has started."""
    json: Path | None = None
    """With dry_run: file for the figures."""
    hang_seconds: float = 1800.0  # vlmo.training.watchdog.HANG_SECONDS, which lives beside torch
    """With several processes: after how long without a sign of life, or in a step without progress, one is reported and
    the others end. Reading the data, an evaluation and a save may take four times as long."""


@dataclass(frozen=True)
class RecipesOptions:
    """List every recipe; vlmo recipes NAME shows one with its settings, --json the settings alone."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Recipe to show; all by default."""
    json: bool = False
    """Print its settings alone, as JSON."""


@dataclass(frozen=True)
class QuickstartOptions:
    """Train all stages on small real data in about ten minutes on two CPU cores; --fast: search with a ready model."""

    run_dir: Path = Path("runs/quickstart")
    """Folder for all runs and the report; interrupted work goes on where it was."""
    scale: float = 1.0
    """Share of the steps of each stage; small values only show that everything works."""
    fast: bool = False
    """Train nothing: search among the drawings with the model that comes with the package, in less than a minute."""


def quickstart_command(options: QuickstartOptions) -> None:
    """Run `vlmo quickstart`."""
    if options.fast and options.scale != 1:
        raise ValueError("--scale shortens the training, and --fast leaves it out; give one of them")
    hide_loading_bars()
    if options.fast:
        from vlmo.demo.fast import run_fast_start

        run_fast_start(options.run_dir / "fast", console=Console())
        return
    from vlmo.demo.quickstart import run_quickstart

    run_quickstart(options.run_dir, scale=options.scale, console=Console())


def train(name: str, arguments: list[str]) -> None:
    """Run `vlmo train NAME ...`; every setting of the recipe is an option."""
    with without_garbage_collection():
        hide_loading_bars()
        from vlmo.recipes import describe, find_recipe
        from vlmo.recipes.schema import without_void_defaults

        default = TrainOptions(recipe=find_recipe(name), run_dir=Path("runs") / name)
        about = describe(name).splitlines()[0]
        options: TrainOptions = parse(
            functools.partial(tyro.cli, TrainOptions),
            arguments,
            prog=f"vlmo train {name}",
            default=default,
            description=f"{about} (The whole description: vlmo recipes {name}.)",
        )
    options = replace(options, recipe=without_void_defaults(default.recipe, options.recipe))
    if options.dry_run:
        from vlmo.run.estimate import check_start, estimate

        if options.recipe.init != default.recipe.init:
            check_start(options.recipe)
        processes = int(os.environ.get("WORLD_SIZE", "1")) if options.processes is None else options.processes
        needs = estimate(options.recipe, processes=processes)
        if os.environ.get("RANK", "0") == "0":
            whose = f"each of {processes:,} processes" if processes > 1 else "one process"
            Console().print(needs.table(title=f"{name}: needs of {whose}"), highlight=False)
            if options.json is not None:
                options.json.write_text(needs.to_json() + "\n")
        return
    if options.processes is not None or options.json is not None:
        raise ValueError("--processes and --json belong to --dry-run; torchrun's --nproc-per-node starts processes")
    from vlmo.distributed import is_main
    from vlmo.run import build
    from vlmo.training import Watchdog, explained_start, launch

    watchdog = Watchdog(options.hang_seconds)
    with launch(options.device, timeout=watchdog.longest_wait), watchdog:
        with explained_start(name, watchdog=watchdog):
            trainer = build(
                options.recipe,
                run_dir=options.run_dir,
                console=Console(),
                title=name,
                about=about,
                original=default.recipe,
                device=options.device,
                watchdog=watchdog,
            )
        result = trainer.fit()
        writes = is_main()
    if result.status == "stopped":
        sys.exit(0)
    if writes:
        Console().print(f"{result.status}: {result.steps} steps; model folder {result.model_dir}", highlight=False)


def recipes_command(options: RecipesOptions) -> None:
    """Run `vlmo recipes`."""
    from vlmo.recipes import RECIPES, describe, find_recipe

    if options.json:
        if options.name is None:
            raise ValueError("vlmo recipes --json needs the name of a recipe")
        sys.stdout.write(find_recipe(options.name).to_json() + "\n")
        return
    console = Console(soft_wrap=True)
    for name in [options.name] if options.name else RECIPES:
        text = describe(name)
        console.print(f"[bold]{name}[/bold]", highlight=False)
        console.print(textwrap.indent(text, "  ") + "\n", markup=False, highlight=False)
    if options.name:
        console.print(find_recipe(options.name).to_json(), markup=False)
