"""What a stage of training is to `build`: rows it needs, a model with its losses, examples, and measurements."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from datasets import Dataset
from torch import nn

from vlmo.data.examples import Examples
from vlmo.data.stream import StreamExamples
from vlmo.distributed import is_main
from vlmo.folder import Measurement
from vlmo.model.backbone import VLMoPreTrainedModel
from vlmo.model.stages import FusionStart, StartReport, start_from
from vlmo.processing import VLMoProcessor
from vlmo.recipes.vocabulary import num_word_rows
from vlmo.training import read_metrics

if TYPE_CHECKING:
    from vlmo.recipes.recipe import Recipe

logger = logging.getLogger(__name__)

_LOGGED = "val/"


@dataclass(frozen=True)
class Run:
    """A recipe on its way to a trainer.

    Attributes:
        folder: The run folder.
        processor: None where the stage reads no text.
        rows: What is trained on, checked; of streams, which are checked as they are read, none.
    """

    recipe: Recipe
    folder: Path
    processor: VLMoProcessor | None
    rows: Dataset

    @property
    def words(self) -> VLMoProcessor:
        """The processor of a stage that reads text."""
        assert self.processor is not None  # `build` makes one for every such stage
        return self.processor

    def model_settings(self) -> dict[str, Any]:
        """The recipe's sizes with those that follow from the vocabulary."""
        settings = asdict(self.recipe.model)
        if self.processor is not None:
            settings["vocab_size"] = num_word_rows(self.recipe, self.processor)
            settings["pad_token_id"] = self.processor.tokenizer.pad_token_id
        return settings

    def start(self, model: VLMoPreTrainedModel, *, fusion_experts_from: FusionStart = "language") -> None:
        """Loads the start folder, and lists in `start.txt` what it did not hold."""
        if self.recipe.init is None:
            return
        report: StartReport = start_from(model, self.recipe.init, fusion_experts_from=fusion_experts_from)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "start.txt").write_text("\n".join(report.lines()) + "\n")
        logger.info(
            "started from %s: %d tensors loaded, %d resized, %d filled, %d not found there (see %s)",
            self.recipe.init, len(report.loaded), len(report.resized), len(report.filled), len(report.missing),
            self.folder / "start.txt",
        )  # fmt: skip


class Evaluator(Protocol):
    """What a run calls to measure its model."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Figures by name, fractions."""
        ...

    def measurements(self, metrics: Mapping[str, float], *, measured_by: str) -> list[Measurement]:
        """Those figures as the model's card shows them."""
        ...


def last_measurements(evaluators: Sequence[Evaluator], *, run_dir: Path) -> tuple[Measurement, ...]:
    """What a run's last evaluation gave, if it had one."""
    lines = [line for line in read_metrics(run_dir) if any(name.startswith(_LOGGED) for name in line)]
    if not lines:
        return ()
    metrics = {name.removeprefix(_LOGGED): value for name, value in lines[-1].items() if name.startswith(_LOGGED)}
    measured_by = f"last evaluation of the run, step {lines[-1]['step']}"
    return tuple(figure for each in evaluators for figure in each.measurements(metrics, measured_by=measured_by))


class BaseStage(ABC):
    """Settings of one kind of training, and how its parts are made."""

    title: ClassVar[str]
    """What it is, for people."""
    needs_image: ClassVar[bool] = True
    """Whether rows without a picture are bad."""
    needs_caption: ClassVar[bool] = False
    """Whether rows without a caption are bad."""
    unique_ids: ClassVar[bool] = True
    """Whether rows that repeat an `image_id` are bad."""
    reads_text: ClassVar[bool] = True
    """Whether the model folder has a vocabulary."""
    can_start: ClassVar[bool] = True
    """Whether it can start from a model folder."""
    can_evaluate: ClassVar[bool] = False
    """Whether `evaluate_on` means something to it."""

    can_stream: ClassVar[bool] = False
    """Whether it reads `data.streams`."""

    @property
    def targets(self) -> str | None:
        """Folder of the model that makes the targets, if one does."""
        return None

    @abstractmethod
    def objective(self, run: Run) -> nn.Module:
        """The module of losses, with the started model as `model`."""

    @abstractmethod
    def examples(self, run: Run) -> Examples:
        """What the loader reads."""

    def stream_examples(self, run: Run) -> StreamExamples:
        """The same out of streams, where `can_stream`."""
        raise NotImplementedError

    def evaluators(self, run: Run) -> Sequence[Evaluator]:
        """What measures the model during the run and at its end."""
        del run
        return ()

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """Factor on the learning rate by the names of the model's parameters; 1 for the others."""
        del model
        return {}
