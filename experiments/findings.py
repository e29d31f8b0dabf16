"""Train small variants of VLMo that differ in one thing, with paired seeds, and test the paper's claims.

    python experiments/findings.py                      # every job that has not finished, seed by seed
    python experiments/findings.py --report             # table of the jobs that have finished

A variant with a seed is a job with a folder of its own below --run-dir. The same command continues after an
interruption. Icons need the prepared sets `icons` and `glosses` (worlds/README.md) in --data.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console

import findings_design as design
import icon_world
import shape_world
from findings_design import (
    CLAIMS,
    FIRST,
    ICONS,
    MATCHING,
    PROBE,
    RECALL,
    SCENES,
    STARTS,
    TENTH,
    VARIANTS,
)
from findings_report import publish, report
from vlmo import VLMoForMaskedLM
from vlmo.folder.atomic import write_file
from vlmo.recipes import Recipe
from vlmo.recipes.schema import scaled
from vlmo.run import build
from vlmo.tasks import RetrievalTask, evaluate
from vlmo.tasks.pair_sets import PairSet
from vlmo.tasks.result import TaskResult, circumstances

RESULT, SHARE, ROOT = "result.json", "share.txt", Path(__file__).resolve().parents[1]
SHORTLIST, RERANKED = 16, 1000
"""Candidates that the fusion encoder orders, in a gallery of so many scenes."""
_BATCH, _RIDGE = 250, 1e-3


@dataclass(frozen=True)
class Job:
    """A variant, or the stages before those of a world, with one seed."""

    name: str
    seed: int
    run: Path
    scale: float = 1.0

    @property
    def folder(self) -> Path:
        """The folder of its runs and its result."""
        return self.run / f"seed-{self.seed}" / self.name

    @property
    def world(self) -> str:
        """Name of the world."""
        return (
            next((world for world, start in STARTS.items() if start == self.name), "")
            or VARIANTS[self.name].world
        )

    @property
    def needs(self) -> Job | None:
        """The job that this one starts from."""
        known = VARIANTS.get(self.name)
        return replace(self, name=STARTS[known.world]) if known and known.start else None

    def recipes(self) -> dict[str, Recipe]:
        """Return the recipes of its runs by the names of their folders, in their order."""
        if self.name not in VARIANTS:
            recipes = design.stages_before(self.world, worlds=self.run, folder=self.folder)
        else:
            recipe = design.stage3(self.name, worlds=self.run)
            if self.needs is not None:
                init = self.needs.folder / str(VARIANTS[self.name].start) / "model"
                recipe = replace(recipe, init=str(init))
            recipes = {"stage3": recipe}
        return {
            name: scaled(replace(each, seed=self.seed), scale=self.scale)
            for name, each in recipes.items()
        }

    def settings(self) -> str:
        """Return a hash of all settings; the folder of all runs does not count."""
        text = json.dumps(
            {name: json.loads(recipe.to_json()) for name, recipe in self.recipes().items()}
        )
        return hashlib.sha256(text.replace(str(self.run), "").encode()).hexdigest()

    def result(self) -> dict[str, Any] | None:
        """Return the result; None if it has not finished; ValueError if it was made with other settings."""
        file = self.folder / RESULT
        if not file.is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["settings"] != self.settings():
            raise ValueError(
                f"{file} was made with other settings; give another --run-dir, or remove {file.parent}"
            )
        return found


def jobs_of(names: Sequence[str], *, seeds: int | None, run: Path, scale: float = 1.0) -> list[Job]:
    """Return the jobs of variants and worlds, at most `seeds` of a comparison, seed by seed; ValueError for others."""
    if unknown := sorted(set(names) - {*VARIANTS, *STARTS}):
        raise ValueError(
            f"no variant {', '.join(unknown)}; there are {', '.join((*STARTS, *VARIANTS))}"
        )
    jobs = [
        Job(name, seed, run, scale)
        for claim in CLAIMS
        for seed in claim.seeds[:seeds]
        for name in (claim.better, claim.worse)
        if not names or not {name, VARIANTS[name].world}.isdisjoint(names)
    ]
    return sorted(dict.fromkeys(jobs), key=lambda job: job.seed)


def run_job(job: Job) -> None:
    """Train and evaluate, and write the result; SystemExit if a signal stopped it."""
    start, recipes, name = time.process_time(), job.recipes(), ""
    if job.needs is not None and VARIANTS[job.name].start == design.SEPARATE:
        separate_attention(
            job.needs.folder / "stage2" / "model", out=job.needs.folder / design.SEPARATE / "model"
        )
    for name, recipe in recipes.items():
        title = f"{job.name}, seed {job.seed}, {name}"
        if (
            build(recipe, run_dir=job.folder / name, console=Console(), title=title).fit().status
            == "stopped"
        ):
            sys.exit("stopped; the same command continues")
    folder = job.folder / name / "model"
    metrics, items = measure(folder, job, split="test") if job.name in VARIANTS else ({}, {})
    around = circumstances(folder)
    facts = {
        "variant": job.name,
        "seed": job.seed,
        "settings": job.settings(),
        "cpu_seconds": round(time.process_time() - start),
        "metrics": metrics,
        "items": items,
        "circumstances": {
            name: around[name] for name in ("date", "commit", "versions", "hardware")
        },
    }
    write_file(job.folder / RESULT, json.dumps(facts) + "\n")


def separate_attention(folder: Path, *, out: Path) -> None:
    """Write a model after stage 2 with two copies of its attention, one for images and one for texts."""
    shared = VLMoForMaskedLM.from_pretrained(folder)
    separate = VLMoForMaskedLM(
        type(shared.config)(**shared.config.to_dict() | {"attention": "separate"})
    )
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
    folder: Path, job: Job, *, split: str
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the metrics of a model, and those that are compared item by item.

    Of each scene, `recall` is the share of (its caption, its image) that the dual encoder finds first, `matching` the
    same if ITM alone orders what the dual encoder finds, for models that it trained. Of each icon, `IR@1` and `IR@10`
    are 1 if the dual encoder finds it by its name. `probe`: of two images, the share whose true caption, not the
    other's, a linear probe on the frozen fusion encoder prefers.
    """
    pairs, binding = (str(job.run / job.world / name) for name in ("pairs", "binding"))
    found = evaluate(folder, source=pairs, split=split, rerank=0)
    probed = probe(*(fused_states(folder, source=binding, split=each) for each in ("train", split)))
    items = {PROBE: probed.reshape(-1, 2).mean(axis=1)}
    if job.world == ICONS:
        items |= {
            name: _hits(found, "rank", most=most)[0] for name, most in ((FIRST, 1), (TENTH, 10))
        }
    else:
        items[RECALL] = _hits(found, "rank").mean(axis=0)
        if job.recipes()["stage3"].task.losses.itm_weight > 0:
            few = evaluate(
                folder,
                source=pairs,
                split=split,
                limit=RERANKED,
                rerank=SHORTLIST,
                rerank_weight=1.0,
            )
            items[MATCHING] = _hits(few, "rerank_rank").mean(axis=0)
    return found.metrics, {name: values.tolist() for name, values in items.items()}


def _hits(
    found: TaskResult, column: str, *, most: int = 1
) -> Float[np.ndarray, "captions_images rows"]:
    """Return 1 for each caption whose image has rank `most` or better, then for each image and its caption."""
    return np.array([row[column] <= most for row in found.predictions], dtype=float).reshape(2, -1)


@torch.inference_mode()
def fused_states(
    folder: Path, *, source: str, split: str
) -> Float[torch.Tensor, "captions images features"]:
    """Return the fusion encoder's state of [T_CLS] and mean state of each image with its true, then false caption."""
    model, processor = RetrievalTask.load(folder)
    rows = PairSet.read(source=source, split=split, processor=processor, notes=folder.parent)
    pairs, count, states = rows.as_set(), len(rows.rows), []
    for numbers in (range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)):
        pixels = torch.stack(pairs.read_images(numbers))
        for first in (numbers.start, count + numbers.start):
            input_ids, attention_mask = pairs.read_texts(range(first, first + len(numbers)))
            text = {"input_ids": input_ids, "attention_mask": attention_mask}
            hidden = model.vlmo(pixel_values=pixels, **text).last_hidden_state
            states.append(torch.cat([hidden[:, 0], hidden.mean(dim=1)], dim=1))
    return torch.stack([torch.cat(states[::2]), torch.cat(states[1::2])])


def probe(
    train: Float[torch.Tensor, "captions images features"],
    test: Float[torch.Tensor, "captions images features"],
) -> Float[np.ndarray, " images"]:
    """Return 1 for each test image whose true caption a ridge regression on `train` prefers, 0.5 if none."""
    mean, std = train.flatten(0, 1).mean(dim=0), train.flatten(0, 1).std(dim=0) + 1e-6
    inputs = ((train - mean) / std).flatten(0, 1).double()
    wanted = inputs.new_tensor([1.0, -1.0]).repeat_interleave(train.shape[1])
    gram = inputs.T @ inputs + _RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, inputs.T @ wanted)
    margin = ((test[0] - test[1]) / std).double() @ weights
    return (0.5 + 0.5 * margin.sign()).numpy()


def run_jobs(jobs: Sequence[Job]) -> list[str]:
    """Run what has no result, each after what it needs; return what failed."""
    failures = []
    for job in jobs:
        try:
            for each in (job.needs, job) if job.result() is None else ():
                if each is not None and each.result() is None:
                    run_job(each)
        except (ArithmeticError, RuntimeError, ValueError) as error:  # the others may do better
            failures.append(f"{job.name}, seed {job.seed}: {error}")
            print(failures[-1], file=sys.stderr)
    return failures


def write_worlds(jobs: Sequence[Job], *, run: Path, data: Path, scale: float) -> None:
    """Write the data of the jobs once.

    Raises:
        ValueError: They are there with another share of the rows.
    """
    writers = {SCENES: shape_world.write, ICONS: functools.partial(icon_world.write, data=data)}
    for world in {job.world for job in jobs if job.result() is None}:
        share = run / world / SHARE
        if not (run / world).is_dir():
            writers[world](run / f"{world}.new", scale=scale)
            (run / f"{world}.new" / SHARE).write_text(f"{scale}\n", encoding="utf-8")
            (run / f"{world}.new").rename(run / world)
        elif share.is_file() and float(share.read_text(encoding="utf-8")) != scale:
            found = share.read_text(encoding="utf-8").strip()
            raise ValueError(
                f"{run / world} holds the share {found} of the data, not {scale:g}; give another --run-dir"
            )


def restore(file: Path, *, run: Path, scale: float = 1.0) -> None:
    """Write the results of `publish` into the folders of jobs that have none, so that they are not run again."""
    for known in json.loads(file.read_text(encoding="utf-8")):
        job = Job(known["variant"], known["seed"], run, scale)
        if not (job.folder / RESULT).is_file():
            job.folder.mkdir(parents=True, exist_ok=True)
            items = {
                name: [int(digit) / 2 for digit in digits]
                for name, digits in known["items"].items()
            }
            # Settings may have had other names when the file was written.
            write_file(
                job.folder / RESULT,
                json.dumps(known | {"items": items, "settings": job.settings()}) + "\n",
            )


@dataclass(frozen=True)
class Options:
    """Train small variants of VLMo that differ in one thing, with paired seeds, and test the paper's claims."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Variants, or worlds (scenes, icons); all by default."""
    run_dir: Path = Path("runs/findings")
    """Folder of the worlds and of all jobs."""
    data: Path = Path("data")
    """Folder of the prepared sets that icons need."""
    seeds: int | None = None
    """Seeds of each comparison; fewer for a trial. By default all."""
    scale: float = 1.0
    """Share of the steps and of the data, for trials."""
    report: bool = False
    """Only show the report of the jobs that have finished."""
    publish: Path | None = None
    """With --report: write all results into this JSON file, and the table into experiments/findings.md."""
    results: Path | None = None
    """File of --publish; its jobs count as finished."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run jobs, or show what the options ask for."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    run, scale, failures = options.run_dir.absolute(), options.scale, list[str]()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    jobs = jobs_of(options.names, seeds=options.seeds, run=run, scale=scale)
    if options.results is not None:
        restore(options.results, run=run, scale=scale)
    if not options.report:
        write_worlds(jobs, run=run, data=options.data, scale=scale)
        failures = run_jobs(jobs)
    results = {(job.name, job.seed): found for job in jobs if (found := job.result()) is not None}
    print(report(results))
    if options.publish is not None:
        publish(results, page=ROOT / "experiments" / "findings.md", out=options.publish)
    if failures:
        sys.exit("\n".join(["failed; the same command tries again:", *failures]))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
