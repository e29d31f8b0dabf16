"""Single examples to a batch: pictures are stacked, texts padded."""

from __future__ import annotations

from typing import TypedDict, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad as pad_to
from torch.utils.data import default_collate

from vlmo.data.masking import IGNORED
from vlmo.types import Batch

# The same multiple as the processor's, so that training and use see texts of the same shapes.
PAD_MULTIPLE = 8


class Example(TypedDict, total=False):
    """One row of a batch; all examples of a batch have the same keys."""

    pixel_values: UInt8[Tensor, "*pictures 3 height width"] | Float[Tensor, "*pictures 3 height width"]
    input_ids: Int64[np.ndarray, "text"]
    mlm_input_ids: Int64[np.ndarray, "text"]
    mlm_labels: Int64[np.ndarray, "text"]
    bool_masked_pos: Bool[np.ndarray, "patch"]
    labels: Tensor
    image_id: int
    sample_id: int


def collate(examples: list[Example], *, pad_token_id: int = 0) -> Batch:
    """The examples as one batch; texts are padded to the longest of them, rounded up to 8.

    Padding is `pad_token_id` in ids, 0 in `attention_mask` and -100 in `mlm_labels`.
    """
    first = examples[0]
    batch: Batch = {"sample_ids": torch.tensor([example["sample_id"] for example in examples], dtype=torch.int64)}
    if "image_id" in first:
        batch["image_ids"] = torch.tensor([example["image_id"] for example in examples], dtype=torch.int64)
    if "pixel_values" in first:
        batch["pixel_values"] = _stack([example["pixel_values"] for example in examples])
    if "labels" in first:
        batch["labels"] = torch.stack([example["labels"] for example in examples])
    if "bool_masked_pos" in first:
        batch["bool_masked_pos"] = torch.from_numpy(np.stack([example["bool_masked_pos"] for example in examples]))
    if "input_ids" in first:
        texts = [example["input_ids"] for example in examples]
        batch["input_ids"] = pad(texts, value=pad_token_id)
        batch["attention_mask"] = pad([np.ones_like(text) for text in texts], value=0)
    if "mlm_labels" in first:
        batch["mlm_input_ids"] = pad([example["mlm_input_ids"] for example in examples], value=pad_token_id)
        batch["mlm_labels"] = pad([example["mlm_labels"] for example in examples], value=IGNORED)
    return batch


def _stack(pictures: list[Tensor]) -> Tensor:
    """The pictures as they lie in memory, 8-bit ones with channels last; a worker puts them into shared memory at once.

    Whoever normalises them brings the channels forward in the same pass.
    """
    if pictures[0].dtype != torch.uint8:
        return default_collate(pictures)
    return default_collate([picture.movedim(-3, -1) for picture in pictures]).movedim(-1, -3)


def pad(rows: list[Int64[np.ndarray, "text"]], *, value: int) -> Int64[Tensor, "batch longest"]:
    """Rows filled up on the right with `value`, to the longest one's length rounded up to 8."""
    longest = max(len(row) for row in rows)
    padded = np.full((len(rows), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE), value, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def merge(parts: list[Batch], *, pad_token_id: int = 0) -> Batch:
    """The rows of several batches as one, padded to the longest text."""
    if len(parts) == 1:
        return parts[0]
    fills = {"input_ids": pad_token_id, "mlm_input_ids": pad_token_id, "attention_mask": 0, "mlm_labels": IGNORED}
    tensors = cast(list[dict[str, Tensor]], parts)
    merged: dict[str, Tensor] = {}
    for name in tensors[0]:
        columns = [part[name] for part in tensors]
        if name in fills:
            longest = max(column.shape[1] for column in columns)
            columns = [pad_to(column, (0, longest - column.shape[1]), value=fills[name]) for column in columns]
        merged[name] = torch.cat(columns)
    return cast(Batch, merged)
