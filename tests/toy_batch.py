"""A batch of pairs for every objective, and a visual tokenizer that needs no training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GLOBAL_BATCH = 8


class FixedTokens(torch.nn.Module):
    """A visual tokenizer that reads the brightness of each patch."""

    num_tokens = 64

    def tokenize(self, pixel_values: Tensor, *, grid: tuple[int, int]) -> Tensor:
        patches = F.adaptive_avg_pool2d(pixel_values, grid).mean(1).flatten(1)
        return ((patches + 1) * 32).long().clamp(0, 63)


def make_batch() -> dict[str, Tensor]:
    """Eight pairs; rows 0 and 5 show the same picture, and the first half has the shorter texts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 96, (GLOBAL_BATCH, 16), generator=generator)
    mask = torch.ones_like(ids)
    mask[: GLOBAL_BATCH // 2, 8:] = 0
    mask[2, 5:] = 0
    ids = ids * mask
    labels = torch.full_like(ids, -100)
    # uneven over the halves
    labels[0, 2] = ids[0, 2]
    labels[1, 3:5] = ids[1, 3:5]
    labels[6, 9] = ids[6, 9]
    masked = ids.clone()
    masked[labels != -100] = 3
    patches = torch.rand(GLOBAL_BATCH, 16, generator=generator).argsort(1) < 6
    return {
        "pixel_values": torch.randn(GLOBAL_BATCH, 3, 64, 64, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
        "mlm_input_ids": masked,
        "mlm_labels": labels,
        "bool_masked_pos": patches,
        "image_ids": torch.tensor([1, 2, 3, 4, 5, 1, 7, 8]),
        "sample_ids": torch.arange(GLOBAL_BATCH),
        "step_seed": torch.tensor(11),
        "step": torch.tensor(7),
    }


def with_false_texts(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a false version of each text but the third, of which some are longer than any text."""
    ids = torch.randint(4, 96, (GLOBAL_BATCH, 24), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(24) < torch.tensor([[6], [16], [0], [7], [24], [10], [20], [5]])).long()
    return {**batch, "false_input_ids": ids * mask, "false_attention_mask": mask}


def with_parts_alone(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with as many images and texts alone, which are those of the pairs in another order."""
    rows = {name: value.flip(0) for name, value in batch.items() if value.ndim}
    return batch | {
        f"{part}.{name}": value for part in ("images", "texts") for name, value in rows.items()
    }


def own_share(batch: dict[str, Tensor], *, rank: int, world_size: int) -> dict[str, Tensor]:
    """The rows of one process, with texts padded to its own longest."""
    share = GLOBAL_BATCH // world_size
    rows = slice(rank * share, (rank + 1) * share)
    batch = {name: value[rows] if value.ndim else value for name, value in batch.items()}
    parts = {"": ("input_ids", "mlm_input_ids", "mlm_labels"), "false_": ("false_input_ids",)}
    for prefix, names in parts.items():
        if (mask := batch.get(f"{prefix}attention_mask")) is not None:
            for name in (f"{prefix}attention_mask", *names):
                batch[name] = batch[name][:, : int(mask.sum(1).max())]
    return batch
