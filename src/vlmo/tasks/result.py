"""Metrics of a task with chance beside them, and the predictions that they were computed from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from rich.table import Column, Table

from vlmo.data.listing import source_names
from vlmo.evaluation.metrics import Metric
from vlmo.folder.atomic import write_file
from vlmo.folder.card import add_metrics
from vlmo.released.published import NamedModel
from vlmo.terminal import escaped
from vlmo.training import read_metrics

Json = dict[str, Any]
"""A JSON object."""
Prediction = Json
"""One row of an evaluation, ready for JSON: identifier, prediction and, if known, the answer."""
_PACKAGES = ("vlmo", "torch", "transformers", "datasets")


def data_name(source: str) -> str:
    """Return the name of a source for cards and files: of a built-in set, or of a file or folder.

    Joined sources give all their names.
    """
    # A built-in name is its own last part.
    paths = [Path(part).expanduser().absolute() for part in source_names(source)]
    return " + ".join(path.name for path in paths)


@dataclass(frozen=True)
class TaskResult:
    """Metrics of a model folder on one split of a data set.

    Attributes:
        source: The data, a built-in name or a path.
        measured: The metrics, in the order in which they are shown.
        predictions: A row for every example, with its identifier.
        settings: Other settings that the metrics depend on, such as the length of a shortlist.
        published: The model, if it is a published one, with its published values.
    """

    task: str
    source: str
    split: str
    measured: list[Metric]
    predictions: list[Prediction] = field(default_factory=list)
    settings: Json = field(default_factory=dict)
    hub_task: str = ""
    published: NamedModel | None = None

    def __getitem__(self, name: str) -> Metric:
        """Return a metric by its name; KeyError for one that was not measured."""
        return {metric.name: metric for metric in self.measured}[name]

    @property
    def metrics(self) -> dict[str, float]:
        """Values by name."""
        return {metric.name: metric.value for metric in self.measured}

    @property
    def chance(self) -> dict[str, float]:
        """Values of a guess by name, as far as they are known."""
        return {metric.name: metric.chance for metric in self.measured if metric.chance is not None}

    def table(self) -> Table:
        """Return metrics in percent, with 95 % interval, published values, chance and meaning."""
        table = Table("", Column("model", justify="right"), Column("95 %", justify="right"))
        data = f"{data_name(self.source)} {self.split}"
        table.title = escaped(f"{self.task}, {data}, {len(self.predictions)} rows, percent")
        model = self.published
        if model and model.reported:
            table.add_column("published", justify="right")
            table.caption = f"published: {model.data}, {model.source}"
        table.add_column("chance", justify="right")
        table.add_column("meaning")
        for metric in self.measured:
            # Metrics without a number of examples have no interval.
            interval = " to ".join(map(_percent, metric.interval or ()))
            cells = [escaped(metric.label or metric.name), _percent(metric.value), interval]
            if model and model.reported:
                cells.append(model.published(metric.name))
            table.add_row(*cells, _percent(metric.chance), escaped(metric.meaning))
        return table

    def write_json(
        self,
        path: str | Path,
        *,
        folder: str | Path,
        predictions: bool = True,
        facts: Json | None = None,
    ) -> Path:
        """Write metrics, predictions and all that is needed to compute the metrics again.

        Of a folder in a run folder, the run's recipe is written too; without `predictions` only to
        keep the file small; `facts` are further fields.
        """
        content = {
            "task": self.task,
            "data": data_name(self.source),
            "split": self.split,
            "metrics": self.metrics,
            "chance": self.chance,
            "intervals": {metric.name: metric.interval for metric in self.measured if metric.n},
            "meanings": {metric.name: metric.meaning for metric in self.measured if metric.meaning},
            "settings": self.settings,
            "published": asdict(self.published) if self.published else None,
            "num_predictions": len(self.predictions),
            **circumstances(folder),
            **(facts or {}),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        if predictions:
            # One row a line, which JSON's own indentation cannot do.
            rows = [
                json.dumps(row, ensure_ascii=False, allow_nan=False) for row in self.predictions
            ]
            text = text.removesuffix("\n}") + ',\n "predictions": [\n  '
            text += ",\n  ".join(rows) + "\n ]\n}"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text + "\n")
        return path

    def measurements(self, *, measured_by: str) -> list[EvalResult]:
        """Return the metrics as model cards show them: in percent, dated today."""
        data = data_name(self.source)
        today = datetime.date.today().isoformat()
        results = []
        for metric in self.measured:
            details: Json = {"unit": "percent"}
            if metric.interval:
                details["interval"] = [round(100 * end, 1) for end in metric.interval]
            if metric.chance is not None:
                details["chance"] = round(100 * metric.chance, 2)
            # Model cards of the hub have no field for these.
            details |= {"meaning": metric.meaning, "measured_by": measured_by, "date": today}
            result = EvalResult(
                task_type=self.hub_task,
                dataset_type=data,
                dataset_name=data,
                dataset_split=self.split,
                metric_type=metric.name,
                metric_name=metric.label or metric.name,
                metric_value=round(100 * metric.value, 2),
                metric_args=details,
            )
            results.append(result)
        return results

    def write_card(self, folder: str | Path, *, measured_by: str) -> Path:
        """Put the metrics into the card of a model folder; the rest stays."""
        return add_metrics(folder, self.measurements(measured_by=measured_by))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def circumstances(folder: str | Path) -> Json:
    """Return what a result depends on, ready for JSON.

    These are the model folder, recipe and wall time of its run, commit, versions, machine and date.
    """
    folder = Path(folder).absolute()
    # The model folder of a run lies in its run folder.
    recipe = folder.parent / "recipe.json"
    training = None
    for line in read_metrics(folder.parent):
        if "seconds" in line:
            training = {"step": line["step"], "seconds": line["seconds"]}
    return {
        # Enough to tell runs apart, without the paths of a machine.
        "model": "/".join(folder.parts[-3:]).lstrip("/"),
        "recipe": json.loads(recipe.read_text()) if recipe.is_file() else None,
        # Step and wall time of the last logged line.
        "training": training,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _cpu_name() -> str:
    # Python itself does not know the name on Linux.
    file = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", file.read_text()) if file.exists() else None
    return model[1] if model else platform.machine()


def _commit() -> str | None:
    """Return the commit of a checkout, with changes "-dirty" behind it; None for packages."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    # All tags are excluded: the name is that of the commit itself.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return described.stdout.strip() or None
