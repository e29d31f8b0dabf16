"""The quickstart's recipes: every stage and task on scenes of shapes, for two CPU cores; and what runs reached."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmo.data.loader import LoaderConfig
from vlmo.model import VLMoConfig
from vlmo.processing import TransformConfig
from vlmo.recipes.schema import DataConfig, Entry, Recipe, TextConfig, model_config
from vlmo.tasks import (
    CaptioningTask,
    LanguageTask,
    NLVR2Task,
    TokenizerTask,
    VisionLanguageTask,
    VisionTask,
    VQATask,
)
from vlmo.tasks.beit3 import BEiT3Task
from vlmo.tasks.tokenizer import VisualTokenizerConfig
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import OptimizerConfig, ScheduleConfig, TrainerConfig

FILE = "quickstart.json"
"""Results over several seeds, as `experiments/quickstart_seeds.py` writes them."""
DUAL = "Dual encoder"
FUSION = "Fusion encoder"
IMAGE_RECALL = "Text to image R@1"
TEXT_RECALL = "Image to text R@1"
CROWDED_IMAGE_RECALL = "Crowded scenes, text to image R@1"
CROWDED_TEXT_RECALL = "Crowded scenes, image to text R@1"
SIDES = "Caption or one with the opposite side"
HALF_TRUTH_ROW = "Caption or a longer half-truth"
QUESTION_ROW = "Questions"
STATEMENT_ROW = "Two scenes, true or false"
"""Columns and rows of the quickstart's table."""

_RUNS_OF_SEEDS: dict[str, Any] = json.loads(
    Path(__file__).with_name(FILE).read_text(encoding="utf-8")
)
WHICH_RUNS = f"median (lowest to highest), seeds: {len(_RUNS_OF_SEEDS['seeds'])}, {_RUNS_OF_SEEDS['hardware']['cpu']}"
"""Seeds and machine of the numbers, such as "median (lowest to highest), seeds: 5, Intel Xeon"."""


def over_seeds(column: str, row: str) -> str:
    """Return a cell of the quickstart's table in percent as "MEDIAN (LOWEST to HIGHEST)"."""
    cell = _RUNS_OF_SEEDS["summary"][column][row]
    median, lowest, highest = (100 * cell[name] for name in ("median", "lowest", "highest"))
    return f"{median:.1f} ({lowest:.1f} to {highest:.1f})"


def _losses(name: str) -> str:
    parts = []
    for loss, cell in _RUNS_OF_SEEDS["stages"][name].items():
        parts.append(f"{loss} {cell['median']:.3g} ({cell['lowest']:.3g} to {cell['highest']:.3g})")
    return f"losses at the end: {', '.join(parts)}; {WHICH_RUNS}."


# Initial weights of 0.02 suit a width of 768; at 128 they hold contrast on a plateau for most of a short run. The ITC
# branch of the vision-language experts is left out: it costs a quarter of the contrastive passes here. Positions that
# start as sines and cosines tell sides from the first step (experiments/log.md).
_MODEL = model_config(
    VLMoConfig.small(
        hidden_size=128,
        num_attention_heads=4,
        num_hidden_layers=2,
        num_fusion_layers=1,
        image_size=48,
        patch_size=12,
        position_embedding="absolute",
        position_init="sincos",
        layer_scale_init=None,
        contrast_fusion_branch=False,
        initializer_range=0.08,
    )
)
# Of questions and statements too: in a vocabulary of captions alone their words fall into letters and [UNK].
_TEXT = TextConfig(
    vocab_size=300, learn_from=("shapes", "shapes-questions", "shapes-statements"), max_length=32
)
# Captions tell left from right and name colors, so images are neither mirrored nor recolored.
_SHAPES = DataConfig(
    source="shapes",
    transform=TransformConfig(image_size=48, rand_augment_ops=0, horizontal_flip=0.0),
)
_LOADER = LoaderConfig(global_batch_size=128, num_workers=1)
_ADAMW = OptimizerConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
_MUON = replace(_ADAMW, lr=2e-3, muon=True)
_TRAINER = TrainerConfig(max_steps=1, precision="auto", clip_norm=3.0, log_every=10)
_RUNS = "runs/quickstart"

# Images alone: the tokenizer reads no texts, and has sizes of its own.
_tokenizer = Recipe(
    task=TokenizerTask(tokenizer=VisualTokenizerConfig(patch_size=12, num_tokens=256)),
    model=_MODEL,
    data=_SHAPES,
    loader=replace(_LOADER, num_workers=0),
    optimizer=OptimizerConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    schedule=ScheduleConfig(warmup_steps=20, kind="cosine", min_ratio=0.05),
    trainer=TrainerConfig(max_steps=130, clip_norm=1.0, log_every=5),
)
_stage1 = Recipe(
    task=VisionTask(visual_tokenizer=f"{_RUNS}/shapes-tokenizer/model"),
    model=replace(_MODEL, num_fusion_layers=0),
    text=_TEXT,
    data=_SHAPES,
    loader=_LOADER,
    optimizer=_ADAMW,
    schedule=ScheduleConfig(warmup_steps=40),
    trainer=replace(_TRAINER, max_steps=200),
)
_stage2 = replace(
    _stage1,
    task=LanguageTask(),
    data=replace(_SHAPES, mlm_probability=0.5),
    schedule=ScheduleConfig(warmup_steps=30),
    trainer=replace(_TRAINER, max_steps=150),
    init=f"{_RUNS}/shapes-stage1/model",
)
_beit3 = replace(
    _stage1,
    task=BEiT3Task(visual_tokenizer=f"{_RUNS}/shapes-tokenizer/model"),
    model=_MODEL,
    loader=replace(_LOADER, global_batch_size=64),
    schedule=ScheduleConfig(warmup_steps=40, kind="cosine", min_ratio=0.05),
    trainer=replace(_TRAINER, max_steps=800),
)
_contrast = Recipe(
    # Alone and from large batches, it learns what stands where in half of the time or less (experiments/log.md).
    task=VisionLanguageTask(
        losses=VisionLanguageConfig(mlm_weight=0.0, itm_weight=0.0, itc_false_captions=True)
    ),
    model=replace(_MODEL, num_fusion_layers=0),
    text=_TEXT,
    data=_SHAPES,
    loader=replace(_LOADER, global_batch_size=256),
    optimizer=replace(_MUON, lr=4e-3),
    schedule=ScheduleConfig(warmup_steps=25, kind="cosine", min_ratio=0.3),
    trainer=replace(_TRAINER, max_steps=600),
    init=f"{_RUNS}/shapes-stage2/model",
)
_stage3 = replace(
    _contrast,
    task=VisionLanguageTask(
        losses=VisionLanguageConfig(
            mlm_weight=1.0, itm_stride=2, negative_sharpness=0.2, itc_false_captions=True
        )
    ),
    model=replace(_MODEL, rerank_weight=0.3),
    # What stands where is learned last, so words of places are often masked alone, beside words that are seen.
    data=replace(
        _SHAPES,
        source="shapes+shapes-crowded",
        mlm_probability=0.3,
        mask_only=("left", "right", "above", "below", "under", "top", "bottom"),
        mask_only_share=0.6,
    ),
    loader=replace(_LOADER, global_batch_size=96),
    optimizer=replace(_MUON, lr=4.5e-3),
    schedule=ScheduleConfig(warmup_steps=18, kind="cosine", min_ratio=0.05),
    trainer=replace(_TRAINER, max_steps=800),
    init=f"{_RUNS}/shapes-contrast/model",
)
_questions = replace(
    _stage3,
    # At the rate of the rest, the new head's first gradients undo what ITM has learned of sides (experiments/log.md).
    task=VQATask(head_lr_scale=8.0),
    data=replace(_SHAPES, source="shapes-questions"),
    loader=replace(_LOADER, global_batch_size=32),
    optimizer=replace(_MUON, lr=1.5e-3),
    schedule=ScheduleConfig(warmup_steps=40, kind="cosine", min_ratio=0.05),
    trainer=replace(_TRAINER, max_steps=2600),
    init=f"{_RUNS}/shapes-stage3/model",
    evaluate_on="shapes-questions",
)
_statements = replace(
    _questions,
    task=NLVR2Task(head_lr_scale=8.0),
    data=replace(_SHAPES, source="shapes-statements"),
    # Batches of 32 stay on a plateau; at rates of 1.5e-3 or 2e-3 a run may learn nothing (experiments/log.md).
    loader=replace(_LOADER, global_batch_size=64),
    optimizer=replace(_MUON, lr=1e-3),
    trainer=replace(_TRAINER, max_steps=1700),
    evaluate_on="shapes-statements",
)
_captioning = replace(
    _questions,
    task=CaptioningTask(),
    data=_SHAPES,
    loader=replace(_LOADER, global_batch_size=64),
    optimizer=_MUON,
    schedule=ScheduleConfig(warmup_steps=40),
    trainer=replace(_TRAINER, max_steps=1500),
    evaluate_on="shapes",
)


def _entry(recipe: Recipe, about: str, *, expect: str, data: str = "{source}.") -> Entry:
    return Entry(
        recipe,
        about,
        expect=expect,
        data=data,
        command=f"vlmo train {{name}} --run-dir {_RUNS}/{{name}}",
    )


QUICKSTART = {
    "shapes-tokenizer": _entry(
        _tokenizer,
        "Visual tokenizer of 256 tokens, the targets of shapes-stage1.",
        data="{source}: 50,000 scenes of one or two colored shapes; all stages of the quickstart train on them.",
        expect=_losses("shapes-tokenizer"),
    ),
    "shapes-stage1": _entry(
        _stage1,
        "Stage 1 on scenes of shapes: masked image modeling.",
        expect=_losses("shapes-stage1"),
    ),
    "shapes-stage2": _entry(
        _stage2,
        "Stage 2 on captions of scenes: masked language modeling; attention and vision experts are frozen.",
        expect=_losses("shapes-stage2"),
    ),
    "shapes-beit3": _entry(
        _beit3,
        "BEiT-3's stage on scenes of shapes: masked words and patches of images, texts and pairs, without contrast.",
        expect="no number: experiments/beit3.py compares it with VLMo's stages.",
    ),
    "shapes-contrast": _entry(
        _contrast,
        "Image-text contrast alone, with false captions: the dual encoder learns what lies where.",
        data="{source}: 50,000 scenes of one or two colored shapes; 1,000 others are for testing.",
        expect=_losses("shapes-contrast"),
    ),
    "shapes-stage3": _entry(
        _stage3,
        "Stage 3 on scenes of shapes: ITC with false captions, ITM, and MLM in which words of places are often masked.",
        data="{source}: 50,000 scenes of one or two colored shapes and 20,000 of three or four; 1,000 others of "
        "both are for testing.",
        expect="on 1,000 new images, 93 % of whose captions stand in training too, "
        f"IR@1 {over_seeds(DUAL, IMAGE_RECALL)} and TR@1 {over_seeds(DUAL, TEXT_RECALL)} %, "
        f"reranked (32) {over_seeds(FUSION, IMAGE_RECALL)} and {over_seeds(FUSION, TEXT_RECALL)} %; "
        f"on 1,000 crowded scenes, IR@1 {over_seeds(DUAL, CROWDED_IMAGE_RECALL)}, "
        f"reranked {over_seeds(FUSION, CROWDED_IMAGE_RECALL)} % (chance 0.1); which of two captions is true, left or "
        f"right: {over_seeds(FUSION, SIDES)} %, by the dual encoder {over_seeds(DUAL, SIDES)} %; {WHICH_RUNS}.",
    ),
    "shapes-questions": _entry(
        _questions,
        "Questions about scenes of shapes: colors, shapes, numbers, yes or no.",
        data="{source}: 40,000 questions about as many scenes; 2,000 others are for testing.",
        expect=f"accuracy {over_seeds(FUSION, QUESTION_ROW)} % (the most frequent answer to each question 35.5 %); "
        f"{WHICH_RUNS}.",
    ),
    "shapes-statements": _entry(
        _statements,
        "Sentences that are true or false of two scenes of shapes, as in NLVR2.",
        data="{source}: 20,000 pairs of scenes with 5,000 sentences; 2,000 other pairs are for testing.",
        expect=f"accuracy {over_seeds(FUSION, STATEMENT_ROW)} % (chance 50); {WHICH_RUNS}.",
    ),
    "shapes-captioning": _entry(
        _captioning,
        "Captions of scenes of shapes, word by word, as BEiT-3 learns them.",
        expect="97.3 % (94.2 to 98.4) of 1,000 new scenes get one of their true descriptions, 97.5 (96.1 to 98.6) the "
        "right shapes and colors, with the image hidden none; median (lowest to highest) of 3 seeds, Intel Xeon, "
        "four minutes of one core, from an earlier stage 3 (experiments/captions.json).",
    ),
}
"""By name."""
