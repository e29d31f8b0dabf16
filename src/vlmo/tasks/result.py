"""Metrics of a task with chance beside them, and the predictions that they were computed from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from rich.table import Table

from vlmo.data.listing import source_names
from vlmo.folder.atomic import write_file
from vlmo.folder.card import Usage, add_metrics, identifier
from vlmo.terminal import escaped
from vlmo.training import read_metrics

Prediction = dict[str, Any]
"""One row of an evaluation, ready for JSON: an identifier, the prediction and, where known, the right answer."""
_PACKAGES = ("vlmo", "torch", "transformers", "datasets")


def data_name(source: str) -> str:
    """Return the name of a source for cards and files: a built-in name, or the last part of a path; of several, all."""
    from vlmo.data.builtin import is_built_in

    return " + ".join(
        part.partition(":")[0] if is_built_in(part) else Path(part).expanduser().absolute().name
        for part in source_names(source)
    )


@dataclass(frozen=True)
class TaskResult:
    """Metrics of a model folder on one split of a data set.

    Attributes:
        source: The data, a built-in name or a path.
        metrics: Fractions by name, in the order in which they are shown.
        chance: Metrics of a guess that reads no input, by the same names; a name may be missing.
        meanings: A sentence for each metric.
        names: Display names of metrics.
        examples: Number of examples whose mean score, each in [0, 1], a metric is; of other metrics nothing.
        predictions: A row for each example, with its identifier.
        settings: Other settings that the metrics depend on, such as the length of a shortlist.
        hub_task: Hugging Face's name of the task, or one like it.
    """

    task: str
    source: str
    split: str
    metrics: dict[str, float]
    chance: dict[str, float] = field(default_factory=dict)
    meanings: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    hub_task: str = ""

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of these metrics (Wilson's score interval of independent examples).

        Too wide where examples may be partly right, too narrow where they share captions, sentences or images.
        """
        return {name: score_interval(self.metrics[name], count) for name, count in self.examples.items()}

    def table(self, *, reported: Sequence[tuple[str, str, float]] = ()) -> Table:
        """Return metrics in percent, with 95 % interval, chance and meaning beside each.

        Args:
            reported: Split, metric and percent of results in the paper. Those of this split, or else of the first with
                such a metric, are shown with the difference.
        """
        splits = [split for split, metric, _ in reported if metric in self.metrics]
        shown = self.split if self.split in splits else next(iter(splits), None)
        paper = {metric: percent for split, metric, percent in reported if split == shown}
        rows = f"{len(self.predictions)} rows, percent"
        table = Table("", title=escaped(f"{self.task}, {data_name(self.source)} {self.split}, {rows}"))
        intervals = self.intervals
        for header in (
            "model",
            *(["95 %"] if intervals else []),
            *([f"paper, {shown}", "difference"] if shown else []),
            "chance",
        ):
            table.add_column(header, justify="right")
        table.add_column("meaning")
        for name, value in self.metrics.items():
            numbers = [f"{100 * value:.1f}"]
            if intervals:
                numbers.append(" to ".join(f"{100 * end:.1f}" for end in intervals.get(name, ())))
            if shown:
                known = name in paper
                numbers += [f"{paper[name]:.1f}", f"{100 * value - paper[name]:+.1f}"] if known else ["", ""]
            numbers.append(f"{100 * self.chance[name]:.1f}" if name in self.chance else "")
            table.add_row(escaped(self.names.get(name, name)), *numbers, escaped(self.meanings.get(name, "")))
        return table

    def write_json(self, path: str | Path, *, folder: str | Path, predictions: bool = True) -> Path:
        """Write metrics, predictions and all that they depend on: everything needed to compute the metrics again.

        Of a folder in a run folder, the run's recipe is written too; without `predictions` only to keep the file small.
        """
        content = {
            "task": self.task,
            "data": data_name(self.source),
            "split": self.split,
            "metrics": self.metrics,
            "chance": self.chance,
            "intervals": self.intervals,
            "meanings": self.meanings,
            "settings": self.settings,
            "num_predictions": len(self.predictions),
            **circumstances(folder),
        }
        text = _json(content, indent=1)
        if predictions:
            rows = ",\n  ".join(_json(row) for row in self.predictions)  # a row a line, however many cells it has
            text = text.removesuffix("\n}") + f',\n "predictions": [\n  {rows}\n ]\n}}'
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text + "\n")
        return path

    def measurements(self, *, measured_by: str) -> list[EvalResult]:
        """Return the metrics in the hub's form, as a model card shows them: in percent, dated today."""
        data, intervals, found = data_name(self.source), self.intervals, []
        for metric, value in self.metrics.items():
            facts: dict[str, Any] = {"unit": "percent"}
            if metric in intervals:
                facts["interval"] = [round(100 * end, 1) for end in intervals[metric]]
            if metric in self.chance:
                facts["chance"] = round(100 * self.chance[metric], 2)
            facts |= {"meaning": self.meanings.get(metric, ""), "measured_by": measured_by}
            result = EvalResult(
                task_type=self.hub_task,
                dataset_type=identifier(data),
                dataset_name=data,
                dataset_split=self.split,
                metric_type=metric,
                metric_name=self.names.get(metric, metric),
                metric_value=round(100 * value, 2),
                metric_args=facts | {"date": datetime.date.today().isoformat()},
            )
            found.append(result)
        return found

    def write_card(self, folder: str | Path, *, measured_by: str, usage: Usage | None = None) -> Path:
        """Put the metrics into the card of a model folder; the rest stays. A new card gets `usage`."""
        return add_metrics(folder, self.measurements(measured_by=measured_by), usage=usage)


def score_interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share of `count` independent examples."""
    spread = 1.959964**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = (spread * share * (1 - share) + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def circumstances(folder: str | Path) -> dict[str, Any]:
    """Return model folder, recipe and wall time of its run, commit, versions, machine and date, ready for JSON."""
    folder = Path(folder).absolute()
    recipe = folder.parent / "recipe.json"
    trained = [line for line in read_metrics(folder.parent) if "seconds" in line]
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    return {
        "model": "/".join(folder.parts[-3:]).lstrip("/"),
        "recipe": json.loads(recipe.read_text()) if recipe.is_file() else None,
        "training": {name: trained[-1][name] for name in ("step", "seconds")} if trained else None,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "hardware": {
            "cpu": model[1] if model else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def _commit() -> str | None:
    """Return the commit of this package's checkout; None for an installed package, in any checkout."""
    git, folder = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None
    listed = [git, "ls-files", "--error-unmatch", Path(__file__).parents[1] / "__init__.py"]
    if subprocess.run(listed, cwd=folder, capture_output=True, check=False).returncode:
        return None
    describe = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=False).stdout.strip() or None
