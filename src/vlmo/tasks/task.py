"""The contract of a task in three parts: how it trains, how it is measured, how it predicts.

A task is one class in one file. Its fields are the settings of a training run (`Recipe.task`); class attributes and
methods say all else that the library asks of a task. `vlmo.tasks.registry` lists the tasks.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from PIL import Image
from torch import nn

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

    from vlmo.model import VLMoPreTrainedModel
    from vlmo.processing import VLMoProcessor

logger = logging.getLogger(__name__)


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
    model: dict[str, Any]
    init: str | None = None
    seed: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def transform(self) -> TransformConfig:
        """Image augmentation, at the model's size."""
        return replace(self.data.transform, image_size=self.model["image_size"])

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of a task that reads text."""
        assert self.processor is not None  # every such task is given one
        return self.processor.tokenizer

    def start(self, model: Any) -> None:
        """Load the start folder, if there is one, and list in `start.txt` what it did not hold."""
        if self.init is None:
            return
        from vlmo.model.stages import start_from

        report = start_from(model, self.init)
        self.missing.extend(report.missing)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "start.txt").write_text("\n".join(report.lines()) + "\n")
        logger.info(
            "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there (listed in start.txt)",
            self.init, len(report.loaded), len(report.resized), len(report.filled), len(report.missing),
        )  # fmt: skip


class Task(ABC):
    """A task: settings of its training as fields, and all else that the library asks of a task."""

    name: ClassVar[str]  # in `vlmo evaluate --task` and in files
    title: ClassVar[str]  # short description, for messages and model cards
    architectures: ClassVar[
        tuple[str, ...]
    ]  # classes that `config.json` may name; the first one is trained
    usage: ClassVar[Usage | None] = None  # purpose and code of such models, for model cards
    num_classes: ClassVar[int | None] = (
        None  # answers or classes of the published set, for the dry run
    )

    # ---- Train

    reads: ClassVar[Reads] = Reads()
    head: ClassVar[str] = ""  # module that learns at `head_lr_scale` times the rate

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

    def label_names(self, run: RunContext) -> Sequence[str]:
        """Return the answers or classes of the data by number, which the model keeps; by default none."""
        del run
        return ()

    @abstractmethod
    def step(self, model: Any) -> nn.Module:
        """Return the module of losses that a training step calls with a batch; it holds the model as `model`."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return the module of losses of a run, whose model is built and started."""
        names = self.label_names(run)
        model = self.build_model(run.model | (label_settings(names) if names else {}))
        run.start(model)
        return self.step(model)

    def contents(self, run: RunContext) -> Contents:
        """Return the contents of an example, of rows or of streams: by default what the task `reads`."""
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

    def beside(self, recipe: Any) -> dict[str, Any]:
        """Return recipes whose batches a step reads beside its own, with their names in front of those of tensors."""
        del recipe
        return {}

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors on the learning rate by parameter name, by `layer_decay` or `head_lr_scale`; 1 if left out."""
        from vlmo.model.stages import layer_decay_factors

        if "layer_decay" in (settings := vars(self)):
            return layer_decay_factors(
                cast("VLMoPreTrainedModel", model), decay=settings["layer_decay"]
            )
        named = (
            model.get_submodule(self.head).named_parameters(prefix=self.head) if self.head else ()
        )
        return {name: settings["head_lr_scale"] for name, _ in named}

    def without_data(self) -> Task:
        """Return the task as the dry run steps it, without what saves memory or samples by values."""
        return self

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return the batch of the dry run, of one image, text and class a row, in the form of the task."""
        return batch

    # ---- Measure

    evaluation: ClassVar[type[EvaluationSet] | None] = None  # rows that its models are measured on

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
        """Return model, in evaluation mode, and processor of a folder, of images alone for a task without texts.

        ValueError if it is none, or of another task.
        """
        hint = f"The task {cls.name} needs it; fine-tune one: vlmo finetune {folder} --data DATA (docs/data.md)"
        model = load_model(folder, cls.model_class(), device=device, hint=hint)
        return model, load_processor(folder) if cls.reads.text else load_image_processor(folder)

    # ---- Predict

    accepts: ClassVar[Accepts | None] = None  # None for a task that is for training only

    @classmethod
    def answer(
        cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs
    ) -> list[Prediction]:
        """Return predictions of a loaded model for the decoded images of `inputs`, the best first."""
        raise NotImplementedError
