"""Probability that an image shows a text, from how well common words fit the images of the same index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy.special import expit

from vlmo.retrieval.store import Store

# Logistic regression by `vlmo-small` on the names of `emoji-pairs`, with half of the drawings taken
# out at random, 20 times.
_OFFSET = -0.136
_SLOPE = 0.614
# Share of an index that may come or go before the words are compared again: a scan of all vectors.
_MOST_CHANGED = 0.1
# Spread of similarities below which they are rounding.
_NO_SPREAD = 1e-6


@dataclass(frozen=True)
class Background:
    """Similarities of common words to their best images of an index.

    Attributes:
        mean: Mean of these cosines.
        spread: Their standard deviation.
        images: Number of images in the index.
    """

    mean: float
    spread: float
    images: int

    def presence(self, similarity: float) -> float:
        """Return the probability that an image with this cosine shows the text, if half of all texts are shown."""
        deviations = (similarity - self.mean) / self.spread
        return float(expit(_OFFSET + _SLOPE * deviations))

    def is_current(self, images: int) -> bool:
        """Return True if an index of so many images has hardly changed."""
        return abs(images - self.images) <= _MOST_CHANGED * self.images


def common_words() -> list[str]:
    """Return names of common things, colors and places."""
    return Path(__file__).with_name("common_words.txt").read_text(encoding="utf-8").split()


def fit_background(store: Store, words: Float32[np.ndarray, "word dim"]) -> Background | None:
    """Compare words with all images of a table.

    Args:
        words: L2-normalized vectors of `common_words`.

    Returns:
        None if there are no images, or the words are all alike to the model.
    """
    best = np.full(len(words), -np.inf, np.float32)
    images = 0
    for batch in store.scan(["vector"]):
        vectors = batch["vector"].flatten().to_numpy().reshape(-1, words.shape[1])
        # Shape (word, image).
        similarities = words @ vectors.T
        best = np.maximum(best, similarities.max(axis=1, initial=-np.inf))
        images += len(vectors)
    if not images or best.std() < _NO_SPREAD:
        return None
    return Background(float(best.mean()), float(best.std()), images)
