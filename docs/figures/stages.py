"""Parameters that each stage of pre-training trains: those with a gradient after a backward pass of its objective."""

from __future__ import annotations

import re

import torch
from torch import nn

from figures.svg import Canvas
from vlmo.data.masking import IGNORED
from vlmo.model import VLMoConfig, VLMoForMaskedImageModeling, VLMoForMaskedLM, VLMoForPreTraining
from vlmo.model.multiway import LANGUAGE, VISION, VISION_LANGUAGE
from vlmo.model.visual_tokenizer import VQVisualTokenizer, VQVisualTokenizerConfig
from vlmo.tasks.language import LanguageObjective
from vlmo.tasks.vision import VisionObjective
from vlmo.tasks.vision_language import VisionLanguageObjective
from vlmo.types import Batch

TRAINED, FROZEN, IDLE = "trained", "frozen", "idle"
_NAMES = {VISION: "V", LANGUAGE: "L", VISION_LANGUAGE: "VL"}
_PARTS = (
    (r"vlmo\.image_embeddings\.", "pixels"),
    (r"vlmo\.text_embeddings\.", "words"),
    (r"vlmo\.(modality_types|position_bias)\.", "tables"),
    (r"vlmo\.blocks\.(\d+)\.experts\.(\w+)\.", "expert"),
    (r"vlmo\.blocks\.(\d+)\.", "attention"),
    (r"vlmo\.norm\.", "norm"),
    (r"vlmo\.pooler\.|match_head\.", "ITM"),
    (r"(fusion_)?contrast_head\.", "ITC"),
    (r"mlm_head\.", "MLM"),
    (r"mim_head\.", "MIM"),
)
"""Parameters by the beginnings of their names, and the part of the figure that they belong to."""


def objectives(config: VLMoConfig) -> dict[str, nn.Module]:
    """The objective of each stage, as the recipes make them."""
    sizes = VQVisualTokenizerConfig(
        num_tokens=config.num_visual_tokens, patch_size=config.patch_size
    )
    tokenizer = VQVisualTokenizer(sizes)
    tokenizer.start_from(_batch(config)["pixel_values"])
    return {
        "stage 1": VisionObjective(VLMoForMaskedImageModeling(config), tokenizer=tokenizer.eval()),
        "stage 2": LanguageObjective(VLMoForMaskedLM(config)),
        "stage 3": VisionLanguageObjective(VLMoForPreTraining(config)),
    }


def states(objective: nn.Module, config: VLMoConfig) -> dict[str, str]:
    """Each part of the objective's model: `frozen`, `trained`, or `idle` where no loss reaches it.

    Parts of blocks are named by their place, such as `lower attention` and `top vision`.

    Raises:
        ValueError: A parameter belongs to no part, or the parameters of a part differ.
    """
    objective(_batch(config))["loss"].backward()
    found: dict[str, set[str]] = {}
    for name, parameter in objective.model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        state = FROZEN if not parameter.requires_grad else TRAINED if reached else IDLE
        found.setdefault(part_of(name, config), set()).add(state)
    mixed = {part: kinds for part, kinds in found.items() if len(kinds) > 1}
    if mixed:
        raise ValueError(
            f"these parts are not of one state, so that the figure would be wrong: {mixed}"
        )
    return {part: next(iter(kinds)) for part, kinds in found.items()}


def part_of(parameter: str, config: VLMoConfig) -> str:
    """The part of the figure that a parameter belongs to.

    Raises:
        ValueError: There is none.
    """
    for pattern, part in _PARTS:
        if match := re.match(pattern, parameter):
            if "blocks" not in pattern:
                return part
            top = int(match[1]) >= config.num_hidden_layers - config.num_fusion_layers
            return f"{'top' if top else 'lower'} {match[2] if part == 'expert' else part}"
    raise ValueError(
        f"the figure of the stages has no part for the parameter {parameter}; give it one"
    )


def _batch(config: VLMoConfig) -> Batch:
    """Eight noisy pairs with every third word and patch masked."""
    generator = torch.Generator().manual_seed(0)
    pairs, words, (rows, columns) = 8, 12, config.grid
    ids = torch.randint(5, config.vocab_size, (pairs, words), generator=generator)
    masked = torch.arange(words).expand(pairs, words) % 3 == 1
    size = config.image_size
    return {
        "pixel_values": torch.randn(pairs, 3, size, size, generator=generator),
        "bool_masked_pos": torch.arange(rows * columns).expand(pairs, rows * columns) % 3 == 0,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mlm_input_ids": ids.masked_fill(masked, 4),
        "mlm_labels": ids.masked_fill(~masked, IGNORED),
        "image_ids": torch.arange(pairs),
        "step_seed": torch.tensor(0),
    }


# -------------------------------------------------------------------------------------------------------- the stacks

_WIDTH, _HEIGHT = 212, 374
_TITLES = {
    "stage 1": ("Stage 1: vision", "images; masked patches"),
    "stage 2": ("Stage 2: language", "texts; masked words"),
    "stage 3": ("Stage 3: both", "pairs; contrast, words, match"),
}


def stacks(config: VLMoConfig | None = None) -> str:
    """A model for each stage, its input below: what is trained, frozen, or reached by no loss."""
    config = config or VLMoConfig.tiny()
    torch.manual_seed(0)
    drawn = [
        _stack(stage, states(objective, config)) for stage, objective in objectives(config).items()
    ]
    return "".join(drawn) + _key()


def _stack(stage: str, found: dict[str, str]) -> str:
    title, data = _TITLES[stage]
    canvas = Canvas(_WIDTH, _HEIGHT, name=stage.replace(" ", "-"), title=f"{title}, {data}")

    def row(y: float, parts: dict[str, str], *, height: float = 26, left: float = 1) -> None:
        width = (_WIDTH - 2 * left - 4 * (len(parts) - 1)) / len(parts)
        for place, (part, words) in enumerate(parts.items()):
            x = left + place * (width + 4)
            _cell(
                canvas, x, y, width, height, state=found[part], words=words, stage=stage, part=part
            )

    canvas.text(title, x=_WIDTH / 2, y=16, kind="strong")
    canvas.text(data, x=_WIDTH / 2, y=34, kind="small")
    heads = {part: f"{part} head" for part in ("MIM", "MLM", "ITC", "ITM") if part in found}
    row(48, heads)
    row(80, {"norm": "final norm"}, height=22)
    for y, place, experts in (
        (112, "top", (VISION, LANGUAGE, VISION_LANGUAGE)),
        (216, "lower", (VISION, LANGUAGE)),
    ):
        canvas.box(1, y, _WIDTH - 2, 94, kind="frame", radius=8)
        canvas.text(f"{place} layers", x=_WIDTH / 2, y=y + 15, kind="small")
        row(y + 23, {f"{place} {expert}": _NAMES[expert] for expert in experts}, height=30, left=10)
        row(y + 57, {f"{place} attention": "attention"}, height=28, left=10)
    row(320, {"tables": "type and position tables"}, height=22)
    row(346, {"pixels": "pixels", "words": "words"})
    lines = {
        state: [part for part in found if found[part] == state] for state in (TRAINED, FROZEN, IDLE)
    }
    about = " ".join(f"{state}: {', '.join(parts) or 'nothing'}." for state, parts in lines.items())
    return canvas.finished(about=about)


def _cell(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    state: str,
    words: str,
    stage: str = "",
    part: str = "",
) -> None:
    facts = {"stage": stage, "part": part, "state": state} if part else {}
    canvas.box(x, y, width, height, kind=state, radius=4, **facts)
    if state == FROZEN:
        canvas.hatched(x, y, width, height)
    canvas.text(
        words,
        x=x + width / 2,
        y=y + height / 2 + 4.5,
        kind="narrow faint" if state == IDLE else "narrow",
    )


def _key() -> str:
    canvas = Canvas(430, 28, name="stages-key", title="Key")
    x = 1.0
    for state, words in ((TRAINED, "trained"), (FROZEN, "frozen"), (IDLE, "no loss reaches it")):
        _cell(canvas, x, 4, 34, 20, state=state, words="")
        canvas.text(words, x=x + 42, y=18.5, kind="small", anchor="start")
        x += 132
    return canvas.finished(about="Filled: trained. Hatched: frozen. Dashed: no loss reaches it.")
