"""Rows that a model is measured on: what they must be, how a model reads them, how its outputs are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from huggingface_hub import EvalResult
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from vlmo.data.examples import Examples
from vlmo.data.rows import SUMMARY_FILE, select_rows
from vlmo.evaluation.inference import map_batches
from vlmo.processing import TransformConfig, eval_transform
from vlmo.progress import Progress
from vlmo.tasks.result import Prediction, TaskResult
from vlmo.types import normalize_pixels

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.processing import VLMoProcessor


@dataclass(frozen=True)
class EvaluationSet(ABC):
    """Rows of a split that a model is measured on.

    A task's subclass says how a model reads rows, and how its outputs are scored. A training run calls the set itself
    to measure its model.
    """

    rows: Dataset
    source: str
    split: str
    processor: VLMoProcessor | None = None

    task: ClassVar[str]
    hub_task: ClassVar[str] = ""
    batch_size: ClassVar[int] = 256
    meanings: ClassVar[dict[str, str]] = {}
    """A sentence about each metric."""
    needs: ClassVar[dict[str, Any]] = {"needs_caption": False}
    """Conditions of valid rows, as in `filter_invalid_rows`."""

    @classmethod
    def read(
        cls,
        source: str,
        *,
        split: str,
        quarantine: Path,
        processor: VLMoProcessor | None = None,
        limit: int | None = None,
    ) -> Self:
        """Return the valid rows of a split; invalid rows are listed in `quarantine`.

        Every process calls this and checks a share of the rows.

        Args:
            limit: Read the first rows only.

        Raises:
            ValueError: The rows are of another task, a value is out of range, or too many rows are invalid.
        """
        from vlmo.data.sources import open_source
        from vlmo.data.validation import filter_invalid_rows

        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; give the number of rows to read, from 1 up, or none for all")
        rows = open_source(source, split=split)
        rows = rows if limit is None else select_rows(rows, range(min(limit, len(rows))))
        cls.check_rows(rows, source)
        rows = filter_invalid_rows(rows, quarantine=quarantine, shared=True, **cls.needs)
        if not len(rows):
            raise ValueError(f"{source}, {split}: no row is valid; see {quarantine}")
        return cls(rows, source=source, split=split, processor=processor)

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows of another task and for values out of range, before images are decoded."""
        del rows, source

    @classmethod
    def classes(cls, rows: Dataset, source: str) -> list[str] | None:
        """Return the classes of rows by number, if a model must have the same; ValueError if the rows have none."""
        del rows, source
        return None

    @property
    def names(self) -> list[str]:
        """Every class of the set."""
        return self.classes(self.rows, self.source) or []

    def predict(self, model: Any, rows: range) -> Sequence[Any]:
        """Return one output for each of these rows, ready to be sent to another process.

        A subclass implements this, or `outputs` if rows do not go through the model batch by batch.
        """
        raise NotImplementedError

    @abstractmethod
    def metrics(self, outputs: Any) -> dict[str, float]:
        """Return the metrics of the outputs of all rows, fractions; ValueError if no row has a known answer."""

    @abstractmethod
    def chance(self, outputs: Any = None) -> dict[str, float]:
        """Return the metrics of a guess that reads no input, as far as they are known without `outputs`."""

    def num_examples(self, metric: str) -> int | None:
        """Return the number of examples whose mean score, each in [0, 1], a metric is; None for another metric."""
        del metric

    def meaning(self, metric: str) -> str:
        """Return a sentence about a metric; empty for one that needs none."""
        return self.meanings.get(metric, "")

    def label(self, metric: str) -> str:
        """Return the display name of a metric."""
        return metric

    def predictions(self, outputs: Any) -> list[Prediction]:
        """Return the outputs as rows for JSON."""
        return outputs

    def settings(self) -> dict[str, Any]:
        """Return the settings that the metrics depend on."""
        return {}

    def check(self, model: Any) -> None:
        """Raise ValueError if a model does not fit these rows: it has other classes.

        Classes that a model only numbers (LABEL_0 and on, as imported files have them) are compared by their number.
        """
        own = names_of_model(model) if self.names else []
        if not are_numbers(own) or len(own) != len(self.names):
            check_names(own, self.names, owner="the model", source=self.source)

    def outputs(self, model: Any, *, batch_size: int | None = None, console: Console | None = None) -> Any:
        """Return the outputs of all rows, in order. The processes share the rows, and each returns all outputs.

        Args:
            batch_size: Rows that go through the model at a time.
            console: Shows a progress bar; None shows nothing.
        """
        batch = batch_size or self.batch_size
        batches = self.map(lambda rows: self.predict(model, rows), model, batch=batch, console=console)
        return [output for outputs in batches for output in outputs]

    def map(self, run: Callable[[range], Any], model: Any, *, batch: int, console: Console | None) -> list[Any]:
        """Return `run` of each batch of rows, in order, with a progress bar; see `map_batches`."""
        with Progress(console) as progress:
            title, total = f"evaluating {self.task}, {self.split}", len(self.rows)
            return map_batches(run, total, model=model, batch=batch, title=title, report=progress.update)

    def result(self, outputs: Any) -> TaskResult:
        """Return metrics and predictions of such outputs, whichever model they are from."""
        metrics, chance = self.metrics(outputs), self.chance(outputs)
        return self._result(metrics, chance, predictions=self.predictions(outputs))

    def _result(
        self, metrics: Mapping[str, float], chance: dict[str, float], *, predictions: Sequence[Prediction] = ()
    ) -> TaskResult:
        return TaskResult(
            task=self.task,
            source=self.source,
            split=self.split,
            metrics=dict(metrics),
            chance=chance,
            meanings={metric: meaning for metric in metrics if (meaning := self.meaning(metric))},
            names={metric: self.label(metric) for metric in metrics},
            examples={name: count for name in metrics if (count := self.num_examples(name)) is not None},
            predictions=list(predictions),
            settings=self.settings(),
            hub_task=self.hub_task,
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model in training as "SPLIT/METRIC", without those of parts (`metric[part]`)."""
        metrics = self.metrics(self.outputs(model))
        return {f"{self.split}/{name}": value for name, value in metrics.items() if "[" not in name}

    def logged(self, line: Mapping[str, Any]) -> dict[str, float]:
        """Return the metrics of this set in a line of metrics.jsonl."""
        start = f"{self.split}/"
        return {name.removeprefix(start): value for name, value in line.items() if name.startswith(start)}

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[EvalResult]:
        """Return metrics that this set gave, as a model card shows them."""
        return self._result(metrics, self.chance()).measurements(measured_by=measured_by)


def check_task(dataset: Dataset, features: Iterable[str], *, task: str) -> None:
    """Raise ValueError if rows lack a column of the task's `features`."""
    missing = [name for name in features if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"these rows are no {task}: they lack {', '.join(missing)} (there are {', '.join(dataset.column_names)}). "
            "Give own data of that form (docs/data.md), a set of vlmo data prepare, or another task"
        )


def check_names(own: Sequence[str], names: Sequence[str], *, owner: str, source: str) -> None:
    """Raise ValueError unless the classes of `owner` (a model, or other data) are those of the data `source`."""
    if list(own) != list(names):
        first, second = (f"{', '.join(each[:5])}{', ...' if len(each) > 5 else ''}" for each in (own, names))
        raise ValueError(
            f"{owner} has {len(own)} classes ({first}), {source} has {len(names)} ({second}); they must be the same, "
            "in the same order"
        )


def names_of_source(source: str) -> list[str]:
    """Return the answers or classes of a source in the order of their numbers; ValueError if it has none."""
    from vlmo.data import builtin
    from vlmo.data.own import own_labels
    from vlmo.data.prepare import labels_of

    if builtin.is_built_in(source):
        return builtin.labels(source)
    path = Path(source).expanduser()
    return labels_of(path) if (path / SUMMARY_FILE).is_file() else own_labels(path)


def are_numbers(names: Sequence[str]) -> bool:
    """Return True for classes that are only numbered, as in imported files that do not name them."""
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]


def names_of_model(model: Any) -> list[str]:
    """Return the answers or classes of a model, in the order of their numbers."""
    names: dict[int, str] = model.config.id2label
    return [names[number] for number in range(len(names))]


def eval_options(processor: VLMoProcessor | None) -> dict[str, Any]:
    """Return the arguments of `RowExamples` that make it read as in evaluation."""
    assert processor is not None  # every set of a task that reads text is given one
    transform = eval_transform(TransformConfig(image_size=processor.image_size))
    return {"transform": transform, "tokenizer": processor.tokenizer, "seed": 0}


def pair_logits(model: Any, examples: Examples) -> Float[Tensor, "rows classes"]:
    """Return a fusion encoder's logits of all examples, as one batch, float32 on the CPU; ValueError for NaN."""
    batch = examples.collate([examples[0, row] for row in range(len(examples))])
    logits = model(
        pixel_values=normalize_pixels(batch["pixel_values"]).to(model.device),
        input_ids=batch["input_ids"].to(model.device),
        attention_mask=batch["attention_mask"].to(model.device),
    ).logits
    logits = logits.float().cpu()
    if logits.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    return logits
