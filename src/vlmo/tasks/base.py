"""Contract of a task: how it trains, is measured, predicts and is described.

A task is one class in one file. Its fields are the settings of a training run (`Recipe.task`); its class attributes
and methods say everything else that the library asks of a task. `vlmo.tasks.registry` lists the tasks.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

import vlmo.model
from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.data.decoding import decode_image
from vlmo.data.examples import Examples, RowExamples, StreamExamples, Unit
from vlmo.data.masking import WordMaskConfig
from vlmo.distributed import is_main
from vlmo.folder.card import Usage
from vlmo.model.config import FusionStart
from vlmo.processing import TransformConfig, train_transform
from vlmo.released import notes_folder
from vlmo.tasks.costs import SampleSizes, Work, encoder_work
from vlmo.tasks.evaluation_set import EvaluationSet, are_numbers, check_names, names_of_model
from vlmo.tasks.result import Prediction, TaskResult

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmo.model import VLMoPreTrainedModel
    from vlmo.processing import VLMoProcessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Inputs of a training run, as its task sees them.

    Attributes:
        rows: Valid training rows; empty for streams, which are checked as they are read.
        source: Name or path of the training rows, which may hold a list of answers or classes.
        processor: None for a task that reads no text.
        model: Settings of `VLMoConfig`, the vocabulary's sizes included.
        init: Model folder to start from.
        transform: Image augmentation, at the model's size.
        unit: Example of an epoch, an image or a pair.
        cache_images: Keep decoded images in memory.
        words: Which words are masked.
        evaluate_on: Name or path of the rows that the model is measured on.
        evaluate_split: Part of `evaluate_on`.
        missing: Tensors that the start folder did not hold, once `start` was called.
    """

    folder: Path
    rows: Dataset
    source: str
    processor: VLMoProcessor | None
    model: dict[str, Any]
    seed: int = 0
    init: str | None = None
    transform: TransformConfig = TransformConfig()
    unit: Unit = "image"
    cache_images: bool = False
    words: WordMaskConfig = WordMaskConfig()
    evaluate_on: str | None = None
    evaluate_split: str = "test"
    missing: list[str] = field(default_factory=list)

    @property
    def text_processor(self) -> VLMoProcessor:
        """The processor of a task that reads text."""
        assert self.processor is not None  # every such task is given one
        return self.processor

    def start(self, model: VLMoPreTrainedModel, *, fusion_experts_from: FusionStart = "language") -> None:
        """Load the start folder, if there is one, and list in `start.txt` what it did not hold."""
        if self.init is None:
            return
        from vlmo.model.stages import start_from

        report = start_from(model, self.init, fusion_experts_from=fusion_experts_from)
        self.missing.extend(report.missing)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "start.txt").write_text("\n".join(report.lines()) + "\n")
        logger.info(
            "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there (listed in start.txt)",
            self.init, len(report.loaded), len(report.resized), len(report.filled), len(report.missing),
        )  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Image files of one prediction, sentences about them, or a question about the one image."""

    images: Sequence[Path] = ()
    texts: Sequence[str] = ()
    question: str | None = None


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
    masks_words: ClassVar[bool] = False
    """Examples hold a copy of the caption with masked words."""
    can_start: ClassVar[bool] = True
    """Training may start from a model folder."""
    can_stream: ClassVar[bool] = False
    """Training may read `data.streams`."""
    evaluation: ClassVar[type[EvaluationSet] | None] = None
    """Rows that its models are measured on, during training and afterwards."""
    num_classes: ClassVar[int | None] = None
    """Answers or classes of the published set, for estimates; a set at hand may have others."""

    architectures: ClassVar[tuple[str, ...]]
    """Model classes that `config.json` of a folder for this task may name; `model_class` is the first."""
    usage: ClassVar[Usage | None] = None
    """Purpose and code of such models, for model cards."""

    # Evaluation and prediction; a task without `inputs` is for training only.
    inputs: ClassVar[str] = ""
    """Inputs of a prediction, for messages."""
    default_data: ClassVar[str | None] = None
    """Data that it is measured on if none are named."""
    options: ClassVar[tuple[str, ...]] = ()
    """Options of `evaluate` that it reads."""
    draws: ClassVar[bool] = False
    """A prediction can be saved as an image."""
    submits: ClassVar[bool] = False
    """There is an evaluation server, see `submission`."""

    @property
    def targets(self) -> str | None:
        """Folder of the model that makes the training targets, if one does."""
        return None

    @classmethod
    def model_class(cls) -> Any:
        """Return the model class that is trained and loaded: by default the one of `vlmo.model` with the first name."""
        return getattr(vlmo.model, cls.architectures[0])

    def build_model(self, settings: dict[str, Any]) -> Any:
        """Return the model for these settings of its configuration, with initial weights."""
        return self.model_class()(vlmo.model.VLMoConfig(**settings))

    @abstractmethod
    def objective(self, run: RunContext) -> nn.Module:
        """Return the module of losses, with the started model as `model`."""

    def contents(self, run: RunContext) -> dict[str, Any]:
        """Return the contents of a training example, as arguments of `RowExamples` and `StreamExamples`.

        By default images and captions of the rows, as far as `needs_image` and `needs_caption` say.
        """
        contents: dict[str, Any] = {"seed": run.seed}
        if self.needs_image:
            contents["transform"] = train_transform(run.transform)
        if self.needs_caption:
            contents["tokenizer"] = run.text_processor.tokenizer
        if self.masks_words:
            contents["words"] = run.words
        return contents

    def examples(self, run: RunContext) -> Examples:
        """Return the training examples of the rows."""
        return RowExamples(run.rows, unit=run.unit, cache_images=run.cache_images, **self.contents(run))

    def stream_examples(self, run: RunContext) -> StreamExamples:
        """Return the training examples of streams, if `can_stream`."""
        return StreamExamples(**self.contents(run))

    def evaluators(self, run: RunContext) -> Sequence[EvaluationSet]:
        """Return the sets that the model is measured on during the run and at its end."""
        if run.evaluate_on is None:
            return ()
        split = run.evaluate_split
        quarantine = run.folder / f"{split}.quarantine.jsonl"
        rows = self.read(run.evaluate_on, split=split, processor=run.processor, quarantine=quarantine)
        if (names := rows.classes(run.rows, run.source)) is not None:
            check_names(rows.names, names, owner=f"evaluate_on {rows.source}", source=run.source)
        return [rows]

    def work(self, model: Any, sample: SampleSizes) -> Work:
        """Return operations and memory of a training sample, for the dry run; the model lies on the meta device.

        By default those of an encoder of one image, with the text if the task reads any, and of heads on one vector.
        """
        return encoder_work(model, sample, reads_text=self.reads_text)

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors on the learning rate by parameter name; 1 for parameters that are left out."""
        del model
        return {}

    @classmethod
    def card_usage(cls, config: dict[str, Any]) -> Usage | None:
        """Return purpose and code of a model with this `config.json`."""
        del config
        return cls.usage

    @classmethod
    def read(cls, source: str, **arguments: Any) -> Any:
        """Return the valid rows of a split to measure on; arguments as in `EvaluationSet.read`."""
        assert cls.evaluation is not None  # recipes and commands refuse other tasks
        return cls.evaluation.read(source, **arguments)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> tuple[Any, VLMoProcessor | None]:
        """Return model, in evaluation mode, and processor of a folder; ValueError if it is none, or of another task."""
        hint = f"The task {cls.name} needs it; fine-tune one: vlmo finetune {folder} --data DATA (docs/data.md)"
        model = load_model(folder, cls.model_class(), device=device, hint=hint)
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
        """Return the metrics of a model folder on a split; see `vlmo.tasks.evaluate`. `options` are fields of the set.

        Raises:
            ValueError: The folder or the data are of another task, or cannot be read.
        """
        model, processor = cls.load_for(options, folder, device=device)
        options = cls.resolve(model, options)
        rows = cls.read(source, split=split, limit=limit, processor=processor, quarantine=quarantine_of(folder, split))
        rows = replace(rows, **options)
        rows.check(model)
        return rows.result(rows.outputs(model, batch_size=batch_size, console=console))

    @classmethod
    def load_for(cls, options: dict[str, Any], folder: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
        """Return model and processor that `evaluate` measures with these options."""
        del options
        return cls.load(folder, device=device)

    @classmethod
    def resolve(cls, model: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of `evaluate` as fields of the evaluation set; ValueError if one does not fit the model."""
        del model
        return options

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
        """Return predictions for one set of inputs, the best first; see `vlmo.tasks.predict`.

        Raises:
            ValueError: The folder is of another task, a text is empty, or an image cannot be read.
        """
        given = [*inputs.texts, *([] if inputs.question is None else [inputs.question])]
        if not all(text.strip() for text in given):
            raise ValueError(f"given are the texts {given}; give texts that are not empty")
        images = [decode_image({"bytes": None, "path": str(file.expanduser())}) for file in inputs.images]
        model, processor = cls.load(folder, device=device)
        if cls.num_classes is not None and are_numbers(names_of_model(model)):
            hint = "--labels of vlmo models NAME, or of vlmo import, names them"
            logger.warning("%s has no names for its answers or classes: %s", folder, hint)
        with torch.inference_mode():
            return cls.answer(model, processor, images, inputs, top=top, save=None if save is None else Path(save))

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs, *, top: int, save: Path | None
    ) -> list[Prediction]:
        """Return predictions of a loaded model for decoded images, see `predict`."""
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------- parts of tasks


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a model configuration that name its answers or classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def head_lr_scale(model: nn.Module, *, head: str, scale: float) -> dict[str, float]:
    """Return a factor on the learning rate for each parameter of a head."""
    return {name: scale for name, _ in model.get_submodule(head).named_parameters(prefix=head)}


def best_labels(model: Any, shares: Float[Tensor, "classes"], *, top: int, kind: str) -> list[Prediction]:
    """Return the `top` likeliest answers or classes of a model, under the name `kind`, each with its share."""
    best = shares.topk(min(top, len(shares)))
    return [
        {kind: model.config.id2label[number], "confidence": round(share, 4)}
        for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def with_parent(file: str | Path) -> Path:
    """Return the path of a file whose folder exists from now on."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def quarantine_of(folder: str | Path, split: str) -> Path:
    """Return the file that lists the invalid rows of an evaluation."""
    return notes_folder(folder) / f"{split}.quarantine.jsonl"
