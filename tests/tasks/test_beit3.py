"""BEiT-3's pre-training: losses by hand, what they train, data of three kinds in a step, and a run that goes on."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.losses.steps import close, gradients
from tests.recipes.toy_recipes import shrunk, write_shards
from tests.toy_batch import FixedTokens, make_batch, with_parts_alone
from tests.toy_model import BEIT3, toy
from tests.training.toy_run import curve
from torch import Tensor
from torch.nn import functional as F

from vlmo.data.config import StreamConfig
from vlmo.folder.card import read_data
from vlmo.model import VLMoForMaskedDataModeling
from vlmo.recipes import Recipe, find_recipe
from vlmo.run import build
from vlmo.tasks.beit3 import AloneConfig, BEiT3Objective

BATCH = with_parts_alone(make_batch())


def objective(**changes) -> BEiT3Objective:
    return BEiT3Objective(toy(VLMoForMaskedDataModeling, **changes), tokenizer=FixedTokens())


@pytest.fixture
def recipe(pictures, visual_tokenizer) -> Recipe:
    """Pairs in memory, half as many images from shards, and texts of a file."""
    lines = pictures.parent / "lines.txt"
    lines.write_text("".join(f"line {number} of words\n" for number in range(8)))
    recipe = shrunk(find_recipe("base-beit3"), source=pictures, visual_tokenizer=visual_tokenizer)
    streams = StreamConfig(patterns=(f"{write_shards(pictures)}/*.tar",), lanes=2, shuffle=8)
    images, texts = AloneConfig(streams=streams, per_pair=0.5), AloneConfig(str(lines))
    loader = replace(recipe.loader, global_batch_size=4)
    return replace(recipe, task=replace(recipe.task, images=images, texts=texts), loader=loader)


@torch.no_grad()
def test_loss_is_the_sum_of_the_means_over_masked_tokens() -> None:
    trained = objective()
    for head in (trained.model.mlm_head.decoder, trained.model.mim_head.decoder):
        head.weight.zero_()
        head.bias.zero_()
    # A share of 3 in 66 for token 32, else of 1 in 66.
    trained.model.mim_head.decoder.bias[32] = math.log(3)
    losses = trained(BATCH)
    close(losses["pair_mlm"], torch.tensor(math.log(96)))
    close(losses["text_mlm"], torch.tensor(math.log(96)))
    for prefix, name in (("", "pair_mim"), ("images.", "image_mim")):
        tokens = FixedTokens().tokenize(BATCH[f"{prefix}pixel_values"], grid=(4, 4))
        share = (tokens == 32)[BATCH[f"{prefix}bool_masked_pos"]].float().mean()
        assert 0 < share < 1
        close(losses[name], math.log(66) - share * math.log(3))
    names = ("pair_mlm", "pair_mim", "text_mlm", "image_mim")
    close(losses["loss"], sum(losses[name] for name in names))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, BEIT3], ids=["shared", "beit3"])
def test_losses_are_those_of_all_logits(changes) -> None:
    trained = objective(**changes)
    words = BATCH["mlm_labels"] != -100
    patches = BATCH["bool_masked_pos"]
    losses = trained(make_batch())

    def logits(pixels: Tensor) -> tuple[Tensor, Tensor]:
        states = trained.model.vlmo(
            pixels,
            BATCH["mlm_input_ids"],
            BATCH["attention_mask"],
            bool_masked_pos=patches,
            mask_token=trained.model.mim_head.mask_token,
        )
        patch_logits = trained.model.mim_head(states.image_hidden_state[:, 1:])
        return trained.model.mlm_head(states.text_hidden_state)[words], patch_logits[patches]

    word_logits, patch_logits = logits(BATCH["pixel_values"])
    tokens = FixedTokens().tokenize(BATCH["pixel_values"], grid=(4, 4))
    close(losses["pair_mlm"], F.cross_entropy(word_logits, BATCH["mlm_labels"][words]))
    close(losses["pair_mim"], F.cross_entropy(patch_logits, tokens[patches]))
    # A masked patch is seen by nothing; another one is.
    for is_masked in (True, False):
        changed = BATCH["pixel_values"].clone()
        row, column = divmod(int((patches[0] == is_masked).nonzero()[0]), 4)
        changed[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 9
        assert torch.allclose(logits(changed)[0], word_logits) == is_masked


@pytest.mark.parametrize(
    ("kinds", "experts"),
    [
        ((), set()),
        (("images.",), {"vision"}),
        (("texts.",), {"language"}),
        (("images.", "texts."), {"vision", "language"}),
    ],
)
def test_experts_learn_from_what_goes_through_them(kinds, experts) -> None:
    """In the top layer pairs go through the vision-language expert, so the others learn from images or texts alone."""
    without = tuple({"images.", "texts."} - {*kinds})
    batch = {name: value for name, value in BATCH.items() if not name.startswith(without)}
    trained = gradients(objective(), batch)
    used = [name.split(".") for name, gradient in trained.items() if gradient.any()]
    top = {name[4] for name in used if name[1:4] == ["blocks", "2", "experts"]}
    lower = {name[4] for name in used if name[1:4] == ["blocks", "1", "experts"]}
    assert top == experts | {"vision_language"}
    assert lower == {"vision", "language"}


def test_a_step_has_the_asked_number_of_each_kind(recipe, tmp_path) -> None:
    (batch,) = next(iter(build(recipe, run_dir=tmp_path).loader(0)))
    names = ("pixel_values", "mlm_labels", "images.pixel_values", "texts.input_ids")
    assert [len(batch[name]) for name in names] == [4, 4, 2, 4]
    assert not {"images.input_ids", "texts.pixel_values", "texts.bool_masked_pos"} & batch.keys()
    assert batch["bool_masked_pos"].sum(1).tolist() == [6] * 4  # 40 % of 16
    assert batch["images.bool_masked_pos"].sum(1).tolist() == [6] * 2
    lengths = batch["attention_mask"].sum(1)
    words = (batch["mlm_labels"] != -100).sum(1)
    assert ((words - (lengths - 2) / 2).abs() <= 2).all()
    assert (batch["texts.mlm_labels"] != -100).sum(1).max() <= 2


def test_pairs_serve_as_images_in_another_order(recipe, tmp_path) -> None:
    task = replace(recipe.task, images=AloneConfig(), texts=AloneConfig(per_pair=0))
    (batch,) = next(iter(build(replace(recipe, task=task), run_dir=tmp_path).loader(0)))
    assert "texts.input_ids" not in batch
    assert not torch.equal(batch["sample_ids"], batch["images.sample_ids"])


def test_pairs_images_and_texts_are_drawn_with_seeds_of_their_own(recipe) -> None:
    parts = recipe.task.beside(recipe)
    assert parts.keys() == {"images", "texts"}
    assert len({recipe.seed, parts["images"].seed, parts["texts"].seed}) == 3


def test_a_run_that_was_cut_off_goes_on_bit_equal(recipe, tmp_path) -> None:
    def fit(steps: int, folder: Path) -> None:
        trainer = replace(recipe.trainer, max_steps=steps, save_every=3)
        result = build(replace(recipe, trainer=trainer), run_dir=folder).fit()
        names = {data.name for data in read_data(result.model_dir)}
        assert "lines.txt" in names
        assert any("shards" in name for name in names)

    fit(3, tmp_path / "cut")
    (tmp_path / "cut" / "recipe.json").unlink()  # the same run, only longer
    for name in ("cut", "whole"):
        fit(6, tmp_path / name)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == 6


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"per_pair": 0.3}, r"task\.images\.per_pair 0\.3 of 4 pairs"),
        ({"source": "nowhere"}, r"task\.images: no data set 'nowhere'"),
    ],
)
def test_wrong_parts_are_named(part, message, recipe, tmp_path) -> None:
    wrong = replace(recipe, task=replace(recipe.task, images=AloneConfig(**part)))
    with pytest.raises(ValueError, match=message):
        build(wrong, run_dir=tmp_path)
    with pytest.raises(ValueError, match="give per_pair from 0 up"):
        AloneConfig(per_pair=-1)
    with pytest.raises(ValueError, match="masked_share is 1"):
        replace(recipe.task, masked_share=1)
