"""Image-text pairs on their way to the fusion encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo.model.backbone import VLMoModel
from vlmo.types import Batch


@dataclass(frozen=True)
class Pairs:
    """Embedded pairs that wait for the fusion encoder."""

    text: Float[Tensor, "pairs text dim"]
    mask: Int[Tensor, "pairs text"]
    image: Float[Tensor, "pairs 1+patch dim"]
    words: Bool[Tensor, "pairs text"]
    """Whose states are wanted beside that of the first token."""


@dataclass(frozen=True)
class WaitingPairs:
    """Pairs that are embedded when their turn comes; pair i shows picture `places[i]` of `pictures`."""

    ids: Int[Tensor, "pairs text"]
    mask: Int[Tensor, "pairs text"]
    words: Bool[Tensor, "pairs text"]
    pictures: Tensor
    places: Int[Tensor, "pairs"]

    def embedded(self, rows: slice, backbone: VLMoModel) -> Pairs:
        """Some of them, ready for the fusion encoder."""
        image = backbone.embed_image(self.pictures[self.places[rows]])
        return Pairs(backbone.embed_text(self.ids[rows]), self.mask[rows], image, self.words[rows])


@dataclass(frozen=True)
class Negatives:
    """Global rows of the hard negatives of some own rows, and whether there was any to draw."""

    text: Int[Tensor, "rows"]
    image: Int[Tensor, "rows"]
    text_found: Bool[Tensor, "rows"]
    image_found: Bool[Tensor, "rows"]

    @property
    def labels(self) -> Int[Tensor, "3*rows"]:
        """Of true pairs, pairs with another image and pairs with another text, in this order."""
        return torch.cat([torch.ones_like(self.text), torch.zeros_like(self.image), torch.zeros_like(self.text)])

    @property
    def valid(self) -> Bool[Tensor, "3*rows"]:
        """Which of those pairs count."""
        return torch.cat([torch.ones_like(self.image_found), self.image_found, self.text_found])


def pad_to_global_length(batch: Batch) -> Batch:
    """Pads texts to the longest of all processes, so that exchanged texts fit (padding changes no result)."""
    length = batch["input_ids"].shape[1]
    longest = int(distributed.all_reduce(torch.tensor(length, device=batch["input_ids"].device), op="max"))
    if longest == length:
        return batch
    missing = (0, longest - length)
    padded = batch.copy()
    padded["input_ids"] = F.pad(batch["input_ids"], missing)
    padded["attention_mask"] = F.pad(batch["attention_mask"], missing)
    if "mlm_labels" in batch:
        padded["mlm_input_ids"] = F.pad(batch["mlm_input_ids"], missing)
        padded["mlm_labels"] = F.pad(batch["mlm_labels"], missing, value=-100)
    return padded
