"""Fine-tuning of the fusion encoder: questions about a picture (VQA), and sentences about two (NLVR2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from vlmo.data.examples import Examples
from vlmo.data.question_examples import QuestionExamples, ReasoningExamples, answers_of
from vlmo.model import VLMoConfig, VLMoForVisualQuestionAnswering, VLMoForVisualReasoning
from vlmo.model.stages import FusionStart
from vlmo.objectives.downstream import QuestionObjective, ReasoningObjective
from vlmo.recipes.answering_sets import TaskEvaluator, read_questions, read_sentences
from vlmo.recipes.pretraining_stages import pictures
from vlmo.recipes.stage import BaseStage, Run

_LABELS = {0: "false", 1: "true"}
_PICTURES = 2


@dataclass(frozen=True)
class QuestionStage(BaseStage):
    """Fine-tuning on questions, VQA."""

    title: ClassVar[str] = "fine-tuning on questions (VQA)"
    unique_ids: ClassVar[bool] = False
    can_evaluate: ClassVar[bool] = True
    head_lr_scale: float = 20.0
    """Factor on the learning rate of the answer head, which starts at random."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: Run) -> nn.Module:
        """Scores the answers that the data's list has."""
        names = dict(enumerate(answers_of(run.recipe.data.source)))
        model = VLMoForVisualQuestionAnswering(VLMoConfig(**run.model_settings(), **_labels(names)))
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return QuestionObjective(model)

    def examples(self, run: Run) -> Examples:
        """Questions with their pictures and the score of each answer."""
        num_answers = len(answers_of(run.recipe.data.source))
        return QuestionExamples(run.rows, **pictures(run), tokenizer=run.words.tokenizer, num_answers=num_answers)

    def evaluators(self, run: Run) -> Sequence[TaskEvaluator]:
        """VQA's accuracy."""
        recipe = run.recipe
        if recipe.evaluate_on is None:
            return ()
        return [TaskEvaluator(read_questions(recipe.evaluate_on, **_part(run)))]

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """The head's."""
        return _head_scale(model, head="answer_head", scale=self.head_lr_scale)


@dataclass(frozen=True)
class ReasoningStage(BaseStage):
    """Fine-tuning on sentences about two pictures, NLVR2."""

    title: ClassVar[str] = "fine-tuning on sentences about two pictures (NLVR2)"
    needs_caption: ClassVar[bool] = True
    can_evaluate: ClassVar[bool] = True
    head_lr_scale: float = 1.0
    """Factor on the learning rate of the head, which starts at random."""
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: Run) -> nn.Module:
        """Tells true from false; the model has a third modality type, for the second picture."""
        settings = run.model_settings() | {"num_modality_types": 1 + _PICTURES} | _labels(_LABELS)
        model = VLMoForVisualReasoning(VLMoConfig(**settings))
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return ReasoningObjective(model)

    def examples(self, run: Run) -> Examples:
        """Sentences with their pictures and labels."""
        return ReasoningExamples(run.rows, **pictures(run), tokenizer=run.words.tokenizer)

    def evaluators(self, run: Run) -> Sequence[TaskEvaluator]:
        """Accuracy and consistency."""
        recipe = run.recipe
        if recipe.evaluate_on is None:
            return ()
        return [TaskEvaluator(read_sentences(recipe.evaluate_on, **_part(run)))]

    def lr_scale(self, model: nn.Module) -> dict[str, float]:
        """The head's."""
        return _head_scale(model, head="reasoning_head", scale=self.head_lr_scale)


def _labels(names: dict[int, str]) -> dict[str, Any]:
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def _part(run: Run) -> dict[str, Any]:
    split = run.recipe.evaluate_split
    return {"split": split, "processor": run.words, "quarantine": run.folder / f"{split}.quarantine.jsonl"}


def _head_scale(model: nn.Module, *, head: str, scale: float) -> dict[str, float]:
    return {name: scale for name, _ in model.get_submodule(head).named_parameters(prefix=head)}
