"""Train `vlmo-small`: prepare its data, train every step, and write the folder to share.

    npm install --prefix raw @iconify/json emoji-datasource-google @lobehub/fluent-emoji-3d emojibase-data
    apt install openclipart-svg wordnet-base
    python -m worlds.vlmo_small --run-dir runs/vlmo-small

About eleven hours of two CPU cores. The same command goes on where it was, and measures what the results lack.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

import worlds
from vlmo.data.prepare import prepare
from vlmo.folder.card import CardContent
from vlmo.progress import Progress
from vlmo.recipes import Recipe, describe, find_recipe
from vlmo.recipes.schema import scaled
from vlmo.run import build
from worlds.recipes import RUN, STEPS
from worlds.release import SMALL_CARD, SMALL_PACKAGES, measure, write_release

ROOTS = {
    "icons": Path("raw/node_modules"),
    "drawings": Path("raw/node_modules"),
    "clipart": Path("/usr/share/openclipart/svg"),
    "glosses": Path("/usr/share/wordnet"),
}
_SCENES = ("test", "artist", "combinations", "longer")
MEASURED_ON = (
    *(("data/icons", split) for split in ("test", "new_names")),
    *((source, "test") for source in ("lucide-icons", "emoji-pairs", "drawings-concepts")),
    *(("scenes", split) for split in _SCENES),
    ("shapes", "test"),
    *(("scenes-binding", split) for split in _SCENES),
    ("shapes-binding", "test"),
)
"""Sets and splits whose results stand in the card of the folder to share."""
RUNS = (
    *((step, 0) for step in STEPS if step != "released"),
    ("names", 1),
    ("names", 2),
    ("released", 0),
)
"""Step and seed of each run. The last starts from the mean of the step `names` with its three seeds."""
SHARES = (0.75, 0.25)
"""Shares of the last run and of its start, chosen on `scenes-binding`, validation, and `clipart`, test."""


def name_of(step: str) -> str:
    """Return the name of a step's recipe."""
    return "vlmo-small" if step == "released" else f"small-{step}"


def folder_of(step: str, seed: int) -> str:
    """Return the name of a run's folder; other steps start from seed 0."""
    return f"{step}-{seed}" if seed else step


def moved(value: Any, folders: Mapping[str, Path]) -> Any:
    """Return settings with other folders in place of `data` and of `runs/vlmo-small`, wherever a path is given."""
    if isinstance(value, str):
        parts = value.split("+")
        for old, new in folders.items():
            parts = [
                f"{new}{part.removeprefix(old)}" if part.startswith(f"{old}/") else part
                for part in parts
            ]
        return "+".join(parts)
    if isinstance(value, tuple):
        return tuple(moved(each, folders) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            each.name: moved(getattr(value, each.name), folders)
            for each in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    return value


def rebuild(
    run: Path,
    *,
    data: Path,
    roots: Mapping[str, Path],
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
    console: Console | None = None,
) -> Path | None:
    """Do what is not done yet, and return the folder to share; None where a signal stopped a run.

    Of a folder to share that exists, it measures what the results lack, and trains nothing.

    Args:
        run: Folder of all runs.
        data: Folder of the prepared sets.
        roots: Files of each set of `worlds.PREPARED`.
        change: Makes another recipe of each, for trials.
    """
    console = console or Console(quiet=True)
    out = run / "vlmo-small"
    folders = {"data": data, RUN: run}
    if not out.exists():
        for name in worlds.PREPARED:
            with Progress(console) as progress:
                prepare(name, root=roots[name], out=data / name, progress=progress)
        start = run / "names-mean" / "model"
        if not _train(
            run, start, change=lambda recipe: moved(change(recipe), folders), console=console
        ):
            return None
        models = [run / "released" / "model", start]
        write_release(models, out, card=SMALL_CARD, packages=SMALL_PACKAGES, shares=SHARES)
    measure(
        out, [(moved(source, folders), split) for source, split in MEASURED_ON], console=console
    )
    return out


def _train(run: Path, start: Path, *, change: Callable[[Recipe], Recipe], console: Console) -> bool:
    """Do all runs, the last of which starts from the mean at `start`; return False where a signal stopped one."""
    for step, seed in RUNS:
        folder, name = run / folder_of(step, seed), name_of(step)
        if (folder / "model").is_dir():
            continue
        if step == "released" and not start.exists():
            models = [run / folder_of("names", each) / "model" for each in range(3)]
            start.parent.mkdir(exist_ok=True)
            about = "The mean of the weights of three seeds."
            write_release(models, start, card=CardContent(recipe=name_of("names"), about=about))
        recipe = dataclasses.replace(change(find_recipe(name)), seed=seed)
        about = describe(name).splitlines()[0]
        if (
            build(recipe, run_dir=folder, console=console, title=name, about=about).fit().status
            == "stopped"
        ):
            return False
    return True


@dataclass(frozen=True)
class Options:
    """Folders, and how much to train."""

    run_dir: Path = Path(RUN)
    """Folder of all runs; the result is `vlmo-small` in it."""
    data: Path = Path("data")
    """Folder of the prepared sets."""
    roots: dict[str, Path] = field(default_factory=lambda: dict(ROOTS))
    """Files of each set."""
    scale: float = 1.0
    """Share of the steps, for trials."""


def main() -> None:
    """Rebuild the model as the options say."""
    options = tyro.cli(Options, description=__doc__)
    console = Console()
    try:
        out = rebuild(
            options.run_dir,
            data=options.data,
            roots=options.roots,
            change=lambda recipe: scaled(recipe, scale=options.scale),
            console=console,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    console.print("stopped; the same command goes on" if out is None else f"ready: {out}")


if __name__ == "__main__":
    main()
