"""A map of an index: images that look alike lie close, in groups named by words."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vlmo.data.decoding import image_bytes
from vlmo.lazy import need_package
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.hits import Hit
from vlmo.retrieval.index import Index
from vlmo.retrieval.presence import common_words
from vlmo.retrieval.words import split_words

# Longest side of a thumbnail in pixels, and bounds of the number of groups and of words that may
# name them.
_SIDE = 72
_MOST_GROUPS = 16
_MOST_WORDS = 400


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
    """Draw a map of at most so many images, taken evenly from the index: t-SNE places them, k-means groups them.

    Args:
        on_step: Called with what is being done, in words.

    Raises:
        ValueError: The index has fewer than two different images.
        ModuleNotFoundError: scikit-learn is missing.
    """
    need_package("sklearn", extra="map", user="the map")
    from sklearn.cluster import KMeans

    rows = index.sample(most)
    vectors = np.array([row["vector"] for _, row in rows], np.float32)
    different = len(np.unique(vectors, axis=0))
    if different < 2:
        raise ValueError(f"a map needs two images that differ, and the index has {different}")
    on_step(f"grouping and placing {len(rows):,} images")
    # About eight images a group in small sets, and never more groups than k-means can fill.
    number = min(_MOST_GROUPS, max(2, round((len(rows) / 8) ** 0.5)), different)
    groups = KMeans(number, n_init=4, random_state=0).fit_predict(vectors)
    places = _place(vectors)
    on_step("naming the groups")
    means = np.stack([vectors[groups == group].mean(0) for group in range(number)])
    words = _naming_words([hit for hit, _ in rows], least=2 * number)
    names = _name_groups(means @ encoder.embed_texts(words).T, words)
    # Medians: a few images that t-SNE places far away do not move a name.
    middles = [np.median(places[groups == group], axis=0).tolist() for group in range(number)]
    images = []
    for row in np.argsort(groups, kind="stable"):
        hit, columns = rows[row]
        images.append((hit, *places[row].tolist(), _data_address(columns["thumbnail"])))
    return Map(images, [(name, *middle) for name, middle in zip(names, middles, strict=True)])


def _place(
    vectors: Float32[np.ndarray, "image dim"],
) -> Float32[np.ndarray, "image 2"]:
    """Return the places of images by t-SNE, from 0 to 1 in both directions."""
    from sklearn.manifold import TSNE

    # scikit-learn's default is 30; it must be below the number of images.
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0)
    places = tsne.fit_transform(vectors)
    return (places - places.min(0)) / np.maximum(np.ptp(places, axis=0), 1e-6)


def _naming_words(hits: Sequence[Hit], *, least: int) -> list[str]:
    """Return words that may name groups: of captions, and of `common_words` if these have fewer than `least`.

    Names of files and albums tell when, where and by whom images were made (IMG, Rome, backup), not what they show.
    """
    counts = Counter(word for hit in hits for word in {*split_words(" ".join(hit.captions))})
    words = []
    for word, count in counts.most_common():
        # A word of one image names no group, and one of most images ("a", "the") tells none apart.
        if 1 < count <= len(hits) / 2 and len(word) > 2 and word.isalpha():
            words.append(word)
    if len(words) < least:
        words += common_words()
    return list(dict.fromkeys(words))[:_MOST_WORDS]


def _name_groups(
    similarities: Float32[np.ndarray, "group word"], words: Sequence[str]
) -> list[str]:
    """Name groups by two words, whose similarity to the center exceeds that to the other centers most."""
    order = np.argsort(similarities.mean(0) - similarities, axis=1)
    used = set[int]()
    names = []
    for ranked in order.tolist():
        # No word names two groups, but where all are used up.
        best = [word for word in ranked if word not in used][:2] or ranked[:1]
        used.update(best)
        names.append(", ".join(words[word] for word in best))
    return names


def _data_address(thumbnail: bytes) -> str:
    image = Image.open(io.BytesIO(thumbnail))
    image.thumbnail((_SIDE, _SIDE))
    data = base64.b64encode(image_bytes(image, "JPEG", quality=70)).decode()
    return f"data:image/jpeg;base64,{data}"
