"""Example queries with what they found, for the report and as a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from vlmo.visualization import GREEN, MUTED, Sheet

_MARGIN, _TEXT_WIDTH, _GAP, _ROW_GAP = 28, 200, 14, 18
_TOP = 5
"""Results of a query that are shown."""


class ImageQuery(NamedTuple):
    """A text and the images it found, best first, with the place of the right one among them, if any, and its rank."""

    text: str
    images: Sequence[Image.Image]
    correct: int | None
    rank: int
    answer: Image.Image | None = None
    """The right image, shown apart where `correct` is None."""


class TextQuery(NamedTuple):
    """An image and the texts it found, best first; `correct` holds the indices of the right ones."""

    image: Image.Image
    texts: Sequence[str]
    correct: Sequence[int]
    rank: int


class Decision(NamedTuple):
    """A text, the wrong image that the dual encoder finds first, and the right one, which the fusion encoder does."""

    text: str
    dual: Image.Image
    fusion: Image.Image


def decisions(predictions: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the texts that the fusion encoder alone finds the image of, and those that the dual encoder alone does."""
    by_text = [row for row in predictions if row["query"] == "caption"]
    gained = [row for row in by_text if row["rank"] > 1 and row["rerank_rank"] == 1]
    return gained, [row for row in by_text if row["rank"] == 1 and row["rerank_rank"] > 1]


def example_queries(
    predictions: Sequence[dict[str, Any]],
    *,
    images: Mapping[str, Image.Image],
    count: int,
    prefix: str = "",
) -> tuple[list[ImageQuery], list[TextQuery]]:
    """Return `count` texts with the images they found, and as many images with the texts they found.

    They are evenly spread over the predictions, not chosen by how well they went.

    Args:
        predictions: Those of an evaluation of retrieval.
        images: By their `image_id`.
        count: Number of queries in each direction; all where there are fewer.
        prefix: "rerank_" for the order of the fusion encoder, "" for that of the dual encoder.
    """
    by_text = [row for row in predictions if row["query"] == "caption"]
    by_image = [row for row in predictions if row["query"] == "image"]
    image_queries, text_queries = [], []
    for row in by_text[:: max(1, len(by_text) // count)][:count]:
        found, answer = row[f"{prefix}found"][:_TOP], row["image_id"]
        correct = found.index(answer) if answer in found else None
        shown = [images[name] for name in found]
        image_queries.append(ImageQuery(row["caption"], shown, correct, row[f"{prefix}rank"], images[answer]))
    for row in by_image[:: max(1, len(by_image) // count)][:count]:
        found, image = row[f"{prefix}found"][:_TOP], row["image_id"]
        own = {other["caption"] for other in by_text if other["image_id"] == image}
        correct = [place for place, text in enumerate(found) if text in own]
        text_queries.append(TextQuery(images[image], found, correct, row[f"{prefix}rank"]))
    return image_queries, text_queries


def contact_sheet(found: Mapping[str, Sequence[tuple[Image.Image, bool]]]) -> Image.Image:
    """Return one row a query: the text on the left, its best images beside it, the right ones framed in green.

    Args:
        found: By the text of the query, its images, best first, each with True where it is a right one.
    """
    side = 92
    width = 2 * _MARGIN + _TEXT_WIDTH + max(map(len, found.values())) * (side + _GAP)
    sheet = Sheet(width, 2 * _MARGIN + len(found) * (side + _ROW_GAP) - _ROW_GAP)
    for row, (text, images) in enumerate(found.items()):
        upper = _MARGIN + row * (side + _ROW_GAP)
        lines = sheet.wrapped(text, width=_TEXT_WIDTH, max_lines=3)
        y = upper + (side - 22 * len(lines)) / 2
        for line in lines:
            sheet.text(line, x=_MARGIN, y=y)
            y += 22
        for place, (image, is_right) in enumerate(images):
            x = _MARGIN + _TEXT_WIDTH + _GAP + place * (side + _GAP)
            sheet.tile(image, x=x, y=upper, side=side)
            if is_right:
                sheet.tick(x=x, y=upper, side=side)
    return sheet.finished()


def decision_sheet(shown: Sequence[Decision], *, columns: int = 3) -> Image.Image:
    """Return, for each text, what the dual encoder finds first beside what the fusion encoder does, framed in green."""
    side, upper = 132, 3 * 22
    cell = 2 * side + _GAP
    rows = -(-len(shown) // columns)
    height = upper + side + 26
    sheet = Sheet(
        2 * _MARGIN + columns * (cell + 2 * _GAP) - 2 * _GAP, 2 * _MARGIN + rows * (height + _ROW_GAP) - _ROW_GAP
    )
    for number, decision in enumerate(shown):
        x, y = _MARGIN + number % columns * (cell + 2 * _GAP), _MARGIN + number // columns * (height + _ROW_GAP)
        lines = sheet.wrapped(decision.text, width=cell, max_lines=2, size=15)
        for row, line in enumerate(lines):
            sheet.text(line, x=x, y=y + 22 * (row + 2 - len(lines)), size=15)
        for place, (image, name) in enumerate(((decision.dual, "dual encoder"), (decision.fusion, "fusion encoder"))):
            left = x + place * (side + _GAP)
            sheet.tile(image, x=left, y=y + upper, side=side)
            sheet.text(name, x=left, y=y + upper + side + 6, size=12.5, colour=GREEN if place else MUTED)
        sheet.tick(x=x + side + _GAP, y=y + upper, side=side)
    return sheet.finished()
