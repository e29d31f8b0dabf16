"""A map of an index: images that look alike lie close, in groups named by words."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from vlmo.data.decoding import image_bytes
from vlmo.folder.atomic import write_file
from vlmo.lazy import need_package
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.hits import Hit
from vlmo.retrieval.index import Index
from vlmo.retrieval.words import split_words

_SIDE = 72
_MOST_GROUPS = 16
_MOST_WORDS = 400
"""Longest side of a thumbnail in pixels, and bounds of the number of groups and of words that may name them."""


@dataclass(frozen=True)
class Map:
    """Images, each with x, y and a small JPEG as a `data:` address, and groups with the x and y of their middles.

    Coordinates are from 0 to 1, y downwards.
    """

    images: list[tuple[Hit, float, float, str]]
    groups: list[tuple[str, float, float]]


def draw_map(
    encoder: Encoder,
    index: Index,
    *,
    most: int = 2000,
    on_step: Callable[[str], object] = lambda _: None,
) -> Map:
    """Draw a map of at most so many images, taken evenly from the index.

    t-SNE places the images, and k-means groups them. A group is named by two words, of captions or, if these have few,
    of `map_words.txt`, whose similarity to its center exceeds that to the other centers most. Names of files and albums
    tell when, where and by whom images were made (IMG, Rome, backup), and not what a group shows.

    Args:
        on_step: Called with what is being done, in words.

    Raises:
        ValueError: The index has fewer than two different images.
        ModuleNotFoundError: scikit-learn is missing.
    """
    need_package("sklearn", extra="map", user="the map")
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE

    on_step("reading the images")
    rows = index.sample(most)
    vectors = np.array([row["vector"] for _, row in rows], np.float32)
    if (different := len({vector.tobytes() for vector in vectors})) < 2:
        raise ValueError(
            f"a map needs two images or more that differ, and the index has {different}"
        )
    on_step(f"grouping {len(rows):,} images")
    number = min(_MOST_GROUPS, max(2, round((len(rows) / 8) ** 0.5)), different)
    groups = KMeans(number, n_init=4, random_state=0).fit_predict(vectors)
    on_step(f"placing {len(rows):,} images")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    placed = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0).fit_transform(
        vectors
    )
    placed = (placed - placed.min(0)) / np.maximum(np.ptp(placed, axis=0), 1e-6)
    on_step("naming the groups")
    counts = Counter(word for hit, _ in rows for word in {*split_words(" ".join(hit.captions))})
    common = len(rows) / 2
    words = [
        word
        for word, count in counts.most_common()
        if 1 < count <= common and len(word) > 2 and word.isalpha()
    ]
    if len(words) < 2 * number:
        words += Path(__file__).with_name("map_words.txt").read_text().split()
    words = list(dict.fromkeys(words))[:_MOST_WORDS]
    similar = (
        np.stack([vectors[groups == group].mean(0) for group in range(number)])
        @ encoder.embed_texts(words).T
    )
    order = np.argsort(similar.mean(0) - similar, axis=1)
    used = set[int]()
    labels = list[tuple[str, float, float]]()
    for group in range(number):
        best = [each for each in order[group].tolist() if each not in used][:2] or order[
            group, :1
        ].tolist()
        used.update(best)
        x, y = np.median(placed[groups == group], axis=0).tolist()
        labels.append((", ".join(words[each] for each in best), x, y))
    images = []
    for at in np.argsort(groups, kind="stable"):
        hit, row = rows[at]
        (small := Image.open(io.BytesIO(row["thumbnail"]))).thumbnail((_SIDE, _SIDE))
        data = base64.b64encode(image_bytes(small, "JPEG", quality=70)).decode()
        images.append((hit, *placed[at].tolist(), f"data:image/jpeg;base64,{data}"))
    return Map(images, labels)


def write_map(drawn: Map, file: Path) -> None:
    """Write a map as an HTML file that needs nothing else."""
    environment = Environment(loader=PackageLoader("vlmo.retrieval", "."), autoescape=True)
    write_file(
        file, environment.get_template("map.html").render(images=drawn.images, groups=drawn.groups)
    )
