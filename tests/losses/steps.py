"""Objectives on pairs, their losses and gradients, and a few steps on the toy batch."""

from typing import Any

import torch
from tests.toy_batch import GLOBAL_BATCH, make_batch
from tests.toy_model import toy
from torch import Tensor

from vlmo.losses import itm
from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective
from vlmo.training.optimizer import OptimizerConfig, build_optimizer

ATOL = 1e-5  # float32 sums in another order
SAME = torch.eye(GLOBAL_BATCH, dtype=torch.bool)
"""Rows of the toy batch that show the same image."""
SAME[0, 5] = SAME[5, 0] = True

Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def stage_3(model: dict[str, Any] | None = None, **config: Any) -> VisionLanguageObjective:
    model = toy(VLMoForPreTraining, size=0.1, **model or {})
    return VisionLanguageObjective(model, config=VisionLanguageConfig(**config))


def retrieval(model: dict[str, Any] | None = None, **config: Any) -> VisionLanguageObjective:
    config = {"mlm_weight": 0, "itm_weight": 0} | config
    model = toy(VLMoForImageTextRetrieval, size=0.1, **model or {})
    return VisionLanguageObjective(model, config=VisionLanguageConfig(**config))


def embeds(model: VLMoForImageTextRetrieval, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    return model.get_image_features(batch["pixel_values"]), texts


def results(objective: torch.nn.Module, batch: dict[str, Tensor]) -> Results:
    objective.zero_grad()
    losses = objective(batch)
    losses["loss"].backward()
    gradients = {
        name: p.grad.clone() for name, p in objective.model.named_parameters() if p.grad is not None
    }
    return {name: value.detach() for name, value in losses.items()}, gradients


def gradients(objective: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return results(objective, batch)[1]


def note_draws(monkeypatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Similarities, what is excluded, and the rows of each draw of hard negatives from now on."""
    draws, draw = [], itm.sample_hard_negatives

    def noted(similarities: Tensor, *, excluded: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        drawn = draw(similarities, excluded=excluded, uniform=uniform)
        draws.append((similarities, excluded, drawn[0]))
        return drawn

    monkeypatch.setattr(itm, "sample_hard_negatives", noted)
    return draws


def train(objective: torch.nn.Module, *, steps: int) -> None:
    optimizer = build_optimizer(objective, config=OptimizerConfig(lr=1e-2, weight_decay=0.1))
    for _ in range(steps):
        objective(make_batch())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
