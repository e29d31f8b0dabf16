"""Run the quickstart with several seeds, and keep the table of each.

    python experiments/quickstart_seeds.py --seeds 0 1 2 3 4

Each seed has a folder of its own below --run-dir; the same command continues after an interruption. The result holds
the tables of all seeds, with the median and the range of each cell: recipes and README's chart show these.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from vlmo.demo.quickstart import STAGE3, STEPS, run_quickstart
from vlmo.recipes import quickstart
from vlmo.tasks.result import circumstances
from vlmo.training import read_metrics

Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Options:
    """Seeds to run, and where."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of all stages."""
    run_dir: Path = Path("runs/quickstart-seeds")
    """Folder for the runs."""
    scale: float = 1.0
    """Share of the steps of each stage."""
    out: Path = Path("src/vlmo/recipes") / quickstart.FILE
    """JSON file for the result, written after each seed; `python docs/figures/images.py` then draws README's chart."""


def summary(tables: Sequence[Metrics]) -> dict[str, dict[str, dict[str, float]]]:
    """Return median, lowest and highest value of each cell of the tables."""
    return {
        column: {
            row: {
                "median": statistics.median(values),
                "lowest": min(values),
                "highest": max(values),
            }
            for row in cells
            if (values := [table[column][row] for table in tables])
        }
        for column, cells in tables[0].items()
    }


def stage_losses(folder: Path) -> dict[str, dict[str, float]]:
    """Return the losses of each stage below the folder of a seed, over the last tenth of its steps."""
    found = {}
    for name, step in STEPS.items():
        lines = [line for line in read_metrics(folder / name) if "loss" in line]
        last = [line for line in lines if line["step"] > 0.9 * lines[-1]["step"]]
        found[name] = {loss: statistics.fmean(line[loss] for line in last) for loss in step.losses}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run each seed and write the result."""
    options = tyro.cli(Options, args=list(sys.argv[1:] if arguments is None else arguments))
    tables: dict[str, Any] = {}
    stages = []
    for seed in options.seeds:
        folder = options.run_dir / f"seed-{seed}"
        tables[str(seed)] = run_quickstart(
            folder, scale=options.scale, seed=seed, console=Console()
        )
        stages.append(stage_losses(folder))
        around = circumstances(folder / STAGE3 / "model")
        result = {name: around[name] for name in ("date", "commit", "versions", "hardware")} | {
            "scale": options.scale,
            "summary": summary(list(tables.values())),
            "stages": summary(stages),
            "seeds": tables,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
