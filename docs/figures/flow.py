"""What the commands of the tutorial make of what, and how a query is answered: boxes and arrows."""

from __future__ import annotations

from dataclasses import dataclass

from figures.svg import Canvas

_LINE = 17


@dataclass(frozen=True)
class Box:
    """A box with lines of words, the first strong; lengths are in the units of the canvas."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]
    kind: str = "frame"

    @property
    def height(self) -> float:
        """Room for all lines."""
        return 16 + _LINE * len(self.lines)

    @property
    def middle(self) -> float:
        """Height of the arrows to and from it."""
        return self.y + self.height / 2


def tutorial() -> str:
    """Return the way from images with captions to search results, as the tutorial goes it."""
    data = Box(10, 90, 150, ("images/", "and captions.csv"), kind="vision")
    small = Box(10, 10, 150, ("vlmo-small", "the start"), kind="shared")
    invalid = Box(10, 170, 150, ("quarantine.jsonl", "unusable images"))
    model = Box(290, 90, 160, ("runs/mine/model", "model and its card"), kind="vision_language")
    metrics = Box(580, 10, 150, ("metrics.json", "recall beside chance"))
    index = Box(580, 90, 150, ("images.index", "a vector an image"), kind="trained")
    results = Box(850, 90, 150, ("found.png", "the best images"), kind="language")
    canvas = Canvas(1010, 230, name="tutorial", title="From images with captions to search")
    for box in (data, small, invalid, model, metrics, index, results):
        _box(canvas, box)
    _arrow(canvas, data, model, words="vlmo finetune")
    _arrow(canvas, small, model)
    _down(canvas, data, invalid, words="check")
    _arrow(canvas, model, metrics, words="vlmo evaluate")
    _arrow(canvas, model, index, words="vlmo index")
    _arrow(canvas, index, results, words="vlmo search")
    return canvas.finished(
        about="vlmo finetune trains a model in runs/mine/model from images/ with captions.csv, starting at vlmo-small; "
        "unusable images are listed in quarantine.jsonl. vlmo evaluate measures recall. vlmo index stores a vector "
        "for each image in images.index, and vlmo search shows the best images."
    )


def search() -> str:
    """Return the steps from a query to its results."""
    query = Box(
        10, 60, 150, ("query", "a text, an image,", "or parts with + and -"), kind="language"
    )
    limits = Box(230, 60, 160, ("filters", "dates, places, albums,", "columns"))
    vectors = Box(460, 10, 190, ("dual encoder", "nearest image vectors"), kind="vision")
    words = Box(460, 110, 190, ("words", "captions, albums, names"), kind="shared")
    pairs = Box(
        720,
        60,
        170,
        ("fusion encoder", "reads a text with up", "to 32 candidates"),
        kind="vision_language",
    )
    results = Box(960, 60, 130, ("results", "similarity and", "match, mixed"), kind="trained")
    canvas = Canvas(1100, 172, name="search-steps", title="How a query is answered")
    for box in (query, limits, vectors, words, pairs, results):
        _box(canvas, box)
    for start, end in (
        (query, limits),
        (limits, vectors),
        (limits, words),
        (vectors, pairs),
        (words, pairs),
    ):
        _arrow(canvas, start, end)
    _arrow(canvas, pairs, results)
    return canvas.finished(
        about="Filters limit the images. Among these the dual encoder finds the nearest vectors, and a full-text index "
        "the words of captions, albums and file names. The fusion encoder reads a text with up to 32 candidates, and "
        "results are ordered by similarity and match."
    )


def _box(canvas: Canvas, box: Box) -> None:
    canvas.box(box.x, box.y, box.width, box.height, kind=box.kind, radius=8)
    for number, line in enumerate(box.lines):
        kind = "narrow faint" if number else "strong"
        canvas.text(line, x=box.x + box.width / 2, y=box.y + 21 + _LINE * number, kind=kind)


def _arrow(canvas: Canvas, start: Box, end: Box, *, words: str = "") -> None:
    left, right = start.x + start.width + 5, end.x - 5
    middle = left + 16
    canvas.path(f"M{left:g} {start.middle:g}H{middle:g}V{end.middle:g}H{right - 7:g}", kind="line")
    canvas.shape(f"M{right:g} {end.middle:g}l-9 -5v10", kind="shared")
    if words:
        canvas.text(words, x=(middle + right) / 2, y=end.middle - 9, kind="small")


def _down(canvas: Canvas, start: Box, end: Box, *, words: str) -> None:
    x, bottom = start.x + start.width / 2, end.y - 5
    canvas.path(f"M{x:g} {start.y + start.height + 5:g}V{bottom - 7:g}", kind="line")
    canvas.shape(f"M{x:g} {bottom:g}l-5 -9h10", kind="shared")
    canvas.text(words, x=x + 12, y=bottom - 8, kind="small", anchor="start")
