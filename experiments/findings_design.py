"""What the findings compare: variants of VLMo in two worlds, the paper's claims about them, and their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import icon_world
import shape_world
from vlmo.processing import TransformConfig
from vlmo.recipes import Recipe, find_recipe
from vlmo.recipes.schema import TextConfig
from vlmo.tasks import LanguageTask, TokenizerTask, VisionLanguageTask, VisionTask
from vlmo.tasks.vision_language import VisionLanguageConfig
from vlmo.training import ScheduleConfig

SCENES, ICONS = "scenes", "icons"
STEPS, BRIEF_STEPS, ICON_STEPS = 600, 300, 350
"""Steps of stage 3 on fresh scenes; on `few`, `fewest` and in `brief`; on icons."""
STARTS, SEPARATE = {SCENES: "stages", ICONS: "stages-icons"}, "stage2-separate"
"""Jobs of the stages before stage 3; the model after stage 2, with its attention for each modality."""
STAGE_STEPS = {
    SCENES: {"tokenizer": 200, "stage1": 1000, "stage2": 300},
    ICONS: {"tokenizer": 80, "stage1": 300, "stage2": 250},
}
RECALL, MATCHING, PROBE, FIRST, TENTH = "recall", "matching", "probe", "IR@1", "IR@10"


@dataclass(frozen=True)
class Variant:
    """Changes of stage 3, its pairs, the stage that it starts from, its steps, and its world."""

    model: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    source: str = "pairs"
    start: str | None = None
    steps: int = STEPS
    world: str = SCENES


_BRIEF: dict[str, Any] = {"steps": BRIEF_STEPS}
_FEW, _FEWEST = {"source": "few", **_BRIEF}, {"source": "fewest", **_BRIEF}
_ICONS: dict[str, Any] = {"steps": ICON_STEPS, "world": ICONS}
_NO_EXPERT, _THIN, _SEPARATE = (
    {"num_fusion_layers": 0},
    {"intermediate_size": 128},
    {"attention": "separate"},
)
VARIANTS = {
    "plain": Variant(),
    "few": Variant(**_FEW),
    "few-stages": Variant(start="stage2", **_FEW),
    # Without a loss that trains them, ITC alone has no vision-language experts.
    "itc": Variant(_NO_EXPERT, {"mlm_weight": 0.0, "itm_weight": 0.0}),
    "local-negatives": Variant(losses={"negative_groups": 8}),
    "no-fusion-expert": Variant(_NO_EXPERT),
    "standard": Variant({"experts": "shared"}),
    "separate-attention": Variant(_SEPARATE),
    "few-separate-attention": Variant(_SEPARATE, start=SEPARATE, **_FEW),
    "fewest": Variant(**_FEWEST),
    "fewest-stages": Variant(start="stage2", **_FEWEST),
    "brief": Variant(**_BRIEF),
    "brief-stages": Variant(start="stage2", **_BRIEF),
    "brief-stages-no-fusion-expert": Variant(_NO_EXPERT, start="stage2", **_BRIEF),
    "thin": Variant(_THIN),
    "thin-no-fusion-expert": Variant(_THIN | _NO_EXPERT),
    "icons-fewest": Variant(source="fewest", **_ICONS),
    "icons-fewest-stages": Variant(source="fewest", start="stage2", **_ICONS),
    "icons-few": Variant(source="few", **_ICONS),
    "icons-few-stages": Variant(source="few", start="stage2", **_ICONS),
    "icons": Variant(**_ICONS),
    "icons-stages": Variant(start="stage2", **_ICONS),
    "icons-stages-no-fusion-expert": Variant(_NO_EXPERT, start="stage2", **_ICONS),
    "icons-stages-separate-attention": Variant(_SEPARATE, start=SEPARATE, **_ICONS),
}


@dataclass(frozen=True)
class Claim:
    """One variant is better than another one on a metric; each seed trains both."""

    title: str
    better: str
    worse: str
    metric: str
    seeds: range = range(1, 6)


_STAGES = "stages 1 and 2 help"
_EXPERTS = "vision-language experts help"
_SHARED = "shared attention is better than separate"
CLAIMS = (
    Claim(_STAGES, "few-stages", "few", MATCHING),
    Claim(f"{_STAGES} 200 pairs", "fewest-stages", "fewest", RECALL, range(6, 11)),
    Claim(f"{_STAGES} a brief stage 3", "brief-stages", "brief", PROBE, range(11, 16)),
    *(
        Claim(f"{_STAGES} {pairs} pairs", f"{name}-stages", name, metric)
        for pairs, name in (("2,000", "icons-fewest"), ("10,000", "icons-few"), ("20,000", "icons"))
        for metric in (FIRST, TENTH, PROBE)
    ),
    Claim("three losses are better than ITC alone", "plain", "itc", PROBE),
    Claim(
        "hard negatives of the whole batch are better than local ones",
        "plain",
        "local-negatives",
        MATCHING,
    ),
    Claim("Multiway is better than a standard Transformer", "plain", "standard", RECALL),
    Claim(_EXPERTS, "plain", "no-fusion-expert", MATCHING),
    Claim(f"{_EXPERTS} narrow FFNs", "thin", "thin-no-fusion-expert", PROBE, range(6, 14)),
    Claim(
        f"{_EXPERTS} after stages",
        "brief-stages",
        "brief-stages-no-fusion-expert",
        PROBE,
        range(11, 16),
    ),
    *(
        Claim(f"{_EXPERTS} after stages", "icons-stages", "icons-stages-no-fusion-expert", metric)
        for metric in (PROBE, FIRST, TENTH)
    ),
    Claim(_SHARED, "plain", "separate-attention", RECALL),
    Claim(f"{_SHARED} after stages", "few-stages", "few-separate-attention", RECALL, range(6, 11)),
    *(
        Claim(f"{_SHARED} after stages", "icons-stages", "icons-stages-separate-attention", metric)
        for metric in (FIRST, TENTH, PROBE)
    ),
)
"""Rows of the table. Scenes with seeds 1 to 5 are the primary comparisons; those with later seeds test effects and
explanations that the first runs suggested."""


def stage3(variant: str, *, worlds: Path) -> Recipe:
    """Return stage 3 of a variant, from random weights; `worlds` holds the data of both worlds."""
    known, base = VARIANTS[variant], find_recipe("shapes-stage3")
    folder = worlds / known.world
    if known.world == SCENES:
        pixels, patches, layers, vocabulary, words, warmup = shape_world.PIXELS, 4, 4, 200, 16, 80
        masks = {
            "mlm_probability": 0.5,
            "mask_only": shape_world.PLACE_WORDS,
            "mask_only_share": 0.4,
        }
        losses = VisionLanguageConfig(mlm_weight=1.0, itm_stride=4, negatives=3)
        optimizer, augmented = replace(base.optimizer, lr=1e-3, muon=False), {}
    else:
        pixels, patches, layers, vocabulary, words, warmup = icon_world.PIXELS, 3, 2, 4000, 24, 40
        masks, augmented = {"mlm_probability": 0.3, "mask_only": ()}, {"min_crop": 0.8}
        losses = VisionLanguageConfig(
            mlm_weight=1.0, mlm_stride=2, itm_stride=16, negative_sharpness=0.3
        )
        optimizer = replace(base.optimizer, lr=3e-3)
    transform = TransformConfig(
        image_size=pixels, rand_augment_ops=0, horizontal_flip=0.0, **augmented
    )
    model = {
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_fusion_layers": layers // 2,
        "image_size": pixels,
        "patch_size": pixels // patches,
        "max_text_positions": words,
        "position_embedding": "absolute",
        "position_init": "sincos",
    }
    return replace(
        base,
        task=VisionLanguageTask(losses=replace(losses, **known.losses)),
        model=replace(base.model, **(model | known.model)),
        text=TextConfig(
            vocab_size=vocabulary, learn_from=(str(folder / "texts"),), max_length=words
        ),
        data=replace(base.data, source=str(folder / known.source), transform=transform, **masks),
        loader=replace(base.loader, global_batch_size=64),
        optimizer=optimizer,
        schedule=ScheduleConfig(warmup_steps=warmup),
        trainer=replace(base.trainer, max_steps=known.steps, save_every=100),
        init=None,
    )


def stages_before(world: str, *, worlds: Path, folder: Path) -> dict[str, Recipe]:
    """Return the visual tokenizer, stage 1 on images and stage 2 on texts, which lie in `folder`."""
    plain = stage3(
        next(name for name, each in VARIANTS.items() if each.world == world), worlds=worlds
    )
    model = replace(plain.model, num_fusion_layers=0)
    tokenizer = find_recipe("shapes-tokenizer")
    sizes = replace(tokenizer.task.tokenizer, patch_size=model.patch_size, num_tokens=256)
    found = {
        "tokenizer": (tokenizer, TokenizerTask(tokenizer=sizes), "images"),
        "stage1": (
            find_recipe("shapes-stage1"),
            VisionTask(str(folder / "tokenizer" / "model")),
            "images",
        ),
        "stage2": (find_recipe("shapes-stage2"), LanguageTask(), "texts"),
    }
    return {
        name: replace(
            recipe,
            task=stage,
            model=model,
            text=plain.text,
            data=replace(plain.data, source=str(worlds / world / source)),
            trainer=replace(recipe.trainer, max_steps=STAGE_STEPS[world][name], save_every=100),
            init=str(folder / "stage1" / "model") if name == "stage2" else None,
        )
        for name, (recipe, stage, source) in found.items()
    }
