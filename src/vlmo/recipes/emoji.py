"""Every stage on small real data: drawings in two styles with their names, and English sentences.

500 OpenMoji drawings are never trained on in any stage; they are what `vlmo quickstart` evaluates on.
"""

from dataclasses import replace

from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.objectives.pretraining import VisionLanguageConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.configs import DataConfig, TextConfig, model_config
from vlmo.recipes.pretraining_stages import LanguageStage, TokenizerStage, VisionLanguageStage, VisionStage
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.retrieval_stage import RetrievalStage
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

TOKENIZER, STAGE1, STAGE2, STAGE3, STAGELESS = "tokenizer", "stage1", "stage2", "stage3", "stageless"
QUICKSTART = "runs/quickstart"
TEST_SOURCE = "emoji-pairs"

# Initial weights of 0.02 suit a width of 768; at 128 they hold contrast on a plateau for most of a short run. The
# second ending of ITC is left out: it costs a quarter of the contrast passes here (docs/log.md).
_MODEL = model_config(
    VLMoConfig.small(
        hidden_size=128,
        num_attention_heads=2,
        num_hidden_layers=4,
        layer_scale_init=None,
        contrast_fusion_ending=False,
        initializer_range=0.08,
    )
)
_TEXT = TextConfig(vocab_size=4000, learn_from=("emoji-pairs-all", "english-text"), max_length=32)
# One image worker would only take turns with training on two cores; pictures are kept decoded instead.
_LOADER = LoaderConfig(global_batch_size=128, num_workers=0)
_BETAS = (0.9, 0.98)


def emoji_tokenizer() -> Recipe:
    """A visual tokenizer of 1,024 tokens, the targets of emoji-stage1.

    Data:    emoji-images: 7,302 drawings, none of the 500 test drawings among them.
    Run:     vlmo train emoji-tokenizer --run-dir runs/quickstart/tokenizer
    Expect:  reconstruction error 0.083, perplexity 622, in 22 s on two CPU cores (docs/log.md).
    """
    return Recipe(
        stage=TokenizerStage(),
        model=_MODEL,
        data=DataConfig(
            source="emoji-images", transform=TransformConfig(image_size=64, rand_augment_ops=0), cache_images=True
        ),
        loader=_LOADER,
        optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=20, kind="cosine", min_ratio=0.05),
        trainer=TrainerConfig(max_steps=130, clip_norm=1.0, log_every=5),
    )


def emoji_stage1() -> Recipe:
    """Stage 1 on drawings: masked image modelling.

    Data:    emoji-images.
    Targets: tokens of emoji-tokenizer.
    Run:     vlmo train emoji-stage1 --run-dir runs/quickstart/stage1
    Expect:  a loss of 5.41 nats (chance 6.93), in 50 s on two CPU cores.
    """
    return Recipe(
        stage=VisionStage(visual_tokenizer=f"{QUICKSTART}/{TOKENIZER}/model"),
        model=replace(_MODEL, num_fusion_layers=0),
        text=_TEXT,
        data=DataConfig(source="emoji-images", transform=_augmentation(), cache_images=True),
        loader=_LOADER,
        optimizer=OptimizerConfig(lr=1e-3, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=40),
        trainer=TrainerConfig(max_steps=300, precision="auto", clip_norm=3.0, log_every=10),
    )


def emoji_stage2() -> Recipe:
    """Stage 2 on English sentences: masked language modelling; attention and vision experts are frozen.

    Data:    english-text: sentences of Python's documentation.
    Start:   the model folder of emoji-stage1.
    Run:     vlmo train emoji-stage2 --run-dir runs/quickstart/stage2
    Expect:  a loss of 5.92 nats, in 26 s on two CPU cores.
    """
    return Recipe(
        stage=LanguageStage(),
        model=replace(_MODEL, num_fusion_layers=0),
        text=_TEXT,
        data=DataConfig(source="english-text"),
        loader=_LOADER,
        optimizer=OptimizerConfig(lr=1e-3, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=30),
        trainer=TrainerConfig(max_steps=200, precision="auto", clip_norm=3.0, log_every=10),
        init=f"{QUICKSTART}/{STAGE1}/model",
    )


def emoji_stage3() -> Recipe:
    """Stage 3 on drawings and their names: contrast, masked language modelling and matching.

    Data:    emoji-pairs: 2,933 drawings with their names; 500 OpenMoji drawings are kept for testing.
    Start:   the model folder of emoji-stage2.
    Run:     vlmo train emoji-stage3 --run-dir runs/quickstart/stage3
    Expect:  IR@1 10.8 %, IR@10 42.4 % (chance 0.2 and 2.0), in 3 minutes on two CPU cores. Matching does not learn in
             so short a run.
    """
    return Recipe(
        stage=VisionLanguageStage(losses=VisionLanguageConfig(fused_stride=16)),
        model=_MODEL,
        text=_TEXT,
        data=DataConfig(source=TEST_SOURCE, transform=_augmentation(), cache_images=True),
        loader=_LOADER,
        optimizer=OptimizerConfig(lr=1e-3, betas=_BETAS, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_steps=80),
        trainer=TrainerConfig(max_steps=900, precision="auto", clip_norm=3.0, log_every=10, save_every=300),
        init=f"{QUICKSTART}/{STAGE2}/model",
    )


def emoji_stageless() -> Recipe:
    """emoji-stage3 without stages 1 and 2: the same steps from random weights.

    Data:    emoji-pairs.
    Run:     vlmo train emoji-stageless --run-dir runs/quickstart/stageless
    Expect:  IR@1 8.6 %, IR@10 39.0 %, in 3 minutes on two CPU cores.
    """
    return replace(emoji_stage3(), init=None)


def emoji_small() -> Recipe:
    """emoji-stage3 for longer and with more drawings: a quarter of an hour of two CPU cores.

    Data:    emoji-pairs-all: 6,720 drawings, with skin tones and other variants; the same 500 are kept for testing.
    Start:   the model folder of emoji-stage2, from `make quickstart`.
    Run:     vlmo train emoji-small
    Expect:  IR@1 16.0 %, IR@10 51.6 % (chance 0.2 and 2.0), TR@1 13.2 %, reranked 15.6, 52.0 and 14.0 %, in 15 minutes
             on two CPU cores (AMD EPYC, one seed).
    """
    recipe = emoji_stage3()
    return replace(
        recipe,
        stage=VisionLanguageStage(losses=VisionLanguageConfig(fused_stride=8)),
        schedule=ScheduleConfig(warmup_steps=200),
        data=replace(recipe.data, source="emoji-pairs-all"),
        trainer=replace(recipe.trainer, max_steps=3500, save_every=500, eval_every=500),
        evaluate_on=TEST_SOURCE,
    )


def emoji_retrieval() -> Recipe:
    """Fine-tuning for retrieval on drawings and their names: contrast, and matching for the reranked shortlist.

    Negatives are drawn softly (`negative_sharpness`), since matching has learnt nothing from the paper's on these data
    (docs/log.md). So it learns, but judges drawings of an unknown artist less well than the contrast does.

    Data:    emoji-pairs.
    Start:   the model folder of emoji-stage3, from `make quickstart`.
    Run:     vlmo train emoji-retrieval
    Expect:  IR@1 18.2 %, IR@10 48.8 % (chance 0.2 and 2.0), TR@1 15.2 %; reranked (16) 17.6, 49.4 and 15.2 %, in 23
             minutes of a busy CPU core (AMD EPYC, one seed).
    """
    recipe = emoji_stage3()
    return replace(
        recipe,
        stage=RetrievalStage(losses=VisionLanguageConfig(mlm_weight=0.0, negative_sharpness=0.3)),
        # A weak judge should not overrule the contrast; 0.05 to 0.5 differ by two points (docs/log.md).
        model=replace(_MODEL, rerank_weight=0.2),
        data=replace(recipe.data, transform=TransformConfig(image_size=64, rand_augment_ops=1)),
        schedule=ScheduleConfig(warmup_steps=60),
        trainer=replace(recipe.trainer, max_steps=1100),
        init=f"{QUICKSTART}/{STAGE3}/model",
    )


def _augmentation() -> TransformConfig:
    return TransformConfig(image_size=64)
