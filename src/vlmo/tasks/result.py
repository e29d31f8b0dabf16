"""Metrics of a task with chance beside them, and the predictions that they were computed from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult
from rich.table import Table

from vlmo.data.listing import source_names
from vlmo.evaluation.metrics import Metric
from vlmo.folder.atomic import write_file
from vlmo.folder.card import add_metrics
from vlmo.released.published import NamedModel
from vlmo.terminal import escaped
from vlmo.training import read_metrics

Prediction = dict[str, Any]
"""One row of an evaluation, ready for JSON: an identifier, the prediction and, where known, the right answer."""
_PACKAGES = ("vlmo", "torch", "transformers", "datasets")


def data_name(source: str) -> str:
    """Return the name of a source for cards and files: a built-in name, or the last part of a path; of several, all."""
    from vlmo.data import builtin

    parts = source_names(source)
    return " + ".join(
        each if each in builtin.SETS else Path(each).expanduser().absolute().name for each in parts
    )


@dataclass(frozen=True)
class TaskResult:
    """Metrics of a model folder on one split of a data set.

    Attributes:
        source: The data, a built-in name or a path.
        measured: The metrics, in the order in which they are shown.
        predictions: A row for each example, with its identifier.
        settings: Other settings that the metrics depend on, such as the length of a shortlist.
        published: The model, if it is a published one, with the values that its publication reports.
    """

    task: str
    source: str
    split: str
    measured: list[Metric]
    predictions: list[Prediction] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    hub_task: str = ""
    published: NamedModel | None = None

    def __getitem__(self, name: str) -> Metric:
        """Return a metric by its name; KeyError for one that was not measured."""
        return {each.name: each for each in self.measured}[name]

    @property
    def metrics(self) -> dict[str, float]:
        """Values by name."""
        return {each.name: each.value for each in self.measured}

    @property
    def chance(self) -> dict[str, float]:
        """Values of a guess by name, as far as they are known."""
        return {each.name: each.chance for each in self.measured if each.chance is not None}

    def table(self) -> Table:
        """Return metrics in percent, with 95 % interval, published values, chance and meaning beside each."""
        rows = f"{len(self.predictions)} rows, percent"
        table = Table(
            "", title=escaped(f"{self.task}, {data_name(self.source)} {self.split}, {rows}")
        )
        model = self.published if self.published and self.published.reported else None
        for header in ("model", "95 %", *(["published"] if model else []), "chance"):
            table.add_column(header, justify="right")
        table.add_column("meaning")
        if model:
            table.caption = f"published: {model.data}, {model.source}"
        for each in self.measured:
            ends = " to ".join(f"{100 * end:.1f}" for end in each.interval or ())
            chance = "" if each.chance is None else f"{100 * each.chance:.1f}"
            cells = [
                f"{100 * each.value:.1f}",
                ends,
                *([model.published(each.name)] if model else []),
                chance,
            ]
            table.add_row(escaped(each.label or each.name), *cells, escaped(each.meaning))
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
            "intervals": {each.name: each.interval for each in self.measured if each.interval},
            "meanings": {each.name: each.meaning for each in self.measured if each.meaning},
            "settings": self.settings,
            "published": asdict(self.published) if self.published else None,
            "num_predictions": len(self.predictions),
            **circumstances(folder),
        }
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        if predictions:
            rows = ",\n  ".join(
                json.dumps(row, ensure_ascii=False, allow_nan=False) for row in self.predictions
            )
            text = (
                text.removesuffix("\n}") + f',\n "predictions": [\n  {rows}\n ]\n}}'
            )  # a row a line
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text + "\n")
        return path

    def measurements(self, *, measured_by: str) -> list[EvalResult]:
        """Return the metrics in the hub's form, as a model card shows them: in percent, dated today."""
        data = data_name(self.source)
        today = datetime.date.today().isoformat()
        return [
            EvalResult(
                task_type=self.hub_task,
                dataset_type=data,
                dataset_name=data,
                dataset_split=self.split,
                metric_type=each.name,
                metric_name=each.label or each.name,
                metric_value=round(100 * each.value, 2),
                metric_args={
                    "unit": "percent",
                    **(
                        {"interval": [round(100 * end, 1) for end in each.interval]}
                        if each.interval
                        else {}
                    ),
                    **({} if each.chance is None else {"chance": round(100 * each.chance, 2)}),
                    "meaning": each.meaning,
                    "measured_by": measured_by,
                    "date": today,
                },
            )
            for each in self.measured
        ]

    def write_card(self, folder: str | Path, *, measured_by: str) -> Path:
        """Put the metrics into the card of a model folder; the rest stays."""
        return add_metrics(folder, self.measurements(measured_by=measured_by))


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
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        "hardware": {
            "cpu": model[1] if model else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _commit() -> str | None:
    git = shutil.which("git")
    root = Path(__file__).parents[3]
    if git is None or not (root / ".git").exists():
        return None
    describe = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return (
        subprocess.run(
            describe, cwd=root, capture_output=True, text=True, check=False
        ).stdout.strip()
        or None
    )
