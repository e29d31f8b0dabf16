"""Every recipe by name. A recipe's docstring is its card."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from vlmo.recipes import ablation, easy_vqa, emoji, finetuning, finetuning_vision, pretraining, small, vision_small
from vlmo.recipes.recipe import Recipe, build

RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        emoji.emoji_tokenizer,
        emoji.emoji_stage1,
        emoji.emoji_stage2,
        emoji.emoji_stage3,
        emoji.emoji_stageless,
        emoji.emoji_small,
        emoji.emoji_retrieval,
        small.small_tokenizer,
        small.small_stage1,
        small.small_stage2,
        small.vlmo_small,
        easy_vqa.easy_vqa,
        easy_vqa.easy_vqa_question_only,
        easy_vqa.easy_vqa_pairs,
        pretraining.base_stage1,
        pretraining.base_stage2,
        pretraining.base_stage3,
        pretraining.base_plus_stage1,
        pretraining.base_plus_stage2,
        pretraining.base_plus_stage3,
        pretraining.large_stage1,
        pretraining.large_stage2,
        pretraining.large_stage3,
        pretraining.large_plusplus_stage3,
        pretraining.large_plusplus_stage3_32k,
        finetuning.base_vqa,
        finetuning.base_plus_vqa,
        finetuning.large_vqa,
        finetuning.base_nlvr2,
        finetuning.base_plus_nlvr2,
        finetuning.large_nlvr2,
        finetuning.base_coco_retrieval,
        finetuning.base_plus_coco_retrieval,
        finetuning.large_coco_retrieval,
        finetuning.base_flickr30k_retrieval,
        finetuning.base_plus_flickr30k_retrieval,
        finetuning.large_flickr30k_retrieval,
        finetuning_vision.base_imagenet,
        finetuning_vision.base_plus_imagenet,
        finetuning_vision.large_imagenet,
        finetuning_vision.base_imagenet_384,
        finetuning_vision.base_plus_imagenet_384,
        finetuning_vision.large_imagenet_384,
        finetuning_vision.base_ade20k,
        finetuning_vision.base_plus_ade20k,
        finetuning_vision.large_ade20k,
        vision_small.digits,
        vision_small.digits_from_nothing,
        vision_small.emoji_kinds,
        vision_small.emoji_kinds_from_nothing,
        vision_small.scenes,
        vision_small.scenes_from_nothing,
        *ablation.BASE_RECIPES,
    )
}


def find_recipe(name: str) -> Callable[[], Recipe]:
    """The recipe called `name`.

    Raises:
        ValueError: There is none; the message names the nearest one.
    """
    if name in RECIPES:
        return RECIPES[name]
    nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0)
    raise ValueError(f"no recipe {name!r}; did you mean {nearest[0]!r}? All: vlmo recipes")


__all__ = ["RECIPES", "Recipe", "build", "find_recipe"]
