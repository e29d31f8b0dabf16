"""Tasks: each is declared once, in one file, and everything that lists tasks reads `TASKS`."""

from vlmo.tasks.base import Inputs, RunContext, Task, label_settings
from vlmo.tasks.classification import ClassificationStage
from vlmo.tasks.evaluation_set import EvaluationSet, names_of_source
from vlmo.tasks.language import LanguageStage
from vlmo.tasks.nlvr2 import ReasoningStage
from vlmo.tasks.registry import (
    TASKS,
    evaluate,
    find_task,
    predict,
    register,
    task_of,
    usage_of,
    write_submission,
)
from vlmo.tasks.result import TaskResult
from vlmo.tasks.retrieval import RetrievalStage
from vlmo.tasks.segmentation import SegmentationStage
from vlmo.tasks.tokenizer import TokenizerStage, VisualTokenizerConfig
from vlmo.tasks.vision import VisionStage
from vlmo.tasks.vision_language import VisionLanguageStage
from vlmo.tasks.vqa import QuestionStage

__all__ = [
    "TASKS",
    "ClassificationStage",
    "EvaluationSet",
    "Inputs",
    "LanguageStage",
    "QuestionStage",
    "ReasoningStage",
    "RetrievalStage",
    "RunContext",
    "SegmentationStage",
    "Task",
    "TaskResult",
    "TokenizerStage",
    "VisionLanguageStage",
    "VisionStage",
    "VisualTokenizerConfig",
    "evaluate",
    "find_task",
    "label_settings",
    "names_of_source",
    "predict",
    "register",
    "task_of",
    "usage_of",
    "write_submission",
]
