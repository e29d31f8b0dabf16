"""Which expert sees which tokens: recorded while a model of the configuration encodes an image, a text and a pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from figures.svg import Canvas
from vlmo.model import VLMoConfig, VLMoModel
from vlmo.model.multiway import LANGUAGE, SHARED, VISION, VISION_LANGUAGE

WAYS = ("image", "text", "pair")
_NUM_TEXT = 7
_NAMES = {
    VISION: "vision",
    LANGUAGE: "language",
    VISION_LANGUAGE: "vision_language",
    SHARED: "shared",
}
_SHORT = {VISION: "V", LANGUAGE: "L", VISION_LANGUAGE: "VL", SHARED: "FFN"}


@dataclass(frozen=True)
class Seen:
    """Experts of a layer that one kind of input calls.

    Attributes:
        experts: All experts of the layer.
        called: Those that were called, and with which tokens: "text", "image" or "both".
    """

    experts: tuple[str, ...]
    called: dict[str, str]


def routes(config: VLMoConfig) -> dict[str, list[Seen]]:
    """Return the experts that each kind of input calls in every layer, the lowest first.

    The model has shapes and no numbers (PyTorch's meta device), so that one of full size takes no memory.
    """
    with torch.device("meta"):
        model = VLMoModel(config, add_pooling_layer=False).eval()
        image = {"pixel_values": torch.zeros(1, 3, config.image_size, config.image_size)}
        text = {"input_ids": torch.zeros(1, _NUM_TEXT, dtype=torch.long)}
        return {
            way: _watched(model, **inputs)
            for way, inputs in zip(WAYS, (image, text, image | text), strict=True)
        }


@torch.no_grad()
def _watched(model: VLMoModel, **inputs: Tensor) -> list[Seen]:
    num_image = 1 + model.config.grid[0] * model.config.grid[1]
    kinds = {_NUM_TEXT: "text", num_image: "image", _NUM_TEXT + num_image: "both"}
    seen = [Seen(tuple(block.experts), {}) for block in model.blocks]
    hooks = []
    for layer, block in zip(seen, model.blocks, strict=True):
        for name, expert in block.experts.items():

            def note(
                _: nn.Module, given: tuple[Tensor, ...], name: str = name, layer: Seen = layer
            ) -> None:
                layer.called[name] = kinds[given[0].shape[1]]

            hooks.append(expert.register_forward_pre_hook(note))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


# -------------------------------------------------------------------------------------------- every layer, as a table

_ROW, _LEFT, _TOP, _CHIP, _WAY = 24, 66, 34, 38, 148


def layers(config: VLMoConfig | None = None) -> str:
    """A row for each layer, a column for each kind of input; filled experts are called, hollow ones are only there."""
    seen = routes(config or VLMoConfig.base())
    depth = len(seen["pair"])
    height = _TOP + depth * _ROW + 34
    canvas = Canvas(_LEFT + 3 * _WAY, height, name="layers", title="Experts of every layer")
    for column, way in enumerate(WAYS):
        left = _LEFT + column * _WAY
        canvas.text(
            {"pair": "image-text pair"}.get(way, f"{way} alone"), x=left + 63, y=20, kind="strong"
        )
        for layer, found in enumerate(seen[way]):
            y = _TOP + (depth - 1 - layer) * _ROW
            if column == 0:
                canvas.text(
                    f"layer {layer + 1}", x=_LEFT - 10, y=y + 15, kind="small", anchor="end"
                )
            for place, name in enumerate(found.experts):
                tokens = found.called.get(name)
                kind = name if tokens else "absent"
                facts = {"way": way, "layer": layer, "expert": name, "tokens": tokens or "none"}
                canvas.box(
                    left + place * (_CHIP + 4), y, _CHIP, _ROW - 4, kind=kind, radius=4, **facts
                )
                words = "small" if tokens else "faint"
                canvas.text(
                    _SHORT[name], x=left + place * (_CHIP + 4) + _CHIP / 2, y=y + 14.5, kind=words
                )
    _key(
        canvas,
        [name for name in _SHORT if any(name in layer.experts for layer in seen["pair"])],
        y=height - 20,
    )
    return canvas.finished(about=_described(seen))


def _key(canvas: Canvas, names: list[str], *, y: float) -> None:
    x = _LEFT
    for name in names:
        canvas.box(x, y, 14, 14, kind=name, radius=3)
        canvas.text(
            f"{_SHORT[name]}  {_NAMES[name]}", x=x + 20, y=y + 11.5, kind="small", anchor="start"
        )
        x += 54 + 6.4 * len(_NAMES[name])
    canvas.box(x, y, 14, 14, kind="absent", radius=3)
    canvas.text("not called", x=x + 20, y=y + 11.5, kind="small", anchor="start")


def _described(seen: dict[str, list[Seen]]) -> str:
    """Return a sentence for each kind of input and each run of layers that do the same."""
    sentences = []
    for way, found in seen.items():
        start = 0
        for layer in range(1, len(found) + 1):
            if layer == len(found) or found[layer] != found[start]:
                calls = " and ".join(
                    f"{_NAMES[name]} ({tokens})" for name, tokens in found[start].called.items()
                )
                sentences.append(f"{way}, layers {start + 1} to {layer}: {calls}.")
                start = layer
    return "Experts that are called, with the tokens that they see. " + " ".join(sentences)


# --------------------------------------------------------------------------------------------- two blocks, from inside

_WIDTH, _HEIGHT, _EXPERT_Y = 300, 336, 84
_TOKENS = {"text": ("words", 3), "image": ("patches", 4)}


def blocks(config: VLMoConfig | None = None) -> str:
    """The lowest and the highest block with an image-text pair on its way through them, upwards."""
    config = config or VLMoConfig.base()
    seen = routes(config)["pair"]
    lower = _block(seen[0], name="lower-block", title="A block of the lower layers")
    return lower + _block(
        seen[-1], name="top-block", title=f"A block of the top {config.num_fusion_layers} layers"
    )


def _block(seen: Seen, *, name: str, title: str) -> str:
    canvas = Canvas(_WIDTH, _HEIGHT, name=name, title=title)
    canvas.text(title, x=_WIDTH / 2, y=14, kind="strong")
    canvas.box(12, 46, _WIDTH - 24, 236, kind="frame", radius=10)
    middles = _token_row(canvas, y=_HEIGHT - 38, words=True)
    tokens_out = _token_row(canvas, y=26, words=False)
    for x in middles["text"] + middles["image"]:
        canvas.path(f"M{x:g} {_HEIGHT - 40}V268", kind="line")
    canvas.box(26, 228, _WIDTH - 52, 40, kind=SHARED)
    canvas.text("self-attention over all tokens", x=_WIDTH / 2, y=245)
    canvas.text("norm before, sum after, as for experts", x=_WIDTH / 2, y=260, kind="small")
    order = sorted(
        seen.experts, key=[LANGUAGE, VISION, VISION_LANGUAGE, SHARED].index
    )  # as the tokens stand
    room = (_WIDTH - 52 - 8 * (len(order) - 1)) / sum(max(len(expert), 9) for expert in order)
    x = 26.0
    for expert in order:
        width, tokens = room * max(len(expert), 9), seen.called.get(expert)
        canvas.box(
            x,
            _EXPERT_Y,
            width,
            62,
            kind=expert if tokens else "absent",
            expert=expert,
            tokens=tokens or "none",
        )
        canvas.text(
            _NAMES[expert],
            x=x + width / 2,
            y=_EXPERT_Y + 27,
            kind="narrow" if tokens else "narrow faint",
        )
        canvas.text(
            "FFN", x=x + width / 2, y=_EXPERT_Y + 44, kind="small" if tokens else "small faint"
        )
        threads = [
            (start, end, kind)
            for kind in _TOKENS
            if tokens in {kind, "both"}
            for start, end in zip(middles[kind], tokens_out[kind], strict=True)
        ]
        _threads(canvas, threads, around=x + width / 2, width=width)
        x += width + 8
    calls = ", ".join(f"{_NAMES[expert]} gets {tokens}" for expert, tokens in seen.called.items())
    return canvas.finished(about=f"Self-attention over all tokens, then experts: {calls}.")


def _token_row(canvas: Canvas, *, y: float, words: bool) -> dict[str, list[float]]:
    """Squares for tokens; the middle of each, by kind."""
    middles: dict[str, list[float]] = {}
    x = 44.0
    for kind, (word, count) in _TOKENS.items():
        middles[kind] = [x + 28 * number + 9 for number in range(count)]
        for middle in middles[kind]:
            canvas.box(middle - 9, y, 18, 14, kind=LANGUAGE if kind == "text" else VISION, radius=3)
        if words:
            canvas.text(word, x=sum(middles[kind]) / count, y=y + 30, kind="small")
        x += 28 * count + 18
    return middles


def _threads(
    canvas: Canvas, threads: list[tuple[float, float, str]], *, around: float, width: float
) -> None:
    """Lines from attention through an expert, and out of the block."""
    span = min(width - 24, 16 * len(threads))
    for number, (start, end, kind) in enumerate(threads):
        x = around - span / 2 + span * number / max(len(threads) - 1, 1)
        color = f"thread {LANGUAGE if kind == 'text' else VISION}-line"
        canvas.path(f"M{start:g} 228C{start:g} 184 {x:g} 194 {x:g} {_EXPERT_Y + 62}", kind=color)
        canvas.path(f"M{x:g} {_EXPERT_Y}C{x:g} 62 {end:g} 68 {end:g} 40", kind=color)
