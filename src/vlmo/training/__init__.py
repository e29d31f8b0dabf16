"""The training loop and what it needs: optimizer, schedule, run folder, tracking, processes."""

from typing import TYPE_CHECKING

from vlmo.lazy import lazy_names

if TYPE_CHECKING:
    from vlmo.training.checkpoint import claim_run_folder, lock_run
    from vlmo.training.config import EngineConfig, LoraConfig, TrainerConfig
    from vlmo.training.errors import TrainingError, explained_start
    from vlmo.training.optimizer import OptimizerConfig, ScheduleConfig
    from vlmo.training.parallel import launch
    from vlmo.training.tracking import read_metrics
    from vlmo.training.trainer import Trainer, TrainingResult
    from vlmo.training.watchdog import Watchdog

__all__ = [
    "EngineConfig",
    "LoraConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "TrainingResult",
    "Watchdog",
    "claim_run_folder",
    "explained_start",
    "launch",
    "lock_run",
    "read_metrics",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".checkpoint": "claim_run_folder lock_run",
        ".config": "EngineConfig LoraConfig TrainerConfig",
        ".errors": "TrainingError explained_start",
        ".optimizer": "OptimizerConfig ScheduleConfig",
        ".parallel": "launch",
        ".tracking": "read_metrics",
        ".trainer": "Trainer TrainingResult",
        ".watchdog": "Watchdog",
    },
)
