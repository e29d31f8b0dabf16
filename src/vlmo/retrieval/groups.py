"""Groups of images of an index: near-duplicates and clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int
from rich.console import Console
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vlmo.progress import Progress
from vlmo.retrieval.index import Index

_BLOCK = 1024
"""Images that are compared with as many others at a time."""
_BATCH = 4096
"""Images of a step of k-means."""
_ROUNDING = 1e-6
"""Error of a cosine similarity in float32: equal vectors may have a little less than 1."""


@dataclass(frozen=True)
class ImageGroup:
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
    ids, places, vectors = _vectors(index)
    labels = np.arange(len(ids))
    with Progress(console) as progress:
        for _, row, column, similar in _blocks(vectors, [np.arange(len(ids))], progress, title="comparing pairs"):
            first, second = np.nonzero(similar >= threshold - _ROUNDING)
            first, second = labels[first + row], labels[second + column]
            joins = first != second
            if joins.any():
                pairs = coo_array((joins[joins], (first[joins], second[joins])), shape=(len(ids), len(ids)))
                labels = connected_components(pairs, directed=False)[1][labels]
        order = np.argsort(labels, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        groups = [group for group in groups if len(group) > 1]
        smallest = np.ones(len(groups))
        for number, _, _, similar in _blocks(vectors, groups, progress, title="comparing pairs of groups"):
            smallest[number] = min(smallest[number], similar.min())
    found = []
    for group, similarity in zip(groups, smallest.tolist(), strict=True):
        rows = sorted(group, key=lambda row: (places[row], ids[row]))
        found.append(ImageGroup(similarity, tuple(ids[row] for row in rows), tuple(places[row] for row in rows)))
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

    ids, places, vectors = _vectors(index)
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


def _vectors(index: Index | str | Path) -> tuple[list[str], list[str], Float32[np.ndarray, "image dim"]]:
    return (index if isinstance(index, Index) else Index(index)).vectors()


def _blocks(
    vectors: Float32[np.ndarray, "image dim"],
    groups: Sequence[Int[np.ndarray, " row"]],
    progress: Progress,
    *,
    title: str,
) -> Iterator[tuple[int, int, int, Float32[np.ndarray, "row column"]]]:
    """Yield the similarities of all pairs within each group in blocks: number of the group, first row and column."""
    done, total = 0, sum(len(group) ** 2 for group in groups)
    for number, group in enumerate(groups):
        for row, column in combinations_with_replacement(range(0, len(group), _BLOCK), 2):
            similar = vectors[group[row : row + _BLOCK]] @ vectors[group[column : column + _BLOCK]].T
            yield number, row, column, similar
            done += similar.size if row == column else 2 * similar.size  # the block on the other side is the same
            progress.update(title, done, total)
