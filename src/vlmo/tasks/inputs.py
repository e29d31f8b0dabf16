"""Requirements of a task: of rows and start folders, and of a prediction and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg


@dataclass(frozen=True)
class Reads:
    """Rows, streams and start folders that a task reads.

    Attributes:
        image: Rows without an image are invalid.
        caption: Rows without a caption are invalid.
        unique_ids: Rows that repeat an `image_id` are invalid.
        text: The model folder has a vocabulary.
        masks_words: Examples hold a copy of the caption with masked words.
        streams: Training may read `data.streams`.
        start: Training may start from a model folder.
    """

    image: bool = True
    caption: bool = False
    unique_ids: bool = True
    text: bool = True
    masks_words: bool = False
    streams: bool = False
    start: bool = True

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
    """Inputs of one prediction, the same in Python and of `vlmo predict`.

    Attributes:
        images: Image; two for a sentence about two, any number for retrieval and classification.
        question: Question about the image.
        texts: Sentence about two images, or texts to compare with images.
        caption: Describe each image, with a model for captions.
        top: Answers, classes, or texts of an image that are shown.
        save: PNG file: attention of the question over the image, or the classes of the pixels.
    """

    images: Annotated[Sequence[Path], arg(name="image")] = ()
    texts: Annotated[Sequence[str], arg(name="text")] = ()
    question: str | None = None
    caption: bool = False
    top: int = 5
    save: Path | None = None


@dataclass(frozen=True)
class Accepts:
    """Inputs that a task predicts from.

    Attributes:
        words: For messages, such as "one --image".
        images: Fewest and most.
        question: There must be one.
        saves: A prediction can be saved as an image.
        caption: Captions may be asked for.
    """

    words: str
    images: tuple[float, float] = (1, 1)
    texts: tuple[float, float] = (0, 0)
    question: bool = False
    saves: bool = False
    caption: bool = False

    def fit(self, inputs: Inputs) -> bool:
        """Return True if a prediction can be made from these inputs."""
        fewest_images, most_images = self.images
        fewest_texts, most_texts = self.texts
        return (
            fewest_images <= len(inputs.images) <= most_images
            and fewest_texts <= len(inputs.texts) <= most_texts
            and (inputs.question is not None) == self.question
            and self.caption >= inputs.caption
        )
