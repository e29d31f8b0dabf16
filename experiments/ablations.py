"""Train small variants of VLMo that differ in one thing, with several seeds (the paper's "Ablation Studies").

    python experiments/ablations.py                      # every variant, three seeds: 2 h 11 min on two cores
    python experiments/ablations.py losses attention     # the variants of two questions
    python experiments/ablations.py plain itc --seeds 5  # two variants
    python experiments/ablations.py --report             # the tables of the jobs that have finished
    python experiments/ablations.py --costs              # what stage 3 of each variant takes at Base size

A variant with a seed is a job with a folder of its own below --run-dir. An interrupted command continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file

from vlmo.folder import lock_folder
from vlmo.objectives.vision_language import VisionLanguageConfig
from vlmo.recipes import RECIPES, Recipe, find_recipe
from vlmo.recipes.schema import scaled
from vlmo.run import build
from vlmo.run.estimate import estimate
from vlmo.tasks import VisionLanguageStage, evaluate
from vlmo.tasks.result import circumstances
from vlmo.training import choose_device

PLAIN, STAGES = "plain", "stages"
"""The variant that each other differs from, and the name of the jobs that train stages 1 and 2."""
BASE = "base-ablation-"
VARIANTS = [name.removeprefix(BASE) for name in RECIPES if name.startswith(BASE)]
STEPS = {"stage3": 500, "easy-vqa": 400, "easy-vqa-hidden": 400, "easy-vqa-pairs-colors": 250}
"""Steps of each run, the same for every variant."""
PAIRS, SHARPNESS, RERANK = "drawings-and-shapes", 0.3, 16
RESULT, LOG = "result.json", "log.txt"
_POLL_S = 0.2
_PARENT = "VLMO_ABLATIONS_PARENT"
_H100_FLOPS, _UTILISATION = 989e12, 0.4  # dense bf16, as its data sheet states


@dataclass(frozen=True)
class Question:
    """A question of the report.

    Attributes:
        title: The question.
        rows: Labels of its answers by variant.
        claims: Pairs of variants (better, worse) that the paper reports, or that its design suggests.
        paper: NLVR2 accuracy in percent by variant, (dev, test-P), where the paper reports it.
    """

    title: str
    rows: dict[str, str]
    claims: tuple[tuple[str, str], ...]
    paper: dict[str, tuple[float, float | None]]


QUESTIONS = {
    "initialisation": Question(
        "Does stagewise pre-training help?",
        {PLAIN: "random weights", "stage1": "from stage 1 (images)", "stage2": "from stages 1 and 2 (images, text)"},
        claims=(("stage1", PLAIN), ("stage2", PLAIN), ("stage2", "stage1")),
        paper={"stage1": (80.33, 81.06), "stage2": (82.09, 82.49)},
    ),
    "experts": Question(
        "Are experts by modality better than one FFN?",
        {
            PLAIN: "Multiway",
            "standard": "standard Transformer, one FFN for all",
            "no-fusion-expert": "without vision-language experts",
        },
        claims=((PLAIN, "standard"), (PLAIN, "no-fusion-expert")),
        paper={PLAIN: (80.13, 80.31), "standard": (78.81, 79.27)},
    ),
    "losses": Question(
        "Does each loss help?",
        {"itc": "ITC", "itc-mlm": "ITC + MLM", "itc-itm": "ITC + ITM", PLAIN: "ITC + MLM + ITM"},
        claims=((PLAIN, "itc"), (PLAIN, "itc-mlm"), (PLAIN, "itc-itm")),
        paper={"itc": (73.91, 73.75), PLAIN: (80.13, 80.31)},
    ),
    "negatives": Question(
        "Do hard negatives help, and from how many pairs?",
        {
            "random-negatives": "uniform from the batch",
            "local-negatives": "hard, from an eighth of the batch",
            PLAIN: "hard, from the whole batch",
        },
        claims=((PLAIN, "random-negatives"), (PLAIN, "local-negatives")),
        paper={"local-negatives": (77.70, None), PLAIN: (79.54, None)},
    ),
    "attention": Question(
        "Is shared attention better than separate attention?",
        {PLAIN: "shared", "separate-attention": "separate"},
        claims=((PLAIN, "separate-attention"),),
        paper={},
    ),
}


# ------------------------------------------------------------------------------------------------------- recipes


def start_of(variant: str) -> str | None:
    """Return the stage that stage 3 of a variant starts from; None is random weights."""
    init = find_recipe(f"{BASE}{variant}").init
    return None if init is None else Path(init).parts[-2].removeprefix("base-")


def with_variant(recipe: Recipe, variant: str) -> Recipe:
    """Return a recipe of stage 3 with the change that the Base-size recipe of the variant makes to the plain one."""
    plain, changed = (find_recipe(f"{BASE}{name}") for name in (PLAIN, variant))
    losses = replace(recipe.stage.losses, **_changes(plain.stage.losses, changed.stage.losses))
    model = replace(recipe.model, **_changes(plain.model, changed.model))
    return replace(recipe, stage=replace(recipe.stage, losses=losses), model=model)


def _changes(old: Any, new: Any) -> dict[str, Any]:
    return {f.name: getattr(new, f.name) for f in fields(old) if getattr(new, f.name) != getattr(old, f.name)}


def small_stage3(variant: str) -> Recipe:
    """Return stage 3 of a variant on drawings and shapes with their names."""
    # In so short a run matching learns nothing from the paper's negatives, nor from drawings alone (docs/log.md).
    losses = VisionLanguageConfig(mlm_stride=4, itm_stride=4, negative_sharpness=SHARPNESS)
    recipe = find_recipe("emoji-stage3")
    return with_variant(
        replace(recipe, stage=VisionLanguageStage(losses=losses), data=replace(recipe.data, source=PAIRS)), variant
    )


def small_finetuning(variant: str) -> dict[str, Recipe]:
    """Return short fine-tunings: questions about an image, then sentences about two; plain also without its images."""
    pairs = find_recipe("easy-vqa-pairs")
    recipes = {
        "easy-vqa": find_recipe("easy-vqa"),
        "easy-vqa-pairs-colors": replace(pairs, data=replace(pairs.data, source="easy-vqa-pairs-colors")),
    }
    if variant == PLAIN:
        recipes["easy-vqa-hidden"] = find_recipe("easy-vqa-question-only")
    stage3 = small_stage3(variant)
    model, losses = stage3.model, stage3.stage.losses
    if losses.mlm_weight == losses.itm_weight == 0:  # it has no vision-language experts, which fine-tuning adds
        model = replace(model, num_fusion_layers=small_stage3(PLAIN).model.num_fusion_layers)
    return {
        name: replace(
            recipe,
            model=replace(model, image_size=recipe.model.image_size),
            schedule=replace(recipe.schedule, warmup_steps=STEPS[name] // 10),
            evaluate_on=None,
        )
        for name, recipe in recipes.items()
    }


# ---------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """A variant, or the stages before it, with one seed."""

    name: str
    seed: int

    def folder(self, run: Path) -> Path:
        """Return the folder of its runs and its result."""
        return run / self.name / f"seed-{self.seed}"

    @property
    def needs(self) -> Job | None:
        """The job that this one starts from."""
        return None if self.name == STAGES or start_of(self.name) is None else Job(STAGES, self.seed)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def variants_of(names: Sequence[str]) -> list[str]:
    """Return the variants asked for by their own names or by those of questions; all of them without any name.

    Raises:
        ValueError: A name is neither.
    """
    for name in names:
        if name not in QUESTIONS and name not in VARIANTS:
            known = f"questions: {', '.join(QUESTIONS)}; variants: {', '.join(VARIANTS)}"
            raise ValueError(f"no question or variant {name!r}; {known}")
    wanted = {variant for name in names for variant in (QUESTIONS[name].rows if name in QUESTIONS else [name])}
    return [name for name in VARIANTS if name in wanted or not names]


def jobs_of(variants: Sequence[str], *, seeds: int) -> list[Job]:
    """Return all jobs, those that others start from first."""
    jobs = [Job(name, seed) for seed in range(seeds) for name in variants]
    return [*dict.fromkeys(job.needs for job in jobs if job.needs is not None), *jobs]


def recipes_of(job: Job, *, run: Path, scale: float = 1.0) -> dict[str, Recipe]:
    """Return the recipes of a job by the names of their folders, in their order."""
    folder = job.folder(run)
    if job.name == STAGES:
        recipes = {name: find_recipe(f"emoji-{name}") for name in ("tokenizer", "stage1", "stage2")}
        tokens = replace(recipes["stage1"].stage, visual_tokenizer=str(folder / "tokenizer" / "model"))
        recipes["stage1"] = replace(recipes["stage1"], stage=tokens)
        starts = {"stage2": folder / "stage1"}
    else:
        recipes = {"stage3": small_stage3(job.name), **small_finetuning(job.name)}
        starts = dict.fromkeys(("easy-vqa", "easy-vqa-hidden"), folder / "stage3")
        starts["easy-vqa-pairs-colors"] = folder / "easy-vqa"
        if job.needs is not None:
            starts["stage3"] = job.needs.folder(run) / str(start_of(job.name))
    made = {}
    for name, recipe in recipes.items():
        init = str(starts[name] / "model") if name in starts else None
        trainer = replace(recipe.trainer, max_steps=STEPS[name], save_every=100) if name in STEPS else recipe.trainer
        made[name] = scaled(replace(recipe, init=init, trainer=trainer, seed=job.seed), scale=scale)
    return made


def read_result(job: Job, *, run: Path, scale: float = 1.0) -> dict[str, Any] | None:
    """Return the result of a finished job; None if it has not finished.

    Raises:
        ValueError: It was made with other settings.
    """
    file = job.folder(run) / RESULT
    if not file.is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    if result["settings"] != _settings(recipes_of(job, run=run, scale=scale), run=run):
        raise ValueError(
            f"{file} was made with other settings than the present ones (its --scale is {result.get('scale')}); give "
            f"another --run-dir, or remove {file.parent}"
        )
    return result


def _settings(recipes: dict[str, Recipe], *, run: Path) -> str:
    """Return a hash of all settings. The folder of all runs does not count, so that it may be moved."""
    text = json.dumps({name: json.loads(recipe.to_json()) for name, recipe in recipes.items()}, sort_keys=True)
    return hashlib.sha256(text.replace(json.dumps(f"{run}/")[:-1], '"').encode()).hexdigest()


def run_job(job: Job, *, run: Path, scale: float = 1.0, device: str | None = None) -> bool:
    """Train and evaluate in this process, and write the result; False if a signal stopped it.

    Raises:
        ValueError: The folder holds something made with other settings, or another process runs the job.
    """
    if read_result(job, run=run, scale=scale) is not None:
        return True
    folder, recipes = job.folder(run), recipes_of(job, run=run, scale=scale)
    metrics: dict[str, float] = {}
    chance: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with lock_folder(folder, work="running this job"):
        for name, recipe in recipes.items():
            result = build(
                recipe, run_dir=folder / name, console=Console(), title=f"{job}, {name}", device=device
            ).fit()
            if result.status == "stopped":
                return False
            seconds[name] = round(result.seconds, 1)
            for metric, value, by_chance in measure(name, recipe, folder=folder / name / "model", device=device):
                metrics[metric], chance[metric] = value, by_chance
        first, around = folder / next(iter(recipes)), circumstances(folder / name / "model")
        facts = {
            "variant": job.name,
            "seed": job.seed,
            "scale": scale,
            "settings": _settings(recipes, run=run),
            "parameters": sum(tensor.numel() for tensor in load_file(first / "model" / "model.safetensors").values()),
            "metrics": metrics,
            "chance": chance,
            "seconds": seconds,
            "device": str(choose_device(device)),
            "circumstances": {name: around[name] for name in ("date", "commit", "versions", "hardware")},
        }
        new = folder / f"{RESULT}.new"
        new.write_text(json.dumps(facts, indent=1) + "\n")
        new.replace(folder / RESULT)
    return True


def measure(name: str, recipe: Recipe, *, folder: Path, device: str | None) -> Iterator[tuple[str, float, float]]:
    """Yield name, value and chance of each metric of a run."""
    if name == "stage3":
        matches = recipe.stage.losses.itm_weight > 0
        # With a weight of 1 the matching head alone orders the shortlist.
        options = {"rerank": RERANK, "rerank_weight": 1.0} if matches else {"rerank": 0}
        found = evaluate(folder, source="emoji-pairs", device=device, **options)
        for metric in ("ir@1", "ir@10", "tr@1", "tr@10"):
            yield metric, found.metrics[metric], found.chance[metric]
        asked = [row for row in found.predictions if row["query"] == "caption"]
        hits = sum(row["rank"] <= RERANK for row in asked)
        if matches and hits:  # of the shortlists with the right image: in the others, matching has nothing to find
            yield "matching", found.metrics["rerank_ir@1"] * len(asked) / hits, 1 / RERANK
    elif name in STEPS:
        found = evaluate(folder, source=name, device=device)
        yield name, found.metrics["accuracy"], found.chance["accuracy"]
        if "consistency" in found.metrics:
            yield f"{name} consistency", found.metrics["consistency"], found.chance["consistency"]


# ----------------------------------------------------------------------------------------------------- processes


def run_jobs(
    jobs: Sequence[Job],
    *,
    run: Path,
    command: Callable[[Job], list[str]],
    finished: Callable[[Job], bool],
    workers: int,
    console: Console,
) -> list[str]:
    """Run each unfinished job as a process, `workers` at a time, after the job that it needs; return what failed.

    Jobs that need a failed one are left out. When this function is interrupted, it asks all processes to save and stop.
    """
    waiting, running, failures = [job for job in jobs if not finished(job)], {}, []
    unfinished = set(waiting)
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = os.environ | {"OMP_NUM_THREADS": threads, _PARENT: str(os.getpid())}
    try:
        with Progress(console=console) as bar:
            task = bar.add_task("ablations", total=len(jobs), completed=len(jobs) - len(waiting))
            while waiting or running:
                ready = [job for job in waiting if job.needs not in unfinished]
                for job in ready[: workers - len(running)]:
                    waiting.remove(job)
                    job.folder(run).mkdir(parents=True, exist_ok=True)
                    with (job.folder(run) / LOG).open("ab") as log:
                        # In a session of its own, so that Ctrl-C reaches it once, from here.
                        running[job] = subprocess.Popen(
                            command(job), stdout=log, stderr=log, env=environment, start_new_session=True
                        )
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    code = running.pop(job).returncode
                    bar.advance(task)
                    if code == 0 and finished(job):
                        unfinished.remove(job)
                        continue
                    log_file = job.folder(run) / LOG
                    last = (log_file.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
                    failures.append(f"{job}: exit code {code}; {log_file} ends with: {last}")
                    console.print(f"failed: {failures[-1]}", highlight=False, markup=False)
                    waiting = [other for other in waiting if other.needs != job]
                time.sleep(_POLL_S)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failures


def stop_with_parent() -> None:
    """In a job: save and stop when the process that started it is gone."""
    parent = os.environ.get(_PARENT)

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


# -------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Options:
    """Train variants of the small recipes that differ in one thing, with several seeds, and report."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Questions (initialisation, experts, losses, negatives, attention) or single variants; all by default."""
    run_dir: Path = Path("runs/ablation")
    """Folder of all jobs and of the report."""
    seeds: int = 3
    """Runs of each variant."""
    workers: int | None = None
    """Jobs at a time; by default one a core, or one on a GPU."""
    scale: float = 1.0
    """Share of the steps of each run, for trials."""
    device: str | None = None
    """cpu, cuda or cuda:N; by default a GPU if there is one."""
    costs: bool = False
    """Only print what stage 3 of the same variants takes at Base size with the paper's data."""
    report: bool = False
    """Only write the report of the jobs that have finished."""
    job: tuple[str, int] | None = None
    """Run this variant (or "stages") with this seed in this process."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run jobs and write the report, or one of the parts that the options ask for."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    console, run = Console(), options.run_dir.absolute()
    variants = variants_of(options.names)
    if options.costs:
        console.print(costs_table(variants))
        return
    if options.job is not None:
        stop_with_parent()
        sys.exit(not run_job(Job(*options.job), run=run, scale=options.scale, device=options.device))
    failures = []
    if not options.report:
        jobs = jobs_of(variants, seeds=options.seeds)
        one = choose_device(options.device).type != "cpu"

        def command(job: Job) -> list[str]:
            line = [sys.executable, __file__, "--job", job.name, str(job.seed), "--run-dir", str(run)]
            line += ["--scale", str(options.scale)]
            return line if options.device is None else [*line, "--device", options.device]

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            failures = run_jobs(
                jobs,
                run=run,
                command=command,
                finished=lambda job: read_result(job, run=run, scale=options.scale) is not None,
                workers=options.workers or (1 if one else min(os.cpu_count() or 1, len(jobs))),
                console=console,
            )
        except KeyboardInterrupt:
            console.print("stopped; the same command continues")
            return
    import findings  # which imports this file

    text = findings.write_report(run, scale=options.scale)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if failures:
        sys.exit(f"{len(failures)} jobs failed, named above; the same command continues with what is left")


def costs_table(variants: Sequence[str]) -> Table:
    """Return parameters, operations and hours of stage 3 of each variant at Base size."""
    table = Table(
        title=f"Stage 3 at Base size, the paper's data; hours of one H100 at {_UTILISATION:.0%} of its bf16 rate",
        caption="Stages 1 and 2 and fine-tuning come on top: vlmo train NAME --dry-run",
    )
    for column in ("recipe", "parameters", "samples", "EFLOPs", "H100 hours"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for variant in variants:
        recipe = find_recipe(f"{BASE}{variant}")
        needs = estimate(recipe)
        samples = recipe.trainer.max_steps * recipe.loader.global_batch_size
        flops = needs.flops_per_sample * samples
        numbers = needs.parameters / 1e6, samples / 1e6, flops / 1e18, flops / (_H100_FLOPS * _UTILISATION) / 3600
        cells = (f"{value:,.0f}{unit}" for value, unit in zip(numbers, ("M", "M", "", ""), strict=True))
        table.add_row(f"{BASE}{variant}", *cells)
    return table


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
