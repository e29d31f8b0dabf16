"""The training loop.

Step numbers count finished steps: item t of the loader leads from step t to step t + 1, so the line of metrics.jsonl
with step 6 is about item 5. A step whose update was skipped counts too.

Nothing but the weights, the optimizer and the counters is carried from one step to the next. The loader's items are a
pure function of the step (or of a cursor that is saved as a counter, see `CursorLoader`), and so is randomness: before
each forward all generators are seeded with a hash of (seed, step, micro-batch, rank). So a run that is killed and
started again repeats what it would have done, bit for bit, on the same hardware and number of processes (on a GPU: as
far as its kernels are deterministic).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from vlmo.distributed import (
    all_reduce,
    barrier,
    choose_device,
    gather_objects,
    is_main,
    keep_memory,
    rank,
    world_size,
)
from vlmo.folder import JsonObject
from vlmo.folder.atomic import write_folder
from vlmo.training.checkpoint import StateStore, claim_run_folder, lock_run, newest_state
from vlmo.training.config import Precision, TrainerConfig
from vlmo.training.engine import Engine, choose_precision, gradient_norm
from vlmo.training.errors import TrainingError, explained_faults
from vlmo.training.optimizer import OptimizerConfig, ScheduleConfig, build_optimizer, lr_at
from vlmo.training.parallel import StopSignal, from_main, report_progress, to_device, uninterrupted
from vlmo.training.tracking import Tracker, read_metrics
from vlmo.types import Batch

logger = logging.getLogger(__name__)

# A spike of a few steps passes by itself; after ten the weights are spoilt, or the data.
_MOST_BAD_STEPS = 10
"""Skipped updates in a row that end the run."""


class _Recipe(Protocol):
    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def seed(self) -> int: ...
    def to_json(self) -> str: ...


BatchLoader = Callable[[int], Iterator[list[Batch]]]
"""From step t to endless items: item t is this process's micro-batches of step t, a pure function of t."""


@runtime_checkable
class CursorLoader(Protocol):
    """A loader whose items depend on more than t; its cursor is saved with the training state."""

    def cursor(self, step: int) -> JsonObject:
        """Return this process's part of what is needed to go on after the first `step` steps; ready for JSON."""
        ...

    def go_on_from(self, step: int, cursor: JsonObject) -> None:
        """Take the parts of all processes, as one dictionary, before a call with `step`."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a run.

    Attributes:
        status: "stopped" if a signal ended it early: its state is saved, and the same command goes on.
        seconds: Wall time of all steps, saves and evaluations of the run, over all its starts.
        skipped: Updates that were skipped because of a non-finite loss or gradient.
        metrics: The newest value of each name in metrics.jsonl.
        model_dir: Model folder; there if the run has finished.
    """

    status: Literal["finished", "already_finished", "stopped"]
    steps: int
    seconds: float
    samples_seen: int
    skipped: int
    metrics: JsonObject
    model_dir: Path


@dataclass
class _Counters:
    step: int = 0
    samples_seen: int = 0
    skipped: int = 0
    bad_in_row: int = 0
    seconds: float = 0.0
    cursor: JsonObject | None = None  # of a loader that has one


class Trainer:
    """Trainer of an objective in a run folder; goes on from the newest state there if it has one.

    With several processes (inside `parallel.launch`) each holds a `Trainer`; the main one writes, and all read the run
    folder, which they must share.

    Args:
        objective: `objective(batch)` returns named scalars, of which "loss" is minimized; it holds a module `model`,
            whose `no_weight_decay()`, if it has one, names parameters of two or more dimensions that are not decayed.
        recipe: Settings of the run; `to_json()` returns all of them, and a run folder holds runs of one recipe only.
        save_model: Writes the files of the model folder into the empty folder it is given, with the weights it is
            given (a state dictionary of `model`).
        lr_scale: Name of a parameter in the objective -> factor on its learning rate.
        evaluate: Called on every process with `model` in evaluation mode, without gradients; returns metrics, fractions
            by "SPLIT/METRIC".
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        workers: Processes of the loader. On a CPU each gets a core: torch takes as many threads less, at least one in
            bf16 and two in float32, which keeps workers waiting, unless OMP_NUM_THREADS is set.
        title: Name of the run in progress and messages.
    """

    def __init__(
        self,
        objective: nn.Module,
        loader: BatchLoader,
        *,
        run_dir: str | Path,
        recipe: _Recipe,
        save_model: Callable[[Path, dict[str, Tensor]], None],
        lr_scale: Mapping[str, float] | None = None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        device: str | None = None,
        workers: int = 0,
        console: Console | None = None,
        title: str = "training",
    ) -> None:
        self.device = choose_device(device)
        if self.device.type == "cpu":
            keep_memory()
        # Moved before the optimizer takes its parameters.
        self.objective = objective.to(self.device).train()
        self.recipe = recipe
        self.config = recipe.trainer
        # One process chooses, and warns.
        self.precision: Precision = from_main(
            choose_precision(self.config.precision, device=self.device) if is_main() else None
        )
        # Before the optimizer, since sharding replaces the parameters.
        self._engine = Engine(self.objective, config=self.config.engine, precision=self.precision)
        model: Any = objective.get_submodule("model")
        undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        self.optimizer = build_optimizer(
            self.objective,
            config=recipe.optimizer,
            no_weight_decay={f"model.{name}" for name in undecayed},
            lr_scale=lr_scale,
        )
        self.loader = loader
        self.save_model = save_model
        self.evaluate = evaluate
        self.console = console
        self.title = title
        self.run_dir = Path(run_dir)
        self.model_dir = self.run_dir / "model"
        self.state_dir = self.run_dir / "state"
        self._workers = workers
        self._states = StateStore(self.state_dir, keep=self.config.keep_states)
        self._counters = _Counters()
        self._started_at = 0.0
        self._lr = 0.0
        # Since the last line of the log.
        self._unreported_samples = 0
        self._unreported_seconds = 0.0

    def fit(self) -> TrainingResult:
        """Train to the end, or until SIGTERM or SIGINT; the trained weights are then in the objective.

        After a first signal the running step is finished and saved; a second one has its usual effect.

        Raises:
            ValueError: The run folder holds a run with another recipe, or another process trains there.
            TrainingError: Ten updates in a row were skipped, every saved state is damaged, nothing can be written, data
                or their workers are gone, or another process is.
        """
        with (
            explained_faults(self._place, run_dir=self.run_dir, last_saved=self._states.last_saved),
            lock_run(self.run_dir),
        ):
            if self._restore():
                logger.info("%s: %s has already finished", self.title, self.run_dir)
                return self._result("already_finished")
            if self.config.precision == "auto":
                logger.info("%s: computing in %s", self.title, self.precision)
            with StopSignal() as stop, self._open_tracker() as tracker, self._cores_for_workers():
                finished = self._train(tracker, stop)
                if finished:
                    self._write_model()
            # The run folder is complete when any process returns.
            barrier()
            return self._result("finished" if finished else "stopped")

    def _place(self) -> str:
        return f"{self.title}: step {self._counters.step}"

    def _open_tracker(self) -> contextlib.AbstractContextManager[Tracker | None]:
        if not is_main():
            return contextlib.nullcontext()
        return Tracker(
            self.run_dir,
            console=self.console,
            step=self._counters.step,
            max_steps=self.config.max_steps,
            title=self.title,
        )

    def _write_model(self) -> None:
        report_progress(slow=True)
        weights = self._engine.weights()
        if is_main():
            with write_folder(self.model_dir) as folder:
                self.save_model(folder, weights)

    @contextlib.contextmanager
    def _cores_for_workers(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            least = 1 if self.precision == "bf16" else min(2, threads)
            torch.set_num_threads(max(least, threads - self._workers))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _train(self, tracker: Tracker | None, stop: StopSignal) -> bool:
        """Run the steps that are left; return False if a signal stopped them."""
        counters = self._counters
        config = self.config
        # The run may have been cut off after a save and before its evaluation.
        self._evaluate_if_due(tracker)
        batches = self.loader(counters.step)
        stopping = False
        while counters.step < config.max_steps and not stopping:
            stopping = self._train_step(batches, tracker, stop)
            if (
                stopping
                or counters.step % config.save_every == 0
                or counters.step == config.max_steps
            ):
                self._save(tracker)
            if not stopping:
                self._evaluate_if_due(tracker)
        report_progress(slow=True)
        self._states.wait()
        if stopping:
            logger.warning(
                "%s: stopped after step %d; the same command goes on", self.title, counters.step
            )
        return not stopping

    def _train_step(
        self, batches: Iterator[list[Batch]], tracker: Tracker | None, stop: StopSignal
    ) -> bool:
        """Make one update; return True if any process was asked to stop."""
        counters = self._counters
        config = self.config
        started_at = time.monotonic()
        report_progress()
        micro_batches = self._next_item(batches)
        losses = self._accumulate_gradients(micro_batches)
        parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        grad_norm = gradient_norm(parameters)
        # One message tells all processes what any of them met, so that all do alike.
        is_finite = bool(losses["loss"].isfinite() & grad_norm.isfinite())
        num_samples = sum(len(batch["sample_ids"]) for batch in micro_batches)
        flags = [int(not is_finite), int(stop.requested), num_samples]
        num_bad, num_stopping, num_samples = all_reduce(
            torch.tensor(flags, device=self.device)
        ).tolist()
        if num_bad:
            # The rate and the optimizer stay as they are: one bad batch must not spoil its moments.
            counters.skipped += 1
            counters.bad_in_row += 1
        else:
            counters.bad_in_row = 0
            self._update(parameters, grad_norm)
        self.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.samples_seen += num_samples
        self._unreported_samples += num_samples
        self._unreported_seconds += time.monotonic() - started_at
        is_last = counters.step == config.max_steps
        if counters.bad_in_row or counters.step % config.log_every == 0 or is_last:
            self._report(tracker, micro_batches, losses, grad_norm)
        if tracker is not None:
            tracker.advance(counters.step)
        return num_stopping > 0

    def _next_item(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        """Return the micro-batches of the next step; the message of a ValueError then says what was saved."""
        try:
            return next(batches)
        except ValueError as error:
            with uninterrupted():
                raise ValueError(
                    f"{str(error).rstrip('.')}; {self._states.last_saved(finish=True)}"
                ) from error

    def _update(self, parameters: list[Tensor], grad_norm: Tensor) -> None:
        if self.config.clip_norm is not None:
            # By the norm of all processes, which is known already.
            clip_grads_with_norm_(parameters, self.config.clip_norm, grad_norm)
        self._lr = lr_at(
            self._counters.step,
            base_lr=self.recipe.optimizer.lr,
            max_steps=self.config.max_steps,
            config=self.recipe.schedule,
        )
        for group in self.optimizer.param_groups:
            # A group's factor is its layer-wise decay, or 20 for the head of VQA (published code).
            group["lr"] = self._lr * group["lr_scale"]
        self.optimizer.step()

    def _accumulate_gradients(self, micro_batches: list[Batch]) -> dict[str, Float[Tensor, ""]]:
        """Add up gradients of the mean loss; return this process's losses, means over micro-batches."""
        values: dict[str, list[Tensor]] = defaultdict(list)
        for micro, batch in enumerate(micro_batches):
            seed = forward_seed(
                self.recipe.seed, step=self._counters.step, micro=micro, rank=rank()
            )
            torch.manual_seed(seed)  # its GPU generators too
            np.random.seed(seed % 2**32)
            random.seed(seed)
            batch = to_device(batch, self.device)
            report_progress()
            with self._engine.synchronized(last=micro == len(micro_batches) - 1):
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=self.precision == "bf16"
                ):
                    losses = self._engine(batch)
                # Gradients add up, so that their sum is that of the mean over micro-batches.
                (losses["loss"] / len(micro_batches)).backward()
            for name, value in losses.items():
                values[name].append(value.detach())
        return {name: torch.stack(parts).mean() for name, parts in values.items()}

    def _report(
        self,
        tracker: Tracker | None,
        micro_batches: list[Batch],
        losses: dict[str, Tensor],
        grad_norm: Tensor,
    ) -> None:
        """Log the losses of a step, means over processes; TrainingError after too many bad steps."""
        counters = self._counters
        step = counters.step
        means = all_reduce(torch.stack(list(losses.values()))) / world_size()
        mean_losses = dict(zip(losses, means.tolist(), strict=True))
        norm = grad_norm.item()
        sample_ids = self._global_sample_ids(micro_batches)
        if tracker is not None and counters.bad_in_row:
            skipped = {
                "skipped": counters.skipped,
                "losses": mean_losses,
                "grad_norm": norm,
                "sample_ids": sample_ids,
            }
            tracker.log(step, skipped, prefix="train/")
            logger.warning("%s: step %d was skipped: %s", self.title, step, skipped)
        elif tracker is not None:
            speed = self._pop_speed()
            # Equal in two runs that saw the same samples.
            digest = hashlib.sha256(json.dumps(sample_ids).encode())
            line = mean_losses | {
                "lr": self._lr,
                "grad_norm": norm,
                "samples_per_s": speed,
                "seconds": self._seconds(),
                "samples_seen": counters.samples_seen,
                "precision": self.precision,
                "sample_ids_digest": digest.hexdigest()[:16],
            }
            tracker.log(step, line, prefix="train/")
            shown = " ".join(f"{name} {value:.4g}" for name, value in mean_losses.items())
            tracker.losses = f"{shown} | {speed:.4g} samples/s"
        self._check_bad_steps(mean_losses, norm)

    def _check_bad_steps(self, losses: dict[str, float], norm: float) -> None:
        """Raise TrainingError after too many skipped updates in a row."""
        counters = self._counters
        if counters.bad_in_row >= _MOST_BAD_STEPS:
            raise TrainingError(
                f"the last {counters.bad_in_row} steps, up to step {counters.step}, had a non-finite loss or "
                f"gradient: losses {losses}, gradient norm {norm}. Lower the rate, clip gradients, or "
                f"look at the samples that {self.run_dir / 'metrics.jsonl'} names; "
                f"{self._states.last_saved(finish=True)}"
            )

    def _pop_speed(self) -> float:
        """Return samples in a second since the last line of the log, and count anew."""
        speed = self._unreported_samples / max(self._unreported_seconds, 1e-9)
        self._unreported_samples = 0
        self._unreported_seconds = 0.0
        return speed

    def _global_sample_ids(self, micro_batches: list[Batch]) -> list[int]:
        """Return ids in the order of the global batch, which processes cut by micro-batch first."""
        local_ids = [
            batch["sample_ids"].tolist() for batch in micro_batches if "sample_ids" in batch
        ]
        sample_ids: list[int] = []
        for process_ids in zip(*gather_objects(local_ids), strict=True):
            for ids in process_ids:
                sample_ids += ids
        return sample_ids

    def _evaluate_if_due(self, tracker: Tracker | None) -> None:
        step = self._counters.step
        interval = self.config.eval_every
        is_due = step == self.config.max_steps
        if interval is not None and step > 0:
            is_due = is_due or step % interval == 0
        if not is_due or self.evaluate is None:
            return
        # A run that was cut off after this evaluation does not repeat it.
        if from_main(tracker and tracker.evaluated_step) == step:
            return
        report_progress(slow=True)
        with self._engine.evaluation() as model:
            metrics = self.evaluate(model)
        # Before the step, which may take less time than the slowest process still needs here.
        barrier()
        if tracker is not None:
            tracker.log(step, metrics)
            shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items())
            logger.info("%s: step %d: %s", self.title, step, shown)

    def _save(self, tracker: Tracker | None) -> None:
        counters = self._counters
        counters.seconds = self._seconds()
        report_progress(slow=True)
        if isinstance(self.loader, CursorLoader):
            parts = gather_objects(self.loader.cursor(counters.step))
            counters.cursor = {}
            for part in parts:
                counters.cursor |= part
        if tracker is not None:
            # Before the state, so that a restored one never lacks lines.
            tracker.flush()
        self._states.save(self._engine.training_state(self.optimizer), progress=asdict(counters))

    def _restore(self) -> bool:
        recipe = self.recipe.to_json()
        # Checked here and written below, so that a refused run leaves the folder as it was.
        claim_run_folder(self.run_dir, recipe_json=recipe, write=False)
        # One process chooses, so that all go on from the same state.
        if saved := from_main(newest_state(self.state_dir) if is_main() else None):
            path, progress = saved
            self._states.load(path, self.objective, self.optimizer)
            self._counters = _Counters(**progress)
            if isinstance(self.loader, CursorLoader):
                self.loader.go_on_from(self._counters.step, self._counters.cursor or {})
            logger.info("%s: going on from %s", self.title, path)
        # As if the run had never been interrupted: earlier starts count.
        self._started_at = time.monotonic() - self._counters.seconds
        finished = self._counters.step >= self.config.max_steps and from_main(
            self.model_dir.exists()
        )
        # A finished run keeps the settings that it was trained with.
        if not finished:
            claim_run_folder(self.run_dir, recipe_json=recipe, write=is_main())
        return finished

    def _seconds(self) -> float:
        return time.monotonic() - self._started_at

    def _result(self, status: Literal["finished", "already_finished", "stopped"]) -> TrainingResult:
        counters = self._counters
        newest_metrics: JsonObject = {}
        for line in read_metrics(self.run_dir):
            newest_metrics |= line
        return TrainingResult(
            status=status,
            steps=counters.step,
            seconds=counters.seconds if status == "already_finished" else self._seconds(),
            samples_seen=counters.samples_seen,
            skipped=counters.skipped,
            metrics=newest_metrics,
            model_dir=self.model_dir,
        )


def forward_seed(seed: int, *, step: int, micro: int, rank: int) -> int:
    """Return the seed of one forward, 0 to below 2^63.

    It is a hash, so that the random numbers of neighboring steps are unrelated.
    """
    digest = hashlib.blake2b(f"{seed} {step} {micro} {rank}".encode(), digest_size=8).digest()
    # Generators of PyTorch take 63 bits.
    return int.from_bytes(digest, "big") >> 1
