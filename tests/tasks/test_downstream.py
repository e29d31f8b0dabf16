"""Losses of VQA, NLVR2, classification and segmentation by hand."""

import math

import numpy as np
import pytest
import torch
from tests.toy_model import pictures, texts, toy
from torch import Tensor
from torch.nn import functional as F

from vlmo.model import (
    VLMoForImageClassification,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)
from vlmo.tasks.classification import ClassificationConfig, ClassificationObjective
from vlmo.tasks.nlvr2 import ReasoningObjective
from vlmo.tasks.segmentation import SegmentationObjective
from vlmo.tasks.vqa import QuestionObjective

ATOL = 1e-5  # float32 sums in another order
CLASSES = 4
IGNORED = 255
BATCHES = 200


def class_batch(count: int = 4):
    return {"pixel_values": pictures(count), "labels": torch.arange(count) % CLASSES}


def classifier(**settings) -> ClassificationObjective:
    model = toy(VLMoForImageClassification, num_labels=CLASSES)
    return ClassificationObjective(model, config=ClassificationConfig(**settings))


class Listener:
    """Stands in for the model: notes what it is given, and always gives the same logits."""

    def __init__(self, objective: ClassificationObjective) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        objective.model.forward = self.forward

    def forward(self, pixel_values, labels):
        self.seen.append((pixel_values, labels))
        logits = torch.zeros(len(pixel_values), CLASSES, requires_grad=True)
        return type("Output", (), {"loss": F.cross_entropy(logits, labels), "logits": logits})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_loss_is_that_of_torch_and_nothing_is_mixed_in_evaluation(smoothing) -> None:
    plain = classifier(mixup=0.0, cutmix=0.0, label_smoothing=smoothing)
    batch = class_batch()
    with torch.no_grad():
        logits = plain.model(pixel_values=batch["pixel_values"]).logits
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
    for values in (plain.train()(batch), classifier(label_smoothing=smoothing).eval()(batch)):
        torch.testing.assert_close(values["loss"], expected)
        assert values["accuracy"] == (logits.argmax(dim=1) == batch["labels"]).float().mean()


def test_mixup_adds_pictures_and_labels_alike() -> None:
    objective = classifier(cutmix=0.0).train()
    listener, batch = Listener(objective), class_batch()
    before = batch["pixel_values"].clone()
    objective(batch)
    assert torch.equal(batch["pixel_values"], before)  # the loader's tensors stay as they are
    mixed, targets = listener.seen[0]
    # Row 0 is mixed with row 3; smoothing puts 0.025 on every class.
    share = ((targets[0, 0] - 0.025) / 0.9).item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed[0], share * before[0] + (1 - share) * before[3])
    torch.testing.assert_close(targets[0, 3], torch.tensor(0.025 + 0.9 * (1 - share)))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


def test_cutmix_labels_by_area() -> None:
    objective = classifier(mixup=0.0).train()
    listener, batch = Listener(objective), class_batch()
    for _ in range(5):
        objective(batch)
    first, other = batch["pixel_values"][0], batch["pixel_values"][3]
    shares = set()
    for mixed, targets in listener.seen:
        assert ((mixed[0] == first) | (mixed[0] == other)).all()
        share = (mixed[0] == other).all(dim=0).float().mean().item()
        torch.testing.assert_close(targets[0, 3].item(), 0.025 + 0.9 * share, atol=1e-6, rtol=0)
        shares.add(round(share, 3))
    assert len(shares) > 1


def test_share_of_mixed_batches() -> None:
    objective = classifier(mix_probability=0.3).train()
    listener, batch = Listener(objective), class_batch()
    for _ in range(BATCHES):
        objective(batch)
    mixed = np.mean([not torch.equal(pixels, batch["pixel_values"]) for pixels, _ in listener.seen])
    assert abs(mixed - 0.3) < 4 * math.sqrt(0.3 * 0.7 / BATCHES)


@pytest.mark.parametrize(
    "settings",
    [{"mixup": -1.0}, {"cutmix": -0.1}, {"mix_probability": 2.0}, {"label_smoothing": 1.0}],
)
def test_wrong_mixing_is_refused(settings) -> None:
    with pytest.raises(ValueError, match="give"):
        ClassificationConfig(**settings)


def test_segmentation_loss_is_the_models() -> None:
    model = toy(VLMoForSemanticSegmentation, num_labels=CLASSES, segmentation_channels=8)
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    labels[0, :32] = IGNORED
    batch = {"pixel_values": pictures(2), "labels": labels}
    with torch.no_grad():
        expected = model(**batch)
    objective = SegmentationObjective(model)
    values = objective(batch)
    torch.testing.assert_close(values["loss"], expected.loss)
    torch.testing.assert_close(values["loss"], values["segmentation"] + 0.4 * values["auxiliary"])
    counted = labels != IGNORED
    right = expected.logits.argmax(dim=1)[counted] == labels[counted]
    torch.testing.assert_close(values["pixel_accuracy"], right.float().mean())
    # A batch in which nothing counts.
    loss = objective({**batch, "labels": torch.full_like(labels, IGNORED)})["loss"]
    assert loss == 0
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def question_objective() -> QuestionObjective:
    return QuestionObjective(toy(VLMoForVisualQuestionAnswering, num_labels=3))


def reasoning_objective() -> ReasoningObjective:
    return ReasoningObjective(toy(VLMoForVisualReasoning, num_labels=2, num_modality_types=3))


def question_batch() -> dict[str, Tensor]:
    scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.9]])
    return {**texts([5, 8, 3, 6]), "pixel_values": pictures(4), "labels": scores}


def reasoning_batch() -> dict[str, Tensor]:
    pairs = torch.stack([pictures(4), pictures(4, seed=1)], dim=1)
    return {**texts([5, 8, 3, 6]), "pixel_values": pairs, "labels": torch.tensor([1, 0, 0, 1])}


@torch.no_grad()
def fix_logits(head: torch.nn.Module, logits: list[float]) -> None:
    """Let a head give these logits to each row, whatever it reads."""
    head.classifier.weight.zero_()
    head.classifier.bias.copy_(torch.tensor(logits))


def test_question_loss_is_summed_over_answers_and_averaged_over_questions():
    objective = question_objective()
    fix_logits(objective.model.answer_head, [0.0, math.log(3), 0.0])
    losses = objective(question_batch())
    # Shares 1/2, 3/4, 1/2. Each answer costs -s log p - (1 - s) log (1 - p), whatever s is where p is 1/2.
    middle = [0.3 * math.log(4 / 3) + 0.7 * math.log(4), math.log(4), math.log(4 / 3), math.log(4)]
    assert losses["loss"].item() == pytest.approx(2 * math.log(2) + sum(middle) / 4, abs=ATOL)
    assert losses["vqa"].item() == losses["loss"].item()
    assert losses["vqa_score"].item() == pytest.approx((0.3 + 0 + 1 + 0) / 4)


def test_reasoning_loss_is_the_cross_entropy():
    objective = reasoning_objective()
    fix_logits(objective.model.reasoning_head, [0.0, math.log(3)])
    losses = objective(reasoning_batch())
    assert losses["loss"].item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=ATOL)
    assert losses["nlvr2_accuracy"].item() == 0.5


@pytest.mark.parametrize(
    ("objective", "batch"),
    [(question_objective, question_batch), (reasoning_objective, reasoning_batch)],
)
def test_every_part_that_sees_a_pair_is_trained(objective, batch):
    trained = objective()
    trained(batch())["loss"].backward()
    idle = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    # In the top block all tokens take the fusion expert.
    top = "model.vlmo.blocks.2.experts."
    assert all(name.startswith((f"{top}vision.", f"{top}language.")) for name in idle)
