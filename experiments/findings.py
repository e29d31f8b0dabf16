"""Train small variants of VLMo that differ in one thing, with paired seeds, and test the paper's claims.

    python experiments/findings.py                      # every job that has not finished, in order
    python experiments/findings.py --report             # tables of the jobs that have finished

A variant with a seed is a job with a folder of its own below --run-dir. The same command continues after an
interruption, and several processes share the jobs: start the command again, in another terminal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console

import findings_design as design
import shape_world
from findings_design import CLAIMS, CONFIRMATIONS, MATCHING, PROBE, RECALL, SECONDARY, STAGES, VARIANTS
from findings_report import publish, report
from vlmo import VLMoForMaskedLM
from vlmo.folder.atomic import lock_folder
from vlmo.recipes import Recipe
from vlmo.recipes.schema import scaled
from vlmo.run import build
from vlmo.run.estimate import estimate
from vlmo.tasks import RetrievalTask, evaluate
from vlmo.tasks.pair_sets import PairSet
from vlmo.tasks.result import TaskResult, circumstances

RESULT, ROOT = "result.json", Path(__file__).resolve().parents[1]
SHORTLIST, RERANKED = 16, 1000
"""Candidates that the fusion encoder orders, in a gallery of so many scenes."""
_BATCH, _RIDGE = 250, 1e-3


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
            recipes = design.stages_before(world=world, folder=self.folder)
        else:
            recipe = design.stage3(self.name, world=world)
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


def jobs_of(names: Sequence[str], *, seeds: int | None, run: Path, scale: float = 1.0) -> list[Job]:
    """Return the jobs of all comparisons, at most `seeds` of each, each after the job that it needs.

    Raises:
        ValueError: There is no such variant.
    """
    if unknown := sorted(set(names) - set(VARIANTS)):
        raise ValueError(f"no variant {', '.join(unknown)}; variants are {', '.join(VARIANTS)}")
    jobs = [
        Job(name, seed, run, scale)
        for claim in (*CLAIMS, *CONFIRMATIONS, *SECONDARY)
        for seed in claim.seeds[:seeds]
        for name in (claim.better, claim.worse)
        if name in names or not names
    ]
    return list(dict.fromkeys(each for job in jobs for each in (job.needs, job) if each is not None))


def run_job(job: Job) -> bool:
    """Train and evaluate, and write the result; False if a signal stopped it."""
    start, recipes, name = time.process_time(), job.recipes(), ""
    if job.needs is not None and VARIANTS[job.name].start == design.SEPARATE:
        separate_attention(job.needs.folder / "stage2" / "model", out=job.needs.folder / design.SEPARATE / "model")
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


def separate_attention(folder: Path, *, out: Path) -> None:
    """Write a model after stage 2 with two copies of its attention, one for images and one for texts."""
    shared = VLMoForMaskedLM.from_pretrained(folder)
    settings = shared.config.to_dict() | {"attention": "separate"}
    separate = VLMoForMaskedLM(type(shared.config)(**settings))
    known = shared.state_dict()
    # Names differ in the modality alone; FFNs and norms of the experts have the same in both.
    found = {
        name: known.get(name, known.get(re.sub(r"\b(vision|language)\b", "shared", name)))
        for name in separate.state_dict()
    }
    separate.load_state_dict(found)
    shutil.copytree(folder, out, dirs_exist_ok=True)
    separate.save_pretrained(out)


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
    binding_metrics = evaluate(folder, source=binding, split=split)
    probed = probe(*(fused_states(folder, source=binding, split=each) for each in ("train", split)))
    metrics = found.metrics | {
        name: value for name, value in binding_metrics.metrics.items() if not name.startswith("words")
    }
    items = {RECALL: _firsts(found, "rank"), PROBE: probed.reshape(-1, 2).mean(axis=1)}
    if recipe.task.losses.itm_weight > 0:
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
    model, processor = RetrievalTask.load(folder)
    rows = PairSet.read(source=source, split=split, processor=processor, notes=folder.parent)
    pairs, count, states = rows.as_set(), len(rows.rows), []
    for start in [*range(0, count, _BATCH), *range(count, 2 * count, _BATCH)]:
        numbers = range(start, min(start + _BATCH, (start // count + 1) * count))
        images = range(numbers.start % count, numbers.start % count + len(numbers))
        input_ids, attention_mask = pairs.read_texts(numbers)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        hidden = model.vlmo(pixel_values=torch.stack(pairs.read_images(images)), **batch).last_hidden_state
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


def restore(file: Path, *, run: Path, scale: float = 1.0) -> None:
    """Write the results of `publish` into the folders of jobs that have none, so that they are not run again."""
    for known in json.loads(file.read_text(encoding="utf-8")):
        job = Job(known["variant"], known["seed"], run, scale)
        if not (job.folder / RESULT).is_file():
            job.folder.mkdir(parents=True, exist_ok=True)
            items = {name: [int(digit) / 2 for digit in digits] for name, digits in known["items"].items()}
            # Settings may have had other names when the file was written.
            found = known | {"items": items, "settings": job.settings()}
            (job.folder / RESULT).write_text(json.dumps(found) + "\n")


# ----------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Options:
    """Train small variants of VLMo that differ in one thing, with paired seeds, and test the paper's claims."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Variants; all by default."""
    run_dir: Path = Path("runs/findings")
    """Folder of the data and of all jobs."""
    seeds: int | None = None
    """Seeds of each comparison; fewer for a trial. By default all."""
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
        restore(options.results, run=run, scale=options.scale)
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
