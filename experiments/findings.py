"""Train small variants of VLMo that differ in one thing, with paired seeds, and judge the paper's claims.

    python experiments/findings.py                      # every job that has not finished, in order
    python experiments/findings.py --report             # tables of the jobs that have finished

A variant with a seed is a job with a folder of its own below --run-dir. The same command continues after an
interruption, and several processes share the jobs: start the command again, in another terminal.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from scipy import stats

import shape_world
from vlmo.folder import lock_folder
from vlmo.objectives.vision_language import VisionLanguageConfig
from vlmo.processing import TransformConfig
from vlmo.recipes import Recipe, find_recipe
from vlmo.recipes.schema import TextConfig, scaled
from vlmo.run import build
from vlmo.run.estimate import estimate
from vlmo.tasks import LanguageStage, RetrievalStage, TokenizerStage, VisionLanguageStage, VisionStage, evaluate
from vlmo.tasks.result import TaskResult, circumstances
from vlmo.training import ScheduleConfig

SEEDS, STEPS, FEW_STEPS = 5, 600, 300
"""Paired seeds, which are 1 to 5, and steps of stage 3 on fresh scenes and on `few`."""
STAGES, STAGE_STEPS = "stages", {"tokenizer": 200, "stage1": 1000, "stage2": 300}
LOSSES = VisionLanguageConfig(mlm_weight=1.0, itm_stride=4, negatives=3)
RECALL, MATCHING, PROBE = "recall", "matching", "probe"
RESULT, MARK = "result.json", "<!-- all below is written by experiments/findings.py -->"
ROOT = Path(__file__).resolve().parents[1]
SHORTLIST, RERANKED = 16, 1000
"""Candidates that the fusion encoder orders, in a gallery of so many scenes."""
_LEVEL, _DRAWS = 0.95, 10_000
_BATCH, _RIDGE = 250, 1e-3

Values = Float[np.ndarray, "seeds items"]


@dataclass(frozen=True)
class Variant:
    """Changes of stage 3, its pairs, and the stage that it starts from."""

    about: str
    model: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    source: str = "pairs"
    start: str | None = None


VARIANTS = {
    "plain": Variant("Multiway, three losses, global hard negatives"),
    "few": Variant("1,000 pairs alone", source="few"),
    "few-stages": Variant("1,000 pairs after stages 1 and 2", source="few", start="stage2"),
    "few-stage1": Variant("1,000 pairs after stage 1", source="few", start="stage1"),
    "itc": Variant("ITC alone", {"num_fusion_layers": 0}, {"mlm_weight": 0.0, "itm_weight": 0.0}),
    "local-negatives": Variant("hard negatives among 8 pairs", losses={"negative_groups": 8}),
    "no-fusion-expert": Variant("no vision-language experts", {"num_fusion_layers": 0}),
    "standard": Variant("one FFN for all, equal FLOPs", {"experts": "shared"}),
    "separate-attention": Variant("separate attention, equal FLOPs", {"attention": "separate"}),
    "itc-itm": Variant("ITC + ITM", losses={"mlm_weight": 0.0}),
    "random-negatives": Variant("uniform negatives", losses={"negative_sharpness": 0.0}),
    "standard-wide": Variant("one FFN for all, equal parameters", {"experts": "shared", "intermediate_size": 1280}),
    "separate-attention-narrow": Variant(
        "separate attention, equal parameters", {"attention": "separate", "intermediate_size": 408}
    ),
    "itc-mlm": Variant("ITC + MLM", losses={"itm_weight": 0.0}),
    "itm-mlm": Variant("ITM + MLM", losses={"itc_weight": 0.0}),
}
"""In the order of their jobs. Without a loss that trains them, ITC alone has no vision-language experts."""


@dataclass(frozen=True)
class Claim:
    """One variant is better than another one on a metric."""

    title: str
    better: str
    worse: str
    metric: str


CLAIMS = (
    Claim("stages 1 and 2 help", "few-stages", "few", MATCHING),
    Claim("three losses are better than ITC alone", "plain", "itc", PROBE),
    Claim("hard negatives of the whole batch are better than local ones", "plain", "local-negatives", MATCHING),
    Claim("Multiway is better than a standard Transformer", "plain", "standard", RECALL),
    Claim("vision-language experts help", "plain", "no-fusion-expert", MATCHING),
    Claim("shared attention is better than separate attention", "plain", "separate-attention", RECALL),
)
"""One primary comparison for each of the paper's claims."""
SECONDARY = (
    Claim("stage 1 alone helps", "few-stage1", "few", MATCHING),
    Claim("stage 2 helps after stage 1", "few-stages", "few-stage1", MATCHING),
    Claim("MLM helps", "plain", "itc-itm", PROBE),
    Claim("ITM helps", "plain", "itc-mlm", PROBE),
    Claim("ITC helps", "plain", "itm-mlm", PROBE),
    Claim("hard negatives are better than uniform ones", "plain", "random-negatives", MATCHING),
    Claim("Multiway, equal parameters", "plain", "standard-wide", RECALL),
    Claim("shared attention, equal parameters", "plain", "separate-attention-narrow", RECALL),
)


# ---------------------------------------------------------------------------------------------------------- recipes


def stage3(variant: str, *, world: Path) -> Recipe:
    """Return stage 3 of a variant, from random weights."""
    known, base = VARIANTS[variant], find_recipe("shapes-stage3")
    model = {
        "num_attention_heads": 4,
        "num_fusion_layers": 2,
        "image_size": shape_world.PIXELS,
        "patch_size": shape_world.PIXELS // 4,
        "max_text_positions": 16,
        "position_embedding": "absolute",
        "position_init": "sincos",
    }
    data = replace(
        base.data,
        source=str(world / known.source),
        transform=TransformConfig(image_size=shape_world.PIXELS, rand_augment_ops=0, horizontal_flip=0.0),
        cache_images=False,
        mlm_probability=0.5,
        mask_only=shape_world.PLACE_WORDS,
        mask_only_share=0.4,
    )
    steps = STEPS if known.source == "pairs" else FEW_STEPS
    return replace(
        base,
        stage=VisionLanguageStage(losses=replace(LOSSES, **known.losses)),
        model=replace(base.model, **(model | known.model)),
        text=TextConfig(vocab_size=200, learn_from=(str(world / "texts"),), max_length=16),
        data=data,
        loader=replace(base.loader, global_batch_size=64),
        optimizer=replace(base.optimizer, lr=1e-3),
        schedule=ScheduleConfig(warmup_steps=80),
        trainer=replace(base.trainer, max_steps=steps, save_every=100),
        init=None,
    )


def stages_before(*, world: Path, folder: Path) -> dict[str, Recipe]:
    """Return the visual tokenizer, stage 1 on images and stage 2 on texts."""
    plain = stage3("few", world=world)
    model = replace(plain.model, num_fusion_layers=0)
    tokenizer = find_recipe("shapes-tokenizer")
    sizes = replace(tokenizer.stage.tokenizer, patch_size=model.patch_size, num_tokens=256)
    found = {
        "tokenizer": (tokenizer, TokenizerStage(tokenizer=sizes), "images"),
        "stage1": (find_recipe("shapes-stage1"), VisionStage(str(folder / "tokenizer" / "model")), "images"),
        "stage2": (find_recipe("shapes-stage2"), LanguageStage(), "texts"),
    }
    return {
        name: replace(
            recipe,
            stage=stage,
            model=model,
            text=plain.text,
            data=replace(plain.data, source=str(world / source)),
            trainer=replace(recipe.trainer, max_steps=STAGE_STEPS[name], save_every=100),
            init=str(folder / "stage1" / "model") if name == "stage2" else None,
        )
        for name, (recipe, stage, source) in found.items()
    }


# ------------------------------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """A variant, or the stages before it, with one seed."""

    name: str
    seed: int
    run: Path
    scale: float = 1.0

    @property
    def folder(self) -> Path:
        """The folder of its runs and its result."""
        return self.run / f"seed-{self.seed}" / self.name

    @property
    def needs(self) -> Job | None:
        """The job that this one starts from."""
        return replace(self, name=STAGES) if self.name != STAGES and VARIANTS[self.name].start else None

    def recipes(self) -> dict[str, Recipe]:
        """Return the recipes of its runs by the names of their folders, in their order."""
        world = self.run / "world"
        if self.name == STAGES:
            recipes = stages_before(world=world, folder=self.folder)
        else:
            recipe = stage3(self.name, world=world)
            if self.needs is not None:
                init = self.needs.folder / str(VARIANTS[self.name].start) / "model"
                recipe = replace(recipe, init=str(init))
            recipes = {"stage3": recipe}
        return {name: scaled(replace(each, seed=self.seed), scale=self.scale) for name, each in recipes.items()}

    def settings(self) -> str:
        """Return a hash of all settings; the folder of all runs does not count."""
        text = json.dumps({name: json.loads(recipe.to_json()) for name, recipe in self.recipes().items()})
        return hashlib.sha256(text.replace(str(self.run), "").encode()).hexdigest()

    def result(self) -> dict[str, Any] | None:
        """Return the result; None if it has not finished.

        Raises:
            ValueError: It was made with other settings.
        """
        file = self.folder / RESULT
        if not file.is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["settings"] != self.settings():
            raise ValueError(f"{file} was made with other settings; give another --run-dir, or remove {file.parent}")
        return found


def jobs_of(names: Sequence[str], *, seeds: int, run: Path, scale: float = 1.0) -> list[Job]:
    """Return all jobs, those of the claims first, seed by seed, each after the job that it needs.

    Raises:
        ValueError: There is no such variant.
    """
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise ValueError(f"no variant {', '.join(unknown)}; variants are {', '.join(VARIANTS)}")
    wanted = [name for name in VARIANTS if name in names or not names]
    claimed = {name for claim in CLAIMS for name in (claim.better, claim.worse)}
    jobs = [Job(name, seed, run, scale) for seed in range(1, seeds + 1) for name in wanted]
    jobs.sort(key=lambda job: job.name not in claimed)
    return list(dict.fromkeys(each for job in jobs for each in (job.needs, job) if each is not None))


def run_job(job: Job) -> bool:
    """Train and evaluate, and write the result; False if a signal stopped it."""
    start, recipes, name = time.process_time(), job.recipes(), ""
    for name, recipe in recipes.items():
        title = f"{job.name}, seed {job.seed}, {name}"
        if build(recipe, run_dir=job.folder / name, console=Console(), title=title).fit().status == "stopped":
            return False
    last, folder = recipes[name], job.folder / name / "model"
    metrics, items = ({}, {}) if job.name == STAGES else measure(folder, last, world=job.run / "world", split="test")
    around, needs = circumstances(folder), estimate(last)
    facts = {
        "variant": job.name,
        "seed": job.seed,
        "settings": job.settings(),
        "parameters": needs.parameters,
        "gflops_per_sample": round(needs.flops_per_sample / 1e9, 4),
        "cpu_seconds": round(time.process_time() - start),
        "metrics": metrics,
        "items": items,
        "circumstances": {name: around[name] for name in ("date", "commit", "versions", "hardware")},
    }
    new = job.folder / f"{RESULT}.new"
    new.write_text(json.dumps(facts) + "\n")
    new.replace(job.folder / RESULT)
    return True


def measure(
    folder: Path, recipe: Recipe, *, world: Path, split: str
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the metrics of a model, and those that are compared item by item.

    `recall`: of each scene, the share of (its caption, its image) that the dual encoder finds first. `matching`: the
    same if ITM alone orders what the dual encoder finds, for models that it trained. `probe`: of each
    change, the share of its two scenes whose true caption a linear probe on the frozen fusion encoder prefers.
    """
    pairs, binding = str(world / "pairs"), str(world / "binding")
    found = evaluate(folder, source=pairs, split=split, rerank=0)
    told = evaluate(folder, source=binding, split=split)
    probed = probe(*(fused_states(folder, source=binding, split=each) for each in ("train", split)))
    metrics = found.metrics | {name: value for name, value in told.metrics.items() if not name.startswith("words")}
    items = {RECALL: _firsts(found, "rank"), PROBE: probed.reshape(-1, 2).mean(axis=1)}
    if recipe.stage.losses.itm_weight > 0:
        few = evaluate(folder, source=pairs, split=split, limit=RERANKED, rerank=SHORTLIST, rerank_weight=1.0)
        items[MATCHING] = _firsts(few, "rerank_rank")
    metrics |= {name: float(values.mean()) for name, values in items.items()}
    return metrics, {name: values.tolist() for name, values in items.items()}


def _firsts(found: TaskResult, column: str) -> Float[np.ndarray, " scenes"]:
    """Return the share of each scene's two queries whose answer comes first."""
    hits = np.array([row[column] == 1 for row in found.predictions])
    return hits.reshape(2, -1).mean(axis=0)


@torch.inference_mode()
def fused_states(folder: Path, *, source: str, split: str) -> Float[torch.Tensor, "captions images features"]:
    """Return what the fusion encoder says of each image with its true caption, then with its false one.

    That is the state of [T_CLS], and the mean of all states.
    """
    model, processor = RetrievalStage.load(folder)
    rows = RetrievalStage.read(source, split=split, processor=processor, quarantine=folder.parent / "invalid.jsonl")
    pairs, count, states = rows.as_set(), len(rows.rows), []
    for start in [*range(0, count, _BATCH), *range(count, 2 * count, _BATCH)]:
        numbers = range(start, min(start + _BATCH, (start // count + 1) * count))
        images = range(numbers.start % count, numbers.start % count + len(numbers))
        input_ids, attention_mask = pairs.texts(numbers)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        hidden = model.vlmo(pixel_values=pairs.images(images), **batch).last_hidden_state
        states.append(torch.cat([hidden[:, 0], hidden.mean(dim=1)], dim=1))
    return torch.cat(states).unflatten(0, (2, count))


def probe(
    train: Float[torch.Tensor, "captions images features"], test: Float[torch.Tensor, "captions images features"]
) -> Float[np.ndarray, " images"]:
    """Return 1 for each test image whose true caption a ridge regression on `train` prefers, 0.5 if none."""
    mean, std = train.flatten(0, 1).mean(dim=0), train.flatten(0, 1).std(dim=0) + 1e-6
    inputs = ((train - mean) / std).flatten(0, 1).double()
    wanted = inputs.new_tensor([1.0, -1.0]).repeat_interleave(train.shape[1])
    gram = inputs.T @ inputs + _RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, inputs.T @ wanted)
    margin = ((test[0] - test[1]) / std).double() @ weights
    return (0.5 + 0.5 * margin.sign()).numpy()


def run_jobs(jobs: Sequence[Job]) -> list[str] | None:
    """Run what no other process runs or has run; return what failed, or None if a signal stopped it."""
    needed = {job.needs for job in jobs if job.result() is None}
    jobs = [job for job in jobs if job.name != STAGES or job in needed]
    waiting, failures = list(jobs), dict[Job, str]()
    while waiting:
        job = waiting.pop(0)
        if job in failures or job.result() is not None or (job.needs is not None and job.needs.result() is None):
            continue
        try:
            lock = lock_folder(job.folder, work="running this job")
        except ValueError:
            continue  # another process runs it
        with lock:
            try:
                if job.result() is None and not run_job(job):
                    return None
            except (ArithmeticError, RuntimeError, ValueError) as error:  # the others may do better
                failures[job] = f"{job.name}, seed {job.seed}: {error}"
                print(failures[job], file=sys.stderr)
        waiting = list(jobs)  # what waited for this job may run now
    return list(failures.values())


def write_world(run: Path, *, scale: float) -> None:
    """Write the data of all jobs once."""
    with lock_folder(run, work="writing the data of the jobs"):
        if not (run / "world").is_dir():
            shape_world.write(run / "world.new", scale=scale)
            (run / "world.new").rename(run / "world")


# ------------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Effect:
    """Mean difference of two variants with its intervals, in percentage points.

    Attributes:
        seeds: Difference of each seed.
        t: 95 % t-interval over the paired seeds.
        bootstrap: 95 % interval of resampled items, the trained models being given.
    """

    seeds: tuple[float, ...]
    t: tuple[float, float]
    bootstrap: tuple[float, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seeds))

    @property
    def verdict(self) -> str:
        """`holds` or `reversed` where both intervals lie on one side of zero, else `unclear`."""
        low, high = min(self.t[0], self.bootstrap[0]), max(self.t[1], self.bootstrap[1])
        return "holds" if low > 0 else "reversed" if high < 0 else "unclear"


def effect(better: Values, worse: Values) -> Effect:
    """Return the effect of paired values between 0 and 1.

    Raises:
        ValueError: There are fewer than two seeds.
    """
    if len(better) < 2:
        raise ValueError(f"{len(better)} seeds; an interval needs two or more")
    differences = 100 * (better - worse)
    seeds = differences.mean(axis=1)
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5)
    items = differences.mean(axis=0)
    draws = np.random.default_rng(0).integers(len(items), size=(_DRAWS, len(items)))
    low, high = np.quantile(items[draws].mean(axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    mean = float(seeds.mean())
    return Effect(tuple(seeds.tolist()), (mean - half, mean + half), (float(low), float(high)))


def effect_of(claim: Claim, results: Mapping[tuple[str, int], Mapping[str, Any]]) -> Effect | None:
    """Return the effect of a claim over the seeds that both variants have; None with fewer than two."""
    seeds = sorted(seed for name, seed in results if name == claim.better and (claim.worse, seed) in results)
    if len(seeds) < 2:
        return None
    first, second = (
        np.array([results[name, seed]["items"][claim.metric] for seed in seeds]) for name in (claim.better, claim.worse)
    )
    return effect(first, second)


# ----------------------------------------------------------------------------------------------------------- report


def report(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """Return tables of the claims and of the variants."""
    parts = [f"{len(results)} jobs, {len({seed for _, seed in results})} seeds. {_circumstances(results)}"]
    for title, claims in (("Claims", CLAIMS), ("Further comparisons", SECONDARY)):
        rows = [["", "metric", "difference", "t-interval", "bootstrap", "seeds", "verdict"]]
        for claim in claims:
            if (found := effect_of(claim, results)) is not None:
                seeds = ", ".join(f"{each:+.1f}" for each in found.seeds)
                told = f"{claim.title} (`{claim.better}`, `{claim.worse}`)"
                spans = [f"{low:+.1f} to {high:+.1f}" for low, high in (found.t, found.bootstrap)]
                rows.append([told, claim.metric, f"**{found.mean:+.1f}**", *spans, seeds, found.verdict])
        parts += [f"## {title}", _table(rows)] if len(rows) > 1 else []
    return "\n\n".join([*parts, "## Variants", _variants(results)]) + "\n"


def _variants(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    names = (RECALL, MATCHING, PROBE)
    names += tuple(f"{encoder}[{kind}]" for encoder in ("fusion", "dual") for kind in shape_world.KINDS)
    rows = [["", "parameters", "GFLOPs a pair", *names]]
    for variant, known in VARIANTS.items():
        found = [each for (name, _), each in results.items() if name == variant]
        if found:
            cells = [
                f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=len(values) > 1):.1f}" if values else "-"
                for metric in names
                if (values := [each["metrics"][metric] for each in found if metric in each["metrics"]]) is not None
            ]
            size, work = f"{found[0]['parameters'] / 1e6:.2f}M", f"{found[0]['gflops_per_sample']:.2f}"
            rows.append([f"`{variant}`: {known.about}", size, work, *cells])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _circumstances(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    around = [each["circumstances"] for each in results.values()]
    cpus = dict.fromkeys(f"one core of {each['hardware'].get('cpu', 'a CPU')}" for each in around)
    versions = dict.fromkeys(f"torch {each['versions']['torch']}" for each in around)
    hours = sum(each["cpu_seconds"] for each in results.values()) / 3600
    return f"{hours:.1f} hours of {', '.join([*cpus, *versions])}."


def publish(results: Mapping[tuple[str, int], Mapping[str, Any]], *, page: Path, out: Path) -> None:
    """Write the report below the mark of the page, and all results as JSON.

    Raises:
        ValueError: The page does not have the mark once.
    """
    before, *rest = page.read_text(encoding="utf-8").split(MARK)
    if len(rest) != 1:
        raise ValueError(f"{page} has the line {MARK!r} {len(rest)} times; it needs it once")
    page.write_text(f"{before}{MARK}\n\n{report(results)}", encoding="utf-8")
    kept = [dict(each) | {"items": _told(each["items"])} for each in results.values()]
    out.write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")


def restore(file: Path, *, run: Path) -> None:
    """Write the results of `publish` into the folders of jobs that have none, so that they are not run again."""
    for known in json.loads(file.read_text(encoding="utf-8")):
        job = Job(known["variant"], known["seed"], run)
        if not (job.folder / RESULT).is_file():
            job.folder.mkdir(parents=True, exist_ok=True)
            items = {name: [int(digit) / 2 for digit in digits] for name, digits in known["items"].items()}
            (job.folder / RESULT).write_text(json.dumps(known | {"items": items}) + "\n")


def _told(items: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return items of 0, 0.5 and 1 as digits 0 to 2."""
    return {name: "".join(str(round(2 * value)) for value in values) for name, values in items.items()}


# ----------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Options:
    """Train small variants of VLMo that differ in one thing, with paired seeds, and judge the paper's claims."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Variants; all by default."""
    run_dir: Path = Path("runs/findings")
    """Folder of the data and of all jobs."""
    seeds: int = SEEDS
    """Runs of each variant."""
    scale: float = 1.0
    """Share of the steps and of the data, for trials."""
    report: bool = False
    """Only show the report of the jobs that have finished."""
    publish: Path | None = None
    """With --report: write all results into this JSON file, and the report into docs/findings.md."""
    results: Path | None = None
    """File of --publish; its jobs count as finished."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run jobs, or show what the options ask for."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    run = options.run_dir.absolute()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    failures: list[str] | None = []
    if options.results is not None:
        restore(options.results, run=run)
    jobs = jobs_of(options.names, seeds=options.seeds, run=run, scale=options.scale)
    if not options.report:
        write_world(run, scale=options.scale)
        failures = run_jobs(jobs)
        if failures is None:
            sys.exit("stopped; the same command continues")
    results = dict(finished(jobs))
    print(report(results))
    if options.publish is not None:
        publish(results, page=ROOT / "docs" / "findings.md", out=options.publish)
    if failures:
        sys.exit("\n".join(["failed; the same command tries again:", *failures]))


def finished(jobs: Sequence[Job]) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """Yield the results of the variants that have finished by variant and seed."""
    for job in jobs:
        if job.name != STAGES and (found := job.result()) is not None:
            yield (job.name, job.seed), found


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
