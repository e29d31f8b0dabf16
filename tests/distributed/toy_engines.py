"""One update, and a short run, of stage 3 on any engine and any number of processes."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_

from tests.toy_batch import GLOBAL_BATCH, make_batch, with_false_texts
from tests.training.toy_run import make_trainer
from vlmo import distributed
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.training import EngineConfig, OptimizerConfig, Trainer, TrainerConfig, TrainingResult
from vlmo.training.engine import Engine, gradient_norm
from vlmo.training.optimizer import build_optimizer
from vlmo.types import Batch

STEPS, STOP_AFTER = 6, 3
OPTIMIZER = OptimizerConfig(
    lr=1e-3, eps=1e-4
)  # a larger eps lets AdamW amplify the last bits of tiny gradients less
MUON = replace(OPTIMIZER, muon=True)


def make_objective(
    *,
    cache_chunk: int | None = None,
    false: bool = False,
    without: Sequence[str] = (),
    **changes: float,
) -> VisionLanguageObjective:
    torch.manual_seed(0)
    config = VLMoConfig.tiny(
        **{"layer_scale_init": 1.0, "initializer_range": 0.2, "num_hidden_layers": 2} | changes
    )
    weights = {f"{loss}_weight": 0.0 for loss in without}
    settings = VisionLanguageConfig(cache_chunk=cache_chunk, itc_false_captions=false, **weights)
    return VisionLanguageObjective(VLMoForPreTraining(config), config=settings)


def micro_batches(step: int, *, accumulation: int = 1) -> list[Batch]:
    """This process's share of step `step`; the rows are those of `make_batch` in another order at each step."""
    order = torch.randperm(GLOBAL_BATCH, generator=torch.Generator().manual_seed(step))
    batch = with_false_texts(make_batch()) | {
        "sample_ids": torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH
    }
    shares = order.chunk(accumulation * distributed.world_size())[
        distributed.rank() :: distributed.world_size()
    ]
    return [
        {name: value[rows] if value.ndim else torch.tensor(step) for name, value in batch.items()}
        for rows in shares
    ]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def one_update(
    engine: EngineConfig,
    *,
    precision: str = "float32",
    accumulation: int = 1,
    config: OptimizerConfig = OPTIMIZER,
    **changes: Any,
) -> dict[str, dict[str, Tensor]]:
    """Losses, gradients, updated weights, and what the model makes of pictures afterwards."""
    objective = make_objective(**changes)
    # The part of the compiler that makes graphs, forward and backward; a C++ compiler is not everywhere.
    with mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        running = Engine(objective, config=engine, precision=precision)
    optimizer = build_optimizer(
        objective, config=config, lr_scale={"model.vlmo.image_embeddings.cls_token": 5.0}
    )
    batches = micro_batches(0, accumulation=accumulation)
    losses = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        with running.synchronized(last=number == len(batches) - 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                losses.append(running(batch))
            (losses[-1]["loss"] / accumulation).backward()
    parameters = {name: p for name, p in objective.named_parameters() if p.grad is not None}
    gradients = {name: whole(p.grad) for name, p in parameters.items()}
    norm = gradient_norm(list(parameters.values()))
    clip_grads_with_norm_(parameters.values(), 0.5, norm)
    optimizer.step()
    objective.model.clamp_logit_scale_()
    # As an evaluator may: other calls, and another number of them, on each process.
    calls = distributed.rank() + 1
    with running.evaluation() as model:
        embeds = [mean_state(model) for _ in range(calls)][:1]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        again = running(batches[0])["loss"]  # evaluation leaves nothing behind
    return {
        "losses": {
            name: sum(part[name].detach() for part in losses) / len(losses) for name in losses[0]
        },
        "gradients": gradients | {"norm": norm},
        "weights": {name: value.clone() for name, value in running.weights().items()},
        "after": {"embeds": torch.tensor(embeds), "loss": again.detach()},
    }


def make_run(
    run_dir: Path,
    *,
    engine: EngineConfig,
    optimizer: OptimizerConfig = OPTIMIZER,
    after_step: Callable[[], None] = lambda: None,
) -> Trainer:
    objective = make_objective()
    config = TrainerConfig(max_steps=STEPS, log_every=1, save_every=2, clip_norm=1.0, engine=engine)

    def loader(start_step: int) -> Iterator[list[Batch]]:
        while True:
            yield micro_batches(start_step)
            start_step += 1

    trainer = make_trainer(
        run_dir,
        config=config,
        load=loader,
        after_step=after_step,
        objective=objective,
        optimizer=optimizer,
        save_model=lambda folder, weights: objective.model.save_pretrained(
            folder, state_dict=weights
        ),
        evaluate=lambda model: {"image": mean_state(model)},
    )
    trainer.optimizer.register_step_post_hook(lambda *_: objective.model.clamp_logit_scale_())
    return trainer


def mean_state(model: nn.Module) -> float:
    return (
        model.vlmo(pixel_values=torch.ones(1, 3, 64, 64)).last_hidden_state.square().mean().item()
    )


def run(
    folder: Path,
    *,
    engine: EngineConfig,
    optimizer: OptimizerConfig = OPTIMIZER,
    stops: bool = False,
) -> TrainingResult:
    """Trains in `folder`, to the end or until it is asked to stop after step 3."""
    updates = 0

    def after_step() -> None:
        nonlocal updates
        updates += 1
        if (
            stops
            and updates == STOP_AFTER - 1
            and distributed.rank() == distributed.world_size() - 1
        ):
            os.kill(os.getpid(), signal.SIGTERM)  # noticed by all at the end of the next step

    return make_run(folder, engine=engine, optimizer=optimizer, after_step=after_step).fit()
