"""Rows that a model is measured on, how it reads them, and how its outputs are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rich.console import Console
from torch import nn

from vlmo.data.rows import select_rows
from vlmo.evaluation.inference import Result, map_batches
from vlmo.evaluation.metrics import Metric
from vlmo.progress import Progress
from vlmo.tasks.inputs import Reads
from vlmo.tasks.labels import are_numbers, check_names, names_of_model
from vlmo.tasks.result import Json, Prediction, TaskResult

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoPreTrainedModel


@dataclass(frozen=True)
class EvaluationSet(ABC):
    """Rows of a split that a model is measured on; subclasses are in the files of their tasks.

    Attributes:
        processor: Of images alone for a task without texts.
        settings: Other settings that the metrics depend on.
    """

    rows: Dataset
    source: str
    split: str
    processor: Any = None
    settings: Json = field(default_factory=dict)

    task: ClassVar[str]
    # Hugging Face's name of the task, or one like it.
    hub_task: ClassVar[str] = ""
    batch_size: ClassVar[int] = 256
    # Requirements of valid rows.
    reads: ClassVar[Reads] = Reads()
    # Measured on if no data are named.
    default_data: ClassVar[str | None] = None
    # Share of the images of data without splits that are `test`.
    test_share: ClassVar[float] = 0.05
    # Options of `vlmo.tasks.evaluate`, which `with_options` takes.
    options: ClassVar[tuple[str, ...]] = ()
    # Returns the text of an evaluation server's file.
    submission: ClassVar[Callable[[Sequence[Prediction]], str] | None] = None

    @classmethod
    def check_rows(cls, rows: Dataset, source: str) -> None:
        """Raise ValueError for rows of another task or values out of range, before decoding."""
        del rows, source

    @property
    def names(self) -> list[str]:
        """All classes by number, if a model must have the same; ValueError for rows without."""
        return []

    def check(self, model: VLMoPreTrainedModel) -> None:
        """Raise ValueError if a model does not fit these rows: it has other classes.

        Classes that a model only numbers (LABEL_0 and on, as imported files have them) are compared
        by their number.
        """
        names = self.names
        # Answers and captions need no classes in common.
        if not names:
            return
        model_names = names_of_model(model)
        if not are_numbers(model_names) or len(model_names) != len(names):
            check_names(model_names, names, owner="the model", source=self.source)

    def with_options(self, _model: nn.Module) -> Self:
        """Return the set with its task's `options` for a model; ValueError for unfit ones."""
        return self

    def predict(self, model: nn.Module, rows: range) -> Sequence[Any]:
        """Return an output for these rows in order, ready to be sent to another process.

        A subclass implements this, or `outputs` if rows do not go through the model in batches.
        """
        raise NotImplementedError

    @abstractmethod
    def metrics(self, outputs: Any) -> list[Metric]:
        """Return the metrics of the outputs of all rows; ValueError without known answers."""

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
        processor: Any = None,
        limit: int | None = None,
    ) -> Self:
        """Return the valid rows of a split, of the first `limit` ones.

        Invalid rows are listed in `SPLIT.quarantine.jsonl` of the folder `notes`. All processes
        call this and check a share of the rows.

        Raises:
            ValueError: The rows are of another task, a value is out of range, or too many rows are
                invalid.
        """
        from vlmo.data.sources import open_source
        from vlmo.data.validation import filter_invalid_rows

        if limit is not None and limit < 1:
            raise ValueError(
                f"limit is {limit}; give the number of rows to read, from 1 up, or none for all"
            )
        rows = open_source(source, split=split, test_share=cls.test_share)
        if limit is not None:
            rows = select_rows(rows, range(len(rows))[:limit])
        # Before images are decoded, which takes longest.
        cls.check_rows(rows, source)
        quarantine = notes / f"{split}.quarantine.jsonl"
        rows = filter_invalid_rows(rows, quarantine=quarantine, **cls.reads.of_rows)
        if not len(rows):
            raise ValueError(f"{source}, {split}: no row is valid; see {quarantine}")
        return cls(rows, source=source, split=split, processor=processor)

    def outputs(
        self, model: nn.Module, *, batch_size: int | None = None, console: Console | None = None
    ) -> Any:
        """Return the outputs of all rows, in order, on all processes, which share the work."""
        batch = batch_size or self.batch_size
        batches = self.map(
            lambda rows: self.predict(model, rows), model, batch=batch, console=console
        )
        return list(chain.from_iterable(batches))

    def map(
        self,
        run: Callable[[range], Result],
        model: nn.Module,
        *,
        batch: int,
        console: Console | None,
    ) -> list[Result]:
        """Return `run` of all batches of rows, in order, with a progress bar; see `map_batches`."""
        with Progress(console) as progress:
            return map_batches(
                run,
                len(self.rows),
                model=model,
                batch=batch,
                title=f"evaluating {self.task}, {self.split}",
                report=progress.update,
            )

    def result(self, outputs: Any) -> TaskResult:
        """Return metrics and predictions of such outputs, whichever model they are from."""
        result = self.result_of(self.metrics(outputs))
        return replace(result, predictions=self.predictions(outputs))

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
