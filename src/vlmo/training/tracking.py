"""Record of a run: metrics.jsonl, TensorBoard and progress."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from vlmo.folder import JsonObject
from vlmo.folder.atomic import write_file
from vlmo.progress import Progress

METRICS = "metrics.jsonl"
# Without a terminal, a line this often (seconds) shows that the run is alive without filling a log file.
LINE_EVERY_S = 30.0


def read_metrics(run_dir: str | Path) -> list[JsonObject]:
    """Return the lines of a run's metrics.jsonl, oldest first, up to one that a crash cut off, or that is none."""
    path = Path(run_dir) / METRICS
    lines = []
    for line in path.read_text(errors="replace").split("\n") if path.exists() else []:
        try:
            metrics = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(metrics, dict) or not isinstance(metrics.get("step"), int):
            break
        lines.append(metrics)
    return lines


class _EventFile:
    """TensorBoard's file of a run, written without its thread: a full disk is an error of the write itself."""

    def __init__(self, folder: Path, *, step: int) -> None:
        # slow to import, and only there with the extra `train`
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Its names are made when it is imported.
        messages: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names, also where the clock was set back between two starts.
        stamps = [file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")]
        last = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
        stamp = max(time.time_ns(), last + 1)
        self.file = (folder / f"events.out.tfevents.{stamp}.{os.getpid()}").open("wb")
        self._record = RecordWriter(self.file)
        self._event = messages.Event
        self.add(file_version="brain.Event:2")
        self.add(step=step, session_log=messages.SessionLog(status=messages.SessionLog.START))

    def add(self, **fields: Any) -> None:
        self._record.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self.file.flush()


class Tracker:
    """Writer of what the run reports; a context. Lines after `step`, left by a run that was cut off, are removed.

    A step that was trained has a line with "loss", or with "skipped" if its update was skipped; an evaluation has a
    line of its own with names such as "test/ir@1", the split before the metric. Every line has "step", the number of
    finished steps.

    Args:
        step: Finished steps in the state that the run goes on from.
    """

    def __init__(
        self, run_dir: Path, *, step: int, max_steps: int, title: str, console: Console | None
    ) -> None:
        path = run_dir / METRICS
        # Lines of steps that the newest state lacks will be written again.
        kept = [line for line in read_metrics(run_dir) if line["step"] <= step]
        run_dir.mkdir(parents=True, exist_ok=True)
        write_file(path, "".join(json.dumps(line) + "\n" for line in kept))
        evaluated = [line["step"] for line in kept if any("/" in name for name in line)]
        self.evaluated_step = max(evaluated, default=0)
        """Newest step whose evaluation is in metrics.jsonl."""
        self.losses = ""
        """Text about the last step that was logged, for the progress line."""
        self._file = path.open("a")
        self._tensorboard = _EventFile(run_dir / "tensorboard", step=step + 1)
        self._title = title
        self._max_steps = max_steps
        self._progress = Progress(console, line_every_s=LINE_EVERY_S)
        self.advance(step)

    def __enter__(self) -> Tracker:
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()
        self._file.close()
        self._tensorboard.file.close()

    def advance(self, step: int) -> None:
        """Show how many steps are finished."""
        self._progress.update(self._title, step, self._max_steps, note=self.losses)

    def log(self, step: int, values: Mapping[str, object], *, prefix: str = "") -> None:
        """Write the line of a step or of an evaluation; TensorBoard's names have `prefix` before them."""
        self._file.write(json.dumps({"step": step, **_for_json(values)}) + "\n")
        self._file.flush()
        # Text and lists have no curve.
        scalars = [
            {"tag": prefix + name, "simple_value": value}
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._tensorboard.add(step=step, summary={"value": scalars})
        if any("/" in name for name in values):
            self.evaluated_step = step

    def flush(self) -> None:
        """Return when every line has reached the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _for_json(each) for name, each in value.items()}
    # JSON has no NaN and no infinity.
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
