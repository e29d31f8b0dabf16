import math

import pytest
import torch
from tests.toy_model import BEIT3, pictures, texts, toy
from torch import nn
from torch.nn import functional as F

from vlmo.model import (
    VLMoConfig,
    VLMoForImageClassification,
    VLMoForMaskedImageModeling,
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
def test_answer_logits_come_from_the_pooled_pair_and_the_loss_sums_over_answers():
    answers = toy(VLMoForVisualQuestionAnswering, num_labels=5)
    fused = answers.vlmo(pixel_values=pictures(4), **TEXTS[4])
    head = answers.answer_head
    hidden = F.gelu(F.layer_norm(head.dense(fused.pooler_output), (64,), head.norm.weight, head.norm.bias, 1e-5))
    torch.testing.assert_close(answers(pictures(4), **TEXTS[4]).logits, head.classifier(hidden), atol=ATOL, rtol=0)
    for parameter in head.classifier.parameters():
        parameter.zero_()  # every logit is 0, every term ln 2
    labels = torch.tensor([[1.0, 0.3, 0, 0, 0], [0, 0, 0.6, 0, 0]])
    loss = answers(pictures(2), **TEXTS[2], labels=labels).loss
    assert loss.item() == pytest.approx(5 * math.log(2))


@torch.no_grad()
def test_reasoning_fuses_the_sentence_with_each_picture_apart():
    reasoning = toy(VLMoForVisualReasoning, num_modality_types=3, num_labels=2)
    types = reasoning.vlmo.modality_types.weight
    images = torch.stack([pictures(4, seed=1), pictures(4, seed=2)], dim=1)
    first = reasoning.vlmo(pixel_values=images[:, 0], **TEXTS[4]).pooler_output
    with_second_type = reasoning(images, **TEXTS[4]).logits
    types[1] = types[2]  # so that the plain pass also uses the second picture's type
    second = reasoning.vlmo(pixel_values=images[:, 1], **TEXTS[4]).pooler_output
    expected = reasoning.reasoning_head(torch.cat([first, second], dim=-1))
    torch.testing.assert_close(with_second_type, expected, atol=ATOL, rtol=0)
    assert not torch.allclose(reasoning(images, **TEXTS[4]).logits, with_second_type, atol=1e-3)


@torch.no_grad()
def test_classes_come_from_the_mean_of_the_patches_before_the_final_norm():
    model = toy(VLMoForImageClassification, num_labels=7)
    states = model.vlmo(pixel_values=pictures(3), output_hidden_states=True).hidden_states[-1]
    mean = states[:, 1:].mean(dim=1)
    norm = model.classifier_norm
    expected = model.classifier(F.layer_norm(mean, (32,), norm.weight, norm.bias, 1e-6))
    torch.testing.assert_close(model(pictures(3)).logits, expected, atol=ATOL, rtol=0)


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
    model = toy(VLMoForSemanticSegmentation, num_hidden_layers=6, num_labels=3, segmentation_channels=8)
    states = model.vlmo(pixel_values=pictures(2), output_hidden_states=True).hidden_states
    for level, layers in zip(model.levels(pictures(2)), (2, 3, 4, 6), strict=True):
        expected = states[layers][:, 1:].reshape(2, 4, 4, 32).permute(0, 3, 1, 2)
        torch.testing.assert_close(level, expected, atol=ATOL, rtol=0)
    assert VLMoConfig.base().feature_layers == (4, 6, 8, 12)
    assert VLMoConfig.large().feature_layers == (8, 12, 16, 24)


def test_segmentation_ignores_255_and_learns_where_things_are():
    model = VLMoForSemanticSegmentation(VLMoConfig.tiny(num_hidden_layers=4, num_labels=2, segmentation_channels=16))
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
    ("kind", "changes"),
    [
        (VLMoForVisualQuestionAnswering, {"num_labels": 5}),
        (VLMoForImageClassification, {"num_labels": 5}),
        (VLMoForSemanticSegmentation, {"num_labels": 5, "segmentation_channels": 16}),
    ],
)
@pytest.mark.parametrize("beit3", [False, True])
def test_nothing_is_left_as_raw_memory_when_a_task_starts_from_a_stage(tmp_path, monkeypatch, kind, changes, beit3):
    start = VLMoForMaskedImageModeling(VLMoConfig.tiny(num_hidden_layers=4, **BEIT3 if beit3 else {}))
    start.save_pretrained(tmp_path)
    empty = torch.empty_like

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor if tensor.is_meta or not tensor.is_floating_point() else tensor.fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned)
    model, report = kind.from_pretrained(tmp_path, output_loading_info=True, **changes)
    assert report["missing_keys"]
    for name, value in model.state_dict().items():
        assert torch.isfinite(value).all(), name
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert not value.any(), name
        if name.endswith("running_var"):
            assert (value == 1).all(), name


@pytest.mark.parametrize(
    ("kind", "changes", "inputs", "message"),
    [
        (VLMoForVisualQuestionAnswering, {"use_pooler": False, "use_match_head": False}, None, "needs a pooler"),
        (VLMoForVisualReasoning, {}, None, "num_modality_types is 2; VLMoForVisualReasoning needs 3"),
        (VLMoForVisualReasoning, {"num_modality_types": 3}, (pictures(2), *TEXTS[2].values()), r"\(batch, 2, 3"),
        (VLMoForSemanticSegmentation, {"num_labels": 256}, None, "num_labels is 256; segmentation needs 2 to 255"),
    ],
)
def test_what_a_task_needs_is_named(kind, changes, inputs, message):
    with pytest.raises(ValueError, match=message):
        kind(VLMoConfig.tiny(**{"num_labels": 2} | changes))(*inputs)
