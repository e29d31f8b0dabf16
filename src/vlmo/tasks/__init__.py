"""Tasks: each is declared once, in one file, and everything that lists tasks reads `TASKS`."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.tasks.beit3 import BEiT3Task as BEiT3Task
    from vlmo.tasks.captioning import CaptioningTask as CaptioningTask
    from vlmo.tasks.classification import ClassificationTask as ClassificationTask
    from vlmo.tasks.evaluation_set import EvaluationSet as EvaluationSet
    from vlmo.tasks.inputs import Accepts as Accepts
    from vlmo.tasks.inputs import Inputs as Inputs
    from vlmo.tasks.inputs import Reads as Reads
    from vlmo.tasks.labels import label_settings as label_settings
    from vlmo.tasks.labels import names_of_source as names_of_source
    from vlmo.tasks.language import LanguageTask as LanguageTask
    from vlmo.tasks.nlvr2 import NLVR2Task as NLVR2Task
    from vlmo.tasks.registry import TASKS as TASKS
    from vlmo.tasks.registry import evaluate as evaluate
    from vlmo.tasks.registry import find_task as find_task
    from vlmo.tasks.registry import predict as predict
    from vlmo.tasks.registry import register as register
    from vlmo.tasks.registry import task_of as task_of
    from vlmo.tasks.registry import usage_of as usage_of
    from vlmo.tasks.registry import write_submission as write_submission
    from vlmo.tasks.result import Metric as Metric
    from vlmo.tasks.result import TaskResult as TaskResult
    from vlmo.tasks.retrieval import RetrievalTask as RetrievalTask
    from vlmo.tasks.segmentation import SegmentationTask as SegmentationTask
    from vlmo.tasks.task import RunContext as RunContext
    from vlmo.tasks.task import Task as Task
    from vlmo.tasks.tokenizer import TokenizerTask as TokenizerTask
    from vlmo.tasks.tokenizer import VisualTokenizerConfig as VisualTokenizerConfig
    from vlmo.tasks.vision import VisionTask as VisionTask
    from vlmo.tasks.vision_language import VisionLanguageTask as VisionLanguageTask
    from vlmo.tasks.vqa import VQATask as VQATask

__getattr__, __all__ = lazy_names(__name__)
