"""The contract of a task in three parts: how it trains, how it is measured, how it predicts.

A task is one class in one file. Its fields are the settings of a training run (`Recipe.task`);
class attributes and methods say all else that the library asks of a task. `vlmo.tasks.registry`
lists the tasks.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from PIL import Image
from torch import Tensor, nn

import vlmo.model
from vlmo.checkpoints.loading import load_image_processor, load_model, load_processor
from vlmo.data.config import DataConfig
from vlmo.data.examples import Contents, Examples, RowExamples
from vlmo.data.masking import WordMaskConfig
from vlmo.distributed import is_main
from vlmo.folder.card import Usage
from vlmo.processing import TrainTransform, TransformConfig
from vlmo.processing.transforms import Shape, patch_shapes
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import label_settings
from vlmo.tasks.result import Prediction
from vlmo.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BertTokenizer

    from vlmo.model import VLMoPreTrainedModel
    from vlmo.processing import VLMoProcessor

logger = logging.getLogger(__name__)

Settings = dict[str, Any]
"""Settings of `VLMoConfig` by name."""
Losses = dict[str, Tensor]
"""`loss`, which is minimized, with its parts and other metrics of a step."""


class Objective(nn.Module):
    """Losses of a model, which a training step calls with a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


@dataclass(frozen=True)
class RunContext:
    """Inputs of a training run, as its task sees them.

    Attributes:
        rows: Valid training rows; empty for streams, which are checked as they are read.
        processor: None for a task that reads no text.
        model: Settings of `VLMoConfig`, the vocabulary's sizes included.
        missing: Tensors that the start folder did not hold, once `start` was called.
    """

    folder: Path
    data: DataConfig
    rows: Dataset
    processor: VLMoProcessor | None
    model: Settings
    init: str | None = None
    seed: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def transform(self) -> TransformConfig:
        """Image augmentation, at the model's size."""
        return replace(self.data.transform, image_size=self.model["image_size"])

    @property
    def tokenizer(self) -> BertTokenizer:
        """Tokenizer of a task that reads text."""
        # All such tasks get one.
        assert self.processor is not None
        return self.processor.tokenizer

    def start(self, model: VLMoPreTrainedModel) -> None:
        """Load the start folder, if there is one, and list in `start.txt` what it did not hold."""
        if self.init is None:
            return
        from vlmo.model.stages import start_from

        report = start_from(model, self.init)
        self.missing.extend(report.missing)
        # All processes have read the same folder.
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "start.txt").write_text("\n".join(report.lines()) + "\n")
        logger.info(
            "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there "
            "(listed in start.txt)",
            self.init,
            len(report.loaded),
            len(report.resized),
            len(report.filled),
            len(report.missing),
        )


class Task(ABC):
    """A task: settings of its training as fields, and all else that the library asks of a task."""

    # In `vlmo evaluate --task` and in files.
    name: ClassVar[str]
    # Short description, for messages and model cards.
    title: ClassVar[str]
    # Classes that `config.json` may name; the first one is trained.
    architectures: ClassVar[tuple[str, ...]]
    # Purpose and code of such models, for model cards.
    usage: ClassVar[Usage | None] = None
    # Answers or classes of the published set, for the dry run.
    num_classes: ClassVar[int | None] = None

    # ---- Train

    reads: ClassVar[Reads] = Reads()
    # Module that learns at `head_lr_scale` times the rate.
    head: ClassVar[str] = ""

    @property
    def targets(self) -> str | None:
        """Folder of the model that makes the training targets, if one does."""
        return None

    @classmethod
    def model_class(cls) -> Any:
        """Return the class that is trained and loaded, by default the first of `architectures`."""
        return getattr(vlmo.model, cls.architectures[0])

    def build_model(self, settings: Settings) -> Any:
        """Return the model for these settings of its configuration, with initial weights."""
        return self.model_class()(vlmo.model.VLMoConfig(**settings))

    def label_names(self, _run: RunContext) -> Sequence[str]:
        """Return the answers or classes of the data by number, for the model; by default none."""
        return ()

    @abstractmethod
    def step(self, model: nn.Module) -> nn.Module:
        """Return the losses that a training step calls with a batch; they hold `model`."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return the losses of a run, whose model is built and started."""
        # Names of classes go into `config.json`, so that a folder can name its answers.
        model = self.build_model(run.model | label_settings(self.label_names(run)))
        run.start(model)
        return self.step(model)

    def contents(self, run: RunContext) -> Contents:
        """Return the contents of an example, of rows or of streams: by default what is read."""
        data = run.data
        reads = self.reads
        words = WordMaskConfig(data.mlm_probability, data.mask_only, data.mask_only_share)
        shapes: tuple[Shape, ...] = ()
        if data.transform.keep_aspect and reads.image:
            shapes = patch_shapes(run.model["image_size"], patch_size=run.model["patch_size"])
        return Contents(
            seed=run.seed,
            transform=TrainTransform(run.transform) if reads.image else None,
            tokenizer=run.tokenizer if reads.caption else None,
            words=words if reads.masks_words else None,
            shapes=shapes,
        )

    def examples(self, run: RunContext) -> Examples:
        """Return the training examples of the rows."""
        return RowExamples(run.rows, self.contents(run), unit=run.data.unit)

    def beside(self, _recipe: Any) -> dict[str, Any]:
        """Return recipes whose batches a step reads too, by the prefix of their tensors' names."""
        return {}

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors on the learning rate by parameter name; 1 for those left out.

        They come from `layer_decay` or `head_lr_scale`, settings of some tasks.
        """
        from vlmo.model.stages import layer_decay_factors

        # Only some tasks have these settings.
        settings = vars(self)
        if "layer_decay" in settings:
            model = cast("VLMoPreTrainedModel", model)
            return layer_decay_factors(model, decay=settings["layer_decay"])
        if not self.head:
            return {}
        parameters = model.get_submodule(self.head).named_parameters(prefix=self.head)
        return dict.fromkeys(dict(parameters), settings["head_lr_scale"])

    def without_data(self) -> Task:
        """Return the task of the dry run, without what saves memory or samples by values."""
        return self

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return the dry run's batch, of one image, text and class a row, in the task's form."""
        return batch

    # ---- Measure

    # Rows that its models are measured on.
    evaluation: ClassVar[type[EvaluationSet] | None] = None

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
        """Return model, in evaluation mode, and processor of a folder.

        The processor is one of images alone for a task without texts. ValueError if the folder
        holds no model, or one of another task.
        """
        hint = (
            f"The task {cls.name} needs it; fine-tune one: "
            f"vlmo finetune {folder} --data DATA (docs/data.md)"
        )
        model = load_model(folder, cls.model_class(), device=device, hint=hint)
        # A model folder of images alone has no vocabulary.
        load = load_processor if cls.reads.text else load_image_processor
        return model, load(folder)

    # ---- Predict

    # None for a task that is for training only.
    accepts: ClassVar[Accepts | None] = None

    @classmethod
    def answer(
        cls, model: nn.Module, processor: object, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return predictions for the decoded images of `inputs`, the best first."""
        raise NotImplementedError
