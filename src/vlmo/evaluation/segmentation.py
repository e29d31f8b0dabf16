"""Semantic segmentation: sliding-window inference, mIoU, aAcc and mAcc."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo.evaluation.inference import evaluating
from vlmo.processing.segmentation import IGNORED_CLASS

if TYPE_CHECKING:
    from vlmo.model import VLMoForSemanticSegmentation

_STRIDE = 2 / 3
"""Share of a window between the beginnings of two neighbours, as mmsegmentation has it for ADE20K (341 of 512)."""


def segment(
    model: VLMoForSemanticSegmentation,
    pixel_values: Float[Tensor, "3 height width"],
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Float[Tensor, "classes out_height out_width"]:
    """Return the logits of each pixel, on the model's device.

    Windows of the training crop's size begin every two thirds of one; logits are averaged where they overlap.

    Args:
        size: Height and width of the result; by default the image's.
        batch_size: Windows that go through the model at a time.

    Raises:
        ValueError: The model returns NaN.
    """
    pixel_values = pixel_values.to(model.device)
    with evaluating(model):
        logits = _slide(model, pixel_values, window=model.config.image_size, batch_size=batch_size)
        if logits.isnan().any():
            raise ValueError("the logits contain NaN; check the weights of the model")
        if size is not None and size != logits.shape[1:]:
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        return logits


def window_starts(length: int, *, window: int) -> list[int]:
    """Return the starts of windows on a side, every two thirds of one and one at its end."""
    stride = max(1, int(window * _STRIDE))
    count = max(0, -(-(length - window) // stride)) + 1
    return [max(0, min(number * stride, length - window)) for number in range(count)]


def _slide(
    model: VLMoForSemanticSegmentation,
    pixel_values: Float[Tensor, "3 height width"],
    *,
    window: int,
    batch_size: int,
) -> Float[Tensor, "classes height width"]:
    height, width = pixel_values.shape[1:]
    # An image smaller than a window is padded with grey, as crops are in training.
    padded = F.pad(pixel_values, (0, max(0, window - width), 0, max(0, window - height)))
    corners = [
        (top, left)
        for top in window_starts(padded.shape[1], window=window)
        for left in window_starts(padded.shape[2], window=window)
    ]
    total = padded.new_zeros(cast("int", model.config.num_labels), *padded.shape[1:])
    count = padded.new_zeros(padded.shape[1:])
    for start in range(0, len(corners), batch_size):
        chunk = corners[start : start + batch_size]
        windows = torch.stack([padded[:, top : top + window, left : left + window] for top, left in chunk])
        for (top, left), logits in zip(chunk, model(windows).logits.float(), strict=True):
            total[:, top : top + window, left : left + window] += logits
            count[top : top + window, left : left + window] += 1
    return (total / count)[:, :height, :width]


def count_pixels(
    predicted: Int[Tensor, "height width"], target: Int[Tensor, "height width"], *, num_classes: int
) -> Int[Tensor, "true predicted"]:
    """Return the numbers of pixels of an image by true and predicted class; pixels of class 255 do not count."""
    predicted, target = predicted.cpu().long(), target.cpu().long()
    counted = target != IGNORED_CLASS
    cells = target[counted] * num_classes + predicted[counted]
    return cells.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_metrics(counts: Int[Tensor, "true predicted"]) -> tuple[dict[str, float], list[float | None]]:
    """Return metrics from numbers of pixels by true and predicted class, as mmsegmentation counts; fractions.

    `miou` is the mean over classes of intersection over union, `aacc` the share of pixels that are right, `macc` the
    mean over classes of the share of their pixels that are right. The list is the intersection over union of each
    class: None for one that neither occurs nor was predicted, which is left out of the mean.

    Raises:
        ValueError: There are no pixels.
    """
    if not int(counts.sum()):
        raise ValueError("no pixel counts: there are no images, or every pixel is ignored")
    counts = counts.double()
    right, true, predicted = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    iou = right / (true + predicted - right)  # 0 / 0 is NaN: the class does not count
    metrics = {"miou": iou.nanmean(), "aacc": right.sum() / counts.sum(), "macc": (right / true).nanmean()}
    by_class = [None if value != value else value for value in iou.tolist()]
    return {name: value.item() for name, value in metrics.items()}, by_class
