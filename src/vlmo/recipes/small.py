"""Recipes for two CPU cores: every stage and task on scenes, and the released model vlmo-small.

Kept out of the stages of vlmo-small: 500 of OpenMoji's drawings (`emoji-pairs`, test; others by OpenMoji are trained
on), all drawings of emoji of 150 concepts (`drawings-concepts`), and three families of icons (`vlmo data prepare
icons`, test; one of them is `lucide-icons`).
"""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.processing.segmentation import SegmentTransformConfig
from vlmo.recipes.expected import (
    DUAL,
    FUSION,
    IMAGE_RECALL,
    QUESTIONS,
    SIDES,
    STATEMENTS,
    TEXT_RECALL,
    over_seeds,
    which_runs,
)
from vlmo.recipes.schema import DataConfig, Entry, Recipe, TextConfig, model_config
from vlmo.tasks import (
    ClassificationTask,
    LanguageTask,
    NLVR2Task,
    RetrievalTask,
    SegmentationTask,
    TokenizerTask,
    VisionLanguageTask,
    VisionTask,
    VQATask,
)
from vlmo.tasks.classification import ClassificationConfig
from vlmo.tasks.tokenizer import VisualTokenizerConfig
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

QUICKSTART, VLMO_SMALL = "runs/quickstart", "runs/vlmo-small"

# Initial weights of 0.02 suit a width of 768; at 128 they hold contrast on a plateau for most of a short run. The ITC
# branch of the vision-language experts is left out: it costs a quarter of the contrastive passes here (docs/log.md).
_MODEL = model_config(
    VLMoConfig.small(
        hidden_size=128,
        num_attention_heads=4,
        num_hidden_layers=4,
        layer_scale_init=None,
        contrast_fusion_branch=False,
        initializer_range=0.08,
    )
)
_IMAGES = TransformConfig(image_size=64)
# An image worker would only take turns with training on two cores.
_LOADER = LoaderConfig(global_batch_size=128, num_workers=0)
_ADAMW = OptimizerConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
_VISION_ADAMW = replace(_ADAMW, betas=(0.9, 0.999))
_TRAINER = TrainerConfig(max_steps=1, precision="auto", clip_norm=3.0, log_every=10)

# Positions that start as sines and cosines tell sides from the first step (docs/log.md).
_SHAPES_MODEL = replace(
    _MODEL,
    num_fusion_layers=2,
    image_size=48,
    patch_size=12,
    position_embedding="absolute",
    position_init="sincos",
)
# Of questions and statements too: in a vocabulary of captions alone their words fall into letters and [UNK].
_SHAPES_TEXT = TextConfig(vocab_size=300, learn_from=("shapes", "shapes-questions", "shapes-statements"), max_length=32)
_SHAPES = DataConfig(source="shapes", transform=TransformConfig(image_size=48, rand_augment_ops=0, horizontal_flip=0.0))
_shapes_tokenizer = Recipe(
    task=TokenizerTask(tokenizer=VisualTokenizerConfig(patch_size=12, num_tokens=256)),
    model=_SHAPES_MODEL,
    data=_SHAPES,
    loader=_LOADER,
    optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    schedule=ScheduleConfig(warmup_steps=20, kind="cosine", min_ratio=0.05),
    trainer=TrainerConfig(max_steps=130, clip_norm=1.0, log_every=5),
)
_shapes_stage1 = Recipe(
    task=VisionTask(visual_tokenizer=f"{QUICKSTART}/shapes-tokenizer/model"),
    model=replace(_SHAPES_MODEL, num_fusion_layers=0),
    text=_SHAPES_TEXT,
    data=_SHAPES,
    loader=_LOADER,
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=40),
    trainer=replace(_TRAINER, max_steps=300),
)
_shapes_stage2 = replace(
    _shapes_stage1,
    task=LanguageTask(),
    data=replace(_SHAPES, mlm_probability=0.5),
    schedule=ScheduleConfig(warmup_steps=30),
    trainer=replace(_TRAINER, max_steps=200),
    init=f"{QUICKSTART}/shapes-stage1/model",
)
_shapes_stage3 = replace(
    _shapes_stage2,
    # ITM learns little before MLM knows what stands where: a quarter of the rows keeps it going.
    task=VisionLanguageTask(losses=VisionLanguageConfig(mlm_weight=1.0, itm_stride=4)),
    model=_SHAPES_MODEL,
    # What stands where is learnt last, so words of places are often masked alone, beside words that are seen; and it
    # takes a high rate for most of the run (docs/log.md).
    data=replace(
        _SHAPES,
        mlm_probability=0.3,
        mask_only=("left", "right", "above", "below", "under", "top", "bottom"),
        mask_only_share=0.6,
    ),
    loader=replace(_LOADER, global_batch_size=64),
    optimizer=replace(_ADAMW, lr=2e-3),
    schedule=ScheduleConfig(warmup_steps=80, kind="cosine", min_ratio=0.05),
    trainer=replace(_TRAINER, max_steps=1100, save_every=200),
    init=f"{QUICKSTART}/shapes-stage2/model",
)
_shapes_matching = replace(
    _shapes_stage3,
    # ITM learns relations after MLM has learnt them, and at a rate that is high again.
    task=VisionLanguageTask(losses=VisionLanguageConfig(mlm_weight=1.0, itm_stride=2)),
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=20),
    trainer=replace(_TRAINER, max_steps=400, save_every=200),
    init=f"{QUICKSTART}/shapes-stage3/model",
)
_shapes_questions = replace(
    _shapes_stage3,
    task=VQATask(head_lr_scale=1.0),
    data=replace(_SHAPES, source="shapes-questions"),
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=40),
    trainer=replace(_TRAINER, max_steps=400),
    init=f"{QUICKSTART}/shapes-matching/model",
    evaluate_on="shapes-questions",
)
_shapes_statements = replace(
    _shapes_questions,
    # At 1e-3 the head's first gradients undo what the fusion encoder knows, and nothing is learnt (docs/log.md).
    task=NLVR2Task(head_lr_scale=4.0),
    data=replace(_SHAPES, source="shapes-statements"),
    optimizer=replace(_ADAMW, lr=3e-4),
    trainer=replace(_TRAINER, max_steps=400),
    evaluate_on="shapes-statements",
)

_ONE_MODALITY = replace(_MODEL, num_fusion_layers=0)
_TEXT = TextConfig(
    vocab_size=8000,
    learn_from=("data/icons", "data/drawings", "data/clipart", "data/glosses", "scenes", "english-text"),
    max_length=32,
)
_ICONS = DataConfig(
    source="data/icons+data/drawings+data/clipart",
    transform=replace(_IMAGES, rand_augment_ops=0, affine=0.5),
)
_tokenizer = replace(
    _shapes_tokenizer,
    task=TokenizerTask(),
    model=_MODEL,
    data=_ICONS,
    trainer=replace(_shapes_tokenizer.trainer, max_steps=300),
)
_stage1 = replace(
    _shapes_stage1,
    task=VisionTask(visual_tokenizer=f"{VLMO_SMALL}/tokenizer/model"),
    model=_ONE_MODALITY,
    text=_TEXT,
    data=_ICONS,
    schedule=ScheduleConfig(warmup_steps=100),
    trainer=replace(_TRAINER, max_steps=1800),
)
_stage2 = replace(
    _stage1,
    task=LanguageTask(),
    data=DataConfig(source="data/glosses", mlm_probability=0.2),
    schedule=ScheduleConfig(warmup_steps=30),
    trainer=replace(_TRAINER, max_steps=500),
    init=f"{VLMO_SMALL}/stage1/model",
)
_stage3 = replace(
    _stage2,
    # The fusion encoder takes part in few rows: most of the time goes to the contrast.
    task=VisionLanguageTask(
        losses=VisionLanguageConfig(mlm_weight=1.0, mlm_stride=4, itm_stride=16, negative_sharpness=0.3)
    ),
    model=_MODEL,
    # Each artist's drawing of a thing counts; an arrow to the left is no arrow to the right.
    data=replace(
        _ICONS,
        unit="pair",
        weights=(1.0, 4.0, 3.0),
        mlm_probability=0.3,
        transform=replace(_ICONS.transform, horizontal_flip=0.0, min_crop=0.8),
    ),
    schedule=ScheduleConfig(warmup_steps=200, min_ratio=0.03),
    trainer=replace(_TRAINER, max_steps=9500),
    init=f"{VLMO_SMALL}/stage2/model",
)
_retrieval = replace(
    _stage3,
    task=RetrievalTask(losses=VisionLanguageConfig(mlm_weight=0.0, itm_stride=16, negative_sharpness=0.3)),
    model=replace(_MODEL, rerank_weight=0.2),
    optimizer=replace(_ADAMW, lr=7e-4),
    schedule=ScheduleConfig(warmup_steps=100),
    trainer=replace(_TRAINER, max_steps=5000),
    init=f"{VLMO_SMALL}/stage3/model",
    evaluate_on="data/icons",
)
_retrieval_long = replace(
    _retrieval,
    loader=replace(_LOADER, global_batch_size=256),
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=200),
    trainer=replace(_TRAINER, max_steps=8000, save_every=500),
    init=f"{VLMO_SMALL}/retrieval/model",
)
_retrieval_again = replace(
    _retrieval_long,
    data=replace(_retrieval_long.data, cache_images=True),
    trainer=replace(_retrieval_long.trainer, max_steps=9000),
    init=f"{VLMO_SMALL}/retrieval-long/model",
)
_TEACHER = f"{VLMO_SMALL}/retrieval-again/model"
# With relative positions the fusion encoder never learns sides: from here on positions are absolute (docs/log.md).
_ABSOLUTE_MODEL = replace(_MODEL, num_fusion_layers=2, position_embedding="absolute", position_init="sincos")
_scenes = replace(
    _stage3,
    # Its teacher, the model that it starts from, holds what was learnt about icons while scenes are learnt. ITM waits
    # until MLM knows what stands where.
    task=VisionLanguageTask(
        losses=VisionLanguageConfig(mlm_weight=1.0, itm_weight=0.0, negative_sharpness=0.3), teacher=_TEACHER
    ),
    model=_ABSOLUTE_MODEL,
    data=replace(
        _stage3.data,
        source=f"{_ICONS.source}+shapes+scenes",
        weights=(1.0, 3.0, 2.0, 5.0, 0.5),
        transform=replace(_stage3.data.transform, min_crop=0.9),
        mask_only=_shapes_stage3.data.mask_only,
        mask_only_share=0.8,
        cache_images=True,
    ),
    optimizer=replace(_ADAMW, lr=1.5e-3),
    schedule=ScheduleConfig(warmup_steps=60, kind="cosine", min_ratio=0.05),
    trainer=replace(_TRAINER, max_steps=2600, save_every=500),
    init=_TEACHER,
)
_matching = replace(
    _scenes,
    task=VisionLanguageTask(
        losses=VisionLanguageConfig(mlm_weight=1.0, itm_stride=4, negative_sharpness=0.3), teacher=_TEACHER
    ),
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=40, min_ratio=0.03),
    trainer=replace(_TRAINER, max_steps=1700, save_every=500),
    init=f"{VLMO_SMALL}/scenes/model",
)
_drawings = replace(
    _matching,
    data=replace(_matching.data, weights=(1.0, 4.0, 3.0, 1.0, 1.5)),
    trainer=replace(_TRAINER, max_steps=1400, save_every=500),
    init=f"{VLMO_SMALL}/matching/model",
)
_longer = replace(
    _drawings,
    data=replace(_drawings.data, weights=(1.5, 4.0, 3.0, 1.0, 1.5)),
    trainer=replace(_TRAINER, max_steps=3500, save_every=500),
    init=f"{VLMO_SMALL}/drawings/model",
)
_matching_again = replace(
    _longer,
    task=VisionLanguageTask(
        losses=VisionLanguageConfig(mlm_weight=1.0, itm_stride=2, negative_sharpness=0.3), teacher=_TEACHER
    ),
    optimizer=replace(_ADAMW, lr=7e-4),
    trainer=replace(_TRAINER, max_steps=2300, save_every=500),
    init=f"{VLMO_SMALL}/longer/model",
)
_matching_longer = replace(
    _matching_again,
    optimizer=replace(_ADAMW, lr=6e-4),
    trainer=replace(_TRAINER, max_steps=1400, save_every=500),
    init=f"{VLMO_SMALL}/matching-again/model",
)
_sizes = replace(
    _matching_longer,
    data=replace(_longer.data, mask_only=(*_longer.data.mask_only, "small", "large")),
    trainer=replace(_TRAINER, max_steps=700, save_every=500),
    init=f"{VLMO_SMALL}/matching-longer/model",
)
_vlmo_small = replace(
    _sizes,
    model=replace(_ABSOLUTE_MODEL, rerank_weight=0.3),
    optimizer=_ADAMW,
    trainer=replace(_TRAINER, max_steps=2000, save_every=500),
    init=f"{VLMO_SMALL}/sizes/model",
    evaluate_on="data/icons",
)

# A patch of 16 of the images' 64 pixels can hold a whole small shape, which is much for one linear layer. At 96 pixels
# a shape spans several; position tables are resized, as in the paper's fine-tuning at larger images.
_SHAPE_PIXELS = 96
_SCENES = TransformConfig(image_size=_SHAPE_PIXELS, rand_augment_ops=0, horizontal_flip=0.0)
_questions = Recipe(
    task=VQATask(head_lr_scale=1.0),
    model=replace(_ABSOLUTE_MODEL, image_size=_SHAPE_PIXELS),
    text=_TEXT,
    # Colours are answers. Each image is flipped alone, so "left" and "right" among two images stay true.
    data=DataConfig(
        source="easy-vqa-balanced",
        transform=TransformConfig(image_size=_SHAPE_PIXELS, rand_augment_ops=0),
        cache_images=True,
    ),
    loader=replace(_LOADER, global_batch_size=64),
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=200),
    trainer=replace(_TRAINER, max_steps=4000, log_every=50, save_every=1000),
    init="vlmo-small",
    evaluate_on="easy-vqa",
)
_scenes_questions = replace(
    _questions,
    # Answers are sides and colours, so images are neither mirrored nor recoloured.
    data=DataConfig(source="scenes-questions", transform=_SCENES),
    evaluate_on="scenes-questions",
)
_IMAGE_ENCODER = replace(_ABSOLUTE_MODEL, num_fusion_layers=0, image_size=_SHAPE_PIXELS, drop_path_rate=0.1)
_scenes_kinds = Recipe(
    task=ClassificationTask(losses=ClassificationConfig(mix_probability=0.5), layer_decay=0.8),
    model=_IMAGE_ENCODER,
    data=DataConfig(source="scenes-kinds", transform=replace(_IMAGES, image_size=_SHAPE_PIXELS, random_erasing=0.25)),
    loader=replace(_LOADER, global_batch_size=64),
    optimizer=_VISION_ADAMW,
    schedule=ScheduleConfig(warmup_steps=50, kind="cosine"),
    trainer=replace(_TRAINER, max_steps=800, log_every=20),
    init="vlmo-small",
    evaluate_on="scenes-kinds",
    evaluate_split="artist",
)
_scenes_masks = Recipe(
    task=SegmentationTask(layer_decay=0.9, channels=64, augmentation=SegmentTransformConfig(scale=(0.75, 1.5))),
    model=_IMAGE_ENCODER,
    data=DataConfig(source="scenes-masks"),
    loader=replace(_LOADER, global_batch_size=16),
    optimizer=_VISION_ADAMW,
    schedule=ScheduleConfig(warmup_steps=50),
    trainer=replace(_TRAINER, max_steps=1000, log_every=20, save_every=250),
    init="vlmo-small",
    evaluate_on="scenes-masks",
    evaluate_split="artist",
)

SMALL = {
    "shapes-tokenizer": Entry(
        _shapes_tokenizer,
        "Visual tokenizer of 256 tokens, the targets of shapes-stage1.",
        data="{source}: 50,000 scenes of one or two colored shapes; all stages of the quickstart train on them.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect="a reconstruction error of 0.026, in 20 s of two CPU cores (AMD EPYC, one seed, as all of these).",
    ),
    "shapes-stage1": Entry(
        _shapes_stage1,
        "Stage 1 on scenes of shapes: masked image modelling.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect="a loss of 2.88 nats, in 50 s of two CPU cores.",
    ),
    "shapes-stage2": Entry(
        _shapes_stage2,
        "Stage 2 on captions of scenes: masked language modelling; attention and vision experts are frozen.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect="a loss of 0.71 nats, in 28 s of two CPU cores.",
    ),
    "shapes-stage3": Entry(
        _shapes_stage3,
        "Stage 3 on scenes of shapes: the fusion encoder learns what stands where.",
        data="{source}: 50,000 scenes of one or two colored shapes; 1,000 others are for testing.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect="98 % of masked words right, in 5 minutes of two CPU cores (bf16; docs/log.md).",
    ),
    "shapes-matching": Entry(
        _shapes_matching,
        "shapes-stage3 for longer, with more rows in ITM: the fusion encoder learns to tell left from right.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect=f"on 1,000 new images IR@1 {over_seeds(DUAL, IMAGE_RECALL)} and TR@1 {over_seeds(DUAL, TEXT_RECALL)} %, "
        f"reranked (32) {over_seeds(FUSION, IMAGE_RECALL)} and {over_seeds(FUSION, TEXT_RECALL)} % (chance 0.1); which "
        f"of two captions is true, left or right: {over_seeds(FUSION, SIDES)} %, by the dual encoder "
        f"{over_seeds(DUAL, SIDES)} %; {which_runs()}.",
    ),
    "shapes-questions": Entry(
        _shapes_questions,
        "Questions about scenes of shapes: colors, shapes, numbers, yes or no.",
        data="{source}: 40,000 questions about as many scenes; 2,000 others are for testing.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect=f"accuracy {over_seeds(FUSION, QUESTIONS)} % (the most frequent answer to each question 35.5 %); "
        f"{which_runs()}.",
    ),
    "shapes-statements": Entry(
        _shapes_statements,
        "Sentences that are true or false of two scenes of shapes, as in NLVR2.",
        data="{source}: 20,000 pairs of scenes with 5,000 sentences; 2,000 other pairs are for testing.",
        command=f"vlmo train {{name}} --run-dir {QUICKSTART}/{{name}}",
        expect=f"accuracy {over_seeds(FUSION, STATEMENTS)} % (chance 50); {which_runs()}.",
    ),
    "small-tokenizer": Entry(
        _tokenizer,
        "Visual tokenizer of 1,024 tokens, the targets of small-stage1.",
        data="{source}: folders of vlmo data prepare, 150,000 icons, drawings of emoji and clip art.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/tokenizer",
        expect="a reconstruction error of 0.108 and a perplexity of 570, in 104 s of one busy CPU core (AMD EPYC, "
        "bf16, one seed, as all of these).",
    ),
    "small-stage1": Entry(
        _stage1,
        "Stage 1 on icons, drawings and clip art: masked image modelling.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/stage1",
        expect="a loss of 4.5 nats (chance 6.93), in 16 minutes of one busy CPU core.",
    ),
    "small-stage2": Entry(
        _stage2,
        "Stage 2 on WordNet's glosses: masked language modelling; attention and vision experts are frozen.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/stage2",
        expect="a loss of 6.5 nats (8.99 is knowing nothing), in 331 s of one busy CPU core.",
    ),
    "small-stage3": Entry(
        _stage3,
        "Stage 3 on icons, drawings and clip art with their names: contrast, masked language modelling and matching.",
        notes="Negatives are sampled softly (`negative_sharpness`): matching has learnt nothing from the paper's on "
        "drawings with short names (docs/log.md).",
        data="{source}, each pair of an image and a name; drawings four times an epoch, clip art three times.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/stage3",
        expect="among 1,000 icons of held-out families IR@1 5.8, IR@10 23.9 % (chance 0.1 and 1), on `emoji-pairs` "
        "25.0 and 65.2 % (chance 0.2 and 2), in 66 minutes of one to two CPU cores.",
    ),
    "small-retrieval": Entry(
        _retrieval,
        "Fine-tuning for retrieval on the pairs of small-stage3.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/retrieval",
        expect="among icons of held-out families IR@1 10.7, IR@10 33.8 % (chance 0.1 and 1), on `emoji-pairs` 27.6 "
        "and 73.0 % (chance 0.2 and 2), in 26 minutes of two CPU cores (docs/log.md).",
    ),
    "small-retrieval-long": Entry(
        _retrieval_long,
        "small-retrieval for longer, with batches twice as large.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/retrieval-long",
        expect="among icons of held-out families IR@1 22.2, IR@10 48.8 % (chance 0.1 and 1), on `emoji-pairs` 41.4 "
        "and 79.2 % (chance 0.2 and 2), on `drawings-concepts` 30.0 and 57.3 % (chance 0.7 and 6.7), in 104 minutes of "
        "one CPU core (docs/log.md).",
    ),
    "small-retrieval-again": Entry(
        _retrieval_again,
        "small-retrieval-long once more, from its highest learning rate on: the teacher of those that follow.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/retrieval-again",
        expect="among icons of held-out families IR@1 28.1, IR@10 55.4 % (chance 0.1 and 1), on `emoji-pairs` 48.2 "
        "and 83.8 % (chance 0.2 and 2), on `drawings-concepts` 30.0 and 64.0 % (chance 0.7 and 6.7), in 83 minutes of "
        "one core of an Intel Xeon with AMX; with the stages before it six hours of one core (docs/log.md).",
    ),
    "small-scenes": Entry(
        _scenes,
        "Stage 3 again, with scenes among the pairs and absolute positions: masked words teach what stands where.",
        data="{source}: of all captions 46 % are of scenes of shapes, 12 % of scenes with drawings.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/scenes",
        expect="of masked words of places 96.2 % right on `shapes` and 63.5 % on `scenes` (test), in 46 minutes of two "
        "CPU cores (AMD EPYC without AVX-512, float32, one seed; 395 steps first at other settings; docs/log.md).",
    ),
    "small-matching": Entry(
        _matching,
        "small-scenes with image-text matching: the fusion encoder learns which caption is true.",
        data="{source}, in the shares of small-scenes.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/matching",
        expect="of two captions that differ in a side, the fusion encoder prefers the true one in 96.6 % on "
        "`shapes-binding` (chance 50; dual encoder 48.6); on `emoji-pairs` IR@1 44.0 %; in 37 minutes of two cores.",
    ),
    "small-drawings": Entry(
        _drawings,
        "small-matching with more scenes of drawings among the pairs.",
        data="{source}: of all captions 40 % are of scenes with drawings, 10 % of scenes of shapes.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/drawings",
        expect="of masked words of places 97.6 % right on `shapes` and 80.4 % on `scenes` (test); of two captions that "
        "differ in a side the fusion encoder prefers the true one in 97.0 % on `shapes-binding`, 69.6 on "
        "`scenes-binding`; on `emoji-pairs` IR@1 45.6 %; in 32 minutes of two cores.",
    ),
    "small-longer": Entry(
        _longer,
        "small-drawings for longer, with more icons.",
        data="{source}: of all captions 45 % are of icons, 34 % of scenes with drawings, 9 % of scenes of shapes.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/longer",
        expect="of masked words of places 97.8 % right on `shapes` and 92.1 % on `scenes` (test); of two captions that "
        "differ in a side the fusion encoder prefers the true one in 89.2 % on `scenes-binding`, of two in which two "
        "things are swapped in 81.0; on `emoji-pairs` IR@1 46.4 %; in 77 minutes of two cores.",
    ),
    "small-matching-again": Entry(
        _matching_again,
        "small-longer with ITM on twice as many rows.",
        data="{source}, in the shares of small-longer.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/matching-again",
        expect="on `scenes-binding` the fusion encoder prefers the true caption of two that differ in a side in "
        "94.2 %, of swaps in 83.6; on `emoji-pairs` IR@1 45.4 %; in 66 minutes of two cores.",
    ),
    "small-matching-longer": Entry(
        _matching_longer,
        "small-matching-again for longer.",
        data="{source}, in the shares of small-longer.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/matching-longer",
        expect="on `scenes-binding` the fusion encoder prefers the true caption in 94.8 % for sides and 83.8 for "
        "swaps; MLM fills in 54.1 % of masked words of sizes (chance 50); in 38 minutes of two cores.",
    ),
    "small-sizes": Entry(
        _sizes,
        'small-matching-longer with "small" and "large" among the words that are masked alone.',
        data="{source}, in the shares of small-longer.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/sizes",
        expect="MLM fills in 60.8 % of masked words of sizes (chance 50); on `scenes-binding` the fusion encoder "
        "prefers the true caption in 84.2 % of swaps; in 17 minutes of two cores.",
    ),
    "vlmo-small": Entry(
        _vlmo_small,
        "The released small model: small-sizes for longer, with a higher learning rate.",
        data="{source}, in the shares of small-longer.",
        command=f"vlmo train {{name}} --run-dir {VLMO_SMALL}/released, then vlmo release {VLMO_SMALL}/released/model "
        "--out vlmo-small --data data/icons lucide-icons emoji-pairs drawings-concepts scenes shapes",
        expect="among icons of held-out families IR@1 27.4, IR@10 56.0 % (chance 0.1 and 1), on `emoji-pairs` 45.2 and "
        "84.2 % (chance 0.2 and 2), on `drawings-concepts` 28.7 and 58.7 % (chance 0.7 and 6.7); IR@1 and TR@1 on "
        "`shapes` 55.8 and 60.6 %, reranked (32) 95.2 and 95.6, on `scenes` 52.1 and 51.5, reranked 65.2 and 64.0; of "
        "two captions that differ in a side the true one in 100.0 % on `shapes`, 96.8 on `scenes` (dual encoder 50.8 "
        "and 50.4), of swaps 98.4 and 88.8; MLM fills in 85.4 % of masked words of sizes "
        "(chance 50); in 49 minutes of two CPU cores (docs/log.md).",
    ),
    "easy-vqa": Entry(
        _questions,
        "Questions about images of one drawn shape, 13 answers.",
        data="{source}: 24,190 of the 38,575 questions about 4,000 images; all 9,673 about 1,000 other images are for "
        "testing.",
        expect="accuracy 99.8 % (with every image hidden 67.1, from an earlier model; one answer to all 37.3), in ten "
        "minutes of two CPU cores (AMD EPYC, bf16, one seed; docs/log.md).",
    ),
    "scenes-questions": Entry(
        _scenes_questions,
        "Questions about scenes of shapes and drawings, 25 answers: colours, shapes, numbers, yes or no.",
        data="{source}: 40,000 questions about as many scenes; 2,000 are for testing, others about OpenMoji's drawings "
        "(artist) and pairs of a colour and a shape (combinations) that no training scene shows.",
        expect="accuracy 95.8 % (the most frequent answer to each question 33.2, one answer to all 20.4), about "
        "OpenMoji's drawings, of which vlmo-small saw others, 86.0, about pairs of a colour and a shape that no "
        "training scene shows 94.1, in 28 minutes of two CPU cores (AMD EPYC without AVX-512, one seed, as all of "
        "these; docs/log.md).",
    ),
    "scenes-statements": Entry(
        replace(
            _scenes_questions,
            task=_shapes_statements.task,
            data=replace(_scenes_questions.data, source="scenes-statements"),
            optimizer=_shapes_statements.optimizer,
            trainer=replace(_questions.trainer, max_steps=4000),
            init="runs/scenes-questions/model",
            evaluate_on="scenes-statements",
        ),
        "Sentences that are true or false of two scenes, as in NLVR2.",
        data="{source}: 20,000 pairs of scenes with 5,000 sentences; 2,000 pairs are for testing.",
        expect="accuracy 77.2 % (75.4 to 79.0; chance 50), with OpenMoji's drawings, as in scenes-questions, 71.9, in "
        "34 minutes of two cores.",
    ),
    "scenes-kinds": Entry(
        _scenes_kinds,
        "Kinds of drawings (animals, dishes, tools, ...), fifteen classes.",
        data="{source}: 5,000 images of 387 Twemoji drawings; 500 of OpenMoji's are for testing, which no stage saw; "
        "others by OpenMoji are in vlmo-small's training.",
        expect="accuracy 35.0 % on OpenMoji's drawings (chance 6.7; a linear probe of vlmo-small 28.4) and 88.0 % on "
        "other images of Twemoji's, which training shows, in 2 minutes of two cores.",
    ),
    "scenes-masks": Entry(
        _scenes_masks,
        "Scenes with the kind of each pixel: fifteen kinds of drawings, shapes and the background.",
        data="{source}: 5,000 scenes; 500 with OpenMoji's drawings are for testing.",
        expect="mIoU 15.4 % with OpenMoji's drawings (background alone 4.9) and 18.1 % with Twemoji's; pixels "
        "91.0 and 94.0 % (82.8), in 5 minutes of two cores.",
    ),
}
"""By name."""
