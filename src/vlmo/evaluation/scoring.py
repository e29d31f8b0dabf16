"""Embeddings of a set of images and texts, and log-odds of chosen pairs.

A model is any module with `device`, `get_image_features`, `get_text_features` and, to rerank, `match` and
`contrast_head.logit_scale`, as `VLMoForImageTextRetrieval` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.evaluation.inference import BATCH, Report, evaluating, map_batches, own_batches
from vlmo.processing.transforms import by_shape


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Images and texts to be found by each other; ValueError if there is no text, or an image without one.

    Attributes:
        read_images: `pixel_values` of the images with these numbers; a list may have several shapes.
        read_texts: `input_ids` and `attention_mask` of the texts with these numbers, padded at the end.
        text_to_image: Number of the image that each text describes. Every image needs at least one text.
    """

    read_images: Callable[
        [range], Float[Tensor, "batch 3 height width"] | list[Float[Tensor, "3 height width"]]
    ]
    read_texts: Callable[[range], tuple[Int[Tensor, "batch text"], Int[Tensor, "batch text"]]]
    text_to_image: Int[Tensor, " num_texts"]

    def __post_init__(self) -> None:
        if not len(self.text_to_image) or not (self.text_to_image.bincount() > 0).all():
            raise ValueError(
                "text_to_image must use every image number from 0 on; drop the images without a text."
            )

    @property
    def num_texts(self) -> int:
        """Number of texts."""
        return len(self.text_to_image)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self.text_to_image.max()) + 1


def embed(
    model: Any, pairs: RetrievalSet, *, batch: int = BATCH, progress: Report | None = None
) -> tuple[Float[Tensor, "num_images dim"], Float[Tensor, "num_texts dim"]]:
    """Return L2-normalised embeddings of images and texts, float32, on the model's device; the processes share them."""

    def of_images(numbers: range) -> Tensor:
        def of_one_shape(part: list[Tensor]) -> Tensor:
            return (
                model.get_image_features(pixel_values=torch.stack(part).to(model.device))
                .float()
                .cpu()
            )

        return torch.stack(by_shape(list(pairs.read_images(numbers)), of_one_shape))

    def of_texts(numbers: range) -> Tensor:
        ids, mask = (part.to(model.device) for part in pairs.read_texts(numbers))
        return model.get_text_features(input_ids=ids, attention_mask=mask).float().cpu()

    kinds = (of_images, pairs.num_images, "images"), (of_texts, pairs.num_texts, "texts")
    images, texts = (
        torch.cat(
            map_batches(run, total, model=model, batch=batch, title=title, report=progress)
        ).to(model.device)
        for run, total, title in kinds
    )
    return images, texts


def match_pairs(
    model: Any,
    pairs: RetrievalSet,
    *,
    images: Int[Tensor, " pair"],
    texts: Int[Tensor, " pair"],
    batch: int = BATCH,
    progress: Report | None = None,
) -> Float[Tensor, " pair"]:
    """Return the fusion encoder's log-odds of a match for pairs; a pair that is given twice is computed once.

    Pairs are taken image batch by image batch, so that each image is decoded once and never kept. Several processes
    are asked for the same pairs; each computes those of its own images and receives the others. ValueError for NaN.
    """
    starts = range(0, pairs.num_texts, batch)
    texts_of = [
        pairs.read_texts(range(start, min(start + batch, pairs.num_texts))) for start in starts
    ]
    longest = max(ids.shape[1] for ids, _ in texts_of)
    input_ids, attention_mask = (
        torch.cat([F.pad(part.cpu(), (0, longest - part.shape[1])) for part in parts])
        for parts in zip(*texts_of, strict=True)
    )
    lengths = (attention_mask * torch.arange(1, longest + 1)).amax(dim=1)
    numbers, asked = torch.unique(images * pairs.num_texts + texts, return_inverse=True)
    images = numbers // pairs.num_texts
    texts = numbers % pairs.num_texts
    batches = own_batches(pairs.num_images, batch=batch)
    chosen = [((images >= own.start) & (images < own.stop)).nonzero().flatten() for own in batches]
    scores = torch.zeros(numbers.shape)
    done = 0
    total = sum(map(len, chosen))
    device = model.device

    def log_odds(asked_of: list[tuple[int, Tensor]]) -> Tensor:
        rows = torch.tensor([row for row, _ in asked_of])
        # Rounded up to 8, as in training: few different shapes, which compiled kernels like.
        length = -(-int(lengths[texts[rows]].max()) // 8) * 8
        logits = model.match(
            pixel_values=torch.stack([image for _, image in asked_of]),
            input_ids=input_ids[texts[rows], :length].to(device),
            attention_mask=attention_mask[texts[rows], :length].to(device),
        ).float()
        return (logits[:, 1] - logits[:, 0]).cpu()

    with evaluating(model):
        for own, rows in zip(batches, chosen, strict=True):
            if not len(rows):
                continue
            pixel_values = [image.to(device) for image in pairs.read_images(own)]
            # Neighbours in length share a batch, so little of it is padding.
            for part in rows[lengths[texts[rows]].argsort()].split(batch):
                asked_of = [
                    (row, pixel_values[int(images[row]) - own.start]) for row in part.tolist()
                ]
                scores[part] = torch.stack(
                    by_shape(asked_of, log_odds, shape=lambda pair: pair[1].shape)
                )
                done += len(part)
                if progress is not None:
                    progress("pairs", done, total)
    # Pairs of the others hold 0, so that the sum is whole. It is taken on the device, where every backend can.
    scores = distributed.all_reduce(scores.to(device)).cpu()
    if scores.isnan().any():
        raise ValueError("The matching logits contain NaN; check the weights of the model.")
    return scores[asked]
