"""Stage 3 and fine-tuning for retrieval on one process: parts of the losses, and what must not change them."""

import pytest
import torch
from tests.losses.steps import SAME, close, embeds, gradients, note_draws, retrieval, stage_3
from tests.toy_batch import make_batch, with_false_texts
from tests.toy_model import BEIT3, toy
from torch import Tensor
from torch.nn import functional as F

from vlmo.losses.itc import FalseCaptions, SamePairs, itc_loss
from vlmo.losses.itm import itm_loss, sample_hard_negatives, sample_uniform
from vlmo.model import VLMoForImageTextRetrieval
from vlmo.tasks import vision_language
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective


@pytest.mark.parametrize("model", [{}, BEIT3])
@torch.no_grad()
def test_mlm_logits_of_masked_positions_equal_the_full_computation(model):
    objective, batch = stage_3(model, itm_weight=0), make_batch()
    shapes = []
    objective.model.mlm_head.register_forward_hook(
        lambda _, given, __: shapes.append(tuple(given[0].shape))
    )
    losses = objective(batch)
    assert shapes == [(4, 32)]
    logits = objective.model(
        batch["pixel_values"], batch["mlm_input_ids"], batch["attention_mask"]
    ).mlm_logits
    close(losses["mlm"], F.cross_entropy(logits.flatten(0, 1), batch["mlm_labels"].flatten()))


@pytest.mark.parametrize("variant", [{}, BEIT3])
@torch.no_grad()
def test_itm_classifies_pairs_and_drawn_negatives(variant):
    objective, batch = stage_3(variant, mlm_weight=0), make_batch()
    model, images = objective.model, batch["pixel_values"]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    per_image = model(images, ids, mask).logits_per_image
    uniform = sample_uniform(batch["step_seed"], batch=8, rounds=2)
    text, _ = sample_hard_negatives(per_image, excluded=SAME, uniform=uniform[0])
    image, _ = sample_hard_negatives(per_image.T, excluded=SAME, uniform=uniform[1])
    assert not SAME.gather(1, text[:, None]).any()
    assert len(set(text.tolist())) > 1
    logits = model.match(
        torch.cat([images, images[image], images]),
        torch.cat([ids, ids, ids[text]]),
        torch.cat([mask, mask, mask[text]]),
    )
    labels = torch.tensor([1] * 8 + [0] * 16)
    losses = objective(batch)
    close(losses["itm"], itm_loss(logits, labels))
    close(losses["itm_accuracy"], (logits.argmax(dim=1) == labels).float().mean())


@torch.no_grad()
def test_itm_classifies_false_captions_beside_drawn_negatives():
    objective, batch = stage_3(mlm_weight=0, itm_stride=2), with_false_texts(make_batch())
    drawn = objective(make_batch())["itm"]
    logits = objective.model.match(
        batch["pixel_values"], batch["false_input_ids"], batch["false_attention_mask"]
    )[::2]
    false = F.cross_entropy(
        logits[[0, 2, 3]], torch.zeros(3, dtype=torch.int64)
    )  # the other row has none
    close(
        objective(batch)["itm"], (12 * drawn + 3 * false) / 15
    )  # a true pair and two negatives for each of four rows


@pytest.mark.parametrize("lacking", [[0], [2, 7], [*range(8)]])
@torch.no_grad()
def test_itc_reads_the_false_captions_that_there_are(lacking):
    settings = {"mlm_weight": 0, "itm_weight": 0, "itc_false_captions": True}
    objective, batch = (
        stage_3({"contrast_fusion_branch": False}, **settings),
        with_false_texts(make_batch()),
    )
    batch["false_attention_mask"][2] = 1  # all rows but those below have one
    batch["false_attention_mask"][lacking] = 0
    model, false = objective.model, torch.zeros(8, 32)
    for row in set(range(8)) - set(lacking):
        false[row] = model.get_text_features(
            *(batch[f"false_{name}"][[row]] for name in ("input_ids", "attention_mask"))
        )
    own = (
        model.get_image_features(batch["pixel_values"]),
        model.get_text_features(batch["input_ids"], batch["attention_mask"]),
    )
    found = batch["false_attention_mask"].any(dim=1)
    scale = model.contrast_head.logit_scale
    captions = FalseCaptions(false, found)
    close(
        objective(batch)["itc"],
        itc_loss(*own, logit_scale=scale, same=SAME, false_captions=captions),
    )


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({}, {"itc": 1, "mlm": 0.25, "itm": 1}),
        ({"itc_weight": 0.5, "mlm_weight": 2, "itm_weight": 3}, {"itc": 0.5, "mlm": 2, "itm": 3}),
        ({"mlm_weight": 0}, {"itc": 1, "itm": 1}),
        ({"itm_weight": 0}, {"itc": 1, "mlm": 0.25}),
        ({"mlm_weight": 0, "itm_weight": 0}, {"itc": 1}),
    ],
)
def test_loss_is_the_weighted_sum_of_the_parts(weights, parts):
    objective = stage_3(**weights)
    losses = objective(make_batch())
    close(losses["temperature"], 1 / objective.model.contrast_head.logit_scale.exp()[0])
    close(losses["loss"], sum(weight * losses[name] for name, weight in parts.items()))
    accuracies = {f"{name}_accuracy" for name in parts if name != "itc"}
    assert set(losses) == {"loss", "temperature", *parts, *accuracies}
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    assert all(value.shape == () for value in losses.values())


def itc_by_hand(objective: VisionLanguageObjective, batch: dict[str, Tensor]) -> Tensor:
    """Mean over both branches and both directions, from the projections and by nothing under test."""
    model, backbone = objective.model, objective.model.vlmo
    images = backbone.encode_branches(batch["pixel_values"])
    texts = backbone.encode_branches(None, batch["input_ids"], batch["attention_mask"])
    total = 0
    for head, i, t in zip(
        (model.contrast_head, model.fusion_contrast_head), images, texts, strict=True
    ):
        own = i @ head.image_projection.weight.T, t @ head.text_projection.weight.T
        own = [each / each.square().sum(dim=1, keepdim=True).sqrt() for each in own]
        odds = (head.logit_scale.exp() * own[0] @ own[1].T).exp()
        counts = ~SAME | torch.eye(8, dtype=torch.bool)
        for direction in (odds, odds.T):
            total = total - (direction.diag() / (direction * counts).sum(1)).log().mean()
    return total / 4


@pytest.mark.parametrize("chunk", [None, 3])
def test_itc_is_the_mean_over_branches_and_directions(chunk):
    objective, batch = stage_3(mlm_weight=0, itm_weight=0, cache_chunk=chunk), make_batch()
    actual = gradients(objective, batch)
    objective.zero_grad()
    expected = itc_by_hand(objective, batch)
    expected.backward()
    close(objective(batch)["itc"], expected.detach())
    wanted = {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    assert len(wanted) > 50
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "model"),
    [
        *((retrieval, model) for model in ({}, {"use_match_head": False}, BEIT3)),
        (stage_3, {"contrast_fusion_branch": False}),
    ],
)
@torch.no_grad()
def test_contrast_is_of_what_the_model_embeds(make, model):
    objective, batch = make(model, mlm_weight=0, itm_weight=0), make_batch()
    passes = []
    objective.model.vlmo.blocks[0].register_forward_hook(
        lambda _, given, __: passes.append(given[0].shape[0])
    )
    losses = objective(batch)
    assert passes == [8, 8]  # pictures, texts: no fused pass, and no block of a second ending
    scale = objective.model.contrast_head.logit_scale
    close(losses["itc"], itc_loss(*embeds(objective.model, batch), logit_scale=scale, same=SAME))
    close(losses["loss"], losses["itc"])
    assert set(losses) == {"loss", "itc", "temperature"}


def test_retrieval_trains_without_masked_captions():
    batch = make_batch()
    del batch["mlm_input_ids"], batch["mlm_labels"]
    moved = {
        name for name, value in gradients(retrieval(itm_weight=1), batch).items() if value.any()
    }
    assert {
        "match_head.classifier.weight",
        "contrast_head.logit_scale",
        "vlmo.pooler.dense.weight",
    } <= moved
    moved = {name for name, value in gradients(retrieval(), batch).items() if value.any()}
    assert not any(
        name.startswith(("match_head.", "vlmo.pooler.")) or ".vision_language." in name
        for name in moved
    )


@torch.no_grad()
def test_sharpness_says_how_hard_negatives_are(monkeypatch):
    draws = note_draws(monkeypatch)
    for sharpness in (1.0, 0.5, 0.0):
        retrieval(itm_weight=1, negative_sharpness=sharpness)(make_batch())
    assert len(draws) == 6
    for direction in (draws[::2], draws[1::2]):
        whole, half, none = (similarities for similarities, *_ in direction)
        close(half, whole / 2)
        assert whole.std() > 0
        assert not none.any()
    with pytest.raises(ValueError, match="negative_sharpness is -1"):
        VisionLanguageConfig(negative_sharpness=-1)


@torch.no_grad()
def test_groups_are_where_negatives_are_drawn_from(monkeypatch):
    batch, draws = make_batch(), note_draws(monkeypatch)
    for groups in (1, 2, 4):
        retrieval(itm_weight=1, negative_groups=groups, exclude_same=False)(batch)
    row = torch.arange(8)
    for groups, (_, excluded, _) in zip((1, 1, 2, 2, 4, 4), draws, strict=True):
        size = 8 // groups
        expected = (row[:, None] == row) | (row[:, None] // size != row // size)
        assert torch.equal(excluded, expected)
    with pytest.raises(ValueError, match="negative_groups 3 does not divide the batch of 8 pairs"):
        retrieval(itm_weight=1, negative_groups=3)(batch)
    with pytest.raises(ValueError, match="negative_groups is 0"):
        VisionLanguageConfig(negative_groups=0)


def test_losses_without_a_head_are_refused():
    with pytest.raises(
        ValueError,
        match=r"mlm_weight is 0\.25, but VLMoForImageTextRetrieval has no head for words",
    ):
        VisionLanguageObjective(toy(VLMoForImageTextRetrieval))
    with pytest.raises(ValueError, match="itm_weight is 1, but the model has no matching head"):
        retrieval({"use_match_head": False}, itm_weight=1)


@torch.no_grad()
def test_strides_and_negatives_say_which_pairs_are_fused():
    batch = make_batch()
    whole, some = stage_3(), stage_3(mlm_stride=2, itm_stride=4, negatives=3)
    fused = []
    some.model.vlmo.blocks[-1].experts["vision_language"].register_forward_hook(
        lambda _, given, __: fused.append(len(given[0]))
    )
    losses = some(batch)
    assert max(fused) == 4 + 2 * (
        1 + 3 + 3
    )  # MLM, then true pairs, negative images and negative texts of ITM
    close(losses["itc"], whole(batch)["itc"])
    rows = slice(0, None, 2)
    logits = some.model(
        batch["pixel_values"][rows], batch["mlm_input_ids"][rows], batch["attention_mask"][rows]
    ).mlm_logits
    close(losses["mlm"], F.cross_entropy(logits.flatten(0, 1), batch["mlm_labels"][rows].flatten()))
    for name in ("mlm_stride", "itm_stride"):
        with pytest.raises(
            ValueError, match=f"{name} 3 does not divide the micro-batch of 8 pairs"
        ):
            stage_3(**{name: 3})(batch)


@torch.no_grad()
def test_itm_is_the_mean_over_each_true_pair_and_its_negatives(monkeypatch):
    batch, objective = make_batch(), stage_3(itm_stride=4, negatives=2)
    sampled = []
    sample = vision_language.sample_negatives
    monkeypatch.setattr(
        vision_language,
        "sample_negatives",
        lambda *a, **k: sampled.append(sample(*a, **k)) or sampled[-1],
    )
    loss, model = objective(batch)["itm"], objective.model
    pairs = [(row, row) for row in (0, 4)]
    pairs += [(int(image), row) for image, row in zip(sampled[0].image, (0, 0, 4, 4), strict=True)]
    pairs += [(row, int(text)) for text, row in zip(sampled[0].text, (0, 0, 4, 4), strict=True)]
    assert all(image != text for image, text in pairs[2:])
    images, texts = (list(numbers) for numbers in zip(*pairs, strict=True))
    logits = model.match(
        batch["pixel_values"][images], batch["input_ids"][texts], batch["attention_mask"][texts]
    )
    close(loss, F.cross_entropy(logits, torch.tensor([1] * 2 + [0] * 8)))


def test_every_parameter_learns():
    objective = stage_3()
    learnt = gradients(objective, make_batch())
    for name, parameter in objective.model.named_parameters():
        assert parameter.requires_grad
        assert name in learnt, name
        assert learnt[name].any(), name
        assert torch.isfinite(learnt[name]).all(), name


def excluded_rows(
    objective: VisionLanguageObjective, batch: dict[str, Tensor], monkeypatch
) -> tuple[Tensor, Tensor]:
    """What the objective hides from ITC and from the draw of negatives."""
    seen, draws = [], note_draws(monkeypatch)

    def contrast(*args: Tensor, same: SamePairs, **kwargs: Tensor) -> Tensor:
        seen.append(same[:])
        return itc_loss(*args, same=same, **kwargs)

    monkeypatch.setattr(vision_language, "itc_loss", contrast)
    objective(batch)
    return seen[-1], draws[-1][1]


@torch.no_grad()
def test_rows_with_the_same_picture_or_caption_are_negatives_only_on_request(monkeypatch):
    batch = make_batch()
    batch["input_ids"][7], batch["attention_mask"][7] = (
        batch["input_ids"][1],
        batch["attention_mask"][1],
    )
    expected = SAME.clone()
    expected[1, 7] = expected[7, 1] = True
    for hidden in excluded_rows(stage_3(), batch, monkeypatch):
        assert torch.equal(hidden, expected)
    for hidden in excluded_rows(stage_3(exclude_same=False), batch, monkeypatch):
        assert torch.equal(hidden, torch.eye(8, dtype=torch.bool))


def test_batch_of_one_picture_trains_on_its_true_pairs():
    objective, batch = stage_3(itc_weight=0, mlm_weight=0), make_batch()
    batch["image_ids"][:] = 1
    losses = objective(batch)
    logits = objective.model.match(
        batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
    )
    close(losses["itm"], F.cross_entropy(logits, torch.ones(8, dtype=torch.long)))
    close(losses["itm_accuracy"], (logits.argmax(dim=1) == 1).float().mean())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(objective, batch).values())
