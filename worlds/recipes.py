"""Recipes of `vlmo-small`, a step a row, and of what is fine-tuned from it on scenes.

Kept out of all steps: 500 of OpenMoji's drawings (`emoji-pairs`, test; others by OpenMoji are trained on), all drawings
of emoji of 150 concepts (`drawings-concepts`), and three families of icons (`vlmo data prepare icons`, test; one of
them is `lucide-icons`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

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
    LanguageTask,
    NLVR2Task,
    RetrievalTask,
    SegmentationTask,
    Task,
    TokenizerTask,
    VisionLanguageTask,
    VisionTask,
    VQATask,
)
from vlmo.tasks.classification import ClassificationConfig
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

RUN = "runs/vlmo-small"
PREPARED = ("icons", "drawings", "clipart", "glosses")
"""Sets of `vlmo data prepare`, which lie in `data/NAME`."""

# Initial weights of 0.02 suit a width of 768; at 128 they hold contrast on a plateau for most of a short run. The ITC
# branch of the vision-language experts is left out: it costs a quarter of the contrastive passes here (docs/log.md).
_RELATIVE = model_config(
    VLMoConfig.small(
        hidden_size=128,
        num_attention_heads=4,
        num_hidden_layers=4,
        layer_scale_init=None,
        contrast_fusion_branch=False,
        initializer_range=0.08,
    )
)
_SINGLE = replace(_RELATIVE, num_fusion_layers=0)
# With relative positions the fusion encoder never learns sides (docs/log.md).
_ABSOLUTE = replace(_RELATIVE, num_fusion_layers=2, position_embedding="absolute", position_init="sincos")
_TEXT = TextConfig(
    vocab_size=8000,
    learn_from=(*(f"data/{name}" for name in PREPARED), "scenes", "english-text"),
    max_length=32,
)

_IMAGES = TransformConfig(image_size=64, rand_augment_ops=0, affine=0.5)
_ICONS = DataConfig(source="data/icons+data/drawings+data/clipart", transform=_IMAGES)
# Each artist's drawing of a thing counts; an arrow to the left is no arrow to the right.
_PAIRS = replace(
    _ICONS,
    unit="pair",
    weights=(1.0, 4.0, 3.0),
    mlm_probability=0.3,
    transform=replace(_IMAGES, horizontal_flip=0.0, min_crop=0.8),
)
_PLACES = ("left", "right", "above", "below", "under", "top", "bottom")
_TEACHER = "retrieval-again"


def _scenes(*weights: float, words: tuple[str, ...] = _PLACES) -> DataConfig:
    """Return the pairs with scenes of shapes and of drawings among them; `words` are often masked alone."""
    return replace(
        _PAIRS,
        source=f"{_ICONS.source}+shapes+scenes",
        weights=weights,
        transform=replace(_PAIRS.transform, min_crop=0.9),
        mask_only=words,
        mask_only_share=0.8,
    )


def _stage3(*, itm_weight: float = 1.0, itm_stride: int = 1) -> VisionLanguageTask:
    """Return stage 3, in which the model that knows icons best holds what it learnt about them.

    Negatives are sampled softly: ITM has learnt nothing from the paper's on drawings with short names (docs/log.md).
    """
    losses = VisionLanguageConfig(mlm_weight=1.0, itm_weight=itm_weight, itm_stride=itm_stride, negative_sharpness=0.3)
    return VisionLanguageTask(losses=losses, teacher=f"{RUN}/{_TEACHER}/model")


class Step(NamedTuple):
    """A run of the chain that ends with `vlmo-small`.

    Attributes:
        start: Step whose model it starts from.
        steps: Steps, of which the first `warmup` raise the learning rate.
        end: Schedule after the warm-up, and the share of the learning rate that it ends at.
    """

    about: str
    task: Task
    model: Any
    data: DataConfig
    start: str | None
    lr: float
    steps: int
    warmup: int
    end: tuple[Literal["linear", "cosine"], float] = ("linear", 0.0)
    batch: int = 128
    save_every: int = TrainerConfig(max_steps=1).save_every
    evaluate_on: str | None = None


_SOFT = VisionLanguageConfig(mlm_weight=1.0, mlm_stride=4, itm_stride=16, negative_sharpness=0.3)
_RETRIEVAL = RetrievalTask(losses=VisionLanguageConfig(mlm_weight=0.0, itm_stride=16, negative_sharpness=0.3))
_RANKED = replace(_RELATIVE, rerank_weight=0.2)
_LINEAR, _COSINE = ("linear", 0.03), ("cosine", 0.05)
_MIXED = (1.5, 4.0, 3.0, 1.0, 1.5)
_LATER = _scenes(*_MIXED, words=(*_PLACES, "small", "large"))
_TARGETS = f"{RUN}/tokenizer/model"

# fmt: off
STEPS = {
    "tokenizer": Step("Visual tokenizer of 1,024 tokens, the targets of stage 1.",
        TokenizerTask(), _RELATIVE, _ICONS, None, 2e-3, 300, 20, _COSINE),
    "stage1": Step("Stage 1 on icons, drawings and clip art: masked image modelling.",
        VisionTask(visual_tokenizer=_TARGETS), _SINGLE, _ICONS, None, 1e-3, 1800, 100),
    "stage2": Step("Stage 2 on WordNet's glosses: masked language modelling.",
        LanguageTask(), _SINGLE, DataConfig(source="data/glosses", mlm_probability=0.2), "stage1", 1e-3, 500, 30),
    # The fusion encoder takes part in few rows: most of the time goes to the contrast.
    "stage3": Step("Stage 3 on icons, drawings and clip art with their names.",
        VisionLanguageTask(losses=_SOFT), _RELATIVE, _PAIRS, "stage2", 1e-3, 9500, 200, _LINEAR),
    "retrieval": Step("Fine-tuning for retrieval on the same pairs.",
        _RETRIEVAL, _RANKED, _PAIRS, "stage3", 7e-4, 5000, 100, evaluate_on="data/icons"),
    "retrieval-long": Step("Longer, with batches twice as large.",
        _RETRIEVAL, _RANKED, _PAIRS, "retrieval", 1e-3, 8000, 200, batch=256, save_every=500, evaluate_on="data/icons"),
    "retrieval-again": Step("Once more, from its highest learning rate on: the teacher of those that follow.",
        _RETRIEVAL, _RANKED, _PAIRS, "retrieval-long", 1e-3, 9000, 200, batch=256,
        save_every=500, evaluate_on="data/icons"),
    # ITM waits until MLM knows what stands where.
    "scenes": Step("Stage 3 again, with scenes among the pairs: masked words teach what stands where.",
        _stage3(itm_weight=0.0), _ABSOLUTE, _scenes(1.0, 3.0, 2.0, 5.0, 0.5), _TEACHER, 1.5e-3, 2600, 60, _COSINE,
        save_every=500),
    "matching": Step("With ITM: the fusion encoder learns which caption is true.",
        _stage3(itm_stride=4), _ABSOLUTE, _scenes(1.0, 3.0, 2.0, 5.0, 0.5), "scenes", 1e-3, 1700, 40, _LINEAR,
        save_every=500),
    "drawings": Step("With more scenes of drawings among the pairs.",
        _stage3(itm_stride=4), _ABSOLUTE, _scenes(1.0, 4.0, 3.0, 1.0, 1.5), "matching", 1e-3, 1400, 40, _LINEAR,
        save_every=500),
    "longer": Step("Longer, with more icons.",
        _stage3(itm_stride=4), _ABSOLUTE, _scenes(*_MIXED), "drawings", 1e-3, 3500, 40, _LINEAR, save_every=500),
    "matching-again": Step("With ITM on twice as many rows.",
        _stage3(itm_stride=2), _ABSOLUTE, _scenes(*_MIXED), "longer", 7e-4, 2300, 40, _LINEAR, save_every=500),
    "matching-longer": Step("The same for longer.",
        _stage3(itm_stride=2), _ABSOLUTE, _scenes(*_MIXED), "matching-again", 6e-4, 1400, 40, _LINEAR, save_every=500),
    "sizes": Step('With "small" and "large" among the words that are masked alone.',
        _stage3(itm_stride=2), _ABSOLUTE, _LATER, "matching-longer", 6e-4, 700, 40, _LINEAR, save_every=500),
    "released": Step("The released small model: the same for longer, with a higher learning rate.",
        _stage3(itm_stride=2), replace(_ABSOLUTE, rerank_weight=0.3, rerank_min_words=4), _LATER, "sizes", 1e-3, 2000,
        40, _LINEAR, save_every=500, evaluate_on="data/icons"),
}
# fmt: on
"""By the name of the run's folder; the recipe of "released" is `vlmo-small`, those of the others are `small-NAME`."""


def recipe_of(step: Step) -> Recipe:
    """Return the recipe of a step."""
    optimizer = OptimizerConfig(lr=step.lr, betas=(0.9, 0.98), weight_decay=0.05)
    text, clip_norm = _TEXT, 3.0
    trainer = TrainerConfig(max_steps=step.steps, precision="auto", clip_norm=clip_norm, save_every=step.save_every)
    if isinstance(step.task, TokenizerTask):
        optimizer, text = replace(optimizer, betas=(0.9, 0.95), weight_decay=0.0), TextConfig()
        trainer = replace(trainer, clip_norm=1.0, log_every=5, precision=TrainerConfig(max_steps=1).precision)
    return Recipe(
        task=step.task,
        model=step.model,
        text=text,
        data=step.data,
        loader=LoaderConfig(global_batch_size=step.batch, num_workers=0),
        optimizer=optimizer,
        schedule=ScheduleConfig(warmup_steps=step.warmup, kind=step.end[0], min_ratio=step.end[1]),
        trainer=trainer,
        init=None if step.start is None else f"{RUN}/{step.start}/model",
        evaluate_on=step.evaluate_on,
    )


# A patch of 16 of the images' 64 pixels can hold a whole small shape, which is much for one linear layer. At 96 pixels
# a shape spans several; position tables are resized, as in the paper's fine-tuning at larger images.
_LARGER = replace(_ABSOLUTE, image_size=96)
_ENCODER = replace(_LARGER, num_fusion_layers=0, drop_path_rate=0.1)


def _fine_tuned(
    task: Task, data: DataConfig, *, model: Any = _LARGER, lr: float = 1e-3, init: str = "vlmo-small", **changes: Any
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
        trainer=TrainerConfig(max_steps=4000, precision="auto", clip_norm=3.0, log_every=50, save_every=1000),
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
        _fine_tuned(VQATask(head_lr_scale=1.0), DataConfig(source="scenes-questions", transform=_SIDED)),
    ),
    "scenes-statements": (
        "Sentences that are true or false of two scenes, as in NLVR2.",
        # At 1e-3 the head's first gradients undo what the fusion encoder knows, and nothing is learnt (docs/log.md).
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
            DataConfig(source="scenes-kinds", transform=TransformConfig(image_size=96, random_erasing=0.25)),
            model=_ENCODER,
            schedule=ScheduleConfig(warmup_steps=50, kind="cosine"),
            trainer=TrainerConfig(max_steps=800, precision="auto", clip_norm=3.0, log_every=20),
            **_VISION,
        ),
    ),
    "scenes-masks": (
        "Scenes with the kind of each pixel: fifteen kinds of drawings, shapes and the background.",
        _fine_tuned(
            SegmentationTask(layer_decay=0.9, channels=64, augmentation=SegmentTransformConfig(scale=(0.75, 1.5))),
            DataConfig(source="scenes-masks"),
            model=_ENCODER,
            loader=LoaderConfig(global_batch_size=16, num_workers=0),
            schedule=ScheduleConfig(warmup_steps=50),
            trainer=TrainerConfig(max_steps=1000, precision="auto", clip_norm=3.0, log_every=20, save_every=250),
            **_VISION,
        ),
    ),
}
"""Recipes from `vlmo-small` on, with what each trains."""
_LOG = "see docs/log.md."


def entries() -> dict[str, Entry]:
    """Return all recipes with their descriptions."""
    found = {}
    for folder, step in STEPS.items():
        name = SMALL if folder == "released" else f"small-{folder}"
        command = f"vlmo train {name} --import worlds --run-dir {RUN}/{folder}"
        found[name] = Entry(recipe_of(step), step.about, expect=_LOG, command=command)
    for name, (about, recipe) in FINE_TUNED.items():
        found[name] = Entry(recipe, about, expect=_LOG, command=f"vlmo train {name} --import worlds")
    found[SMALL] = replace(found[SMALL], expect=_measured())
    return found


def _measured() -> str:
    """Return recalls of the released model, which the folder holds."""
    tested = [each for each in read_results(FOLDER / SMALL) if each.dataset_split == "test"]
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in tested}
    recalls = [
        f"{name} {found[name, 'ir@1']}, {found[name, 'ir@10']}, {found[name, 'rerank_ir@1']}"
        for name, metric in found
        if metric == "ir@1"
    ]
    return f"IR@1, IR@10 and IR@1 reranked, in percent of the test split: {'; '.join(recalls)}."
