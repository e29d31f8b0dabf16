"""Numbers and positions of True in masks, with one wait of the host for a GPU."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def count_true(*masks: Bool[Tensor, "batch tokens"]) -> list[tuple[int, int]]:
    """Return the number of True in the fullest row of each mask, and in all of its rows.

    The host waits for the device once, however many masks there are.
    """
    counts = torch.cat([mask.sum(dim=1) for mask in masks]).to("cpu")
    numbers = []
    for row_counts in counts.split([len(mask) for mask in masks]):
        most = int(row_counts.amax()) if len(row_counts) else 0
        numbers.append((most, int(row_counts.sum())))
    return numbers


def true_positions(*masks: Bool[Tensor, "batch tokens"]) -> list[Int[Tensor, "chosen"]]:
    """Return the numbers of True in each flattened mask; the host waits for the device once."""
    totals = [total for _, total in count_true(*masks)]
    return [first_true(mask, total) for mask, total in zip(masks, totals, strict=True)]


def first_true(mask: Bool[Tensor, "batch tokens"], count: int) -> Int[Tensor, "chosen"]:
    """Return the numbers of the first `count` True of the flattened mask."""
    # `nonzero` would make the host wait for the number.
    return mask.flatten().int().argsort(descending=True, stable=True)[:count]
