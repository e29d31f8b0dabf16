"""Requirements of a task: of rows and start folders (`Reads`), and of a prediction (`Accepts`, `Inputs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reads:
    """Rows, streams and start folders that a task reads."""

    image: bool = True  # rows without an image are invalid
    caption: bool = False  # rows without a caption are invalid
    unique_ids: bool = True  # rows that repeat an `image_id` are invalid
    text: bool = True  # the model folder has a vocabulary
    masks_words: bool = False  # examples hold a copy of the caption with masked words
    streams: bool = False  # training may read `data.streams`
    start: bool = True  # training may start from a model folder

    @property
    def of_rows(self) -> dict[str, Any]:
        """Requirements of a valid row, as arguments of `filter_invalid_rows`."""
        return {
            "needs_image": self.image,
            "needs_caption": self.caption,
            "unique_ids": self.unique_ids,
        }


@dataclass(frozen=True)
class Inputs:
    """Image files of one prediction, sentences about them, or a question about the one image.

    Attributes:
        top: Answers, classes, or texts of an image that are returned.
        save: PNG file for an image of the result: the attention of a question, or the classes of the pixels.
    """

    images: Sequence[Path] = ()
    texts: Sequence[str] = ()
    question: str | None = None
    caption: bool = False
    top: int = 5
    save: Path | None = None


@dataclass(frozen=True)
class Accepts:
    """Inputs that a task predicts from."""

    words: str  # for messages, such as "one --image"
    images: tuple[float, float] = (1, 1)  # fewest and most
    texts: tuple[float, float] = (0, 0)
    question: bool = False  # there must be one
    saves: bool = False  # a prediction can be saved as an image
    caption: bool = False  # captions may be asked for

    def fit(self, inputs: Inputs) -> bool:
        """Return True if a prediction can be made from these inputs."""
        counts = (len(inputs.images), self.images), (len(inputs.texts), self.texts)
        numbers = all(few <= count <= most for count, (few, most) in counts)
        return (
            numbers
            and (inputs.question is not None) == self.question
            and self.caption >= inputs.caption
        )
