"""Variants that differ in one thing, small and at the paper's size (VLMo, "Ablation Studies")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlmo.objectives.pretraining import VisionLanguageConfig
from vlmo.recipes import easy_vqa, emoji, pretraining
from vlmo.recipes.pretraining_stages import VisionLanguageStage
from vlmo.recipes.recipe import Recipe

Start = Literal["nothing", "stage1", "stage2"]
PLAIN = "plain"
STAGE3, QUESTIONS_RUN, SENTENCES_RUN, HIDDEN_RUN = "stage3", "easy-vqa", "easy-vqa-pairs-colors", "easy-vqa-hidden"
STEPS = {STAGE3: 500, QUESTIONS_RUN: 400, SENTENCES_RUN: 250}
"""Of each run, the same for every variant."""
PAIRS = "drawings-and-shapes"
SHARPNESS = 0.3
"""Of hard negatives in the small recipes."""
_WARMUP_SHARE = 0.1
_SAVE_EVERY = 100


@dataclass(frozen=True)
class Variant:
    """One change to the plain recipe: stage 3 of a Multiway Transformer from random weights, with everything on.

    Attributes:
        label: What it is, for tables.
        start: What stage 3 starts from.
        model: Changed sizes and switches of the model.
        losses: Changed weights and switches of the losses.
    """

    label: str
    start: Start = "nothing"
    model: tuple[tuple[str, Any], ...] = ()
    losses: tuple[tuple[str, Any], ...] = ()

    def of(self, recipe: Recipe) -> Recipe:
        """A recipe of stage 3 with this change."""
        assert isinstance(recipe.stage, VisionLanguageStage)
        losses = replace(recipe.stage.losses, **dict(self.losses))
        model = replace(recipe.model, **dict(self.model))
        if losses.mlm_weight == losses.itm_weight == 0 and not model.contrast_fusion_ending:
            # No loss would reach the vision-language experts. Without them, fine-tuning starts them from the language
            # experts, as stage 3 does; with them, from random weights.
            model = replace(model, num_fusion_layers=0)
        return replace(recipe, stage=replace(recipe.stage, losses=losses), model=model)


VARIANTS: dict[str, Variant] = {
    PLAIN: Variant("plain: Multiway, all losses, global hard negatives, from nothing"),
    "stage1": Variant("from stage 1", start="stage1"),
    "stage2": Variant("from stages 1 and 2", start="stage2"),
    "standard": Variant("standard Transformer, one FFN for all", model=(("experts", "shared"),)),
    "no-fusion-expert": Variant("Multiway without vision-language experts", model=(("num_fusion_layers", 0),)),
    "itc": Variant("ITC", losses=(("mlm_weight", 0.0), ("itm_weight", 0.0))),
    "itc-mlm": Variant("ITC + MLM", losses=(("itm_weight", 0.0),)),
    "itc-itm": Variant("ITC + ITM", losses=(("mlm_weight", 0.0),)),
    "random-negatives": Variant("negatives drawn evenly", losses=(("negative_sharpness", 0.0),)),
    "local-negatives": Variant("hard negatives from an eighth of the batch", losses=(("negative_groups", 8),)),
    "separate-attention": Variant("attention of its own for each modality", model=(("attention", "separate"),)),
}
"""By name; `plain` is what each is compared with, or differs from."""


@dataclass(frozen=True)
class Question:
    """A table of the report.

    Attributes:
        title: What it asks.
        rows: Variants with their label in this table.
        claims: Pairs of (better, worse): what the paper reports, where `paper` has both, or what its design leads one
            to expect.
        paper: NLVR2 accuracy in percent as the paper reports it, (dev, test-P), by variant; `None` where it does not.
    """

    title: str
    rows: dict[str, str]
    claims: tuple[tuple[str, str], ...]
    paper: dict[str, tuple[float, float | None]]


QUESTIONS: dict[str, Question] = {
    "initialisation": Question(
        "Does stagewise pre-training help?",
        {PLAIN: "from nothing", "stage1": "from stage 1 (images)", "stage2": "from stages 1 and 2 (images, text)"},
        claims=(("stage1", PLAIN), ("stage2", PLAIN), ("stage2", "stage1")),
        paper={"stage1": (80.33, 81.06), "stage2": (82.09, 82.49)},
    ),
    "experts": Question(
        "Do experts by modality beat one FFN?",
        {
            PLAIN: "Multiway",
            "standard": "standard Transformer, one FFN for all",
            "no-fusion-expert": "without vision-language experts",
        },
        claims=((PLAIN, "standard"), (PLAIN, "no-fusion-expert")),
        paper={PLAIN: (80.13, 80.31), "standard": (78.81, 79.27)},
    ),
    "losses": Question(
        "Does each loss help?",
        {"itc": "ITC", "itc-mlm": "ITC + MLM", "itc-itm": "ITC + ITM", PLAIN: "ITC + MLM + ITM"},
        claims=((PLAIN, "itc"), (PLAIN, "itc-mlm"), (PLAIN, "itc-itm")),
        paper={"itc": (73.91, 73.75), PLAIN: (80.13, 80.31)},
    ),
    "negatives": Question(
        "Do hard negatives help, and from how many?",
        {
            "random-negatives": "drawn evenly from the batch",
            "local-negatives": "hard, from an eighth of the batch",
            PLAIN: "hard, from the whole batch",
        },
        claims=((PLAIN, "random-negatives"), (PLAIN, "local-negatives")),
        paper={"local-negatives": (77.70, None), PLAIN: (79.54, None)},
    ),
    "attention": Question(
        "Does shared attention beat separate attention?",
        {PLAIN: "shared", "separate-attention": "separate"},
        claims=((PLAIN, "separate-attention"),),
        paper={},
    ),
}
"""The paper's ablations by name."""


def variants_of(names: list[str]) -> list[str]:
    """Variants that are asked for by their own names or by those of questions; all, if none is.

    Raises:
        ValueError: A name is neither.
    """
    unknown = [name for name in names if name not in QUESTIONS and name not in VARIANTS]
    if unknown:
        raise ValueError(
            f"no question or variant {unknown[0]!r}; questions: {', '.join(QUESTIONS)}; variants: {', '.join(VARIANTS)}"
        )
    wanted = {variant for name in names for variant in (QUESTIONS[name].rows if name in QUESTIONS else [name])}
    return [name for name in VARIANTS if name in wanted or not names]


def small_stage3(variant: str, *, seed: int = 0) -> Recipe:
    """Stage 3 of a variant on drawings and shapes with their names; the start folder is left to the caller."""
    recipe = emoji.emoji_stage3()
    # Among drawings alone, matching learns nothing in so short a run (docs/log.md); of shapes it does. A quarter of the
    # rows is fused, and negatives are drawn softly.
    losses = VisionLanguageConfig(fused_stride=4, negative_sharpness=SHARPNESS)
    plain = replace(
        recipe,
        stage=VisionLanguageStage(losses=losses),
        data=replace(recipe.data, source=PAIRS),
        trainer=replace(recipe.trainer, max_steps=STEPS[STAGE3], save_every=_SAVE_EVERY),
        init=None,
        seed=seed,
    )
    return VARIANTS[variant].of(plain)


def small_finetuning(variant: str, *, seed: int = 0) -> dict[str, Recipe]:
    """Short fine-tuning of what `small_stage3` trained: questions about a picture, then sentences about two.

    For the plain variant also questions without their pictures, which is what the others are to be better than.
    """
    pairs = easy_vqa.easy_vqa_pairs()
    recipes = {
        QUESTIONS_RUN: easy_vqa.easy_vqa(),
        SENTENCES_RUN: replace(pairs, data=replace(pairs.data, source=SENTENCES_RUN)),
    }
    if variant == PLAIN:
        recipes[HIDDEN_RUN] = easy_vqa.easy_vqa_question_only()
    sizes = replace(small_stage3(PLAIN).model, **dict(VARIANTS[variant].model))
    tuned = {}
    for name, recipe in recipes.items():
        steps = STEPS.get(name, STEPS[QUESTIONS_RUN])
        tuned[name] = replace(
            recipe,
            model=replace(sizes, image_size=recipe.model.image_size),
            schedule=replace(recipe.schedule, warmup_steps=round(steps * _WARMUP_SHARE)),
            trainer=replace(recipe.trainer, max_steps=steps, save_every=_SAVE_EVERY),
            init=None,
            evaluate_on=None,
            seed=seed,
        )
    return tuned


def base_name(variant: str) -> str:
    """The recipe of a variant at Base size."""
    return f"base-ablation-{variant}"


def _at_base_size(name: str, variant: Variant) -> Callable[[], Recipe]:
    init = {"nothing": None, "stage1": "runs/base-stage1/model", "stage2": "runs/base-stage2/model"}[variant.start]

    def recipe() -> Recipe:
        # One contrastive loss, as in the paper: base-stage3 has the published code's second one, which models without
        # vision-language experts cannot have.
        base = pretraining.base_stage3()
        base = replace(base, model=replace(base.model, contrast_fusion_ending=False))
        return replace(variant.of(base), init=init)

    title = base_name(name)
    start = [] if init is None else [f"Start:   the model folder of base-{variant.start}."]
    card = [
        f"An ablation of base-stage3 with one contrastive loss: {variant.label}.",
        "",
        "Data:    as base-stage3, `data/pairs`.",
        *start,
        f"Run:     torchrun --nproc-per-node 8 -m vlmo.cli train {title}",
        "Expect:  not yet run; `vlmo ablate` compares the same small, `vlmo ablate --costs` tells what this one takes.",
    ]
    recipe.__name__ = title.replace("-", "_")
    recipe.__doc__ = "\n".join(card)
    return recipe


BASE_RECIPES: list[Callable[[], Recipe]] = [_at_base_size(name, variant) for name, variant in VARIANTS.items()]
"""The same changes to base-stage3 with one contrastive loss and the paper's data; `plain` starts from nothing."""
