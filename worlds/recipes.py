"""Recipes of `vlmo-small`, a step a row, and of what is fine-tuned from it on scenes.

Kept out of all steps: OpenMoji, all emoji drawings of the 150 concepts of `drawings-concepts` and their names (but for
three, see `card.md`), and three families of icons (`vlmo data prepare icons`, test; one of them is `lucide-icons`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from vlmo.data.loader import LoaderConfig
from vlmo.folder.card import read_results
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import SegmentTransformConfig
from vlmo.recipes import Entry, Recipe
from vlmo.recipes.schema import DataConfig, TextConfig, model_config
from vlmo.released import FOLDER, SMALL
from vlmo.tasks import (
    ClassificationTask,
    NLVR2Task,
    SegmentationTask,
    Task,
    VisionLanguageTask,
    VQATask,
)
from vlmo.tasks.classification import ClassificationConfig
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

RUN = "runs/vlmo-small"
PREPARED = ("icons", "drawings", "clipart", "glosses")
"""Sets of `vlmo data prepare`, which lie in `data/NAME`."""

# Initial weights of 0.02 suit a width of 768; in a narrow model they hold contrast on a plateau for most of a short
# run. The ITC branch of the vision-language experts is left out: it costs a quarter of the contrastive passes here.
# With relative positions sides are never learnt (experiments/log.md).
_FUSION = model_config(
    VLMoConfig.small(
        hidden_size=192,
        num_attention_heads=6,
        num_hidden_layers=4,
        num_fusion_layers=2,
        position_embedding="absolute",
        position_init="sincos",
        layer_scale_init=None,
        contrast_fusion_branch=False,
        initializer_range=0.08,
    )
)
_TEXT = TextConfig(
    vocab_size=12_000,
    learn_from=(*(f"data/{name}" for name in PREPARED), "scenes", "english-text"),
    max_length=24,
)
# Each artist's drawing of a thing counts; an arrow to the left is no arrow to the right.
_PAIRS = DataConfig(
    source="data/icons+data/drawings+data/clipart+shapes+scenes",
    unit="pair",
    weights=(1.0, 4.0, 3.0, 0.25, 0.5),
    transform=TransformConfig(
        image_size=64, rand_augment_ops=0, affine=0.5, horizontal_flip=0.0, min_crop=0.9
    ),
    mlm_probability=0.3,
    mask_only=("left", "right", "above", "below", "under", "top", "bottom", "small", "large"),
    mask_only_share=0.8,
)
# What the first model knows of names is held by its vectors; relations stand in scenes.
_SCENES = replace(_PAIRS, weights=(0.25, 1.0, 1.0, 0.75, 1.5))
_SHAPES = replace(_PAIRS, weights=(0.1, 0.4, 0.4, 4.0, 1.0))
_MIXED = replace(_PAIRS, weights=(1.0, 4.0, 3.0, 0.5, 0.75))
_NAMES = replace(_PAIRS, weights=(1.0, 4.0, 3.0, 0.25, 0.75))
# A patch of 16 of the images' 64 pixels can hold a whole small shape, which is much for one linear layer. At 96 pixels
# a shape spans several; position tables are resized, as in the paper's fine-tuning at larger images.
_LARGER = replace(_FUSION, image_size=96)
_LARGE = replace(
    _PAIRS, weights=(1.0, 4.0, 3.0, 0.25, 4.0), transform=replace(_PAIRS.transform, image_size=96)
)


class Step(NamedTuple):
    """A run of the chain that ends with `vlmo-small`.

    Attributes:
        start: Step whose model it starts from; "names-mean" is the mean of the step `names` with three seeds.
        teacher: Step whose dual encoder is learnt too.
        steps: Steps, of which the first `warmup` raise the learning rate.
    """

    about: str
    losses: VisionLanguageConfig
    data: DataConfig
    model: Any
    start: str | None
    lr: float
    steps: int
    warmup: int
    batch: int
    teacher: str | None = None
    evaluate_on: str | None = None


# The fusion encoder takes part in few rows: most of the time goes to the contrast. Negatives are sampled softly: ITM
# has learnt nothing from the paper's on drawings with short names (experiments/log.md).
_CONTRAST = VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0, itc_false_captions=True)
_STAGE3 = VisionLanguageConfig(
    mlm_weight=1.0, mlm_stride=2, itm_stride=4, negative_sharpness=0.3, itc_false_captions=True
)
# What the fusion encoder knows of relations is only to be kept.
_LONG = replace(_STAGE3, mlm_stride=16, itm_stride=8)
_LAST = replace(_LONG, mlm_weight=0.0)

# fmt: off
STEPS = {
    "contrast": Step("Image-text contrast alone, with false captions, on icons, drawings, clip art and scenes.",
        _CONTRAST, _PAIRS, replace(_FUSION, num_fusion_layers=0), None, 2e-3, 6500, 200, 256),
    "stage3": Step("Stage 3 with more scenes; the first step's model holds what it learnt about names.",
        _STAGE3, _SCENES, _FUSION, "contrast", 1.5e-3, 1800, 60, 128, teacher="contrast"),
    "relations": Step("The same with most pairs of the plainest scenes, in which relations are learnt first.",
        _STAGE3, _SHAPES, _FUSION, "stage3", 2e-3, 1600, 60, 128, teacher="contrast"),
    "mixed": Step("All losses for a long time, with most names, relations beside them.",
        _LONG, _MIXED, _FUSION, "relations", 2e-3, 9500, 100, 256),
    "names": Step("The same again in larger batches, with seeds 0, 1 and 2, whose weights are averaged.",
        _LONG, _NAMES, _FUSION, "mixed", 2e-3, 5000, 60, 512),
    "released": Step("At 96 pixels, with more scenes and no masked words; released is a mean with what it starts from.",
        _LAST, _LARGE, replace(_LARGER, rerank_weight=0.3, rerank_min_words=4), "names-mean", 1.5e-3, 1500, 60, 512,
        evaluate_on="data/icons"),
}
# fmt: on
"""By the name of the run's folder; the recipe of "released" is `vlmo-small`, those of the others are `small-NAME`."""


def recipe_of(step: Step) -> Recipe:
    """Return the recipe of a step."""
    teacher = None if step.teacher is None else f"{RUN}/{step.teacher}/model"
    return Recipe(
        task=VisionLanguageTask(losses=step.losses, teacher=teacher),
        model=step.model,
        text=_TEXT,
        data=step.data,
        loader=LoaderConfig(global_batch_size=step.batch, num_workers=1),
        optimizer=OptimizerConfig(lr=step.lr, betas=(0.9, 0.98), weight_decay=0.05, muon=True),
        schedule=ScheduleConfig(warmup_steps=step.warmup, kind="cosine", min_ratio=0.05),
        trainer=TrainerConfig(
            max_steps=step.steps, precision="auto", clip_norm=3.0, save_every=500
        ),
        init=None if step.start is None else f"{RUN}/{step.start}/model",
        evaluate_on=step.evaluate_on,
    )


_ENCODER = replace(_LARGER, num_fusion_layers=0, drop_path_rate=0.1)


def _fine_tuned(
    task: Task,
    data: DataConfig,
    *,
    model: Any = _LARGER,
    lr: float = 1e-3,
    init: str = "vlmo-small",
    **changes: Any,
) -> Recipe:
    """Return fine-tuning on questions and statements, with other settings where given."""
    known = Recipe(
        task=task,
        model=model,
        text=_TEXT,
        data=data,
        loader=LoaderConfig(global_batch_size=64, num_workers=0),
        optimizer=OptimizerConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=200),
        trainer=TrainerConfig(
            max_steps=4000, precision="auto", clip_norm=3.0, log_every=50, save_every=1000
        ),
        init=init,
        evaluate_on=data.source,
        evaluate_split="validation",
    )
    return replace(known, **changes)


# Answers are sides and colors, so images are neither mirrored nor recolored.
_SIDED = TransformConfig(image_size=96, rand_augment_ops=0, horizontal_flip=0.0)
_VISION = {
    "text": TextConfig(),
    "optimizer": OptimizerConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
}
FINE_TUNED = {
    "scenes-questions": (
        "Questions about scenes of shapes and drawings, 25 answers: colors, shapes, numbers, yes or no.",
        _fine_tuned(
            VQATask(head_lr_scale=1.0), DataConfig(source="scenes-questions", transform=_SIDED)
        ),
    ),
    "scenes-statements": (
        "Sentences that are true or false of two scenes, as in NLVR2.",
        # At 1e-3 the head's first gradients undo what the fusion encoder knows, and nothing is learned
        # (experiments/log.md).
        _fine_tuned(
            NLVR2Task(head_lr_scale=4.0),
            DataConfig(source="scenes-statements", transform=_SIDED),
            lr=3e-4,
            init="runs/scenes-questions/model",
        ),
    ),
    "scenes-kinds": (
        "Kinds of drawings (animals, dishes, tools, ...), fifteen classes.",
        _fine_tuned(
            ClassificationTask(losses=ClassificationConfig(mix_probability=0.5), layer_decay=0.8),
            DataConfig(
                source="scenes-kinds", transform=TransformConfig(image_size=96, random_erasing=0.25)
            ),
            model=_ENCODER,
            schedule=ScheduleConfig(warmup_steps=50, kind="cosine"),
            trainer=TrainerConfig(max_steps=800, precision="auto", clip_norm=3.0, log_every=20),
            **_VISION,
        ),
    ),
    "scenes-masks": (
        "Scenes with the kind of each pixel: fifteen kinds of drawings, shapes and the background.",
        _fine_tuned(
            SegmentationTask(
                layer_decay=0.9, channels=64, augmentation=SegmentTransformConfig(scale=(0.75, 1.5))
            ),
            DataConfig(source="scenes-masks"),
            model=_ENCODER,
            loader=LoaderConfig(global_batch_size=16, num_workers=0),
            schedule=ScheduleConfig(warmup_steps=50),
            trainer=TrainerConfig(
                max_steps=1000, precision="auto", clip_norm=3.0, log_every=20, save_every=250
            ),
            **_VISION,
        ),
    ),
}
"""Recipes from `vlmo-small` on, with what each trains."""
_LOG = "see experiments/log.md."


def entries() -> dict[str, Entry]:
    """Return all recipes with their descriptions."""
    found = {}
    for folder, step in STEPS.items():
        name = SMALL if folder == "released" else f"small-{folder}"
        command = f"vlmo train {name} --import worlds --run-dir {RUN}/{folder}"
        found[name] = Entry(recipe_of(step), step.about, expect=_LOG, command=command)
    for name, (about, recipe) in FINE_TUNED.items():
        found[name] = Entry(
            recipe, about, expect=_LOG, command=f"vlmo train {name} --import worlds"
        )
    found[SMALL] = replace(found[SMALL], expect=_measured())
    return found


def _measured() -> str:
    """Return recalls of the released model, which its folder holds."""
    tested = [each for each in read_results(FOLDER / SMALL) if each.dataset_split == "test"]
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in tested}
    recalls = [
        f"{name} {found[name, 'ir@1']}, {found[name, 'ir@10']}, {found[name, 'rerank_ir@1']}"
        for name, metric in found
        if metric == "ir@1"
    ]
    return f"IR@1, IR@10 and IR@1 reranked, in percent of the test split: {'; '.join(recalls)}."
