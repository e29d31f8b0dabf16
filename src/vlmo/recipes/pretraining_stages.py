"""The three stages of pre-training, and the visual tokenizer before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.data.examples import Examples, RowExamples
from vlmo.data.masking import BlockMaskConfig
from vlmo.data.stream import StreamExamples
from vlmo.model import VLMoConfig, VLMoForMaskedImageModeling, VLMoForMaskedLM, VLMoForPreTraining
from vlmo.model.stages import FusionStart
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig, load_visual_tokenizer
from vlmo.objectives.unimodal import (
    LanguageObjective,
    VisionObjective,
    VisualTokenizerObjective,
    VisualTokenizerObjectiveConfig,
)
from vlmo.objectives.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.processing import train_transform
from vlmo.recipes.configs import VisualTokenizerConfig
from vlmo.recipes.retrieval import RetrievalEvaluator, read_rows
from vlmo.recipes.stage import BaseStage, Run


@dataclass(frozen=True)
class TokenizerStage(BaseStage):
    """Trains the visual tokenizer whose tokens stage 1 predicts."""

    title: ClassVar[str] = "visual tokenizer"
    can_stream: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    can_start: ClassVar[bool] = False
    tokenizer: VisualTokenizerConfig = VisualTokenizerConfig()
    """Sizes of the tokenizer."""
    losses: VisualTokenizerObjectiveConfig = VisualTokenizerObjectiveConfig()
    """Weights of its losses."""

    def objective(self, run: Run) -> nn.Module:
        """The tokenizer with its losses."""
        del run
        model = VQVisualTokenizer(VQVisualTokenizerConfig(**asdict(self.tokenizer)))
        return VisualTokenizerObjective(model, config=self.losses)

    def examples(self, run: Run) -> Examples:
        """Pictures."""
        return RowExamples(run.rows, **pictures(run))

    def stream_examples(self, run: Run) -> StreamExamples:
        """Pictures."""
        return StreamExamples(**streamed(run, texts={}))


@dataclass(frozen=True)
class VisionStage(BaseStage):
    """Stage 1, masked image modelling."""

    title: ClassVar[str] = "stage 1, masked image modelling"
    can_stream: ClassVar[bool] = True
    visual_tokenizer: str
    """Model folder of a visual tokenizer, or of DALL-E's (`FlavaImageCodebook`)."""
    masked_share: float = 75 / 196
    """Share of patches that are masked, in blocks."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: The masked share is not between 0 and 1.
        """
        if not 0 < self.masked_share < 1:
            raise ValueError(f"masked_share is {self.masked_share}; give a share between 0 and 1")

    @property
    def targets(self) -> str | None:
        """The visual tokenizer."""
        return self.visual_tokenizer

    def objective(self, run: Run) -> nn.Module:
        """Predicts visual tokens at masked patches."""
        tokenizer = load_visual_tokenizer(self.visual_tokenizer)
        settings = run.model_settings() | {"num_visual_tokens": tokenizer.num_tokens}
        model = VLMoForMaskedImageModeling(VLMoConfig(**settings))
        run.start(model)
        return VisionObjective(model, tokenizer=tokenizer)

    def examples(self, run: Run) -> Examples:
        """Pictures with masks."""
        return RowExamples(run.rows, **pictures(run), mask=self._mask(run))

    def stream_examples(self, run: Run) -> StreamExamples:
        """Pictures with masks."""
        return StreamExamples(**streamed(run, texts={}), mask=self._mask(run))

    def _mask(self, run: Run) -> BlockMaskConfig:
        side = run.recipe.model.image_size // run.recipe.model.patch_size
        mask = BlockMaskConfig.for_grid(side, width=side)
        return dataclasses.replace(mask, num_masked=round(self.masked_share * side * side))


@dataclass(frozen=True)
class LanguageStage(BaseStage):
    """Stage 2, masked language modelling."""

    title: ClassVar[str] = "stage 2, masked language modelling"
    can_stream: ClassVar[bool] = True
    needs_image: ClassVar[bool] = False
    needs_caption: ClassVar[bool] = True
    freeze: bool = True
    """Keep attention and vision experts as stage 1 left them."""

    def objective(self, run: Run) -> nn.Module:
        """Predicts masked words."""
        model = VLMoForMaskedLM(VLMoConfig(**run.model_settings()))
        run.start(model)
        return LanguageObjective(model, freeze=self.freeze)

    def examples(self, run: Run) -> Examples:
        """Texts with masks."""
        return RowExamples(run.rows, **texts(run))

    def stream_examples(self, run: Run) -> StreamExamples:
        """Texts with masks."""
        return StreamExamples(**texts(run))


@dataclass(frozen=True)
class VisionLanguageStage(BaseStage):
    """Stage 3, contrast, masked language modelling and matching."""

    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    can_stream: ClassVar[bool] = True
    needs_caption: ClassVar[bool] = True
    can_evaluate: ClassVar[bool] = True
    losses: VisionLanguageConfig = VisionLanguageConfig()
    """Weights and switches."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: Run) -> nn.Module:
        """All three losses on pairs."""
        model = VLMoForPreTraining(VLMoConfig(**run.model_settings()))
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return VisionLanguageObjective(model, config=self.losses)

    def examples(self, run: Run) -> Examples:
        """Pairs with masks over the text."""
        return RowExamples(run.rows, **texts(run), **pictures(run, seeded=False))

    def stream_examples(self, run: Run) -> StreamExamples:
        """Pairs with masks over the text."""
        return StreamExamples(**streamed(run, texts=texts(run)))

    def evaluators(self, run: Run) -> Sequence[RetrievalEvaluator]:
        """The dual encoder's recall."""
        return retrieval_evaluators(run)


def retrieval_evaluators(run: Run) -> Sequence[RetrievalEvaluator]:
    """Recall on the data that the recipe names."""
    recipe = run.recipe
    if recipe.evaluate_on is None:
        return ()
    split = recipe.evaluate_split
    rows = read_rows(
        recipe.evaluate_on,
        split=split,
        processor=run.words,
        quarantine=run.folder / f"{split}.quarantine.jsonl",
    )
    return [RetrievalEvaluator(rows, source=recipe.evaluate_on, split=split)]


def pictures(run: Run, *, seeded: bool = True) -> dict[str, Any]:
    """How the recipe reads pictures, as arguments of the classes of `vlmo.data.examples`."""
    config = run.recipe.data
    transform = train_transform(dataclasses.replace(config.transform, image_size=run.recipe.model.image_size))
    arguments: dict[str, Any] = {"transform": transform, "cache_images": config.cache_images}
    return arguments | ({"seed": run.recipe.seed} if seeded else {})


def streamed(run: Run, *, texts: dict[str, Any]) -> dict[str, Any]:
    """How the recipe reads streamed pictures, and texts where they are given, as arguments of `StreamExamples`."""
    return {name: value for name, value in pictures(run).items() if name != "cache_images"} | texts


def texts(run: Run) -> dict[str, Any]:
    """How the recipe reads and masks texts, likewise."""
    return {
        "tokenizer": run.words.tokenizer,
        "mlm_probability": run.recipe.data.mlm_probability,
        "seed": run.recipe.seed,
    }
