"""The contract of a task in three parts: how it trains, how it is measured, how it predicts.

A task is one class in one file. Its fields are the settings of a training run (`Recipe.task`); class attributes and
methods say all else that the library asks of a task. `vlmo.tasks.registry` lists the tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image
from torch import nn

import vlmo.model
from vlmo.checkpoints.loading import load_model, load_processor
from vlmo.data.examples import Examples, RowExamples, StreamExamples
from vlmo.folder.card import Usage
from vlmo.processing import train_transform
from vlmo.tasks.costs import SampleSizes, Work, encoder_work
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.result import Prediction, TaskResult
from vlmo.tasks.run_context import RunContext

if TYPE_CHECKING:
    from vlmo.processing import VLMoProcessor


@dataclass(frozen=True)
class Inputs:
    """Image files of one prediction, sentences about them, or a question about the one image.

    Attributes:
        top: Answers, classes, or texts of an image that are returned.
        save: PNG file for an image of the result: the attention of a question, or the classes of the pixels.
    """

    images: Sequence[Path] = ()
    texts: Sequence[str] = ()
    question: str | None = None
    top: int = 5
    save: Path | None = None


class Task(ABC):
    """A task: settings of its training as fields, and all else that the library asks of a task."""

    name: ClassVar[str]  # in `vlmo evaluate --task` and in files
    title: ClassVar[str]  # short description, for messages and model cards
    architectures: ClassVar[tuple[str, ...]]  # classes that `config.json` may name; the first one is trained
    usage: ClassVar[Usage | None] = None  # purpose and code of such models, for model cards
    num_classes: ClassVar[int | None] = None  # answers or classes of the published set, for the dry run

    # ---- Train

    needs_image: ClassVar[bool] = True  # rows without an image are invalid
    needs_caption: ClassVar[bool] = False  # rows without a caption are invalid
    unique_ids: ClassVar[bool] = True  # rows that repeat an `image_id` are invalid
    reads_text: ClassVar[bool] = True  # the model folder has a vocabulary
    masks_words: ClassVar[bool] = False  # examples hold a copy of the caption with masked words
    can_start: ClassVar[bool] = True  # training may start from a model folder
    can_stream: ClassVar[bool] = False  # training may read `data.streams`

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
        """Return the contents of an example, as arguments of `RowExamples` and `StreamExamples`: image and caption."""
        contents: dict[str, Any] = {"seed": run.recipe.seed}
        if self.needs_image:
            contents["transform"] = train_transform(run.transform)
        if self.needs_caption:
            contents["tokenizer"] = run.text_processor.tokenizer
        if self.masks_words:
            contents["words"] = run.words
        return contents

    def examples(self, run: RunContext) -> Examples:
        """Return the training examples of the rows."""
        data = run.recipe.data
        return RowExamples(run.rows, unit=data.unit, cache_images=data.cache_images, **self.contents(run))

    def stream_examples(self, run: RunContext) -> StreamExamples:
        """Return the training examples of streams, if `can_stream`."""
        return StreamExamples(**self.contents(run))

    def work(self, model: Any, sample: SampleSizes) -> Work:
        """Return operations and memory of a training sample, for the dry run; the model lies on the meta device."""
        return encoder_work(model, sample, reads_text=self.reads_text)

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Return factors on the learning rate by parameter name; 1 for parameters that are left out."""
        del model
        return {}

    # ---- Measure

    evaluation: ClassVar[type[EvaluationSet] | None] = None  # rows that its models are measured on

    @classmethod
    def card_usage(cls, config: dict[str, Any]) -> Usage | None:
        """Return purpose and code of a model with this `config.json`."""
        del config
        return cls.usage

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
        loaded: tuple[Any, Any] | None = None,
        device: str | None = None,
        how: dict[str, Any],
        options: dict[str, Any],
        **read: Any,
    ) -> TaskResult:
        """Return the metrics of a model folder on rows; see `vlmo.tasks.evaluate`.

        Args:
            loaded: Model and processor that stand for the folder's.
            how: `batch_size` and `console` of `EvaluationSet.outputs`.
            options: Options of the evaluation set.
            read: Arguments of `EvaluationSet.read`.
        """
        assert cls.evaluation is not None  # commands refuse other tasks
        model, processor = loaded or cls.load(folder, device=device)
        rows = cls.evaluation.read(processor=processor, **read).with_options(model, **options)
        rows.check(model)
        return rows.result(rows.outputs(model, **how))

    # ---- Predict; a task without `inputs` is for training only

    inputs: ClassVar[str] = ""  # inputs of a prediction, for messages
    draws: ClassVar[bool] = False  # a prediction can be saved as an image

    @classmethod
    def accepts(cls, inputs: Inputs) -> bool:
        """Return True if a prediction can be made from these inputs."""
        return len(inputs.images) == 1 and not inputs.texts and inputs.question is None

    @classmethod
    def answer(cls, model: Any, processor: Any, images: Sequence[Image.Image], inputs: Inputs) -> list[Prediction]:
        """Return predictions of a loaded model for the decoded images of `inputs`, the best first."""
        raise NotImplementedError
