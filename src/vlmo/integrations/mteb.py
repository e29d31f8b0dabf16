"""Adapter of a model folder for mteb: vectors of the dual encoder, and retrieval that the fusion encoder reranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from rich.console import Console
from torch import Tensor

from vlmo.lazy import install_command
from vlmo.model.reranking import rerank_score
from vlmo.progress import Progress
from vlmo.retrieval.encoder import Encoder
from vlmo.retrieval.search import SEARCH_RERANK

try:
    from mteb.models import ModelMeta, SearchEncoderWrapper
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError(f"mteb 2.26 is needed here: {install_command('mteb')}") from error

if TYPE_CHECKING:
    from datasets import Dataset

_ABOVE = 2.0  # more than any cosine


class VLMoSearch:
    """Model for `mteb.evaluate`, on tasks of images and texts.

    Retrieval of images for texts and of texts for images has two stages, as in `vlmo search`: the fusion encoder scores
    the `rerank` nearest candidates, and these come first. All other tasks compare vectors of the dual encoder.

    Args:
        folder: Model folder, or the name of a model.
        rerank: Candidates of each query that the fusion encoder scores; 0 for the dual encoder alone.
        weight: Share of the match score in the order; None: the model's for each direction.
        device: "cpu", "cuda" or "cuda:1"; None takes a GPU if there is one.

    Raises:
        ValueError: The folder holds no model that retrieves, a value is out of range, or candidates are to be reranked
            and the model has no matching head.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rerank: int = SEARCH_RERANK,
        weight: float | None = None,
        device: str | None = None,
    ) -> None:
        if rerank < 0 or not (weight is None or 0 <= weight <= 1):
            raise ValueError(
                f"rerank is {rerank} and weight {weight}; give a rerank from 0 up and a weight from 0 to 1, or None"
            )
        self.encoder = Encoder(folder, device=device)
        if rerank and not self.encoder.can_match:
            raise ValueError(f"{self.encoder.folder}: this model has no matching head; give rerank=0")
        self._rerank, self._weight = rerank, weight
        self._corpus: Dataset | None = None
        settings = {"rerank": rerank, "weight": weight}
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"vlmo/{self.encoder.folder.name}",
                "revision": self.encoder.fingerprint,
                "modalities": ["text", "image"],
                "framework": ["PyTorch"],
                "embed_dim": self.encoder.dim,
                "experiment_kwargs": settings,  # results of other settings have folders of their own
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], **options: Any) -> Float32[np.ndarray, "row dim"]:
        """Return L2-normalised vectors of batches of texts or images, or of their sums; ValueError without either."""
        del options
        vectors = []
        for batch in inputs:
            parts = [self.encoder.embed_images(batch["image"])] if "image" in batch else []
            parts += [self.encoder.embed_texts(batch["text"])] if "text" in batch else []
            if not parts:
                raise ValueError(f"the inputs are {', '.join(batch)}; VLMo reads text and image")
            vectors.append(sum(parts) / np.linalg.norm(sum(parts), axis=1, keepdims=True))
        return np.concatenate(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[Tensor, "first second"]:
        """Return the cosine similarity of each vector with each."""
        return torch.atleast_2d(torch.as_tensor(embeddings1)) @ torch.atleast_2d(torch.as_tensor(embeddings2)).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[Tensor, " pair"]:
        """Return the cosine similarity of vectors at the same position."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)

    def index(self, corpus: Dataset, **options: Any) -> None:
        """Take the documents of a retrieval task; they are embedded by `search`."""
        del options
        self._corpus = corpus

    def search(
        self, queries: Dataset, *, task_metadata: Any, top_k: int, **options: Any
    ) -> dict[str, dict[str, float]]:
        """Return the scores of the best `top_k` documents of each query by their ids; ValueError without documents."""
        if self._corpus is None:
            raise ValueError("there are no documents; call index first")
        corpus, self._corpus = self._corpus, None
        first = SearchEncoderWrapper(self)
        named = {name: options[name] for name in ("hf_split", "hf_subset", "encode_kwargs", "num_proc")}
        first.index(corpus, task_metadata=task_metadata, **named)
        found = first.search(queries, task_metadata=task_metadata, top_k=max(top_k, self._rerank), **options)
        sides = [task_metadata.get_modalities(side) for side in (PromptType.query, PromptType.document)]
        if not self._rerank or sorted(sides) != [["image"], ["text"]]:
            return found
        by_text = sides[0] == ["text"]
        own = self.encoder.rerank_weight if by_text else self.encoder.rerank_weight_image_to_text
        weight = own if self._weight is None else self._weight
        rows = {name: row for row, name in enumerate(corpus["id"])}
        results = {}
        with Progress(Console(stderr=True)) as progress:
            for number in range(len(queries)):
                query: dict[str, Any] = queries[number]
                ranked = sorted(found[query["id"]].items(), key=lambda each: -each[1])
                best, others = ranked[: self._rerank], ranked[self._rerank :]
                documents = corpus[[rows[name] for name, _ in best]]
                images = documents["image"] if by_text else [query["image"]] * len(best)
                texts = [query["text"]] * len(best) if by_text else documents["text"]
                similarity, match = np.array([score for _, score in best]), self.encoder.match(images, texts)
                mixed = rerank_score(similarity, match, weight=weight, scale=self.encoder.inverse_temperature)
                scores = zip((name for name, _ in best), mixed - mixed.min(initial=0) + _ABOVE, strict=True)
                reranked = sorted(((name, float(score)) for name, score in scores), key=lambda each: -each[1])
                results[query["id"]] = dict([*reranked, *others][:top_k])
                progress.update("reranked queries", number + 1, len(queries))
        return results
