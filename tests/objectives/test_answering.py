"""Losses of fine-tuning the fusion encoder against numbers worked out by hand; two processes equal one."""

import math

import pytest
import torch
from tests.distributed.gloo import run_processes
from tests.toy_model import pictures, texts, toy
from torch import Tensor

from vlmo import distributed
from vlmo.model import VLMoForVisualQuestionAnswering, VLMoForVisualReasoning
from vlmo.objectives.downstream import QuestionObjective, ReasoningObjective

ATOL = 1e-5  # float32 sums in another order
GLOBAL_BATCH = 4
KINDS = ["questions", "sentences"]


def make_objective(kind: str) -> torch.nn.Module:
    if kind == "questions":
        return QuestionObjective(toy(VLMoForVisualQuestionAnswering, num_labels=3))
    return ReasoningObjective(toy(VLMoForVisualReasoning, num_labels=2, num_modality_types=3))


def make_batch(kind: str) -> dict[str, Tensor]:
    batch = texts([5, 8, 3, 6])
    if kind == "questions":
        scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.9]])
        return batch | {"pixel_values": pictures(GLOBAL_BATCH), "labels": scores}
    pairs = torch.stack([pictures(GLOBAL_BATCH), pictures(GLOBAL_BATCH, seed=1)], dim=1)
    return batch | {"pixel_values": pairs, "labels": torch.tensor([1, 0, 0, 1])}


def with_logits(objective: torch.nn.Module, logits: Tensor) -> torch.nn.Module:
    """The objective with a head that gives these logits to each row, whatever it reads."""
    head = objective.model.answer_head if isinstance(objective, QuestionObjective) else objective.model.reasoning_head
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.copy_(logits)
    return objective


def test_question_loss_is_summed_over_answers_and_averaged_over_questions():
    losses = with_logits(make_objective("questions"), torch.tensor([0.0, math.log(3), 0.0]))(make_batch("questions"))
    # Shares 1/2, 3/4, 1/2. Each answer costs -s log p - (1 - s) log (1 - p), whatever s is where p is 1/2.
    middle = [0.3 * math.log(4 / 3) + 0.7 * math.log(4), math.log(4), math.log(4 / 3), math.log(4)]
    assert losses["loss"].item() == pytest.approx(2 * math.log(2) + sum(middle) / 4, abs=ATOL)
    assert losses["vqa"].item() == losses["loss"].item()
    assert losses["vqa_score"].item() == pytest.approx((0.3 + 0 + 1 + 0) / 4)
    assert not losses["vqa_score"].requires_grad


def test_reasoning_loss_is_the_cross_entropy():
    losses = with_logits(make_objective("sentences"), torch.tensor([0.0, math.log(3)]))(make_batch("sentences"))
    assert losses["loss"].item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=ATOL)
    assert losses["nlvr2_accuracy"].item() == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_that_sees_a_pair_is_trained(kind):
    objective = make_objective(kind)
    objective(make_batch(kind))["loss"].backward()
    idle = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    # In the top block all tokens take the fusion expert.
    assert all(
        name.startswith(("model.vlmo.blocks.2.experts.vision.", "model.vlmo.blocks.2.experts.language."))
        for name in idle
    )


def losses_and_gradients(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, both averaged over processes as logging and data parallelism do."""
    objective, batch = make_objective(kind), make_batch(kind)
    share = GLOBAL_BATCH // distributed.world_size()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    losses = objective({name: value[own] for name, value in batch.items()})
    losses["loss"].backward()

    def mean(value: Tensor) -> Tensor:
        return distributed.all_reduce(value) / distributed.world_size()

    gradients = {
        name: mean(parameter.grad) for name, parameter in objective.named_parameters() if parameter.grad is not None
    }
    return {name: mean(value.detach()) for name, value in losses.items()}, gradients


def everything() -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    return {kind: losses_and_gradients(kind) for kind in KINDS}


@pytest.mark.slow
def test_two_processes_equal_one():
    alone = everything()
    for results in run_processes(everything):
        for kind in KINDS:
            for part, expected in zip(results[kind], alone[kind], strict=True):
                assert part.keys() == expected.keys()
                for name, value in expected.items():
                    torch.testing.assert_close(part[name], value, atol=ATOL, rtol=1e-4)
