"""Rows that a model is measured on: what they must be, how a model reads them, how its outputs are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rich.console import Console

from vlmo.data.rows import select_rows
from vlmo.evaluation.inference import map_batches
from vlmo.evaluation.metrics import Metric
from vlmo.progress import Progress
from vlmo.tasks.inputs import Reads
from vlmo.tasks.labels import are_numbers, check_names, names_of_model
from vlmo.tasks.result import Prediction, TaskResult

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.processing import VLMoProcessor


@dataclass(frozen=True)
class EvaluationSet(ABC):
    """Rows of a split that a model is measured on; a task's subclass says how.

    Attributes:
        settings: What the metrics depend on beside model and rows.
    """

    rows: Dataset
    source: str
    split: str
    processor: VLMoProcessor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    task: ClassVar[str]
    hub_task: ClassVar[str] = ""  # Hugging Face's name of the task, or one like it
    batch_size: ClassVar[int] = 256
    reads: ClassVar[Reads] = Reads()  # of valid rows
    default_data: ClassVar[str | None] = None  # measured on if no data are named
    options: ClassVar[tuple[str, ...]] = ()  # of `vlmo.tasks.evaluate`, see `with_options`
    submission: ClassVar[Callable[[Sequence[Prediction]], str] | None] = (
        None  # text of an evaluation server's file
    )

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows of another task and for values out of range, before images are decoded."""
        del rows, source

    @property
    def names(self) -> list[str]:
        """Every class of the set by number, if a model must have the same; ValueError if the rows have none."""
        return []

    def check(self, model: Any) -> None:
        """Raise ValueError if a model does not fit these rows: it has other classes.

        Classes that a model only numbers (LABEL_0 and on, as imported files have them) are compared by their number.
        """
        own = names_of_model(model) if self.names else []
        if not are_numbers(own) or len(own) != len(self.names):
            check_names(own, self.names, owner="the model", source=self.source)

    def with_options(self, model: Any) -> Self:
        """Return the set with its task's `options`, as keywords, for a model; ValueError for one that does not fit."""
        del model
        return self

    def predict(self, model: Any, rows: range) -> Sequence[Any]:
        """Return one output for each of these rows, ready to be sent to another process.

        A subclass implements this, or `outputs` if rows do not go through the model batch by batch.
        """
        raise NotImplementedError

    @abstractmethod
    def metrics(self, outputs: Any) -> list[Metric]:
        """Return the metrics of the outputs of all rows; ValueError if no row has a known answer."""

    def predictions(self, outputs: Any) -> list[Prediction]:
        """Return the outputs as rows for JSON."""
        return outputs

    @classmethod
    def read(
        cls,
        *,
        source: str,
        split: str,
        notes: Path,
        processor: VLMoProcessor | None = None,
        limit: int | None = None,
    ) -> Self:
        """Return the valid rows of a split; invalid rows are listed in `SPLIT.quarantine.jsonl` of the folder `notes`.

        Every process calls this and checks a share of the rows. With `limit`, the first rows only.

        Raises:
            ValueError: The rows are of another task, a value is out of range, or too many rows are invalid.
        """
        from vlmo.data.sources import open_source
        from vlmo.data.validation import filter_invalid_rows

        if limit is not None and limit < 1:
            raise ValueError(
                f"limit is {limit}; give the number of rows to read, from 1 up, or none for all"
            )
        rows = open_source(source, split=split)
        rows = rows if limit is None else select_rows(rows, range(min(limit, len(rows))))
        cls.check_rows(rows, source)
        quarantine = notes / f"{split}.quarantine.jsonl"
        rows = filter_invalid_rows(rows, quarantine=quarantine, shared=True, **cls.reads.of_rows)
        if not len(rows):
            raise ValueError(f"{source}, {split}: no row is valid; see {quarantine}")
        return cls(rows, source=source, split=split, processor=processor)

    def outputs(
        self, model: Any, *, batch_size: int | None = None, console: Console | None = None
    ) -> Any:
        """Return the outputs of all rows, in order. The processes share the rows, and each returns all outputs."""
        batch = batch_size or self.batch_size
        batches = self.map(
            lambda rows: self.predict(model, rows), model, batch=batch, console=console
        )
        return [output for outputs in batches for output in outputs]

    def map(
        self, run: Callable[[range], Any], model: Any, *, batch: int, console: Console | None
    ) -> list[Any]:
        """Return `run` of each batch of rows, in order, with a progress bar; see `map_batches`."""
        with Progress(console) as progress:
            title = f"evaluating {self.task}, {self.split}"
            total = len(self.rows)
            return map_batches(
                run, total, model=model, batch=batch, title=title, report=progress.update
            )

    def result(self, outputs: Any) -> TaskResult:
        """Return metrics and predictions of such outputs, whichever model they are from."""
        return replace(self.result_of(self.metrics(outputs)), predictions=self.predictions(outputs))

    def result_of(self, measured: list[Metric]) -> TaskResult:
        """Return a result with these metrics of the set."""
        return TaskResult(
            self.task,
            self.source,
            self.split,
            measured,
            settings=self.settings,
            hub_task=self.hub_task,
        )
