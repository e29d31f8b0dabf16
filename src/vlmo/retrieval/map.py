"""A map of an index: images that look alike lie close, in groups named by words, in one HTML file."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from vlmo.data.decoding import image_bytes
from vlmo.folder.atomic import write_file
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.index import Index

_SIDE, _MOST_GROUPS, _MOST_WORDS = 72, 16, 400
"""Longest side of a thumbnail in pixels, and bounds of the number of groups and of words that may name them."""


def write_map(encoder: Encoder, index: Index, file: Path, *, most: int = 2000) -> int:
    """Write a map of at most so many images, taken evenly from the index; return their number.

    t-SNE places the images, and k-means groups them. A group is named by two words, of captions and file names or of
    `map_words.txt`, whose similarity to its center exceeds that to the other centers most.

    Raises:
        ValueError: The index has fewer than two images.
    """
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE

    rows = index.sample(most)
    if len(rows) < 2:
        raise ValueError(f"{index.folder} has {len(rows)} images; a map needs two or more")
    vectors = np.array([row["vector"] for row in rows], np.float32)
    number = min(_MOST_GROUPS, max(2, round((len(rows) / 8) ** 0.5)))
    groups = KMeans(number, n_init=4, random_state=0).fit_predict(vectors)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    placed = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0).fit_transform(vectors)
    placed = (placed - placed.min(0)) / np.maximum(np.ptp(placed, axis=0), 1e-6)
    counts = Counter(word for row in rows for word in {*(row["full_text"] or "").split()})
    words = [word for word, count in counts.most_common() if count > 1 and len(word) > 2 and word.isalpha()]
    if not words:
        words = Path(__file__).with_name("map_words.txt").read_text().split()
    words = words[:_MOST_WORDS]
    similar = np.stack([vectors[groups == group].mean(0) for group in range(number)]) @ encoder.embed_texts(words).T
    order, used, labels = np.argsort(similar.mean(0) - similar, axis=1), set[int](), list[tuple[str, float, float]]()
    for group in range(number):
        best = [each for each in order[group].tolist() if each not in used][:2] or order[group, :1].tolist()
        used.update(best)
        x, y = np.median(placed[groups == group], axis=0).tolist()
        labels.append((", ".join(words[each] for each in best), x, y))
    images = []
    for at in np.argsort(groups, kind="stable"):
        row, small = rows[at], Image.open(io.BytesIO(rows[at]["thumbnail"]))
        small.thumbnail((_SIDE, _SIDE))
        data = base64.b64encode(image_bytes(small, "JPEG", quality=70)).decode()
        images.append((*placed[at].tolist(), Path(row["path"]).name, (*row["captions"], "")[0], data))
    environment = Environment(loader=PackageLoader("vlmo.retrieval", "."), autoescape=True)
    write_file(file, environment.get_template("map.html").render(images=images, groups=labels))
    return len(images)
