"""The training loop.

Step numbers count finished steps: item t of the loader leads from step t to step t + 1, so the line of metrics.jsonl
with step 6 tells of item 5. A step whose update was skipped counts too.

Nothing but the weights, the optimizer and the counters is carried from one step to the next. The loader's items are a
pure function of the step (or of a cursor that is saved as a counter, see `CursorLoader`), and so is randomness: before
each forward all generators are seeded with a hash of (seed, step, micro-batch, rank). So a run that is killed and
started again repeats what it would have done, bit for bit, on the same hardware and number of processes (on a GPU: as
far as its kernels are deterministic).
"""

import contextlib
import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from vlmo.distributed import all_reduce, barrier, choose_device, gather_objects, is_main, rank, world_size
from vlmo.folder import write_folder
from vlmo.training.checkpoint import StateStore, claim_run_folder, newest_state, state_path
from vlmo.training.engine import PRECISIONS, Engine, EngineConfig, Precision, choose_precision, gradient_norm
from vlmo.training.errors import TrainingError
from vlmo.training.faults import explained_data, explained_faults
from vlmo.training.loaders import CursorLoader, Loader
from vlmo.training.optimizer import OptimizerConfig, build_optimizer
from vlmo.training.parallel import StopSignal, from_main, to_device
from vlmo.training.randomness import seed_generators, step_seed
from vlmo.training.schedule import ScheduleConfig, lr_at
from vlmo.training.tracking import Tracker, read_metrics
from vlmo.training.watchdog import Watchdog
from vlmo.types import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerConfig:
    """Length of the run, numerics, and how often what is written."""

    max_steps: int
    """Number of optimizer updates, skipped ones included."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """Type of the activations (autocast); weights, losses and the optimizer are float32. "auto": bf16 where the main
    process's device has instructions for it, else float32; the same run may go on in the other one elsewhere."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How processes share the work, and what is traded for memory and time."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all parameters; None leaves it alone."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 500
    """Steps between training states; there is always one at the end."""
    keep_states: int = 2
    """Number of training states that are kept."""
    async_save: bool = True
    """Write training states in the background, from a copy in the memory of the CPU."""
    eval_every: int | None = None
    """Steps between evaluations; None evaluates at the end only."""
    max_bad_steps: int = 10
    """Skipped updates in a row that end the run."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: There is no such precision, a count is below 1, or the norm is not above 0.
        """
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; give one of {', '.join(PRECISIONS)}")
        for name in ("max_steps", "log_every", "save_every", "keep_states", "eval_every", "max_bad_steps"):
            value = asdict(self)[name]
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; give a number above 0, or None not to clip")


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    status: Literal["finished", "already_finished", "stopped"]
    """"stopped" if a signal ended it early: its state is saved, and the same command goes on."""
    steps: int
    seconds: float
    """Wall time of all steps, saves and evaluations of the run, over all its starts."""
    samples_seen: int
    skipped: int
    """Updates that were skipped because of a non-finite loss or gradient."""
    metrics: dict[str, Any]
    """The newest value of each name in metrics.jsonl."""
    model_dir: Path
    """Model folder; there if the run has finished."""


@dataclass
class _Progress:
    step: int = 0
    samples_seen: int = 0
    skipped: int = 0
    bad_in_row: int = 0
    seconds: float = 0.0
    cursor: dict[str, Any] | None = None  # of a loader that has one


class Trainer:
    """Trains an objective in a run folder, going on from the newest state there if it has one.

    With several processes (inside `parallel.launch`) each holds a `Trainer`; the main one writes, and all read the run
    folder, which they must share.

    Args:
        objective: `objective(batch)` returns named scalars, of which "loss" is minimised; it holds a module `model`.
        recipe_json: All settings of the run, as a JSON object; a run folder holds runs of one recipe only.
        save_model: Writes the files of the model folder into the empty folder it is given, with the weights it is
            given (a state dictionary of `model`).
        seed: Of dropout and whatever else the objective draws.
        no_weight_decay: Parameters of two or more dimensions that are not decayed, by their names in the objective.
        lr_scale: Name of a parameter in the objective -> factor on its learning rate.
        evaluators: Called on every process with `model` in evaluation mode, without gradients; they return figures,
            which are logged as "val/...".
        after_step: Called after each update; for what keeps parameters in their range.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
        console: Where the progress bar goes; None shows nothing.
        title: Stands before the progress bar.
        watchdog: Is told where the run stands, and knows which processes are gone; entered by the caller.
    """

    def __init__(
        self,
        objective: nn.Module,
        loader: Loader,
        *,
        run_dir: str | Path,
        recipe_json: str,
        save_model: Callable[[Path, dict[str, Tensor]], None],
        config: TrainerConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        seed: int = 0,
        no_weight_decay: Collection[str] = (),
        lr_scale: Mapping[str, float] | None = None,
        evaluators: Sequence[Callable[[nn.Module], Mapping[str, float]]] = (),
        after_step: Callable[[], None] | None = None,
        device: str | None = None,
        console: Console | None = None,
        title: str = "training",
        watchdog: Watchdog | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.objective = objective.to(self.device).train()
        # One process chooses, and warns.
        chosen = choose_precision(config.precision, device=self.device) if is_main() else None
        self.precision: Precision = from_main(chosen)
        self._engine = Engine(self.objective, config=config.engine, precision=self.precision)
        self.loader, self.run_dir, self.save_model = loader, Path(run_dir), save_model
        self.config, self.schedule, self.seed, self.base_lr = config, schedule, seed, optimizer.lr
        self.optimizer = build_optimizer(
            self.objective, config=optimizer, no_weight_decay=no_weight_decay, lr_scale=lr_scale
        )
        self.evaluators, self.after_step, self.recipe_json = evaluators, after_step, recipe_json
        self.console, self.title = console, title
        self.model_dir, self.state_dir = self.run_dir / "model", self.run_dir / "state"
        self._watchdog = watchdog or Watchdog()
        self._states = StateStore(
            self.state_dir,
            keep=config.keep_states,
            in_background=config.async_save,
            longest_wait=self._watchdog.longest_wait,
        )
        self._progress, self._began = _Progress(), 0.0
        self._good_state: Path | None = None
        self._unreported = 0, 0.0  # samples and seconds of training since the last line

    def fit(self) -> Result:
        """Trains to the end, or until SIGTERM or SIGINT; the trained weights are then in the objective.

        After a first signal the running step is finished and saved; a second one has its usual effect.

        Raises:
            ValueError: The run folder holds a run with another recipe.
            TrainingError: `max_bad_steps` updates in a row were skipped, every saved state is damaged, nothing can be
                written, data or their workers are gone, or another process is.
        """
        with explained_faults(self._place, run_dir=self.run_dir, states=self._states, watchdog=self._watchdog):
            return self._fit()

    def _place(self) -> str:
        return f"{self.title}: step {self._progress.step}"

    def _fit(self) -> Result:
        if self._restore():
            logger.info("%s: %s has already finished", self.title, self.run_dir)
            return self._result("already_finished")
        if self.config.precision == "auto":
            logger.info("%s: computing in %s", self.title, self.precision)
        with StopSignal() as stop, self._open_tracker() as tracker:
            finished = self._train(tracker, stop)
            if finished:
                self._write_model()
        barrier()  # every process finds the whole run folder when it returns
        return self._result("finished" if finished else "stopped")

    def _write_model(self) -> None:
        self._watchdog.at("writing the model folder", timed=False)
        weights = self._engine.weights()
        if is_main():
            with write_folder(self.model_dir) as aside:
                self.save_model(aside, weights)

    def _train(self, tracker: Tracker | None, stop: StopSignal) -> bool:
        """The loop; True if it got to the end."""
        progress, config = self._progress, self.config
        self._evaluate_if_due(tracker)  # if it was cut off after the step was saved
        batches = self.loader(progress.step)
        while progress.step < config.max_steps:
            stopping = self._train_step(batches, tracker, stop)
            if stopping or progress.step % config.save_every == 0 or progress.step == config.max_steps:
                self._save(tracker)
            if stopping:
                self._finish_saving()
                logger.warning("%s: stopped after step %d; the same command goes on", self.title, progress.step)
                return False
            self._evaluate_if_due(tracker)
        self._finish_saving()
        return True

    def _train_step(self, batches: Iterator[list[Batch]], tracker: Tracker | None, stop: StopSignal) -> bool:
        """One step; True if any process was asked to stop."""
        progress, began = self._progress, time.monotonic()
        self._watchdog.at(f"reading the batch of step {progress.step + 1}")
        with explained_data(self._states):
            micro_batches = next(batches)
        losses = self._accumulate_gradients(micro_batches)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        grad_norm = gradient_norm(parameters)
        bad = not (losses["loss"].isfinite() & grad_norm.isfinite()).item()
        flags = torch.tensor([int(bad), int(stop.requested), sum(map(_num_rows, micro_batches))], device=self.device)
        num_bad, num_stopping, num_rows = all_reduce(flags).tolist()  # all processes do alike
        if num_bad:
            progress.skipped, progress.bad_in_row = progress.skipped + 1, progress.bad_in_row + 1
        else:
            self._update(parameters, grad_norm)
            progress.bad_in_row = 0
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.samples_seen += num_rows
        rows, seconds = self._unreported
        self._unreported = rows + num_rows, seconds + time.monotonic() - began
        self._report(tracker, micro_batches, losses, grad_norm)
        return num_stopping > 0

    def _accumulate_gradients(self, micro_batches: list[Batch]) -> dict[str, Float[Tensor, ""]]:
        """Gradients of the mean loss over micro-batches and processes; returns this process's mean losses."""
        values = defaultdict(list)
        for micro, batch in enumerate(micro_batches):
            seed_generators(step_seed(self.seed, step=self._progress.step, micro=micro, rank=rank()))
            batch = to_device(batch, self.device)
            self._watchdog.at(f"in step {self._progress.step + 1}")
            with self._engine.synchronized(last=micro == len(micro_batches) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    losses = self._engine(batch)
                (losses["loss"] / len(micro_batches)).backward()
            for name, value in losses.items():
                values[name].append(value.detach())
        return {name: torch.stack(parts).mean() for name, parts in values.items()}

    def _update(self, parameters: list[nn.Parameter], grad_norm: Float[Tensor, ""]) -> None:
        if self.config.clip_norm is not None:
            clip_grads_with_norm_(parameters, self.config.clip_norm, grad_norm)
        lr = self._lr(self._progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()

    def _report(
        self, tracker: Tracker | None, micro_batches: list[Batch], losses: dict[str, Tensor], grad_norm: Tensor
    ) -> None:
        """Logs the step if it is time or the update was skipped; raises TrainingError after too many of those."""
        progress, config = self._progress, self.config
        if tracker is not None:
            tracker.advance(progress.step)
        if progress.step % config.log_every and progress.step != config.max_steps and not progress.bad_in_row:
            return
        means = (all_reduce(torch.stack(list(losses.values()))) / world_size()).tolist()
        named, norm = dict(zip(losses, means, strict=True)), grad_norm.item()
        # In the order of the global batch, which any number of processes cuts by micro-batch first.
        ids = [
            n for parts in zip(*gather_objects(_sample_ids(micro_batches)), strict=True) for part in parts for n in part
        ]
        if tracker is not None and progress.bad_in_row:
            tracker.log_skipped(progress.step, losses=named, grad_norm=norm, sample_ids=ids, skipped=progress.skipped)
        elif tracker is not None:
            tracker.log_training(progress.step, losses=named, figures=self._figures(norm, ids))
        if progress.bad_in_row >= config.max_bad_steps:
            self._finish_saving()
            raise TrainingError(
                f"the last {progress.bad_in_row} steps, up to step {progress.step}, had a non-finite loss or gradient:"
                f" losses {named}, gradient norm {norm}; the last good state is {self._good_state}. Lower the learning"
                f" rate, clip gradients, or look at the samples that {self.run_dir / 'metrics.jsonl'} names"
            )

    def _figures(self, grad_norm: float, sample_ids: list[int]) -> dict[str, Any]:
        rows, seconds = self._unreported
        self._unreported = 0, 0.0
        return {
            "lr": self._lr(self._progress.step - 1),
            "grad_norm": grad_norm,
            "samples_per_s": rows / max(seconds, 1e-9),
            "seconds": self._seconds(),
            "samples_seen": self._progress.samples_seen,
            "precision": self.precision,
            "sample_ids_digest": hashlib.sha256(json.dumps(sample_ids).encode()).hexdigest()[:16],
        }

    def _lr(self, step: int) -> float:
        return lr_at(step, base_lr=self.base_lr, max_steps=self.config.max_steps, config=self.schedule)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _evaluate_if_due(self, tracker: Tracker | None) -> None:
        """Evaluates on every process, unless this step's evaluation is already in metrics.jsonl."""
        step, every = self._progress.step, self.config.eval_every
        due = step == self.config.max_steps or (every is not None and step > 0 and step % every == 0)
        if not due or not self.evaluators or _evaluated_step(tracker) == step:
            return
        self._watchdog.at(f"in the evaluation after step {step}", timed=False)
        figures = self._engine.evaluate(self._evaluation)
        if tracker is not None:
            tracker.log_evaluation(step, figures)

    def _evaluation(self, model: nn.Module) -> dict[str, float]:
        """Figures of all evaluators, each of which is progress."""
        figures: dict[str, float] = {}
        for evaluate in self.evaluators:
            self._watchdog.at(f"in the evaluation after step {self._progress.step}", timed=False)
            figures |= evaluate(model)
        return figures

    def _save(self, tracker: Tracker | None) -> None:
        self._progress.seconds = self._seconds()
        self._watchdog.at(f"saving step {self._progress.step}", timed=False)
        self._progress.cursor = self._cursor()
        self._good_state = state_path(self.state_dir, self._progress.step)
        if tracker is not None:
            tracker.flush()  # first, so that a restored state never lacks lines
        self._states.save(self._engine.training_state(self.optimizer), progress=asdict(self._progress))

    def _finish_saving(self) -> None:
        self._watchdog.at("finishing the last save", timed=False)
        self._states.wait()

    def _cursor(self) -> dict[str, Any] | None:
        """The loader's cursor, of all processes."""
        if not isinstance(self.loader, CursorLoader):
            return None
        parts = gather_objects(self.loader.cursor(self._progress.step))
        return {name: value for part in parts for name, value in part.items()}

    def _restore(self) -> bool:
        """Goes to the newest state, if there is one; True if the run has finished."""
        claim_run_folder(self.run_dir, recipe_json=self.recipe_json, write=False)
        # One process chooses, so that all go on from the same state.
        saved = from_main(newest_state(self.state_dir) if is_main() else None)
        if saved is not None:
            self._states.load(saved, self.objective, self.optimizer)
            self._progress, self._good_state = _Progress(**saved.progress), saved.path
            if isinstance(self.loader, CursorLoader):
                self.loader.go_on_from(self._progress.step, self._progress.cursor or {})
            logger.info("%s: going on from %s", self.title, saved.path)
        self._began = time.monotonic() - self._progress.seconds
        finished = self._progress.step >= self.config.max_steps and from_main(self.model_dir.exists())
        if not finished:  # else its settings stay those that it was trained with
            claim_run_folder(self.run_dir, recipe_json=self.recipe_json, write=is_main())
        return finished

    def _open_tracker(self) -> contextlib.AbstractContextManager[Tracker | None]:
        if not is_main():
            return contextlib.nullcontext()
        step, max_steps = self._progress.step, self.config.max_steps
        return Tracker(self.run_dir, step=step, max_steps=max_steps, title=self.title, console=self.console)

    def _result(self, status: Literal["finished", "already_finished", "stopped"]) -> Result:
        progress = self._progress
        return Result(
            status=status,
            steps=progress.step,
            seconds=progress.seconds if status == "already_finished" else self._seconds(),
            samples_seen=progress.samples_seen,
            skipped=progress.skipped,
            metrics={name: value for line in read_metrics(self.run_dir) for name, value in line.items()},
            model_dir=self.model_dir,
        )


def _evaluated_step(tracker: Tracker | None) -> int | None:
    """The last step that was evaluated, as the main process knows it."""
    return from_main(None if tracker is None else tracker.evaluated_step)


def _num_rows(batch: Batch) -> int:
    return next(len(tensor) for tensor in cast(dict[str, Tensor], batch).values() if tensor.ndim > 0)


def _sample_ids(micro_batches: list[Batch]) -> list[list[int]]:
    return [batch["sample_ids"].tolist() for batch in micro_batches if "sample_ids" in batch]
