"""Embeddings of a set of images and texts, and log-odds of chosen pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.evaluation.inference import BATCH, Report, evaluating, map_batches, own_batches


class RetrievalModel(Protocol):
    """Interface of a module to evaluate, as `VLMoForImageTextRetrieval` and `VLMoForPreTraining` have it."""

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        ...

    @property
    def contrast_head(self) -> Any:
        """Head with `logit_scale`, the logarithm of the inverse temperature; it is read for reranking alone."""
        ...

    def get_image_features(self, *, pixel_values: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised image embeddings."""
        ...

    def get_text_features(
        self, *, input_ids: Int[Tensor, "batch text"], attention_mask: Int[Tensor, "batch text"]
    ) -> Float[Tensor, "batch dim"]:
        """Return L2-normalised text embeddings."""
        ...

    def match(
        self,
        *,
        pixel_values: Float[Tensor, "batch 3 height width"],
        input_ids: Int[Tensor, "batch text"],
        attention_mask: Int[Tensor, "batch text"],
    ) -> Float[Tensor, "batch 2"]:
        """Return ITM logits; class 1 is a match."""
        ...


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Images and texts to be found by each other.

    Attributes:
        read_images: `pixel_values` of the images with these numbers.
        read_texts: `input_ids` and `attention_mask` of the texts with these numbers, padded at the end.
        text_to_image: Number of the image that each text describes. Every image needs at least one text.

    Raises:
        ValueError: There is no text, or an image without one.
    """

    read_images: Callable[[range], Float[Tensor, "batch 3 height width"]]
    read_texts: Callable[[range], tuple[Int[Tensor, "batch text"], Int[Tensor, "batch text"]]]
    text_to_image: Int[Tensor, " num_texts"]

    def __post_init__(self) -> None:
        if self.text_to_image.ndim != 1 or len(self.text_to_image) == 0:
            raise ValueError(f"text_to_image must be a list of numbers, given shape {tuple(self.text_to_image.shape)}.")
        if int(self.text_to_image.min()) < 0 or not (self.text_to_image.bincount() > 0).all():
            raise ValueError("text_to_image must use every image number from 0 on; drop the images without a text.")

    @property
    def num_texts(self) -> int:
        """Number of texts."""
        return len(self.text_to_image)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self.text_to_image.max()) + 1


def embed_images(
    model: RetrievalModel, retrieval_set: RetrievalSet, *, batch: int = BATCH, progress: Report | None = None
) -> Float[Tensor, "num_images dim"]:
    """Return L2-normalised image embeddings, float32, on the model's device; the processes share the images."""

    def embed(numbers: range) -> Tensor:
        return model.get_image_features(pixel_values=retrieval_set.read_images(numbers).to(model.device)).float().cpu()

    how: dict[str, Any] = {"batch": batch, "title": "images", "report": progress}
    return torch.cat(map_batches(embed, retrieval_set.num_images, model=model, **how)).to(model.device)


def embed_texts(
    model: RetrievalModel, retrieval_set: RetrievalSet, *, batch: int = BATCH, progress: Report | None = None
) -> Float[Tensor, "num_texts dim"]:
    """Return L2-normalised text embeddings, float32, on the model's device; the processes share the texts."""

    def embed(numbers: range) -> Tensor:
        input_ids, attention_mask = (part.to(model.device) for part in retrieval_set.read_texts(numbers))
        return model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).float().cpu()

    how: dict[str, Any] = {"batch": batch, "title": "texts", "report": progress}
    return torch.cat(map_batches(embed, retrieval_set.num_texts, model=model, **how)).to(model.device)


def match_pairs(
    model: RetrievalModel,
    retrieval_set: RetrievalSet,
    *,
    images: Int[Tensor, " pair"],
    texts: Int[Tensor, " pair"],
    log_odds: bool = True,
    batch: int = BATCH,
    pair_batch: int = BATCH,
    progress: Report | None = None,
) -> Float[Tensor, " pair"]:
    """Return the fusion encoder's log-odds of a match for pairs; a pair that is given twice is computed once.

    Without `log_odds` it returns the logits of a match instead, which the published code ranks by.

    Pairs are taken image batch by image batch, so that each image is decoded once and never kept. Several processes
    are asked for the same pairs; each computes those of its own images and receives the others.

    Raises:
        ValueError: The model returns NaN.
    """
    texts_of = [
        retrieval_set.read_texts(range(start, min(start + batch, retrieval_set.num_texts)))
        for start in range(0, retrieval_set.num_texts, batch)
    ]
    longest = max(ids.shape[1] for ids, _ in texts_of)
    input_ids, attention_mask = (
        torch.cat([F.pad(part.cpu(), (0, longest - part.shape[1])) for part in parts])
        for parts in zip(*texts_of, strict=True)
    )
    lengths = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1)).amax(dim=1)
    pairs, asked = torch.unique(images * retrieval_set.num_texts + texts, return_inverse=True)
    images, texts = pairs // retrieval_set.num_texts, pairs % retrieval_set.num_texts
    batches = own_batches(retrieval_set.num_images, batch=batch)
    chosen = [((images >= own.start) & (images < own.stop)).nonzero().flatten() for own in batches]
    scores = torch.zeros(pairs.shape)
    done, total, device = 0, sum(map(len, chosen)), model.device
    with evaluating(model):
        for own, rows in zip(batches, chosen, strict=True):
            if not len(rows):
                continue
            pixel_values = retrieval_set.read_images(own).to(device)
            # Neighbours in length share a batch, so little of it is padding.
            for part in rows[lengths[texts[rows]].argsort()].split(pair_batch):
                # Rounded up to 8, as in training: few different shapes, which compiled kernels like.
                length = -(-int(lengths[texts[part]].max()) // 8) * 8
                logits = model.match(
                    pixel_values=pixel_values[(images[part] - own.start).to(device)],
                    input_ids=input_ids[texts[part], :length].to(device),
                    attention_mask=attention_mask[texts[part], :length].to(device),
                ).float()
                scores[part] = (logits[:, 1] - logits[:, 0] if log_odds else logits[:, 1]).cpu()
                done += len(part)
                if progress is not None:
                    progress("pairs", done, total)
    # Pairs of the others hold 0, so that the sum is whole. It is taken on the device, where every backend can.
    scores = distributed.all_reduce(scores.to(device)).cpu()
    if scores.isnan().any():
        raise ValueError("The matching logits contain NaN; check the weights of the model.")
    return scores[asked]
