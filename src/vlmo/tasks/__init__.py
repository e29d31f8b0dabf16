"""Tasks: each is declared once, in one file, and everything that lists tasks reads `TASKS`."""

from vlmo.tasks.beit3 import BEiT3Task
from vlmo.tasks.captioning import CaptioningTask
from vlmo.tasks.classification import ClassificationTask
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Accepts, Inputs, Reads
from vlmo.tasks.labels import label_settings, names_of_source
from vlmo.tasks.language import LanguageTask
from vlmo.tasks.nlvr2 import NLVR2Task
from vlmo.tasks.registry import TASKS, evaluate, find_task, predict, register, task_of, usage_of, write_submission
from vlmo.tasks.result import Metric, TaskResult
from vlmo.tasks.retrieval import RetrievalTask
from vlmo.tasks.segmentation import SegmentationTask
from vlmo.tasks.task import RunContext, Task
from vlmo.tasks.tokenizer import TokenizerTask, VisualTokenizerConfig
from vlmo.tasks.vision import VisionTask
from vlmo.tasks.vision_language import VisionLanguageTask
from vlmo.tasks.vqa import VQATask

__all__ = [
    "TASKS",
    "Accepts",
    "BEiT3Task",
    "CaptioningTask",
    "ClassificationTask",
    "EvaluationSet",
    "Inputs",
    "LanguageTask",
    "Metric",
    "NLVR2Task",
    "Reads",
    "RetrievalTask",
    "RunContext",
    "SegmentationTask",
    "Task",
    "TaskResult",
    "TokenizerTask",
    "VQATask",
    "VisionLanguageTask",
    "VisionTask",
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
