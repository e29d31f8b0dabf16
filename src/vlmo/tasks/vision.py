"""Stage 1: masked image modeling on images alone; and what BEiT-3's pre-training shares with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlmo.data.examples import Contents
from vlmo.data.masking import BlockMaskConfig
from vlmo.folder.card import Usage
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.tasks.inputs import Reads
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model import VLMoForMaskedImageModeling
    from vlmo.model.visual_tokenizer import VisualTokenizer


class VisionObjective(nn.Module):
    """Stage 1: masked image modeling (VLMo, "Stagewise Pre-Training"); ValueError for more tokens than it predicts."""

    def __init__(
        self, model: VLMoForMaskedImageModeling, *, tokenizer: VisualTokenizer | _OneToken
    ) -> None:
        super().__init__()
        if tokenizer.num_tokens > model.config.num_visual_tokens:
            found = tokenizer.num_tokens
            expected = model.config.num_visual_tokens
            raise ValueError(
                f"The tokenizer has {found} tokens, the model's head {expected} (num_visual_tokens)."
            )
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `mim`) and `mim_accuracy`; reads `pixel_values` and `bool_masked_pos`."""
        pixels = normalize_pixels(batch["pixel_values"])
        masked = batch["bool_masked_pos"]
        tokens = self.tokens(pixels, masked)
        head = self.model.mim_head
        encoded = self.model.vlmo.encode(pixels, wanted=masked, mask_token=head.mask_token)
        logits = head(encoded.tokens)
        loss = masked_loss(logits, tokens)
        return {"loss": loss, "mim": loss.detach(), "mim_accuracy": accuracy(logits, tokens)}

    @torch.no_grad()
    def tokens(
        self, pixels: Float[Tensor, "batch 3 height width"], masked: Bool[Tensor, "batch patch"]
    ) -> Int[Tensor, "masked"]:
        """Return the visual tokens of masked patches."""
        return self.tokenizer.tokenize(
            pixels, grid=self.model.vlmo.image_embeddings.grid_of(pixels)
        )[masked]


class _OneToken:
    num_tokens = 1

    def tokenize(self, pixels: Tensor, *, grid: tuple[int, int]) -> Tensor:
        return torch.zeros(len(pixels), grid[0] * grid[1], dtype=torch.long, device=pixels.device)


@dataclass(frozen=True)
class PatchesTask(Task):
    """A task that predicts visual tokens of masked patches."""

    losses_of: ClassVar[Callable[..., nn.Module]]  # from the model and the tokenizer
    visual_tokenizer: str
    """Folder or name of a visual tokenizer: one trained here, BEiT-2's, or DALL-E's (`FlavaImageCodebook`)."""
    masked_share: float = 75 / 196
    """Share of patches that are masked, in blocks."""

    def __post_init__(self) -> None:
        """Raise ValueError if the masked share is not between 0 and 1."""
        if not 0 < self.masked_share < 1:
            raise ValueError(f"masked_share is {self.masked_share}; give a share between 0 and 1")

    @property
    def targets(self) -> str | None:
        """The visual tokenizer."""
        return self.visual_tokenizer

    def step(self, model: Any) -> nn.Module:
        """Return the loss with a tokenizer that gives each patch the same token."""
        return type(self).losses_of(model, tokenizer=_OneToken())

    def objective(self, run: RunContext) -> nn.Module:
        """Return the losses with the visual tokenizer's tokens."""
        from vlmo.model.visual_tokenizer import load_visual_tokenizer

        tokenizer = load_visual_tokenizer(self.visual_tokenizer)
        model = self.build_model(run.model | {"num_visual_tokens": tokenizer.num_tokens})
        run.start(model)
        return type(self).losses_of(model, tokenizer=tokenizer)

    def contents(self, run: RunContext) -> Contents:
        """Return what the task reads, with masks of patches."""
        side = run.model["image_size"] // run.model["patch_size"]
        mask = replace(
            BlockMaskConfig.for_grid(side, width=side),
            num_masked=round(self.masked_share * side * side),
        )
        return replace(super().contents(run), mask=mask)


@dataclass(frozen=True)
class VisionTask(PatchesTask):
    """Stage 1, masked image modeling."""

    name: ClassVar[str] = "vision"
    title: ClassVar[str] = "stage 1, masked image modeling"
    reads = Reads(streams=True)
    architectures = ("VLMoForMaskedImageModeling",)
    usage: ClassVar[Usage | None] = Usage(
        "predicts the visual tokens of masked patches; a start for other models (stage 1 does not train its text side)",
        "image-feature-extraction",
        '"image.png"',
    )
    losses_of = VisionObjective
