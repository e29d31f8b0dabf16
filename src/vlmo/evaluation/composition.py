"""Captions that are true or false of an image: Winoground's scores, and the words alone as a baseline."""

import itertools
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EXAMPLE_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""Scores of a random order of the four pairs of an example."""
_FOLDS = 5
_TOLERANCE = 1e-10


def example_scores(scores: Float[Tensor, "example image caption"]) -> dict[str, float]:
    """Return Winoground's scores of two images and two captions an example; a tie counts as wrong.

    text: each image's own caption scores higher than the other one. image: each caption's own image does. group: both.
    Source: Thrush et al., "Winoground", CVPR 2022, section "Metrics".

    Args:
        scores: Of each image with each caption; image 0 belongs to caption 0, and 1 to 1.
    """
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    text, image = (own > other).all(dim=1), (own > other.flip(1)).all(dim=1)
    right = {"text": text, "image": image, "group": text & image}
    return {name: each.double().mean().item() for name, each in right.items()}


def words_alone(captions: list[str]) -> Float[Tensor, " images"]:
    """Return the margins of a linear model that learns from words and word pairs which captions are true.

    It shows how far a set can be solved without its images. Each fold of the rows is judged by a ridge regression on
    the other folds; rows with the same two captions share a fold.

    Args:
        captions: True captions, then the false ones.
    """
    from scipy.sparse import csr_array  # takes 0.3 s, which `vlmo train NAME --help` has no use for
    from scipy.sparse.linalg import lsqr

    numbers: defaultdict[Hashable, int] = defaultdict(itertools.count().__next__)
    found = []
    for row, caption in enumerate(captions):
        words = caption.lower().split()
        found += [(row, numbers[key]) for key in (*words, *itertools.pairwise(words))]
    places = np.array(found, dtype=np.int64).reshape(-1, 2).T
    counts: Any = csr_array((np.ones(len(found)), tuple(places)), shape=(len(captions), len(numbers)))
    half = len(captions) // 2
    difference = counts[:half] - counts[half:]
    both = [frozenset(pair) for pair in zip(captions[:half], captions[half:], strict=True)]
    order = {pair: number for number, pair in enumerate(dict.fromkeys(both))}
    folds, margins = np.array([order[pair] % _FOLDS for pair in both]), np.zeros(half)
    for fold in np.unique(folds):
        known = difference[folds != fold]
        weights = lsqr(known, np.ones(known.shape[0]), damp=1.0, atol=_TOLERANCE, btol=_TOLERANCE)[0]
        margins[folds == fold] = difference[folds == fold] @ weights
    return torch.from_numpy(margins).float().round(decimals=6)  # what is left of no preference is rounding
