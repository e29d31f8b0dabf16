"""The training loop and what it needs: optimizer, schedule, run folder, tracking, processes."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.training.checkpoint import check_not_running as check_not_running
    from vlmo.training.checkpoint import claim_run_folder as claim_run_folder
    from vlmo.training.checkpoint import lock_run as lock_run
    from vlmo.training.config import EngineConfig as EngineConfig
    from vlmo.training.config import LoraConfig as LoraConfig
    from vlmo.training.config import TrainerConfig as TrainerConfig
    from vlmo.training.errors import TrainingError as TrainingError
    from vlmo.training.errors import explained_faults as explained_faults
    from vlmo.training.optimizer import OptimizerConfig as OptimizerConfig
    from vlmo.training.optimizer import ScheduleConfig as ScheduleConfig
    from vlmo.training.parallel import launch as launch
    from vlmo.training.parallel import report_progress as report_progress
    from vlmo.training.tracking import read_metrics as read_metrics
    from vlmo.training.trainer import Trainer as Trainer
    from vlmo.training.trainer import TrainingResult as TrainingResult

__getattr__, __all__ = lazy_names(__name__)
