"""`vlmo ablate`."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from vlmo.cli.parsing import hide_loading_bars, parse_options

_H100_FLOPS = 989e12  # dense bf16, as its data sheet states
_UTILISATION = 0.4


@dataclass(frozen=True)
class AblateOptions:
    """Variants of the small recipes that differ in one thing, trained with several seeds, and what they show."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Questions (initialisation, experts, losses, negatives, attention) or single variants; all by default."""
    run_dir: Path = Path("runs/ablation")
    """Folder for all runs and findings.md; interrupted work goes on where it was."""
    seeds: int = 3
    """Runs of each variant."""
    workers: int | None = None
    """Jobs at a time, in processes that share the cores; by default one a core, or one on a GPU."""
    scale: float = 1.0
    """Share of the steps of each run; small values only show that everything works."""
    device: str | None = None
    """cpu, cuda or cuda:N; by default a GPU if there is one."""
    costs: bool = False
    """Only tell what the same variants take at Base size with the paper's data."""
    job: tuple[str, int] | None = None
    """Run this variant (or stages) with this seed alone, in this process, and write no findings."""


def ablate_command(arguments: list[str]) -> None:
    """Train variants that differ in one thing, with several seeds, and say whether the paper's findings hold."""
    options = parse_options(AblateOptions(), arguments, prog="vlmo ablate")
    if options.seeds < 1 or (options.workers is not None and options.workers < 1) or not 0 < options.scale < math.inf:
        raise ValueError(
            f"seeds is {options.seeds}, workers {options.workers} and scale {options.scale}; give 1 or more, and a "
            "scale above 0"
        )
    hide_loading_bars()
    from vlmo.recipes.ablation import VARIANTS, variants_of
    from vlmo.recipes.ablation_jobs import STAGES, Job, jobs_of, run_job, run_jobs
    from vlmo.recipes.findings import read_findings, to_markdown, write_findings
    from vlmo.training import choose_device

    console, where = Console(), {"run": options.run_dir, "scale": options.scale}
    variants = variants_of(list(options.names))
    if options.costs:
        console.print(_costs(variants), highlight=False)
        return
    if options.job is not None:
        name, seed = options.job
        if name != STAGES and name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join([STAGES, *VARIANTS])}")
        done = run_job(Job(name, seed), device=options.device, console=console, **where)
        sys.exit(0 if done else 1)
    jobs = jobs_of(variants, seeds=options.seeds)
    on_gpu = choose_device(options.device).type != "cpu"
    workers = options.workers or (1 if on_gpu else min(os.cpu_count() or 1, len(jobs)))
    if not run_jobs(jobs, workers=workers, device=options.device, console=console, **where):
        sys.exit(0)
    findings = read_findings(variants, seeds=options.seeds, **where)
    write_findings(findings, options.run_dir)
    console.print(to_markdown(findings), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Findings: {options.run_dir / 'findings.md'}", highlight=False)


def _costs(variants: list[str]) -> Table:
    from vlmo.recipes import find_recipe
    from vlmo.recipes.ablation import base_name
    from vlmo.recipes.estimate import estimate

    table = Table(title=f"Base size, the paper's data; hours of one H100 at {_UTILISATION:.0%} of its bf16 rate")
    for column in ("recipe", "parameters", "samples", "EFLOPs", "H100 hours"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for variant in variants:
        name = base_name(variant)
        recipe = find_recipe(name)()
        needs = estimate(recipe)
        samples = recipe.trainer.max_steps * recipe.loader.global_batch_size
        flops = needs.flops_per_sample * samples
        hours = flops / (_H100_FLOPS * _UTILISATION) / 3600
        table.add_row(
            name, f"{needs.parameters / 1e6:,.0f}M", f"{samples / 1e6:,.0f}M", f"{flops / 1e18:,.0f}", f"{hours:,.0f}"
        )
    return table
