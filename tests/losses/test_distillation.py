"""Learning a teacher's vectors: the loss by hand, and what it does to a model."""

import torch
from tests.losses.steps import close, embeds, train
from tests.toy_batch import make_batch
from tests.toy_model import toy
from torch.nn import functional as F

from vlmo.losses.distillation import distillation_loss
from vlmo.losses.itc import caption_keys, own_pairs, same_pairs
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective


def test_the_loss_is_the_squared_distance_weighted_by_what_the_teacher_knows():
    # The teacher takes text 2 for image 0's, and image 2 for text 1's: it knows both pairs in one direction alone.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    own = F.normalize(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1), texts
    scale = torch.tensor([4.0]).log()
    low, high = torch.tensor([-4.0, 4.0]).exp()
    known = [*2 * [(1 / (1 + 2 * low) + 1 / (2 + low)) / 2], 1 / (2 + high)]
    distances = [2 - 2**0.5, 2.0, 0.0]
    expected = sum(k * d for k, d in zip(known, distances, strict=True)) / sum(known)
    same = own_pairs(3, device=torch.device("cpu"))
    close(distillation_loss(own, (images, texts), logit_scale=scale, same=same), expected)
    close(
        distillation_loss((images, texts), (images, texts), logit_scale=scale, same=same),
        torch.tensor(0.0),
    )


def test_a_model_learns_the_vectors_of_a_frozen_teacher():
    teacher = toy(VLMoForImageTextRetrieval, hidden_dropout_prob=0.5).requires_grad_(
        requires_grad=False
    )
    model = toy(VLMoForImageTextRetrieval, size=0.1)
    config = VisionLanguageConfig(
        itc_weight=0.0, mlm_weight=0.0, itm_weight=0.1, teacher_weight=1.0
    )
    objective = VisionLanguageObjective(model, config=config, teacher=teacher).train()
    assert model.training
    assert not teacher.training  # drops nothing
    batch, before = (
        make_batch(),
        {name: each.clone() for name, each in teacher.state_dict().items()},
    )
    first = objective(batch)["teacher"]
    vectors, own = embeds(teacher, batch), embeds(model, batch)
    same = same_pairs(batch["image_ids"], caption_keys(batch["input_ids"], batch["attention_mask"]))
    close(
        first,
        distillation_loss(own, vectors, logit_scale=teacher.contrast_head.logit_scale, same=same),
    )
    train(objective, steps=30)
    last = objective(batch)
    assert last["teacher"] < first / 4
    close(last["loss"], last["teacher"] + 0.1 * last["itm"])
    learnt = model.eval().get_image_features(batch["pixel_values"])
    assert (learnt * vectors[0]).sum(-1).mean() > 0.9
    assert all(torch.equal(each, before[name]) for name, each in teacher.state_dict().items())
