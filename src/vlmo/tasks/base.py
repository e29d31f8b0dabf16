"""Contract of a task: how it trains, is measured, predicts and is described.

A task is one class in one file. Its fields are the settings of a training run (`Recipe.stage`); its class attributes
and methods say everything else that the library asks of a task. `vlmo.tasks.registry` lists the tasks.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.data import builtin
from vlmo.data.decoding import decode_image
from vlmo.data.examples import Examples
from vlmo.data.prepare import labels_of
from vlmo.data.schema import select_rows
from vlmo.data.sources import open_source
from vlmo.data.stream import StreamExamples
from vlmo.data.validation import filter_invalid_rows
from vlmo.distributed import is_main
from vlmo.evaluation.inference import map_batches
from vlmo.folder import Measurement
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.stages import FusionStart, StartReport, start_from
from vlmo.processing import TransformConfig, VLMoProcessor, eval_transform, train_transform
from vlmo.progress import Progress
from vlmo.released import notes_folder
from vlmo.tasks.result import Prediction, TaskResult, measurements
from vlmo.types import Batch, normalize_pixels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Inputs of a training run, as its task sees them.

    Attributes:
        folder: The run folder.
        rows: Valid training rows; empty for streams, which are checked as they are read.
        source: Name or path of the training rows, which may hold a list of answers or classes.
        processor: None for a task that reads no text.
        model: Settings of `VLMoConfig`, the vocabulary's sizes included.
        seed: Seed of the run.
        init: Model folder to start from.
        transform: Image augmentation, at the model's size.
        cache_images: Keep decoded images in memory.
        mlm_probability: Share of text tokens that are masked.
        evaluate_on: Name or path of the rows that the model is measured on.
        evaluate_split: Part of `evaluate_on`.
    """

    folder: Path
    rows: Dataset
    source: str
    processor: VLMoProcessor | None
    model: dict[str, Any]
    seed: int = 0
    init: str | None = None
    transform: TransformConfig = TransformConfig()
    cache_images: bool = False
    mlm_probability: float = 0.15
    evaluate_on: str | None = None
    evaluate_split: str = "test"

    @property
    def text_processor(self) -> VLMoProcessor:
        """The processor of a task that reads text."""
        assert self.processor is not None  # every such task is given one
        return self.processor

    def start(self, model: VLMoPreTrainedModel, *, fusion_experts_from: FusionStart = "language") -> None:
        """Load the start folder, if there is one, and list in `start.txt` what it did not hold."""
        if self.init is None:
            return
        report: StartReport = start_from(model, self.init, fusion_experts_from=fusion_experts_from)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "start.txt").write_text("\n".join(report.lines()) + "\n")
        logger.info(
            "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there (see %s)",
            self.init, len(report.loaded), len(report.resized), len(report.filled), len(report.missing),
            self.folder / "start.txt",
        )  # fmt: skip

    def image_options(self) -> dict[str, Any]:
        """Return the arguments for images of the classes of `vlmo.data.examples`."""
        return {"transform": train_transform(self.transform), "cache_images": self.cache_images, "seed": self.seed}

    def text_options(self) -> dict[str, Any]:
        """Return the arguments for masked texts of the classes of `vlmo.data.examples`."""
        tokenizer = self.text_processor.tokenizer
        return {"tokenizer": tokenizer, "mlm_probability": self.mlm_probability, "seed": self.seed}

    def stream_options(self) -> dict[str, Any]:
        """Return the arguments for images of `StreamExamples`."""
        return {"transform": train_transform(self.transform), "seed": self.seed}


@dataclass(frozen=True)
class Inputs:
    """Inputs of one prediction.

    Attributes:
        images: Image files.
        texts: Sentences about the images.
        question: Question about the one image.
    """

    images: Sequence[Path] = ()
    texts: Sequence[str] = ()
    question: str | None = None


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
    hub_task: ClassVar[str]
    batch_size: ClassVar[int] = 256

    def predict(self, model: Any, rows: range) -> Sequence[Any]:
        """Return one output for each of these rows, ready to be sent to another process.

        A subclass implements this, or `outputs` if rows do not go through the model batch by batch.
        """
        raise NotImplementedError

    @abstractmethod
    def metrics(self, outputs: Any) -> dict[str, float]:
        """Return the metrics of the outputs of all rows, fractions.

        Raises:
            ValueError: No row has a known answer.
        """

    @abstractmethod
    def chance(self, outputs: Any = None) -> dict[str, float]:
        """Return the metrics of a guess that reads no input, as far as they are known without `outputs`."""

    @abstractmethod
    def meaning(self, metric: str) -> str:
        """Return a sentence about a metric."""

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
        """Raise ValueError if a model does not fit these rows."""
        del model

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
            title = f"evaluating {self.task}, {self.split}"
            return map_batches(run, len(self.rows), model=model, batch=batch, title=title, report=progress.update)

    def result(self, outputs: Any) -> TaskResult:
        """Return metrics and predictions of such outputs, whichever model they are from."""
        metrics = self.metrics(outputs)
        return TaskResult(
            task=self.task,
            source=self.source,
            split=self.split,
            metrics=metrics,
            chance=self.chance(outputs),
            meanings={metric: meaning for metric in metrics if (meaning := self.meaning(metric))},
            names={metric: self.label(metric) for metric in metrics},
            predictions=self.predictions(outputs),
            settings=self.settings(),
            hub_task=self.hub_task,
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model in training, without those of parts of the rows (`metric[part]`)."""
        metrics = self.metrics(self.outputs(model))
        return {name: value for name, value in metrics.items() if "[" not in name}

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[Measurement]:
        """Return metrics that this set gave, as a model card shows them."""
        return measurements(
            metrics,
            chance=self.chance(),
            meaning=self.meaning,
            label=self.label,
            source=self.source,
            split=self.split,
            measured_by=measured_by,
            hub_task=self.hub_task,
        )


class Task(ABC):
    """A task: settings of its training as fields, and all else that the library asks of a task."""

    name: ClassVar[str]
    """Name in `vlmo evaluate --task` and in files."""
    title: ClassVar[str]
    """Short description, for messages and model cards."""

    # Rows that it trains on.
    needs_image: ClassVar[bool] = True
    """Rows without an image are invalid."""
    needs_caption: ClassVar[bool] = False
    """Rows without a caption are invalid."""
    unique_ids: ClassVar[bool] = True
    """Rows that repeat an `image_id` are invalid."""
    reads_text: ClassVar[bool] = True
    """The model folder has a vocabulary."""
    can_start: ClassVar[bool] = True
    """Training may start from a model folder."""
    can_stream: ClassVar[bool] = False
    """Training may read `data.streams`."""
    can_evaluate: ClassVar[bool] = False
    """`read` is implemented: models can be measured during training and afterwards."""
    num_classes: ClassVar[int | None] = None
    """Answers or classes of the published set, for estimates; a set at hand may have others."""

    # Model folders that it measures and predicts with; a task without them is for training only.
    models: ClassVar[tuple[type[VLMoPreTrainedModel], ...]] = ()
    """Classes that a model folder for this task may name; the first one is loaded."""
    recipe: ClassVar[str] = ""
    """Recipe that messages recommend to train for this task."""
    default_data: ClassVar[str | None] = None
    """Data that it is measured on if none are named."""
    options: ClassVar[tuple[str, ...]] = ()
    """Options of `evaluate` that it reads."""
    inputs: ClassVar[str] = ""
    """Inputs of a prediction, for messages."""
    draws: ClassVar[bool] = False
    """A prediction can be saved as an image."""
    submits: ClassVar[bool] = False
    """There is an evaluation server, see `submission`."""

    @property
    def targets(self) -> str | None:
        """Folder of the model that makes the training targets, if one does."""
        return None

    @abstractmethod
    def build_model(self, settings: dict[str, Any]) -> PreTrainedModel:
        """Return the model for these settings of its configuration, with initial weights."""

    @abstractmethod
    def objective(self, run: RunContext) -> nn.Module:
        """Return the module of losses, with the started model as `model`."""

    @abstractmethod
    def examples(self, run: RunContext) -> Examples:
        """Return the training examples of the rows."""

    def stream_examples(self, run: RunContext) -> StreamExamples:
        """Return the training examples of streams, if `can_stream`."""
        raise NotImplementedError

    def evaluators(self, run: RunContext) -> Sequence[EvaluationSet]:
        """Return the sets that the model is measured on during the run and at its end."""
        if run.evaluate_on is None:
            return ()
        split = run.evaluate_split
        quarantine = run.folder / f"{split}.quarantine.jsonl"
        return [self.read(run.evaluate_on, split=split, processor=run.processor, quarantine=quarantine)]

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors on the learning rate by parameter name; 1 for parameters that are left out."""
        del model
        return {}

    @classmethod
    def read(
        cls, source: str, *, split: str, processor: VLMoProcessor | None, quarantine: Path, limit: int | None = None
    ) -> EvaluationSet:
        """Return the valid rows of a split, if `can_evaluate`; invalid rows are listed in `quarantine`.

        Args:
            limit: Read the first rows only.

        Raises:
            ValueError: The rows are of another task, or too many are invalid.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> tuple[Any, VLMoProcessor | None]:
        """Return model, in evaluation mode, and processor of a model folder.

        Raises:
            ValueError: It is no model folder, or one for another task.
        """
        hint = f"The task {cls.name} needs it; train one: vlmo train {cls.recipe} --init {folder}"
        model = load_model(folder, cls.models[0], device=device, hint=hint)
        return model, load_processor(folder) if cls.reads_text else None

    @classmethod
    def evaluate(
        cls,
        folder: str | Path,
        *,
        source: str,
        split: str,
        limit: int | None = None,
        batch_size: int | None = None,
        device: str | None = None,
        console: Console | None = None,
        **options: Any,
    ) -> TaskResult:
        """Return the metrics of a model folder on a split. Several processes share the rows.

        Args:
            limit: Read the first rows only.
            batch_size: Rows that go through the model at a time.
            device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.
            console: Shows a progress bar; None shows nothing.
            options: Fields of the task's evaluation set.

        Raises:
            ValueError: The folder or the data are of another task, or cannot be read.
        """
        model, processor = cls.load(folder, device=device)
        options = cls.resolve(model, options)
        rows = cls.read(source, split=split, limit=limit, processor=processor, quarantine=quarantine_of(folder, split))
        rows = replace(rows, **options)
        rows.check(model)
        return rows.result(rows.outputs(model, batch_size=batch_size, console=console))

    @classmethod
    def resolve(cls, model: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of `evaluate` as fields of the evaluation set, before any rows are read.

        Raises:
            ValueError: An option does not fit the model.
        """
        del model
        return options

    @classmethod
    def write_submission(
        cls,
        folder: str | Path,
        file: str | Path,
        *,
        source: str,
        split: str,
        device: str | None = None,
        console: Console | None = None,
    ) -> int:
        """Write the predictions of a split as the task's evaluation server takes them; return their number."""
        model, processor = cls.load(folder, device=device)
        rows = cls.read(source, split=split, processor=processor, quarantine=quarantine_of(folder, split))
        predictions = rows.predictions(rows.outputs(model, console=console))
        if is_main():
            with_parent(file).write_text(cls.submission(predictions), encoding="utf-8")
        return len(predictions)

    @classmethod
    def submission(cls, predictions: Sequence[Prediction]) -> str:
        """Return the file that the evaluation server takes, if the task `submits`."""
        raise NotImplementedError

    @classmethod
    def accepts(cls, inputs: Inputs) -> bool:
        """Return True if a prediction can be made from these inputs."""
        return len(inputs.images) == 1 and not inputs.texts and inputs.question is None

    @classmethod
    def predict(
        cls,
        folder: str | Path,
        inputs: Inputs,
        *,
        top: int = 5,
        save: str | Path | None = None,
        device: str | None = None,
    ) -> list[Prediction]:
        """Return predictions for one set of inputs, the best first.

        Args:
            top: Number of answers, classes, or texts of an image.
            save: PNG file for an image of the result, if the task `draws`.

        Raises:
            ValueError: The folder is of another task, or an input cannot be read.
        """
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------- parts of tasks


def read_split(
    source: str,
    *,
    split: str,
    limit: int | None,
    quarantine: Path,
    check_columns: Callable[[Dataset], object] = lambda _: None,
    check_values: Callable[[Dataset], object] = lambda _: None,
    **needs: Any,
) -> Dataset:
    """Return the valid rows of a split; every process calls this and checks a share of the rows.

    Args:
        limit: Read the first rows only.
        check_columns: Raises ValueError for rows of another task, before any work.
        check_values: Raises ValueError for values out of range, before images are decoded.
        needs: As in `filter_invalid_rows`.

    Raises:
        ValueError: `limit` is below 1, or too many rows are invalid.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; give the number of rows to read, from 1 up, or none for all")
    rows = open_source(source, split=split)
    check_columns(rows)
    rows = rows if limit is None else select_rows(rows, range(min(limit, len(rows))))
    check_values(rows)
    return filter_invalid_rows(rows, quarantine=quarantine, shared=True, **needs)


def check_task(dataset: Dataset, features: Iterable[str], *, task: str) -> None:
    """Raise ValueError if rows lack a column of the task's `features`."""
    missing = [name for name in features if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"these rows are no {task}: they lack {', '.join(missing)} (there are {', '.join(dataset.column_names)}). "
            "Give a set that was prepared for this task (vlmo data prepare), or another task"
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
    """Return the answers or classes of a source, built-in or prepared, in the order of their numbers.

    Raises:
        ValueError: It has none.
    """
    return builtin.labels(source) if source in builtin.NAMES else labels_of(Path(source).expanduser())


def names_of_model(model: Any) -> list[str]:
    """Return the answers or classes of a model, in the order of their numbers."""
    names: dict[int, str] = model.config.id2label
    return [names[number] for number in range(len(names))]


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a model configuration that name its answers or classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def head_lr_scale(model: nn.Module, *, head: str, scale: float) -> dict[str, float]:
    """Return a factor on the learning rate for each parameter of a head."""
    return {name: scale for name, _ in model.get_submodule(head).named_parameters(prefix=head)}


def eval_options(processor: VLMoProcessor) -> dict[str, Any]:
    """Return the arguments of classes of examples that make them read as in evaluation."""
    transform = eval_transform(TransformConfig(image_size=processor.image_size))
    return {"transform": transform, "tokenizer": processor.tokenizer, "seed": 0}


def check_logits(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return logits as float32 on the CPU.

    Raises:
        ValueError: They contain NaN.
    """
    logits = logits.float().cpu()
    if logits.isnan().any():
        raise ValueError("the logits contain NaN; check the weights of the model")
    return logits


def batch_of(examples: Examples, rows: Iterable[int]) -> Batch:
    """Return normalised examples of these rows as one batch."""
    batch = examples.collate([examples[0, row] for row in rows])
    return batch | {"pixel_values": normalize_pixels(batch["pixel_values"])}


def open_image(file: str | Path) -> Image.Image:
    """Return a decoded image file.

    Raises:
        ValueError: It cannot be read.
    """
    return decode_image({"bytes": None, "path": str(Path(file).expanduser())})


def with_parent(file: str | Path) -> Path:
    """Return the path of a file whose folder exists from now on."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def quarantine_of(folder: str | Path, split: str) -> Path:
    """Return the file that lists the invalid rows of an evaluation."""
    return notes_folder(folder) / f"{split}.quarantine.jsonl"
