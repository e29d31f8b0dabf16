"""Baseline for captions that are true or false of an image: the words alone."""

import itertools
from collections.abc import Hashable

import torch
from jaxtyping import Float
from torch import Tensor

_FOLDS = 5


def words_alone(captions: list[str]) -> Float[Tensor, " images"]:
    """Return the margins of a linear model that learns from words and word pairs which captions are true.

    It shows how far a set can be solved without its images. Each fold of the rows is judged by a ridge regression on
    the other folds; rows with the same two captions share a fold.

    Args:
        captions: True captions, then the false ones.
    """
    numbers: dict[Hashable, int] = {}
    rows = []
    for caption in captions:
        words = caption.lower().split()
        rows.append([numbers.setdefault(key, len(numbers)) for key in (*words, *itertools.pairwise(words))])
    counts = torch.zeros(len(captions), len(numbers), dtype=torch.float64)
    for row, keys in enumerate(rows):
        counts[row].index_add_(0, torch.tensor(keys), torch.ones(len(keys), dtype=torch.float64))
    true, false = counts.chunk(2)
    difference = true - false
    both = [frozenset(pair) for pair in zip(captions[: len(true)], captions[len(true) :], strict=True)]
    order = {pair: number for number, pair in enumerate(dict.fromkeys(both))}
    margins, folds = torch.zeros(len(difference)), torch.tensor([order[pair] % _FOLDS for pair in both])
    for fold in range(_FOLDS):
        known, asked = difference[folds != fold], difference[folds == fold]
        kernel = known @ known.T + torch.eye(len(known), dtype=torch.float64)
        shares = torch.linalg.solve(kernel, torch.ones(len(known), dtype=torch.float64))
        margins[folds == fold] = (asked @ (known.T @ shares)).float()
    return margins.round(decimals=6)  # what is left of no preference is rounding
