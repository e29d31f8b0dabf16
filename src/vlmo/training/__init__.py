"""The training loop and what it needs: optimizer, schedule, run folder, tracking, processes."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.training.checkpoint import claim_run_folder, lock_run
    from vlmo.training.config import EngineConfig, LoraConfig, TrainerConfig
    from vlmo.training.errors import TrainingError, explained_faults
    from vlmo.training.optimizer import OptimizerConfig, ScheduleConfig
    from vlmo.training.parallel import launch, report_progress
    from vlmo.training.tracking import read_metrics
    from vlmo.training.trainer import Trainer, TrainingResult

__all__ = [
    "EngineConfig",
    "LoraConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "TrainingResult",
    "claim_run_folder",
    "explained_faults",
    "launch",
    "lock_run",
    "read_metrics",
    "report_progress",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".checkpoint": "claim_run_folder lock_run",
        ".config": "EngineConfig LoraConfig TrainerConfig",
        ".errors": "TrainingError explained_faults",
        ".optimizer": "OptimizerConfig ScheduleConfig",
        ".parallel": "launch report_progress",
        ".tracking": "read_metrics",
        ".trainer": "Trainer TrainingResult",
    },
)
