"""Fine-tuning for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from vlmo.data.examples import Examples, RowExamples
from vlmo.data.stream import StreamExamples
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.objectives.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.recipes.pretraining_stages import pictures, retrieval_evaluators, streamed, texts
from vlmo.recipes.retrieval import RetrievalEvaluator
from vlmo.recipes.stage import BaseStage, Run

CONTRAST_ALONE = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0)
"""The paper's fine-tuning: the dual encoder alone."""


@dataclass(frozen=True)
class RetrievalStage(BaseStage):
    """Fine-tuning for retrieval: contrast, and matching for a fusion encoder that reorders what the contrast found."""

    title: ClassVar[str] = "fine-tuning for retrieval"
    can_stream: ClassVar[bool] = True
    needs_caption: ClassVar[bool] = True
    can_evaluate: ClassVar[bool] = True
    losses: VisionLanguageConfig = CONTRAST_ALONE
    """Weights and switches; with an itm_weight above 0 the model keeps its matching head. mlm_weight must be 0."""

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: Masked language modelling has a weight.
        """
        if self.losses.mlm_weight:
            raise ValueError(f"losses.mlm_weight is {self.losses.mlm_weight}; fine-tuning for retrieval masks no words")

    def objective(self, run: Run) -> nn.Module:
        """Contrast of the first ending, with which the model embeds, and matching where it has a weight."""
        # The second ending of stage 3 has no part in a model that retrieves.
        settings = run.model_settings() | {
            "use_match_head": self.losses.itm_weight > 0,
            "contrast_fusion_branch": False,
        }
        model = VLMoForImageTextRetrieval(VLMoConfig(**settings))
        run.start(model)
        return VisionLanguageObjective(model, config=self.losses)

    def examples(self, run: Run) -> Examples:
        """Each picture with one of its captions, another one at each visit."""
        return RowExamples(run.rows, **texts(run) | {"mlm_probability": None}, **pictures(run, seeded=False))

    def stream_examples(self, run: Run) -> StreamExamples:
        """Likewise."""
        return StreamExamples(**streamed(run, texts=texts(run) | {"mlm_probability": None}))

    def evaluators(self, run: Run) -> Sequence[RetrievalEvaluator]:
        """The dual encoder's recall."""
        return retrieval_evaluators(run)
