import math

import pytest
import torch
from tests.toy_model import pictures, texts, toy
from torch import nn
from torch.nn import functional as F

from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForSemanticSegmentation,
    VLMoForVisualQuestionAnswering,
    VLMoForVisualReasoning,
)

ATOL = 1e-5  # float32, sums in another order
STEPS, RATE = 25, 1e-2  # enough for each head to learn four samples by heart

TEXTS = {count: texts([5, 8, 3, 8][:count]) for count in (2, 4)}


def learns(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


@torch.no_grad()
def test_answer_loss_is_summed_over_answers_and_a_mean_over_the_batch():
    answers = toy(VLMoForVisualQuestionAnswering, num_labels=5)
    for parameter in answers.answer_head.classifier.parameters():
        parameter.zero_()  # every logit is 0, every term ln 2
    labels = torch.tensor([[1.0, 0.3, 0, 0, 0], [0, 0, 0.6, 0, 0]])
    loss = answers(pictures(2), **TEXTS[2], labels=labels).loss
    assert loss.item() == pytest.approx(5 * math.log(2))


def test_classes_are_learnt_and_every_trained_image_parameter_gets_a_gradient():
    model = VLMoForImageClassification(VLMoConfig.tiny(num_labels=4))
    model(pictures(2), labels=torch.tensor([0, 1])).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unused = ("language", "text_embeddings", "vlmo.norm.")
    assert all(any(part in name for part in unused) for name in without)
    labels = torch.tensor([3, 1, 2, 0])
    first, last = learns(model, {"pixel_values": pictures(4), "labels": labels})
    assert last < 0.1 * first
    assert model.eval()(pictures(4)).logits.argmax(-1).tolist() == labels.tolist()


@torch.no_grad()
def test_segmentation_reads_the_states_after_its_layers_which_are_those_of_beit():
    model = toy(
        VLMoForSemanticSegmentation, num_hidden_layers=6, num_labels=3, segmentation_channels=8
    )
    states = model.vlmo(pixel_values=pictures(2), output_hidden_states=True).hidden_states
    for level, layers in zip(model.levels(pictures(2)), (2, 3, 4, 6), strict=True):
        expected = states[layers][:, 1:].reshape(2, 4, 4, 32).permute(0, 3, 1, 2)
        torch.testing.assert_close(level, expected, atol=ATOL, rtol=0)
    assert VLMoConfig.base().feature_layers == (4, 6, 8, 12)
    assert VLMoConfig.large().feature_layers == (8, 12, 16, 24)


def test_segmentation_ignores_255_and_learns_where_things_are():
    model = VLMoForSemanticSegmentation(
        VLMoConfig.tiny(num_hidden_layers=4, num_labels=2, segmentation_channels=16)
    )
    images = pictures(4)
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    labels[:2, :, 32:] = 1
    labels[2:, 32:] = 1
    labels[:, :4] = 255
    first, last = learns(model, {"pixel_values": images, "labels": labels})
    assert last < 0.3 * first
    predicted = model.eval()(images).logits.argmax(1)
    assert predicted.shape == labels.shape
    assert (predicted == labels)[labels != 255].float().mean() > 0.95
    with torch.no_grad():
        kept = labels != 255
        levels = model.pyramid(model.levels(images))
        logits = [
            F.interpolate(head(levels), size=(64, 64), mode="bilinear").permute(0, 2, 3, 1)[kept]
            for head in (model.decode_head, model.auxiliary_head)
        ]
        main, auxiliary = (F.cross_entropy(values, labels[kept]) for values in logits)
        loss = model(images, labels=labels).loss
    torch.testing.assert_close(loss, main + 0.4 * auxiliary, atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    ("kind", "changes", "inputs", "message"),
    [
        (
            VLMoForVisualQuestionAnswering,
            {"use_pooler": False, "use_match_head": False},
            None,
            "needs a pooler",
        ),
        (
            VLMoForVisualReasoning,
            {},
            None,
            "num_modality_types is 2; VLMoForVisualReasoning needs 3",
        ),
        (
            VLMoForVisualReasoning,
            {"num_modality_types": 3},
            (pictures(2), *TEXTS[2].values()),
            r"\(batch, 2, 3",
        ),
        (
            VLMoForSemanticSegmentation,
            {"num_labels": 256},
            None,
            "num_labels is 256; segmentation needs 2 to 255",
        ),
    ],
)
def test_what_a_task_needs_is_named(kind, changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        kind(VLMoConfig.tiny(**{"num_labels": 2} | changes))(*inputs)
