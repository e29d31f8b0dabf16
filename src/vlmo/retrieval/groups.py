"""Groups of images of an index: near-duplicates and clusters."""

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
_BATCH = 4096
"""Images of a step of k-means."""
_ROUNDING = 1e-6
"""Error of a cosine similarity in float32: equal vectors may have a little less than 1."""


class ImageGroup(NamedTuple):
    """Images of an index that belong together.

    Attributes:
        similarity: Cosine similarity: in duplicates the smallest one of two images, in a cluster the mean one to its
            center.
        ids: Their ids.
        places: Their files, or shards and the records in them.
    """

    similarity: float
    ids: tuple[str, ...]
    places: tuple[str, ...]


def find_duplicates(
    index: Index | str | Path, *, threshold: float = 0.95, console: Console | None = None
) -> list[ImageGroup]:
    """Return the groups of images whose vectors are nearly the same, largest first, with images in the order of places.

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
    ids, places, vectors = _opened(index).vectors()
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
            images = sorted(group, key=lambda row: (places[row], ids[row]))
            found.append(
                ImageGroup(min(similarity, 1.0), *(tuple(each[row] for row in images) for each in (ids, places)))
            )
    return sorted(found, key=lambda each: (-len(each.ids), -each.similarity, each.places))


def find_clusters(index: Index | str | Path, number: int) -> list[ImageGroup]:
    """Divide all images into clusters by k-means of their vectors: largest clusters first, each from its center on.

    Equal calls give equal clusters. There are fewer than `number` if some are empty.

    Args:
        index: The index, or its folder.
        number: Number of clusters.

    Raises:
        ValueError: There are not as many images, or the folder is no index.
    """
    from sklearn.cluster import MiniBatchKMeans  # takes a second

    ids, places, vectors = _opened(index).vectors()
    if not 1 <= number <= len(ids):
        raise ValueError(f"the number of clusters is {number}; give one from 1 to {len(ids)}, the number of images")
    means = MiniBatchKMeans(number, batch_size=_BATCH, random_state=0).fit(vectors)
    found = []
    for label, center in enumerate(means.cluster_centers_):
        rows = np.flatnonzero(means.labels_ == label)
        if len(rows):
            similar = vectors[rows] @ (center / np.linalg.norm(center))
            images = rows[np.argsort(-similar, kind="stable")]
            names = (tuple(each[row] for row in images) for each in (ids, places))
            found.append(ImageGroup(float(similar.mean()), *names))
    return sorted(found, key=lambda each: -len(each.ids))


def _opened(index: Index | str | Path) -> Index:
    return index if isinstance(index, Index) else Index(index)
