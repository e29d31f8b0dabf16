"""Stage 1: masked image modeling on images alone; and what BEiT-3's pre-training shares with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlmo.data.examples import Contents
from vlmo.data.masking import BlockMaskConfig
from vlmo.folder.card import Usage
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.tasks.inputs import Reads
from vlmo.tasks.task import Losses, Objective, RunContext, Task
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model import VLMoForMaskedDataModeling, VLMoForMaskedImageModeling
    from vlmo.model.visual_tokenizer import VisualTokenizer


class VisionObjective(Objective):
    """Stage 1: masked image modeling (VLMo, "Stagewise Pre-Training").

    Raises:
        ValueError: The tokenizer has more tokens than the model predicts.
    """

    def __init__(
        self,
        model: VLMoForMaskedImageModeling | VLMoForMaskedDataModeling,
        *,
        tokenizer: VisualTokenizer | _OneToken,
    ) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer
        num_predicted = model.config.num_visual_tokens
        if tokenizer.num_tokens > num_predicted:
            raise ValueError(
                f"The tokenizer has {tokenizer.num_tokens} tokens, the model's head "
                f"{num_predicted} (num_visual_tokens)."
            )

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` (= `mim`) and `mim_accuracy`; reads images and `bool_masked_pos`."""
        pixels = normalize_pixels(batch["pixel_values"])
        masked = batch["bool_masked_pos"]
        head = self.model.mim_head
        # Masked patches alone go through the head: (masked, visual tokens).
        encoded = self.model.vlmo.encode(pixels, wanted=masked, mask_token=head.mask_token)
        logits = head(encoded.tokens)
        tokens = self.tokens(pixels, encoded.positions)
        loss = masked_loss(logits, tokens)
        return {"loss": loss, "mim": loss.detach(), "mim_accuracy": accuracy(logits, tokens)}

    @torch.no_grad()
    def tokens(
        self, pixels: Float[Tensor, "batch 3 height width"], positions: Int[Tensor, "masked"]
    ) -> Int[Tensor, "masked"]:
        """Return the visual tokens of patches by their numbers in the flattened batch."""
        grid = self.model.vlmo.image_embeddings.grid_of(pixels)
        return self.tokenizer.tokenize(pixels, grid=grid).flatten().index_select(0, positions)


class _OneToken:
    # For the dry run, which loads no tokenizer.
    num_tokens = 1

    def tokenize(self, pixels: Tensor, *, grid: tuple[int, int]) -> Tensor:
        height, width = grid
        return torch.zeros(len(pixels), height * width, dtype=torch.long, device=pixels.device)


@dataclass(frozen=True)
class PatchesTask(Task):
    """A task that predicts visual tokens of masked patches.

    Attributes:
        visual_tokenizer: Folder or name of a visual tokenizer: one trained here, BEiT-2's, or
            DALL-E's (`FlavaImageCodebook`).
        masked_share: Share of patches that are masked, in blocks.
    """

    # Makes the losses from the model and the tokenizer.
    losses_of: ClassVar[Callable[..., nn.Module]]
    visual_tokenizer: str
    # BEiT masks 75 of the 14 x 14 patches of an image.
    masked_share: float = 75 / 196

    def __post_init__(self) -> None:
        """Raise ValueError if the masked share is not between 0 and 1."""
        if not 0 < self.masked_share < 1:
            raise ValueError(f"masked_share is {self.masked_share}; give a share between 0 and 1")

    @property
    def targets(self) -> str | None:
        """The visual tokenizer."""
        return self.visual_tokenizer

    def step(self, model: VLMoForMaskedImageModeling) -> nn.Module:
        """Return the loss with a tokenizer that gives all patches the same token."""
        return type(self).losses_of(model, tokenizer=_OneToken())

    def objective(self, run: RunContext) -> nn.Module:
        """Return the losses with the visual tokenizer's tokens."""
        from vlmo.model.visual_tokenizer import load_visual_tokenizer

        # The head gets as many classes as the tokenizer has tokens.
        tokenizer = load_visual_tokenizer(self.visual_tokenizer)
        model = self.build_model(run.model | {"num_visual_tokens": tokenizer.num_tokens})
        run.start(model)
        return type(self).losses_of(model, tokenizer=tokenizer)

    def contents(self, run: RunContext) -> Contents:
        """Return what the task reads, with masks of patches."""
        side = run.model["image_size"] // run.model["patch_size"]
        # Block sizes follow the grid, the number of masked patches the share.
        mask = BlockMaskConfig.for_grid(side, width=side)
        mask = replace(mask, num_masked=round(self.masked_share * side * side))
        return replace(super().contents(run), mask=mask)


class VisionTask(PatchesTask):
    """Stage 1, masked image modeling."""

    name = "vision"
    title = "stage 1, masked image modeling"
    reads = Reads(streams=True)
    architectures = ("VLMoForMaskedImageModeling",)
    usage = Usage(
        "predicts the visual tokens of masked patches; a start for other models (stage 1 does not "
        "train its text side)",
        "image-feature-extraction",
        '"image.png"',
    )
    losses_of = VisionObjective
