"""Runs a table of ablations job by job, several at a time; what was interrupted goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file

from vlmo.folder import write_file
from vlmo.recipes import emoji
from vlmo.recipes.ablation import (
    HIDDEN_RUN,
    QUESTIONS_RUN,
    SENTENCES_RUN,
    STAGE3,
    VARIANTS,
    small_finetuning,
    small_stage3,
)
from vlmo.recipes.evaluating import evaluate_task
from vlmo.recipes.pretraining_stages import VisionLanguageStage, VisionStage
from vlmo.recipes.recipe import Recipe, build, scaled
from vlmo.recipes.retrieval import RERANK, evaluate_folder
from vlmo.recipes.task_result import circumstances
from vlmo.training import choose_device
from vlmo.training.parallel import StopSignal

STAGES = "stages"
"""Name of the jobs that train stages 1 and 2, which some variants start from."""
RESULT = "result.json"
LOG, LOCK = "log.txt", "lock"
MATCHING = "matching"
CONSISTENCY = f"{SENTENCES_RUN} consistency"
_CIRCUMSTANCES = ("date", "commit", "versions", "hardware")
_OF_PARENT = "VLMO_ABLATE_PARENT"
_POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """A variant, or the stages before it, with one seed."""

    name: str
    seed: int

    def folder(self, run: Path) -> Path:
        """Where its runs and its result are."""
        return run / self.name / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def jobs_of(variants: Sequence[str], *, seeds: int) -> list[Job]:
    """All jobs; those that others start from come first."""
    needs_stages = any(VARIANTS[name].start != "nothing" for name in variants)
    names = [STAGES] * needs_stages
    first = [Job(name, seed) for name in names for seed in range(seeds)]
    return first + [Job(name, seed) for seed in range(seeds) for name in variants]


def recipes_of(job: Job, *, run: Path, scale: float = 1.0) -> dict[str, Recipe]:
    """The runs of a job by the names of their folders, in their order."""
    folder, stages = job.folder(run), Job(STAGES, job.seed).folder(run)
    if job.name == STAGES:
        stage1 = dataclasses.replace(emoji.emoji_stage1(), stage=VisionStage(str(folder / emoji.TOKENIZER / "model")))
        stage2 = dataclasses.replace(emoji.emoji_stage2(), init=str(folder / emoji.STAGE1 / "model"))
        recipes = {emoji.TOKENIZER: emoji.emoji_tokenizer(), emoji.STAGE1: stage1, emoji.STAGE2: stage2}
        recipes = {name: dataclasses.replace(recipe, seed=job.seed) for name, recipe in recipes.items()}
    else:
        start = VARIANTS[job.name].start
        init = None if start == "nothing" else str(stages / start / "model")
        recipes = {STAGE3: dataclasses.replace(small_stage3(job.name, seed=job.seed), init=init)}
        starts = {QUESTIONS_RUN: STAGE3, HIDDEN_RUN: STAGE3, SENTENCES_RUN: QUESTIONS_RUN}
        for name, recipe in small_finetuning(job.name, seed=job.seed).items():
            recipes[name] = dataclasses.replace(recipe, init=str(folder / starts[name] / "model"))
    return {name: scaled(recipe, scale=scale) for name, recipe in recipes.items()}


def read_result(job: Job, *, run: Path, scale: float = 1.0) -> dict[str, Any] | None:
    """What a finished job found; None if it has not finished.

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


def run_job(
    job: Job, *, run: Path, scale: float = 1.0, device: str | None = None, console: Console | None = None
) -> dict[str, Any] | None:
    """Trains and measures; the result is read where it is there already. None: a signal asked for an end.

    Raises:
        ValueError: The folder holds something made with other settings, or another process is at it.
    """
    found = read_result(job, run=run, scale=scale)
    if found is not None:
        return found
    with _alone(job, folder=job.folder(run)):
        return _run(job, run=run, scale=scale, device=device, console=console)


def end_with_parent() -> None:
    """Lets a job that `run_jobs` has started save and end when the process that started it is gone."""
    parent = os.environ.get(_OF_PARENT)

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True, name="vlmo-ablate-parent").start()


@contextmanager
def _alone(job: Job, *, folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{job}: another process is at it in {folder}; wait for its end, or stop it") from None


def _run(job: Job, *, run: Path, scale: float, device: str | None, console: Console | None) -> dict[str, Any] | None:
    """The work of a job that has not finished."""
    folder, recipes = job.folder(run), recipes_of(job, run=run, scale=scale)
    metrics: dict[str, float] = {}
    chance: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name, recipe in recipes.items():
        trainer = build(recipe, run_dir=folder / name, console=console, title=f"{job}, {name}", device=device)
        result = trainer.fit()
        if result.status == "stopped":
            return None
        seconds[name] = result.seconds
        began = time.monotonic()
        for key, value, by_chance in _measured(name, recipe, folder=folder / name / "model", device=device):
            metrics[key], chance[key] = value, by_chance
        seconds[f"{name}, evaluation"] = time.monotonic() - began
    around = circumstances(folder / next(reversed(recipes)) / "model")
    facts = {
        "variant": job.name,
        "seed": job.seed,
        "scale": scale,
        "settings": _settings(recipes, run=run),
        "parameters": _count_parameters(folder / next(iter(recipes)) / "model"),
        "metrics": metrics,
        "chance": chance,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "device": str(choose_device(device)),
        "circumstances": {name: around[name] for name in _CIRCUMSTANCES},
    }
    write_file(folder / RESULT, json.dumps(facts, indent=1) + "\n")
    return facts


def _measured(name: str, recipe: Recipe, *, folder: Path, device: str | None) -> Iterator[tuple[str, float, float]]:
    """Name, value and chance level of each figure of a run."""
    if name == STAGE3:
        assert isinstance(recipe.stage, VisionLanguageStage)
        matches = recipe.stage.losses.itm_weight > 0
        # A weight of 1: the matching head alone orders the shortlist, to see what it has learnt.
        options: dict[str, Any] = {"rerank": RERANK, "rerank_weight": 1.0} if matches else {"rerank": 0}
        found = evaluate_folder(folder, source=emoji.TEST_SOURCE, split="test", device=device, **options)
        for metric in ("ir@1", "ir@10", "tr@1", "tr@10"):
            yield metric, found.metrics[metric], found.chance[metric]
        if matches:
            # Of the shortlists that hold the right picture: in the others, matching has nothing to find.
            asked = [row for row in found.predictions if row["query"] == "caption"]
            hits = sum(row["rank"] <= RERANK for row in asked)
            if hits:
                yield MATCHING, found.metrics["rerank_ir@1"] * len(asked) / hits, 1 / RERANK
    elif name in {QUESTIONS_RUN, HIDDEN_RUN, SENTENCES_RUN}:
        found = evaluate_task(folder, source=name, device=device)
        yield name, found.metrics["accuracy"], found.chance["accuracy"]
        if name == SENTENCES_RUN:
            yield CONSISTENCY, found.metrics["consistency"], found.chance["consistency"]


def _settings(recipes: dict[str, Recipe], *, run: Path) -> str:
    """A hash of all settings. Where the folder of all runs lies does not count, so that it may be moved."""
    whole = json.dumps({name: json.loads(recipe.to_json()) for name, recipe in recipes.items()}, sort_keys=True)
    start_of_paths = json.dumps(f"{run}/")[:-1]
    return hashlib.sha256(whole.replace(start_of_paths, '"').encode()).hexdigest()


def _count_parameters(folder: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())


def run_jobs(
    jobs: Sequence[Job], *, run: Path, scale: float, workers: int, device: str | None, console: Console
) -> bool:
    """Runs what has not been run, `workers` jobs at a time in processes of their own; False if a signal ended it.

    Raises:
        ValueError: Jobs failed; all others have run but for those that start from a failed one. The message says why,
            and the same command goes on with what is left.
    """
    waiting = [job for job in jobs if read_result(job, run=run, scale=scale) is None]
    failed: list[str] = []
    with _bar(console) as bar, StopSignal() as stop:
        task = bar.add_task("ablation", total=len(jobs), completed=len(jobs) - len(waiting))
        with _Processes(run=run, scale=scale, workers=workers, device=device) as processes:
            for failure in processes.finished(waiting, stop=stop):
                bar.advance(task)
                if failure is not None:
                    console.print(f"failed: {failure}", highlight=False, markup=False)
                    failed.append(failure)
        if stop.requested:
            console.print("stopped; the same command goes on")
            return False
    if failed:
        report = f"vlmo ablate --report --run-dir {run} --scale {scale:g}"
        raise ValueError(f"{'; '.join(failed)}. What the others have found: {report}")
    return True


def _before(job: Job) -> set[Job]:
    """Jobs that this one starts from."""
    starts = job.name != STAGES and VARIANTS[job.name].start != "nothing"
    return {Job(STAGES, job.seed)} if starts else set()


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield bar


class _Processes:
    """Jobs in processes of their own; a context whose end is theirs too."""

    def __init__(self, *, run: Path, scale: float, workers: int, device: str | None) -> None:
        self._run, self._scale, self._workers, self._device = run, scale, workers, device
        self._running: dict[Job, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.terminate()  # each saves its state
        for process in self._running.values():
            process.wait()

    def finished(self, jobs: Sequence[Job], *, stop: StopSignal) -> Iterator[str | None]:
        """For each job that ends, None or why it failed. Those that start from a failed one never run."""
        waiting, unfinished = list(jobs), set(jobs)
        while (waiting or self._running) and not stop.requested:
            ready = [job for job in waiting if not _before(job) & unfinished]
            for job in ready[: self._workers - len(self._running)]:
                waiting.remove(job)
                self._running[job] = self._start(job)
            for job in [job for job, process in self._running.items() if process.poll() is not None]:
                failure = self._end(job)
                if failure is None:
                    unfinished.remove(job)
                else:
                    waiting = [other for other in waiting if job not in _before(other)]
                if not stop.requested:
                    yield failure
            time.sleep(_POLL_S)

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        folder = job.folder(self._run)
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // self._workers))
        command = [sys.executable, "-m", "vlmo.cli", "ablate", "--job", job.name, str(job.seed)]
        command += ["--run-dir", str(self._run), "--scale", str(self._scale)]
        command += [] if self._device is None else ["--device", self._device]
        with (folder / LOG).open("ab") as log:
            # In a session of its own: Ctrl-C reaches this process alone, which then asks each job once to save and end.
            # If this process is gone without a word, each job finds that out.
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": threads, _OF_PARENT: str(os.getpid())},
                start_new_session=True,
            )

    def _end(self, job: Job) -> str | None:
        code = self._running.pop(job).returncode
        if code == 0 and read_result(job, run=self._run, scale=self._scale) is not None:
            return None
        log = job.folder(self._run) / LOG
        if code < 0:
            return f"{job}: killed by {signal.Signals(-code).name}; {log} tells how far it was"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it says nothing"]
        return f"{job}: ended with exit code {code}; {log} ends with: {lines[-1]}"
