"""A training run small enough to be started, killed and compared dozens of times."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from vlmo.distributed import rank, world_size
from vlmo.training import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig, read_metrics
from vlmo.types import Batch


@dataclass(frozen=True)
class Settings:
    batch: int = 8  # rows of a step, over all processes and micro-batches
    accumulation: int = 1
    dropout: float = 0.5
    bad_from: int = 10**9  # steps from here to `bad_to` have a loss that is not a number
    bad_to: int = 10**9
    bad_rank: int | None = None  # the only process where that happens
    bonus_in_first_micro_batch: bool = False  # `bonus` counts there instead of in every other step
    lr: float = 0.05


SCHEDULE = ScheduleConfig(warmup_steps=2)


@dataclass(frozen=True)
class Recipe:
    trainer: TrainerConfig
    settings: Settings
    schedule: ScheduleConfig
    seed: int
    optimizer: OptimizerConfig

    def to_json(self) -> str:
        return json.dumps({"trainer": asdict(self.trainer), "settings": asdict(self.settings)})


class Model(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.last(self.norm(self.dropout(torch.tanh(self.first(x)))))


class Objective(nn.Module):
    """Regression, and a `bonus` that is not always part of the loss, though its value is logged with a graph."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Model(settings.dropout)
        self.bonus = nn.Parameter(torch.ones(2, 2))
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        error = (
            (self.model(batch["pixel_values"]).squeeze(-1) - batch["pixel_values"].sum(-1))
            .square()
            .mean()
        )
        bonus = self.bonus.square().mean()
        step = int(batch["step_seed"])
        first = int(batch["sample_ids"][0]) == step * self.settings.batch
        counts = first if self.settings.bonus_in_first_micro_batch else step % 2 == 0
        loss = error + 0.1 * bonus if counts else error
        if self.settings.bad_from <= step < self.settings.bad_to and self.settings.bad_rank in {
            None,
            rank(),
        }:
            loss = loss * float("nan")
        return {"loss": loss, "error": error, "bonus": bonus}


def make_loader(settings: Settings) -> Callable[[int], Iterator[list[Batch]]]:
    def load(start_step: int) -> Iterator[list[Batch]]:
        step = start_step
        while True:
            generator = torch.Generator().manual_seed(step)
            rows = torch.randn(settings.batch, 4, generator=generator)
            ids = torch.arange(settings.batch) + step * settings.batch
            mine = slice(
                rank() * settings.batch // world_size(),
                (rank() + 1) * settings.batch // world_size(),
            )
            parts = zip(
                rows[mine].chunk(settings.accumulation),
                ids[mine].chunk(settings.accumulation),
                strict=True,
            )
            yield [
                Batch(pixel_values=x, sample_ids=i, step_seed=torch.tensor(step)) for x, i in parts
            ]
            step += 1

    return load


def make_trainer(
    run_dir: Path,
    *,
    settings: Settings | None = None,
    config: TrainerConfig | None = None,
    load: Callable[[int], Iterator[list[Batch]]] | None = None,
    after_step: Callable[[], None] = lambda: None,
    schedule: ScheduleConfig = SCHEDULE,
    seed: int = 0,
    objective: nn.Module | None = None,
    optimizer: OptimizerConfig | None = None,
    **others: Any,
) -> Trainer:
    def save_model(folder: Path, weights: dict[str, Tensor]) -> None:
        (folder / "config.json").write_text("{}")
        save_file(weights, folder / "model.safetensors")

    settings = settings or Settings()
    config = config or TrainerConfig(max_steps=6, log_every=1, save_every=2)
    arguments = {"save_model": save_model, "device": "cpu"} | others
    recipe = Recipe(config, settings, schedule, seed, optimizer or OptimizerConfig(lr=settings.lr))
    trainer = Trainer(
        objective or Objective(settings),
        load or make_loader(settings),
        run_dir=run_dir,
        recipe=recipe,
        **arguments,
    )
    trainer.optimizer.register_step_post_hook(lambda *_: after_step())
    return trainer


def curve(run_dir: Path) -> list[dict[str, Any]]:
    """Losses, learning rates, gradient norms and sample ids of each step, and evaluations; without times."""
    timing = {"seconds", "samples_per_s"}
    return [
        {name: value for name, value in line.items() if name not in timing}
        for line in read_metrics(run_dir)
    ]


def is_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saved_tensors(path: Path) -> dict[str, Tensor]:
    """Whole tensors of a state by their dotted names, read without the run that wrote it."""
    contents = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in contents.items()
    }
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return tensors
