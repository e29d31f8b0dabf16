"""The training loop and what it needs: optimizer, schedule, run folder, tracking, processes."""

from vlmo.distributed import choose_device
from vlmo.training.checkpoint import claim_run_folder
from vlmo.training.engine import EngineConfig
from vlmo.training.faults import explained_start
from vlmo.training.loaders import Loader
from vlmo.training.optimizer import OptimizerConfig, describe_groups, param_groups
from vlmo.training.parallel import launch
from vlmo.training.schedule import ScheduleConfig, lr_at
from vlmo.training.tracking import read_metrics
from vlmo.training.trainer import Result, Trainer, TrainerConfig
from vlmo.training.watchdog import HANG_SECONDS, Watchdog

__all__ = [
    "HANG_SECONDS",
    "EngineConfig",
    "Loader",
    "OptimizerConfig",
    "Result",
    "ScheduleConfig",
    "Trainer",
    "TrainerConfig",
    "Watchdog",
    "choose_device",
    "claim_run_folder",
    "describe_groups",
    "explained_start",
    "launch",
    "lr_at",
    "param_groups",
    "read_metrics",
]
