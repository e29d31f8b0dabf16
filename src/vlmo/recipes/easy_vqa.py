"""Questions about drawn shapes, and sentences about two of them: the fusion encoder's tasks on small real data."""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.processing import TransformConfig
from vlmo.recipes import emoji
from vlmo.recipes.answering_stages import QuestionStage, ReasoningStage
from vlmo.recipes.configs import DataConfig
from vlmo.recipes.recipe import Recipe
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_START = f"{emoji.QUICKSTART}/{emoji.STAGE3}/model"
# A patch of 16 of the pictures' 64 pixels can hold a whole small shape, which is much for one linear layer. At 96
# pixels a shape spans several; position tables are resized, as for the paper's fine-tuning at larger pictures.
_PIXELS = 96
# Colours are answers. Each picture is flipped alone, so "left" and "right" among two pictures stay true.
_FLIPS = TransformConfig(image_size=_PIXELS, rand_augment_ops=0)


def easy_vqa() -> Recipe:
    """Questions about pictures of one drawn shape, 13 answers.

    Data:    easy-vqa-balanced: 24,190 of the 38,575 questions about 4,000 pictures; all 9,673 about 1,000 other
             pictures are for testing.
    Start:   the model folder of emoji-stage3, from `make quickstart`.
    Run:     vlmo train easy-vqa
    Expect:  accuracy 99.5 % (without the pictures 67.1, one answer to all 37.3), in 14 minutes on one of two busy CPU
             cores (AMD EPYC, one seed; docs/log.md).
    """
    base = emoji.emoji_stage3()
    return Recipe(
        stage=QuestionStage(head_lr_scale=1.0),
        model=replace(base.model, image_size=_PIXELS),
        text=base.text,
        data=DataConfig(source="easy-vqa-balanced", transform=_FLIPS, cache_images=True),
        loader=LoaderConfig(global_batch_size=64, num_workers=0),
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=200),
        trainer=TrainerConfig(max_steps=4000, precision="auto", clip_norm=3.0, log_every=50, save_every=1000),
        init=_START,
        evaluate_on="easy-vqa",
    )


def easy_vqa_question_only() -> Recipe:
    """easy-vqa with every picture hidden: what the questions alone tell. The baseline of easy-vqa.

    Data:    easy-vqa-hidden: all 38,575 questions, one grey picture for all, and the same questions for testing.
    Start:   the model folder of emoji-stage3.
    Run:     vlmo train easy-vqa-question-only
    Expect:  accuracy 67.1 %.
    """
    recipe = easy_vqa()
    return replace(recipe, data=replace(recipe.data, source="easy-vqa-hidden"), evaluate_on="easy-vqa-hidden")


def easy_vqa_pairs() -> Recipe:
    """Sentences that are true or false of two pictures of one drawn shape each, in the manner of NLVR2.

    Data:    easy-vqa-pairs: 24,000 pairs of pictures with 6,000 sentences; 2,000 pairs of others are for testing.
    Start:   the model folder of easy-vqa.
    Run:     vlmo train easy-vqa-pairs
    Expect:  accuracy 91.3 % (chance 50), consistency 72.8 % (chance 6.2), in 9 minutes on one of two busy CPU cores
             (AMD EPYC, one seed).
    """
    recipe = easy_vqa()
    return replace(
        recipe,
        stage=ReasoningStage(),
        data=replace(recipe.data, source="easy-vqa-pairs"),
        trainer=replace(recipe.trainer, max_steps=1200),
        init="runs/easy-vqa/model",
        evaluate_on="easy-vqa-pairs",
    )
