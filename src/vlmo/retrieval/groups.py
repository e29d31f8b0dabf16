"""Near-duplicates among the images of an index."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vlmo.progress import Progress
from vlmo.retrieval.index import Index

_CELLS = 1 << 24
"""Similarities that are computed at a time."""
_ROUNDING = 1e-6
"""Error of a cosine similarity in float32: equal vectors may have a little less than 1."""


class ImageGroup(NamedTuple):
    """Images of an index that are nearly the same.

    Attributes:
        similarity: Smallest cosine similarity of two of them.
        ids: Their ids.
        paths: Their files, or "SHARD#KEY" of records in shards.
    """

    similarity: float
    ids: tuple[str, ...]
    paths: tuple[str, ...]


def find_duplicates(
    index: Index | str | Path, *, threshold: float = 0.95, console: Console | None = None
) -> list[ImageGroup]:
    """Return the groups of images whose vectors are nearly the same, largest first, with images in the order of paths.

    A group is a connected component: each image has at least this similarity to another one of its group, but not to
    every other. All pairs are compared, exactly up to the rounding of float32, in memory for all vectors and a few
    blocks.

    Args:
        index: The index, or its folder.
        threshold: Cosine similarity, above 0 up to 1.
        console: Console for the progress; None shows nothing.

    Raises:
        ValueError: The threshold is out of range, or the folder is no index.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a cosine similarity above 0, up to 1")
    ids, paths, vectors = (index if isinstance(index, Index) else Index(index)).vectors()
    total = len(ids)
    labels, rows = np.arange(total), max(1, _CELLS // max(1, total))
    with Progress(console) as progress:
        for start in range(0, total, rows):
            first, second = np.nonzero(vectors[start : start + rows] @ vectors[start:].T >= threshold - _ROUNDING)
            first, second = labels[first + start], labels[second + start]
            joins = first != second
            if joins.any():
                pairs = coo_array((joins[joins], (first[joins], second[joins])), shape=(total, total))
                labels = connected_components(pairs, directed=False)[1][labels]
            end = min(start + rows, total)
            progress.update("comparing pairs", end * (2 * total - end), total**2)
    order = np.argsort(labels, kind="stable")
    found = []
    for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(group) > 1:
            parts = np.array_split(group, -(-(len(group) ** 2) // _CELLS))
            similarity = min(float((vectors[part] @ vectors[group].T).min()) for part in parts if len(part))
            images = sorted(group, key=lambda row: (paths[row], ids[row]))
            found.append(
                ImageGroup(min(similarity, 1.0), *(tuple(each[row] for row in images) for each in (ids, paths)))
            )
    return sorted(found, key=lambda each: (-len(each.ids), -each.similarity, each.paths))
