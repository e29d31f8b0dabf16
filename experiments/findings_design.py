"""What the findings compare: variants of VLMo, the paper's claims about them, and their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import shape_world
from vlmo.processing import TransformConfig
from vlmo.recipes import Recipe, find_recipe
from vlmo.recipes.schema import TextConfig
from vlmo.tasks import LanguageTask, TokenizerTask, VisionLanguageTask, VisionTask
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import ScheduleConfig

STEPS, BRIEF_STEPS = 600, 300
"""Steps of stage 3 on fresh scenes; on `few`, `fewest` and in `brief`."""
STAGES, STAGE_STEPS = "stages", {"tokenizer": 200, "stage1": 1000, "stage2": 300}
LOSSES = VisionLanguageConfig(mlm_weight=1.0, itm_stride=4, negatives=3)
SEPARATE = "stage2-separate"
"""The model after stage 2, with its attention for each modality."""
RECALL, MATCHING, PROBE = "recall", "matching", "probe"


@dataclass(frozen=True)
class Variant:
    """Changes of stage 3, its pairs, the stage that it starts from, and its steps."""

    about: str
    model: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    source: str = "pairs"
    start: str | None = None
    steps: int = STEPS


VARIANTS = {
    "plain": Variant("Multiway, three losses, global hard negatives"),
    "few": Variant("1,000 pairs alone", source="few", steps=BRIEF_STEPS),
    "few-stages": Variant("1,000 pairs after stages 1 and 2", source="few", start="stage2", steps=BRIEF_STEPS),
    "few-stage1": Variant("1,000 pairs after stage 1", source="few", start="stage1", steps=BRIEF_STEPS),
    "itc": Variant("ITC alone", {"num_fusion_layers": 0}, {"mlm_weight": 0.0, "itm_weight": 0.0}),
    "local-negatives": Variant("hard negatives among 8 pairs", losses={"negative_groups": 8}),
    "no-fusion-expert": Variant("no vision-language experts", {"num_fusion_layers": 0}),
    "standard": Variant("one FFN for all, equal FLOPs", {"experts": "shared"}),
    "separate-attention": Variant("separate attention, equal FLOPs", {"attention": "separate"}),
    "itc-itm": Variant("ITC + ITM", losses={"mlm_weight": 0.0}),
    "random-negatives": Variant("uniform negatives", losses={"negative_sharpness": 0.0}),
    "standard-wide": Variant("one FFN for all, equal parameters", {"experts": "shared", "intermediate_size": 1280}),
    "separate-attention-narrow": Variant(
        "separate attention, equal parameters", {"attention": "separate", "intermediate_size": 408}
    ),
    "few-separate-attention": Variant(
        "1,000 pairs after stages 1 and 2; separate attention starts as two copies of theirs",
        {"attention": "separate"},
        source="few",
        start=SEPARATE,
        steps=BRIEF_STEPS,
    ),
    "fewest": Variant("200 pairs alone", source="fewest", steps=BRIEF_STEPS),
    "fewest-stages": Variant("200 pairs after stages 1 and 2", source="fewest", start="stage2", steps=BRIEF_STEPS),
    "brief": Variant("300 steps", steps=BRIEF_STEPS),
    "brief-stages": Variant("300 steps after stages 1 and 2", start="stage2", steps=BRIEF_STEPS),
    "brief-stages-no-fusion-expert": Variant(
        "the same without vision-language experts", {"num_fusion_layers": 0}, start="stage2", steps=BRIEF_STEPS
    ),
    "thin": Variant("FFNs of a quarter of the width", {"intermediate_size": 128}),
    "thin-no-fusion-expert": Variant(
        "the same without vision-language experts", {"intermediate_size": 128, "num_fusion_layers": 0}
    ),
    "itc-mlm": Variant("ITC + MLM", losses={"itm_weight": 0.0}),
    "itm-mlm": Variant("ITM + MLM", losses={"itc_weight": 0.0}),
}
"""In the order of their jobs. Without a loss that trains them, ITC alone has no vision-language experts."""


@dataclass(frozen=True)
class Claim:
    """One variant is better than another one on a metric; each seed trains both."""

    title: str
    better: str
    worse: str
    metric: str
    seeds: range = range(1, 6)


CLAIMS = (
    Claim("stages 1 and 2 help", "few-stages", "few", MATCHING),
    Claim("three losses are better than ITC alone", "plain", "itc", PROBE),
    Claim("hard negatives of the whole batch are better than local ones", "plain", "local-negatives", MATCHING),
    Claim("Multiway is better than a standard Transformer", "plain", "standard", RECALL),
    Claim("vision-language experts help", "plain", "no-fusion-expert", MATCHING),
    Claim("shared attention is better than separate attention", "plain", "separate-attention", RECALL),
)
"""One primary comparison for each of the paper's claims."""
SECONDARY = (
    Claim("stage 1 alone helps", "few-stage1", "few", MATCHING),
    Claim("stage 2 helps after stage 1", "few-stages", "few-stage1", MATCHING),
    Claim("MLM helps", "plain", "itc-itm", PROBE),
    Claim("ITM helps", "plain", "itc-mlm", PROBE),
    Claim("ITC helps", "plain", "itm-mlm", PROBE),
    Claim("hard negatives are better than uniform ones", "plain", "random-negatives", MATCHING),
    Claim("Multiway, equal parameters", "plain", "standard-wide", RECALL),
    Claim("shared attention, equal parameters", "plain", "separate-attention-narrow", RECALL),
    Claim("stages 1 and 2 help 200 pairs", "fewest-stages", "fewest", MATCHING),
    Claim("vision-language experts help narrow FFNs", "thin", "thin-no-fusion-expert", MATCHING),
)
CONFIRMATIONS = (
    Claim("stages 1 and 2 help the dual encoder with 200 pairs", "fewest-stages", "fewest", RECALL, range(6, 11)),
    Claim("vision-language experts help narrow FFNs", "thin", "thin-no-fusion-expert", PROBE, range(6, 14)),
    Claim(
        "shared attention is better after stages 1 and 2", "few-stages", "few-separate-attention", RECALL, range(6, 11)
    ),
    Claim("stages 1 and 2 help a brief stage 3", "brief-stages", "brief", PROBE, range(11, 16)),
    Claim(
        "vision-language experts help after stages 1 and 2",
        "brief-stages",
        "brief-stages-no-fusion-expert",
        PROBE,
        range(11, 16),
    ),
)
"""Effects and explanations that earlier runs suggested. No earlier part had used the seeds of the first two claims; the
third has seeds of these, and so their starts, and of the last two seeds 11 to 13 are those of the second."""


def stage3(variant: str, *, world: Path) -> Recipe:
    """Return stage 3 of a variant, from random weights."""
    known, base = VARIANTS[variant], find_recipe("shapes-stage3")
    model = {
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_fusion_layers": 2,
        "image_size": shape_world.PIXELS,
        "patch_size": shape_world.PIXELS // 4,
        "max_text_positions": 16,
        "position_embedding": "absolute",
        "position_init": "sincos",
    }
    data = replace(
        base.data,
        source=str(world / known.source),
        transform=TransformConfig(image_size=shape_world.PIXELS, rand_augment_ops=0, horizontal_flip=0.0),
        mlm_probability=0.5,
        mask_only=shape_world.PLACE_WORDS,
        mask_only_share=0.4,
    )
    return replace(
        base,
        task=VisionLanguageTask(losses=replace(LOSSES, **known.losses)),
        model=replace(base.model, **(model | known.model)),
        text=TextConfig(vocab_size=200, learn_from=(str(world / "texts"),), max_length=16),
        data=data,
        loader=replace(base.loader, global_batch_size=64),
        optimizer=replace(base.optimizer, lr=1e-3, muon=False),
        schedule=ScheduleConfig(warmup_steps=80),
        trainer=replace(base.trainer, max_steps=known.steps, save_every=100),
        init=None,
    )


def stages_before(*, world: Path, folder: Path) -> dict[str, Recipe]:
    """Return the visual tokenizer, stage 1 on images and stage 2 on texts."""
    plain = stage3("few", world=world)
    model = replace(plain.model, num_fusion_layers=0)
    tokenizer = find_recipe("shapes-tokenizer")
    sizes = replace(tokenizer.task.tokenizer, patch_size=model.patch_size, num_tokens=256)
    found = {
        "tokenizer": (tokenizer, TokenizerTask(tokenizer=sizes), "images"),
        "stage1": (find_recipe("shapes-stage1"), VisionTask(str(folder / "tokenizer" / "model")), "images"),
        "stage2": (find_recipe("shapes-stage2"), LanguageTask(), "texts"),
    }
    return {
        name: replace(
            recipe,
            task=stage,
            model=model,
            text=plain.text,
            data=replace(plain.data, source=str(world / source)),
            trainer=replace(recipe.trainer, max_steps=STAGE_STEPS[name], save_every=100),
            init=str(folder / "stage1" / "model") if name == "stage2" else None,
        )
        for name, (recipe, stage, source) in found.items()
    }
