"""Hard negatives of a small batch, drawn as stage 3 draws them, on the matrix of similarities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from figures.svg import Canvas
from vlmo.losses.itc import caption_keys, contrast_logits, same_pairs
from vlmo.losses.itm import sample_hard_negatives, sample_uniform

COLORS, SHAPES = ("red", "blue", "green"), ("square", "circle", "bar")
SEED, TEMPERATURE = 1, 0.2


@dataclass(frozen=True)
class Pair:
    """An image and its caption."""

    image_id: int
    color: str
    shape: str
    caption: str
    large: bool = False


BATCH = (
    Pair(1, "red", "square", "a red square"),
    Pair(1, "red", "square", "the square is red"),
    Pair(2, "blue", "circle", "a blue circle"),
    Pair(3, "blue", "circle", "a blue circle", large=True),
    Pair(4, "red", "circle", "a red circle"),
    Pair(5, "green", "bar", "a green bar"),
    Pair(6, "blue", "bar", "one blue bar"),
    Pair(7, "green", "square", "a square in green"),
)
"""Rows 1 and 2 share an image, rows 3 and 4 a caption."""


@dataclass(frozen=True)
class Drawn:
    """Negatives of stage 3 for the batch.

    Attributes:
        probabilities: Of each text (column) as the negative of each image (row).
        excluded: Pairs that share an image or a caption.
        text: The text that was sampled for each image.
        image: The image that was sampled for each text.
    """

    probabilities: Float[Tensor, "batch batch"]
    excluded: Bool[Tensor, "batch batch"]
    text: Int[Tensor, "batch"]
    image: Int[Tensor, "batch"]


def drawn() -> Drawn:
    """The negatives of `BATCH`, by the functions and in the order of `VisionLanguageObjective`."""
    images, texts = _vectors(images=True), _vectors(images=False)
    scale = torch.tensor([1 / TEMPERATURE]).log()
    words = sorted({word for pair in BATCH for word in pair.caption.split()})
    longest = max(len(pair.caption.split()) for pair in BATCH)
    ids = torch.zeros(len(BATCH), longest, dtype=torch.long)
    for row, pair in enumerate(BATCH):
        numbers = [1 + words.index(word) for word in pair.caption.split()]
        ids[row, : len(numbers)] = torch.tensor(numbers)
    same = same_pairs(
        torch.tensor([pair.image_id for pair in BATCH]), caption_keys(ids, (ids > 0).long())
    )
    excluded = same[slice(None)]
    uniform = sample_uniform(torch.tensor(SEED), batch=len(BATCH), rounds=2)
    to_text = contrast_logits(images, texts, logit_scale=scale)
    to_image = contrast_logits(texts, images, logit_scale=scale)
    return Drawn(
        probabilities=to_text.masked_fill(excluded, float("-inf")).softmax(dim=1),
        excluded=excluded,
        text=sample_hard_negatives(to_text, excluded=excluded, uniform=uniform[0])[0],
        image=sample_hard_negatives(to_image, excluded=excluded, uniform=uniform[1])[0],
    )


def _vectors(*, images: bool) -> Float[Tensor, "batch dim"]:
    """Color and shape of each pair as a vector of length one: what a model that has learnt both would see."""
    rows = []
    for pair in BATCH:
        color = F.one_hot(torch.tensor(COLORS.index(pair.color)), len(COLORS))
        shape = F.one_hot(torch.tensor(SHAPES.index(pair.shape)), len(SHAPES))
        rows.append(torch.cat([color, shape, torch.tensor([int(images and pair.large)])]).float())
    return F.normalize(torch.stack(rows), dim=1)


# -------------------------------------------------------------------------------------------------------- the matrix

_CELL, _LEFT, _TOP = 40, 48, 112
_BOX = _CELL - 3


def matrix() -> str:
    """Images against texts: how likely each text is sampled, what is excluded, and what was sampled."""
    found, number = drawn(), len(BATCH)
    side = number * _CELL
    canvas = Canvas(
        _LEFT + side + 66,
        _TOP + side + 62,
        name="negatives",
        title="Hard negatives of a batch of eight pairs",
    )
    for place, pair in enumerate(BATCH):
        _image(canvas, pair, x=22, y=_TOP + place * _CELL + _CELL / 2)
        canvas.slanted(pair.caption, x=_LEFT + place * _CELL + _CELL / 2 - 2, y=_TOP - 8)
    for row in range(number):
        for column in range(number):
            _pair(canvas, found, row=row, column=column)
    _key(canvas, y=_TOP + side + 14)
    texts = "; ".join(
        f"image {row + 1}: text {text + 1}" for row, text in enumerate(found.text.tolist())
    )
    images = "; ".join(
        f"text {row + 1}: image {image + 1}" for row, image in enumerate(found.image.tolist())
    )
    return canvas.finished(
        about=f"Texts sampled as negatives: {texts}. Images sampled as negatives: {images}."
    )


def _pair(canvas: Canvas, found: Drawn, *, row: int, column: int) -> None:
    x, y = _LEFT + column * _CELL, _TOP + row * _CELL
    facts = {"row": row, "column": column}
    middle = x + _BOX / 2
    if found.excluded[row, column]:
        own = row == column
        canvas.box(
            x, y, _BOX, _BOX, kind="absent", radius=4, excluded="own" if own else "same", **facts
        )
        if own:
            canvas.text("pair", x=middle, y=y + _BOX / 2 + 4, kind="small faint")
        else:
            canvas.hatched(x, y, _BOX, _BOX)
        return
    share = found.probabilities[row, column].item()
    canvas.box(x, y, _BOX, _BOX, kind=f"heat-{min(9, int(share * 20))}", radius=4, **facts)
    canvas.text(f"{100 * share:.0f}", x=middle, y=y + _BOX / 2 + 4, kind="small")
    if found.text[row] == column:
        canvas.circle(middle, y + _BOX / 2, 14, kind="ring", drawn="text", **facts)
    if found.image[column] == row:
        half = _BOX / 2
        canvas.shape(
            f"M{middle:g} {y:g}l{half} {half}l-{half} {half}l-{half} -{half}",
            kind="diamond",
            drawn="image",
            **facts,
        )


def _image(canvas: Canvas, pair: Pair, *, x: float, y: float) -> None:
    size = 16 if pair.large else 11
    y -= 1.5
    canvas.box(x - _BOX / 2, y - _BOX / 2, _BOX, _BOX, kind="paper", radius=4)
    if pair.shape == "circle":
        canvas.circle(x, y, size, kind=pair.color)
    else:
        height = size if pair.shape == "square" else size / 3
        canvas.box(x - size, y - height, 2 * size, 2 * height, kind=pair.color, radius=0)


def _key(canvas: Canvas, *, y: float) -> None:
    canvas.circle(13, y + 8, 8, kind="ring")
    canvas.text("text sampled for the image", x=30, y=y + 12.5, kind="small", anchor="start")
    canvas.shape(f"M13 {y + 22:g}l10 10l-10 10l-10 -10", kind="diamond")
    canvas.text("image sampled for the text", x=30, y=y + 36.5, kind="small", anchor="start")
    x = 206
    canvas.box(x, y, 16, 16, kind="absent", radius=3)
    canvas.hatched(x, y, 16, 16)
    canvas.text(
        "same image or same text: never", x=x + 26, y=y + 12.5, kind="small", anchor="start"
    )
    canvas.box(x, y + 24, 16, 16, kind="heat-6", radius=3)
    canvas.text("chance in percent, each row", x=x + 26, y=y + 36.5, kind="small", anchor="start")
