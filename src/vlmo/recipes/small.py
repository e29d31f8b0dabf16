"""The released small model: every stage on drawings, without the concepts of `drawings-concepts`.

Two sets are kept from every stage: 500 drawings of an artist whose other drawings are known (`emoji-pairs`, test), and
150 concepts with all their drawings (`drawings-concepts`). `vlmo release` measures both and puts them on the card.
"""

from dataclasses import replace

from vlmo.objectives.pretraining import VisionLanguageConfig
from vlmo.recipes import emoji
from vlmo.recipes.configs import TextConfig
from vlmo.recipes.pretraining_stages import VisionStage
from vlmo.recipes.recipe import Recipe
from vlmo.recipes.retrieval_stage import RetrievalStage

RUNS = "runs/vlmo-small"
_PAIRS, _IMAGES = "drawings-pairs", "drawings-images"
_TEXT = TextConfig(vocab_size=4000, learn_from=(_PAIRS, "english-text"), max_length=32)


def small_tokenizer() -> Recipe:
    """emoji-tokenizer without the new concepts: targets of small-stage1.

    Data:    drawings-images.
    Run:     vlmo train small-tokenizer --run-dir runs/vlmo-small/tokenizer
    Expect:  reconstruction error 0.08, perplexity 560 to 610, in 18 s on two CPU cores (Intel Xeon, one seed).
    """
    recipe = emoji.emoji_tokenizer()
    return replace(recipe, data=replace(recipe.data, source=_IMAGES))


def small_stage1() -> Recipe:
    """emoji-stage1 without the new concepts.

    Data:    drawings-images.
    Targets: tokens of small-tokenizer.
    Run:     vlmo train small-stage1 --run-dir runs/vlmo-small/stage1
    Expect:  a loss of 5.2 to 5.6 nats (chance 6.93), in two minutes of two CPU cores (Intel Xeon, bf16, one seed).
    """
    recipe = emoji.emoji_stage1()
    return replace(
        recipe,
        stage=VisionStage(visual_tokenizer=f"{RUNS}/tokenizer/model"),
        text=_TEXT,
        data=replace(recipe.data, source=_IMAGES),
    )


def small_stage2() -> Recipe:
    """emoji-stage2 with a vocabulary that never saw the names of the new concepts.

    Data:    english-text.
    Start:   the model folder of small-stage1.
    Run:     vlmo train small-stage2 --run-dir runs/vlmo-small/stage2
    Expect:  a loss of 6.0 to 6.2 nats on glosses (--data.source FOLDER of vlmo data prepare glosses), in a minute and a
             half of two CPU cores (Intel Xeon, bf16, one seed).
    """
    return replace(emoji.emoji_stage2(), text=_TEXT, init=f"{RUNS}/stage1/model")


def vlmo_small() -> Recipe:
    """The released small model: contrast, and matching with soft negatives, on drawings with their names.

    With gentle augmentation, which has carried furthest from one artist to another, and negatives that matching learns
    from (docs/log.md).

    Data:    drawings-pairs; better, a folder of vlmo data prepare drawings, with two more artists and keywords:
             --data.source FOLDER.
    Start:   the model folder of small-stage2.
    Run:     vlmo train vlmo-small --run-dir runs/vlmo-small/stage3, then
             vlmo release runs/vlmo-small/stage3/model --out vlmo-small --recall-on emoji-pairs drawings-concepts
    Expect:  on such a folder and the held-out style IR@1 25.4 %, IR@10 64.0 % (chance 0.2 and 2.0), TR@1 24.4 %; on
             held-out concepts IR@1 11.3 %, IR@10 28.0 % (chance 0.7 and 6.7), TR@1 8.7 %; in 47 minutes of two CPU
             cores (Intel Xeon, float32, one seed; docs/log.md).
    """
    recipe = emoji.emoji_retrieval()
    return replace(
        recipe,
        stage=RetrievalStage(losses=VisionLanguageConfig(mlm_weight=0.0, negative_sharpness=0.3, fused_stride=4)),
        text=_TEXT,
        data=replace(recipe.data, source=_PAIRS),
        schedule=replace(recipe.schedule, warmup_steps=200),
        trainer=replace(recipe.trainer, max_steps=6500, save_every=500, eval_every=1000),
        init=f"{RUNS}/stage2/model",
        evaluate_on=emoji.TEST_SOURCE,
    )
