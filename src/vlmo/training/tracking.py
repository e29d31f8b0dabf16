"""How a run is followed: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmo.folder import write_file

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
# Without a terminal, a line this often (seconds) shows that the run is alive without filling a log file.
LINE_EVERY_S = 30.0


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, oldest first, up to one that a crash cut off."""
    path = Path(run_dir) / METRICS
    lines = []
    for line in path.read_text(errors="replace").split("\n") if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class Tracker:
    """Writes what the run reports; a context. Lines after `step`, left by a run that was cut off, are removed.

    A step that was trained has a line with "loss", or with "skipped" if its update was skipped; an evaluation has a
    line of its own with "val/..." names. Every line has "step", the number of finished steps.

    Args:
        step: Finished steps in the state that the run goes on from.
        title: Stands before the bar.
        console: Shows a bar if it is a terminal, log lines otherwise; None shows nothing.
    """

    def __init__(self, run_dir: Path, *, step: int, max_steps: int, title: str, console: Console | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only there with the extra `train`

        path = run_dir / METRICS
        kept = [line for line in read_metrics(run_dir) if line["step"] <= step]
        run_dir.mkdir(parents=True, exist_ok=True)
        write_file(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.evaluated_step = max((line["step"] for line in kept if _is_evaluation(line)), default=0)
        """Newest step whose evaluation is in metrics.jsonl."""
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._title, self._max_steps, self._last_line_at = title, max_steps, time.monotonic()
        self._logs_lines = console is not None and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, completed=step, total=max_steps, figures="")

    def __enter__(self) -> Tracker:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()
        self._tensorboard.close()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def log_training(self, step: int, *, losses: Mapping[str, float], figures: Mapping[str, Any]) -> None:
        """One line for a step, and its losses beside the bar; `figures` needs "samples_per_s"."""
        self._write(step, {**losses, **figures}, prefix="train/")
        shown = " ".join(f"{name} {value:.4g}" for name, value in losses.items())
        shown = f"{shown} | {figures['samples_per_s']:.4g} samples/s"
        self._bar.update(self._task, figures=shown)
        if self._logs_lines and (time.monotonic() - self._last_line_at >= LINE_EVERY_S or step == self._max_steps):
            self._last_line_at = time.monotonic()
            logger.info("%s: step %d of %d, %s", self._title, step, self._max_steps, shown)

    def log_skipped(
        self, step: int, *, losses: Mapping[str, float], grad_norm: float, sample_ids: Sequence[int], skipped: int
    ) -> None:
        """One line for a step whose update was skipped; `skipped` counts them since the start of the run."""
        figures = {"losses": {name: _readable(value) for name, value in losses.items()}}
        self._write(
            step,
            {"skipped": skipped, **figures, "grad_norm": _readable(grad_norm), "sample_ids": list(sample_ids)},
            prefix="train/",
        )
        logger.warning(
            "%s: step %d was skipped: losses %s, gradient norm %g, samples %s",
            *(self._title, step, dict(losses), grad_norm, list(sample_ids)),
        )

    def log_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """One line for an evaluation; names that do not start with "val/" are given that start."""
        figures = {name if name.startswith("val/") else f"val/{name}": value for name, value in figures.items()}
        self._write(step, figures, prefix="")
        self.evaluated_step = step
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("%s: step %d, %s", self._title, step, shown)

    def flush(self) -> None:
        """Returns when every line has reached the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._tensorboard.flush()

    def _write(self, step: int, figures: Mapping[str, Any], *, prefix: str) -> None:
        line = {name: _readable(value) for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            if isinstance(value, (int, float)):
                self._tensorboard.add_scalar(prefix + name, value, step)


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return any(name.startswith("val/") for name in line)


def _readable(value: Any) -> Any:
    """`value`, or its name if it is a number that JSON does not have."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
