"""Embeddings of a set of images and texts, and log-odds of chosen pairs.

Models are `VLMoForImageTextRetrieval` or modules with the same `device`, `get_image_features`,
`get_text_features` and, to rerank, `match` and `contrast_head.logit_scale`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmo import distributed
from vlmo.evaluation.inference import BATCH, Report, evaluating, local_batches, map_batches
from vlmo.processing.transforms import by_shape

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Images and texts to search among; ValueError without texts, or for an image without one.

    Attributes:
        read_images: Returns `pixel_values` of images by number; a list may have several shapes.
        read_texts: Returns `input_ids` and `attention_mask` of texts, padded at the end.
        text_to_image: Number of the image that a text describes. All images need a text.
    """

    read_images: Callable[
        [range], Float[Tensor, "batch 3 height width"] | list[Float[Tensor, "3 height width"]]
    ]
    read_texts: Callable[[range], tuple[Int[Tensor, "batch text"], Int[Tensor, "batch text"]]]
    text_to_image: Int[Tensor, " num_texts"]

    def __post_init__(self) -> None:
        if not len(self.text_to_image) or not (self.text_to_image.bincount() > 0).all():
            raise ValueError(
                "text_to_image must use every image number from 0 on; "
                "drop the images without a text."
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
    model: VLMoForImageTextRetrieval,
    pairs: RetrievalSet,
    *,
    batch: int = BATCH,
    progress: Report | None = None,
) -> tuple[Float[Tensor, "num_images dim"], Float[Tensor, "num_texts dim"]]:
    """Return L2-normalized embeddings of images and texts, float32, on the model's device.

    The processes share the work.
    """
    device = model.device

    def image_features(images: list[Tensor]) -> Tensor:
        pixel_values = torch.stack(images).to(device)
        return model.get_image_features(pixel_values=pixel_values).float().cpu()

    def embed_images(rows: range) -> Tensor:
        return torch.stack(by_shape(list(pairs.read_images(rows)), image_features))

    def embed_texts(rows: range) -> Tensor:
        input_ids, attention_mask = pairs.read_texts(rows)
        features = model.get_text_features(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device)
        )
        return features.float().cpu()

    # Vectors are gathered on the CPU, and compared on the device.
    share = partial(map_batches, model=model, batch=batch, report=progress)
    images = share(embed_images, pairs.num_images, title="images")
    texts = share(embed_texts, pairs.num_texts, title="texts")
    return torch.cat(images).to(device), torch.cat(texts).to(device)


def match_pairs(
    model: VLMoForImageTextRetrieval,
    pairs: RetrievalSet,
    *,
    images: Int[Tensor, " pair"],
    texts: Int[Tensor, " pair"],
    batch: int = BATCH,
    progress: Report | None = None,
) -> Float[Tensor, " pair"]:
    """Return the fusion encoder's log-odds of a match; a repeated pair is computed once.

    Pairs are taken image batch by image batch, so that an image is decoded once and never kept.
    Several processes get the same pairs; they compute those of their own images and receive the
    others. ValueError for NaN.
    """
    input_ids, attention_mask = pairs.read_texts(range(pairs.num_texts))
    lengths = _text_lengths(attention_mask.cpu())
    # A number for a pair of image and text: sorted, they are in the order of the images.
    pair_ids, inverse = torch.unique(images * pairs.num_texts + texts, return_inverse=True)
    images = pair_ids // pairs.num_texts
    texts = pair_ids % pairs.num_texts
    batches = local_batches(pairs.num_images, batch=batch)
    ends = torch.tensor([[rows.start, rows.stop] for rows in batches], dtype=torch.int64)
    # First pair of an image batch and the first one after it.
    edges = torch.searchsorted(images, ends).tolist()
    scores = torch.zeros(pair_ids.shape)
    done = 0
    with evaluating(model):
        for image_rows, (first, end) in zip(batches, edges, strict=True):
            if first == end:
                continue
            pixels = [image.to(model.device) for image in pairs.read_images(image_rows)]
            # Neighbors in length share a batch, so little of it is padding.
            order = first + lengths[texts[first:end]].argsort()
            for part in order.split(batch):
                shown = [pixels[image - image_rows.start] for image in images[part].tolist()]
                rows = texts[part]
                scores[part] = _log_odds(model, shown, input_ids[rows], attention_mask[rows])
                done += len(part)
                if progress is not None:
                    progress("pairs", done, edges[-1][1] - edges[0][0])
    # Pairs of the other processes hold 0, so that the sum is that of all. It is taken on the
    # device, where every backend can.
    scores = distributed.all_reduce(scores.to(model.device)).cpu()
    if scores.isnan().any():
        raise ValueError("The matching logits contain NaN; check the weights of the model.")
    return scores[inverse]


def _text_lengths(attention_mask: Int[Tensor, "batch text"]) -> Int[Tensor, " batch"]:
    """Return the numbers of tokens up to the last one that is attended to."""
    return (attention_mask * torch.arange(1, attention_mask.shape[1] + 1)).amax(dim=1)


def _log_odds(
    model: VLMoForImageTextRetrieval,
    images: list[Float[Tensor, "3 height width"]],
    input_ids: Int[Tensor, "pair text"],
    attention_mask: Int[Tensor, "pair text"],
) -> Float[Tensor, " pair"]:
    """Return the log-odds of a match of images, which may have several shapes, and texts."""

    def of_shape(rows: list[int]) -> Tensor:
        # Rounded up to 8, as in training: few different shapes, which compiled kernels like.
        length = -(-int(_text_lengths(attention_mask[rows].cpu()).max()) // 8) * 8
        logits = model.match(
            pixel_values=torch.stack([images[row] for row in rows]),
            input_ids=input_ids[rows, :length].to(model.device),
            attention_mask=attention_mask[rows, :length].to(model.device),
        ).float()
        return (logits[:, 1] - logits[:, 0]).cpu()

    rows = range(len(images))
    return torch.stack(by_shape(rows, of_shape, shape=lambda row: images[row].shape))
