"""The training loop and what it needs: optimizer, schedule, run folder, tracking, processes."""

from vlmo.distributed import choose_device
from vlmo.training.checkpoint import claim_run_folder
from vlmo.training.engine import EngineConfig
from vlmo.training.optimizer import OptimizerConfig, describe_groups, param_groups
from vlmo.training.parallel import launch
from vlmo.training.schedule import ScheduleConfig, lr_at
from vlmo.training.tracking import read_metrics
from vlmo.training.trainer import Loader, Result, Trainer, TrainerConfig

__all__ = [
    "EngineConfig",
    "Loader",
    "OptimizerConfig",
    "Result",
    "ScheduleConfig",
    "Trainer",
    "TrainerConfig",
    "choose_device",
    "claim_run_folder",
    "describe_groups",
    "launch",
    "lr_at",
    "param_groups",
    "read_metrics",
]
