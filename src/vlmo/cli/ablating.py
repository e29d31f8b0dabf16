"""`vlmo ablate`."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from vlmo.cli.parsing import hide_loading_bars

if TYPE_CHECKING:
    from vlmo.recipes.ablation_jobs import Job

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
    """Only tell what stage 3 of the same variants takes at Base size with the paper's data."""
    report: bool = False
    """Only write findings.md, of all jobs below run_dir that have finished."""
    job: tuple[str, int] | None = None
    """Run this variant (or stages) with this seed alone, in this process, and write no findings."""


def ablate_command(options: AblateOptions) -> None:
    """Run `vlmo ablate`."""
    if options.seeds < 1 or (options.workers is not None and options.workers < 1) or not 0 < options.scale < math.inf:
        raise ValueError(
            f"seeds is {options.seeds}, workers {options.workers} and scale {options.scale}; give 1 or more, and a "
            "scale above 0"
        )
    hide_loading_bars()
    from vlmo.recipes.ablation import VARIANTS, variants_of
    from vlmo.recipes.ablation_jobs import STAGES, Job, end_with_parent, jobs_of, run_job
    from vlmo.recipes.findings import read_findings, to_markdown, write_findings

    # Absolute, as folders that runs start from are among their settings.
    console, where = Console(), {"run": options.run_dir.absolute(), "scale": options.scale}
    variants = variants_of(list(options.names))
    if options.costs:
        console.print(_costs(variants), highlight=False)
        return
    if options.job is not None:
        name, seed = options.job
        if name != STAGES and name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; variants: {', '.join([STAGES, *VARIANTS])}")
        end_with_parent()
        done = run_job(Job(name, seed), device=options.device, console=console, **where)
        sys.exit(0 if done else 1)
    if not options.report and not _train(options, jobs_of(variants, seeds=options.seeds), console=console):
        sys.exit(0)
    findings = read_findings(**where)
    if not findings.results:
        raise ValueError(
            f"no job below {options.run_dir} has finished, so there is nothing to report; give the --run-dir of vlmo "
            "ablate, or run it"
        )
    write_findings(findings, options.run_dir)
    console.print(to_markdown(findings), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Findings: {options.run_dir / 'findings.md'}", highlight=False)


def _train(options: AblateOptions, jobs: list[Job], *, console: Console) -> bool:
    """False if a signal ended it."""
    from vlmo.recipes.ablation_jobs import run_jobs
    from vlmo.training import choose_device

    on_gpu = choose_device(options.device).type != "cpu"
    workers = options.workers or (1 if on_gpu else min(os.cpu_count() or 1, len(jobs)))
    run = options.run_dir.absolute()
    return run_jobs(jobs, run=run, scale=options.scale, workers=workers, device=options.device, console=console)


def _costs(variants: list[str]) -> Table:
    from vlmo.recipes import find_recipe
    from vlmo.recipes.ablation import base_name
    from vlmo.recipes.estimate import estimate

    table = Table(
        title=f"Stage 3 at Base size, the paper's data; hours of one H100 at {_UTILISATION:.0%} of its bf16 rate",
        caption="Stages 1 and 2, which some start from, and fine-tuning come on top: vlmo train NAME --dry-run",
    )
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
