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


def classifier(config: ClassificationConfig | None = None) -> ClassificationObjective:
    return ClassificationObjective(
        toy(VLMoForImageClassification, num_labels=CLASSES), config=config
    )


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
    plain = ClassificationConfig(mixup=0.0, cutmix=0.0, label_smoothing=smoothing)
    batch, objective = class_batch(), classifier(plain)
    with torch.no_grad():
        logits = objective.model(pixel_values=batch["pixel_values"]).logits
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
    mixing = classifier(ClassificationConfig(label_smoothing=smoothing)).eval()
    for values in (objective.train()(batch), mixing(batch)):
        torch.testing.assert_close(values["loss"], expected)
        assert values["accuracy"] == (logits.argmax(dim=1) == batch["labels"]).float().mean()


def test_mixup_adds_pictures_and_labels_alike() -> None:
    objective = classifier(ClassificationConfig(cutmix=0.0)).train()
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
    objective = classifier(ClassificationConfig(mixup=0.0)).train()
    listener, batch = Listener(objective), class_batch()
    for _ in range(5):
        objective(batch)
    shares = set()
    for mixed, targets in listener.seen:
        foreign = (mixed[0] == batch["pixel_values"][3]).all(dim=0).float().mean().item()
        assert (
            (mixed[0] == batch["pixel_values"][0]) | (mixed[0] == batch["pixel_values"][3])
        ).all()
        torch.testing.assert_close(targets[0, 3].item(), 0.025 + 0.9 * foreign, atol=1e-6, rtol=0)
        shares.add(round(foreign, 3))
    assert len(shares) > 1


def test_share_of_mixed_batches() -> None:
    objective = classifier(ClassificationConfig(mix_probability=0.3)).train()
    listener, batch = Listener(objective), class_batch()
    for _ in range(BATCHES):
        objective(batch)
    mixed = np.mean([not torch.equal(pixels, batch["pixel_values"]) for pixels, _ in listener.seen])
    assert abs(mixed - 0.3) < 4 * math.sqrt(0.3 * 0.7 / BATCHES)


def test_mixing_repeats_with_the_seed() -> None:
    """The trainer seeds PyTorch's global generator at each step."""
    batch, found = class_batch(), []
    for seed in (1, 1, 2):
        objective = classifier().train()
        listener = Listener(objective)
        torch.manual_seed(seed)
        objective(batch)
        found.append(listener.seen[0][0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "settings",
    [{"mixup": -1.0}, {"cutmix": -0.1}, {"mix_probability": 2.0}, {"label_smoothing": 1.0}],
)
def test_wrong_mixing_is_refused(settings) -> None:
    with pytest.raises(ValueError, match="give"):
        ClassificationConfig(**settings)


def segment_batch(count: int = 2):
    labels = torch.randint(0, CLASSES, (count, 64, 64), generator=torch.Generator().manual_seed(0))
    labels[0, :32] = IGNORED
    return {"pixel_values": pictures(count), "labels": labels}


def segmenter() -> SegmentationObjective:
    model = toy(VLMoForSemanticSegmentation, num_labels=CLASSES, segmentation_channels=8)
    return SegmentationObjective(model)


def test_segmentation_loss_is_the_models() -> None:
    objective, batch = segmenter(), segment_batch()
    with torch.no_grad():
        expected = objective.model(**batch)
    values = objective(batch)
    torch.testing.assert_close(values["loss"], expected.loss)
    torch.testing.assert_close(values["loss"], values["segmentation"] + 0.4 * values["auxiliary"])
    counted = batch["labels"] != IGNORED
    right = expected.logits.argmax(dim=1)[counted] == batch["labels"][counted]
    torch.testing.assert_close(values["pixel_accuracy"], right.float().mean())


def test_batch_in_which_nothing_counts_gives_zero() -> None:
    objective, batch = segmenter(), segment_batch()
    values = objective({**batch, "labels": torch.full_like(batch["labels"], IGNORED)})
    assert values["loss"] == 0
    values["loss"].backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in objective.model.parameters())


KINDS = ["questions", "sentences"]


def make_pair_objective(kind: str) -> torch.nn.Module:
    if kind == "questions":
        return QuestionObjective(toy(VLMoForVisualQuestionAnswering, num_labels=3))
    return ReasoningObjective(toy(VLMoForVisualReasoning, num_labels=2, num_modality_types=3))


def make_pair_batch(kind: str) -> dict[str, Tensor]:
    batch = texts([5, 8, 3, 6])
    if kind == "questions":
        scores = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.9]])
        return batch | {"pixel_values": pictures(4), "labels": scores}
    pairs = torch.stack([pictures(4), pictures(4, seed=1)], dim=1)
    return batch | {"pixel_values": pairs, "labels": torch.tensor([1, 0, 0, 1])}


def with_logits(objective: torch.nn.Module, logits: Tensor) -> torch.nn.Module:
    """The objective with a head that gives these logits to each row, whatever it reads."""
    head = (
        objective.model.answer_head
        if isinstance(objective, QuestionObjective)
        else objective.model.reasoning_head
    )
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.copy_(logits)
    return objective


def test_question_loss_is_summed_over_answers_and_averaged_over_questions():
    losses = with_logits(make_pair_objective("questions"), torch.tensor([0.0, math.log(3), 0.0]))(
        make_pair_batch("questions")
    )
    # Shares 1/2, 3/4, 1/2. Each answer costs -s log p - (1 - s) log (1 - p), whatever s is where p is 1/2.
    middle = [0.3 * math.log(4 / 3) + 0.7 * math.log(4), math.log(4), math.log(4 / 3), math.log(4)]
    assert losses["loss"].item() == pytest.approx(2 * math.log(2) + sum(middle) / 4, abs=ATOL)
    assert losses["vqa"].item() == losses["loss"].item()
    assert losses["vqa_score"].item() == pytest.approx((0.3 + 0 + 1 + 0) / 4)
    assert not losses["vqa_score"].requires_grad


def test_reasoning_loss_is_the_cross_entropy():
    losses = with_logits(make_pair_objective("sentences"), torch.tensor([0.0, math.log(3)]))(
        make_pair_batch("sentences")
    )
    assert losses["loss"].item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=ATOL)
    assert losses["nlvr2_accuracy"].item() == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_that_sees_a_pair_is_trained(kind):
    objective = make_pair_objective(kind)
    objective(make_pair_batch(kind))["loss"].backward()
    idle = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    # In the top block all tokens take the fusion expert.
    assert all(
        name.startswith(
            ("model.vlmo.blocks.2.experts.vision.", "model.vlmo.blocks.2.experts.language.")
        )
        for name in idle
    )
