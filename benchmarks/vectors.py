"""Vectors for benchmarks of search: made like the embeddings of a dual encoder, or read from a file.

Uniform noise of 768 dimensions has no neighbours worth finding. Here an image is the sum of a mean (embeddings lie in
a cone), a topic and something of its own, at length one. Topics have Zipf's sizes. The standard deviation on axis *i*
of a random basis falls as *i* to the power of -1/2, for topics and within them, where each topic stretches its axes by
factors of its own. A text has another mean (the gap between modalities) and as much noise as signal, so texts are
nobody's neighbours, and their nearest images differ little: the hard case of searching images by words.

`hardness` says how hard a search is. 25,505 sentences embedded by all-MiniLM-L6-v2 have a local intrinsic dimension of
19.8 and a contrast of 1.87. As many vectors made here have 19.1 and 1.73 from image to image, 50.9 and 1.28 from
text to image; uniform noise has 161 and 1.08.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

NEAREST = 10
"""Neighbours that a search is asked for."""
BLOCK = 20_000
"""Vectors that are in memory at once."""
TOPICS = 2_000
ZIPF_SHIFT = 10.0
# Share of the variance between topics; spread of a topic's axes; length of the mean, beside a variance of one.
BETWEEN, SPREAD, MEAN = 0.5, 0.5, 0.8
_NEIGHBOURS = 100
_TRIES = 500

Vectors = Float32[ndarray, "row dim"]


def _of_length_one(vectors: Vectors) -> Vectors:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _times(left: Vectors, right: Vectors) -> Vectors:
    """Product by torch, which has the threads that the benchmark set."""
    return torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()


class MadeVectors:
    """Images and texts of the generator above; a larger set begins with the vectors of a smaller one."""

    def __init__(self, *, dim: int = 768, seed: int = 0) -> None:
        self.dim, self.seed = dim, seed
        random = np.random.default_rng((seed, 0))
        self.spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
        self.spectrum /= np.linalg.norm(self.spectrum)
        self.basis = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
        self.topics = (
            random.standard_normal((TOPICS, dim), dtype=np.float32) * self.spectrum * BETWEEN**0.5
        )
        stretched = (
            np.exp(SPREAD * random.standard_normal((TOPICS, dim), dtype=np.float32)) * self.spectrum
        )
        self.own = _of_length_one(stretched) * (1 - BETWEEN) ** 0.5
        sizes = 1 / (np.arange(TOPICS) + ZIPF_SHIFT)
        self.sizes = sizes / sizes.sum()
        self.means = _of_length_one(random.standard_normal((2, dim), dtype=np.float32)) * MEAN

    def _latent(self, random: np.random.Generator, rows: int) -> Vectors:
        topic = random.choice(TOPICS, size=rows, p=self.sizes)
        latent = random.standard_normal((rows, self.dim), dtype=np.float32)
        latent *= self.own[topic]
        latent += self.topics[topic]
        return latent

    def blocks(self, rows: int) -> Iterator[Vectors]:
        """The first `rows` images."""
        for start in range(0, rows, BLOCK):
            latent = self._latent(np.random.default_rng((self.seed, 1, start)), BLOCK)
            yield _of_length_one(_times(latent, self.basis) + self.means[0])[: rows - start]

    def queries(self, rows: int) -> dict[str, Vectors]:
        """Texts, and images that are not among those of `blocks`."""
        random = np.random.default_rng((self.seed, 2))
        images = _of_length_one(_times(self._latent(random, rows), self.basis) + self.means[0])
        noise = random.standard_normal((rows, self.dim), dtype=np.float32) * self.spectrum
        texts = _of_length_one(
            _times(self._latent(random, rows) + noise, self.basis) + self.means[1]
        )
        return {"texts": texts, "images": images}


@dataclass(frozen=True)
class FileVectors:
    """Vectors of an .npy file (rows, dim) or of the column `vector` of a parquet file.

    Queries are the last rows of the file, or the rows of another one; they are not searched for.
    """

    vectors: Vectors
    asked: Vectors | None = None

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.vectors.shape[1]

    def blocks(self, rows: int) -> Iterator[Vectors]:
        """The first `rows` vectors, at length one."""
        for start in range(0, rows, BLOCK):
            yield _of_length_one(
                np.array(self.vectors[start : min(start + BLOCK, rows)], dtype=np.float32)
            )

    def queries(self, rows: int) -> dict[str, Vectors]:
        """The queries, at most `rows`."""
        asked = self.vectors[-rows:] if self.asked is None else self.asked[:rows]
        return {
            "rows" if self.asked is None else "file": _of_length_one(
                np.array(asked, dtype=np.float32)
            )
        }


def read_vectors(file: Path) -> Vectors:
    """Maps an .npy file, or reads the column `vector` of a parquet file."""
    if file.suffix == ".npy":
        vectors = np.load(file, mmap_mode="r")
    else:
        from pyarrow import parquet

        column = parquet.read_table(file, columns=["vector"])["vector"].combine_chunks()
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    if vectors.ndim != 2:
        raise ValueError(
            f"{file} holds an array of shape {vectors.shape}; give vectors as (rows, dim)"
        )
    return vectors


def hardness(queries: Vectors, vectors: Vectors) -> dict[str, float]:
    """Measure how hard it is to find the neighbours of some queries among some vectors, all of length one.

    Returns:
        Local intrinsic dimension (maximum likelihood over 100 neighbours, Euclidean distance, median over queries);
        contrast (mean distance to all over mean distance to the nearest one); cosines.
    """
    cosines = torch.from_numpy(_times(np.array(queries[:_TRIES]), np.ascontiguousarray(vectors.T)))
    nearest = cosines.topk(min(_NEIGHBOURS, len(vectors)), dim=1).values
    far = (2 - 2 * nearest).clamp(min=1e-12).sqrt()
    dimension = -1 / (far[:, :-1] / far[:, -1:]).log().mean(dim=1)
    return {
        "local_intrinsic_dimension": round(dimension.median().item(), 2),
        "contrast": round(
            ((2 - 2 * cosines).clamp(min=0).sqrt().mean() / far[:, 0].mean()).item(), 3
        ),
        "mean_cosine": round(cosines.mean().item(), 4),
        "cosine_of_the_nearest": round(nearest[:, 0].mean().item(), 4),
        "cosine_of_the_tenth": round(nearest[:, min(9, nearest.shape[1] - 1)].mean().item(), 4),
    }


@dataclass(frozen=True)
class Questions:
    """Queries of one kind with their exact neighbours."""

    vectors: Vectors
    truth: Int64[ndarray, "query nearest"]


@dataclass
class Neighbours:
    """Exact neighbours of some queries among the vectors that were seen so far."""

    queries: Vectors
    cosines: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    rows: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    seen: int = 0

    def see(self, vectors: Vectors) -> None:
        """Takes more vectors into account."""
        cosines, rows = (torch.from_numpy(self.queries) @ torch.from_numpy(vectors).T).topk(
            min(NEAREST, len(vectors))
        )
        if self.seen:
            cosines, rows = (
                torch.cat([self.cosines, cosines], 1),
                torch.cat([self.rows, rows + self.seen], 1),
            )
        self.cosines, order = cosines.topk(min(NEAREST, cosines.shape[1]))
        self.rows = rows.gather(1, order)
        self.seen += len(vectors)
