"""The ablations of the paper at Base size: variants that differ in one thing (VLMo, "Ablation Studies")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vlmo.recipes import pretraining
from vlmo.recipes.pretraining_stages import VisionLanguageStage
from vlmo.recipes.recipe import Recipe


@dataclass(frozen=True)
class Variant:
    """One change to the plain recipe: stage 3 of a Multiway Transformer from random weights with all losses.

    Attributes:
        label: Name for tables.
        start: Model folder that stage 3 starts from; None is random weights.
        model: Changed sizes and switches of the model.
        losses: Changed weights and switches of the losses.
    """

    label: str
    start: str | None = None
    model: tuple[tuple[str, Any], ...] = ()
    losses: tuple[tuple[str, Any], ...] = ()


VARIANTS: dict[str, Variant] = {
    "plain": Variant("plain: Multiway, all losses, global hard negatives, from random weights"),
    "stage1": Variant("from stage 1", start="runs/base-stage1/model"),
    "stage2": Variant("from stages 1 and 2", start="runs/base-stage2/model"),
    "standard": Variant("standard Transformer, one FFN for all", model=(("experts", "shared"),)),
    "no-fusion-expert": Variant("Multiway without vision-language experts", model=(("num_fusion_layers", 0),)),
    # No loss of ITC alone reaches the vision-language experts, so it has none; fine-tuning starts them from the
    # language experts, as stage 3 does.
    "itc": Variant("ITC", model=(("num_fusion_layers", 0),), losses=(("mlm_weight", 0.0), ("itm_weight", 0.0))),
    "itc-mlm": Variant("ITC + MLM", losses=(("itm_weight", 0.0),)),
    "itc-itm": Variant("ITC + ITM", losses=(("mlm_weight", 0.0),)),
    "random-negatives": Variant("negatives sampled uniformly", losses=(("negative_sharpness", 0.0),)),
    "local-negatives": Variant("hard negatives from an eighth of the batch", losses=(("negative_groups", 8),)),
    "separate-attention": Variant("separate attention for each modality", model=(("attention", "separate"),)),
}
"""By name; each differs from `plain`."""


def _base_recipe(name: str, variant: Variant) -> Callable[[], Recipe]:
    def recipe() -> Recipe:
        # One contrastive loss, as in the paper: base-stage3 has the published code's second one, which models without
        # vision-language experts cannot have.
        base = pretraining.base_stage3()
        assert isinstance(base.stage, VisionLanguageStage)
        return replace(
            base,
            model=replace(base.model, contrast_fusion_ending=False, **dict(variant.model)),
            stage=replace(base.stage, losses=replace(base.stage.losses, **dict(variant.losses))),
            init=variant.start,
        )

    title = f"base-ablation-{name}"
    start = [] if variant.start is None else [f"Start:   the model folder of {variant.start.split('/')[1]}."]
    card = [
        f"An ablation of base-stage3 with one contrastive loss: {variant.label}.",
        "",
        "Data:    as base-stage3, `data/pairs`.",
        *start,
        f"Run:     torchrun --nproc-per-node 8 -m vlmo.cli train {title}",
        "Expect:  not yet run; experiments/ablations.py compares the same in small, --costs tells what this one takes.",
    ]
    recipe.__name__ = title.replace("-", "_")
    recipe.__doc__ = "\n".join(card)
    return recipe


BASE_RECIPES: list[Callable[[], Recipe]] = [_base_recipe(name, variant) for name, variant in VARIANTS.items()]
"""The variants of base-stage3 with one contrastive loss; `plain` starts from random weights."""
