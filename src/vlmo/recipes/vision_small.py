"""The image encoder's tasks on small real data: handwritten digits, kinds of drawings, drawings on photographs."""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.objectives.vision_tasks import ClassificationConfig
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import SegmentTransformConfig
from vlmo.recipes import emoji
from vlmo.recipes.configs import DataConfig
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.vision_stages import ClassificationStage, SegmentationStage
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

_START = f"{emoji.QUICKSTART}/{emoji.STAGE3}/model"
_BETAS = (0.9, 0.999)
_MODEL = replace(emoji.emoji_stage3().model, num_fusion_layers=0)


def digits() -> Recipe:
    """Handwritten digits, ten classes.

    Data:    digits: 1,347 digits; 450 by other writers are for testing.
    Start:   the model folder of emoji-stage3, from `make quickstart`.
    Run:     vlmo train digits
    Expect:  top-1 96.0 % (logistic regression on pixels 90.7), in 18 minutes of a busy CPU core (AMD EPYC, one seed).
    """
    return Recipe(
        # Strokes are unlike drawings, so that the lower blocks must learn as much as the upper ones. Mixup and
        # cutmix are off: a mixed digit is a harder task for a short run.
        stage=ClassificationStage(losses=ClassificationConfig(mixup=0.0, cutmix=0.0), layer_decay=1.0),
        model=replace(_MODEL, drop_path_rate=0.1),
        data=DataConfig(
            source="digits",
            # A digit in the mirror is none.
            transform=TransformConfig(image_size=64, rand_augment_ops=0, horizontal_flip=0.0, fill=0, affine=0.5),
            cache_images=True,
        ),
        loader=LoaderConfig(global_batch_size=64, num_workers=0),
        optimizer=OptimizerConfig(lr=1e-3, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=50, kind="cosine"),
        trainer=TrainerConfig(max_steps=2000, precision="auto", clip_norm=3.0, log_every=20),
        init=_START,
        evaluate_on="digits",
    )


def digits_from_nothing() -> Recipe:
    """The recipe digits without any pre-training: the same steps from random weights.

    Data:    digits.
    Run:     vlmo train digits-from-nothing
    Expect:  top-1 95.8 %.
    """
    return replace(digits(), init=None)


def emoji_kinds() -> Recipe:
    """Kinds of drawings (faces, animals, flags, ...), twelve classes.

    Data:    emoji-kinds: 1,222 drawings in two styles; 214 OpenMoji drawings that no stage saw are for testing.
    Start:   the model folder of emoji-stage3.
    Run:     vlmo train emoji-kinds
    Expect:  top-1 71.0 % (logistic regression on pixels 67.3, the largest class 29.9), in 6 minutes of a busy CPU core
             (AMD EPYC, one seed).
    """
    recipe = digits()
    return replace(
        recipe,
        stage=ClassificationStage(losses=ClassificationConfig(mix_probability=0.5), layer_decay=0.8),
        data=DataConfig(
            source="emoji-kinds", transform=TransformConfig(image_size=64, random_erasing=0.25), cache_images=True
        ),
        trainer=replace(recipe.trainer, max_steps=800),
        evaluate_on="emoji-kinds",
    )


def emoji_kinds_from_nothing() -> Recipe:
    """The recipe emoji-kinds without any pre-training.

    Data:    emoji-kinds.
    Run:     vlmo train emoji-kinds-from-nothing
    Expect:  top-1 70.1 %.
    """
    return replace(emoji_kinds(), init=None)


def scenes() -> Recipe:
    """Drawings on photographs, the kind of each pixel: twelve classes and the background.

    Data:    scenes: 2,000 pictures; 300 with other drawings on other photographs are for testing.
    Start:   the model folder of emoji-stage3.
    Run:     vlmo train scenes
    Expect:  mIoU 16.3 % (a table of colours 16.0, background everywhere 6.9), in 20 minutes of a busy CPU core (AMD
             EPYC, one seed; docs/log.md).
    """
    return Recipe(
        stage=SegmentationStage(layer_decay=0.9, channels=64, augmentation=SegmentTransformConfig(scale=(0.75, 1.5))),
        model=replace(_MODEL, image_size=128, drop_path_rate=0.1),
        data=DataConfig(source="scenes", cache_images=True),
        loader=LoaderConfig(global_batch_size=16, num_workers=0),
        optimizer=OptimizerConfig(lr=1e-3, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=50),
        trainer=TrainerConfig(max_steps=1000, precision="auto", clip_norm=3.0, log_every=20, save_every=250),
        init=_START,
        evaluate_on="scenes",
    )


def scenes_from_nothing() -> Recipe:
    """The recipe scenes without any pre-training.

    Data:    scenes.
    Run:     vlmo train scenes-from-nothing
    Expect:  mIoU 17.3 %.
    """
    return replace(scenes(), init=None)
