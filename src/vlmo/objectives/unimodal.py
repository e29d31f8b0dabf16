"""Objectives of one modality: the visual tokenizer, stage 1 (MIM on images) and stage 2 (MLM on texts)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo import distributed
from vlmo import model as models
from vlmo.model.sequence import LANGUAGE, masked_positions
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model import VLMoForMaskedImageModeling, VLMoForMaskedLM, VQVisualTokenizer
    from vlmo.model.visual_tokenizer import VisualTokenizer


class VisualTokenizerObjective(nn.Module):
    """Reconstruction of images from their visual tokens (VQ-VAE, "Learning")."""

    def __init__(self, model: VQVisualTokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its parts `reconstruction` and `commitment`, and `perplexity`; reads `pixel_values`."""
        output = self.model(batch["pixel_values"])
        return {
            "loss": output.reconstruction_loss + output.commitment_loss,
            "reconstruction": output.reconstruction_loss.detach(),
            "commitment": output.commitment_loss.detach(),
            "perplexity": output.perplexity,
        }


class VisionObjective(nn.Module):
    """Stage 1: masked image modelling (VLMo, "Stagewise Pre-Training"); ValueError for more tokens than it predicts."""

    def __init__(self, model: VLMoForMaskedImageModeling, *, tokenizer: VisualTokenizer) -> None:
        super().__init__()
        if tokenizer.num_tokens > model.config.num_visual_tokens:
            found, expected = tokenizer.num_tokens, model.config.num_visual_tokens
            raise ValueError(f"The tokenizer has {found} tokens, the model's head {expected} (num_visual_tokens).")
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `mim`) and `mim_accuracy`; reads `pixel_values` and `bool_masked_pos`."""
        pixels, masked = normalize_pixels(batch["pixel_values"]), batch["bool_masked_pos"]
        grid = self.model.vlmo.image_embeddings.grid_of(pixels)
        with torch.no_grad():
            tokens = self.tokenizer.tokenize(pixels, grid=grid)[masked]
        logits = self.model.mim_head(self.model.encode(pixels, bool_masked_pos=masked, only_masked=True))
        loss = masked_loss(logits, tokens)
        return {"loss": loss, "mim": loss.detach(), "mim_accuracy": accuracy(logits, tokens)}


class LanguageObjective(nn.Module):
    """Stage 2: masked language modelling with attention and vision experts frozen (VLMo, "Stagewise Pre-Training")."""

    def __init__(self, model: VLMoForMaskedLM, *, freeze: bool = True) -> None:
        super().__init__()
        self.model = model
        if freeze:
            model.requires_grad_(requires_grad=False)
            for parameter in [*models.language_stage_parameters(model), *model.mlm_head.parameters()]:
                parameter.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` (= `mlm`) and `mlm_accuracy`; reads `mlm_input_ids`, `attention_mask` and `mlm_labels`."""
        backbone, masked = self.model.vlmo, batch["mlm_labels"] != -100
        sequence = backbone.embed(input_ids=batch["mlm_input_ids"], attention_mask=batch["attention_mask"])
        positions, filled = masked_positions(masked)
        states = backbone.run(sequence, fusion=False, queries=sequence.queries(words=positions))[:, 1:][filled]
        labels = batch["mlm_labels"][masked]
        logits = self.model.mlm_head(backbone.finish(states, modality=LANGUAGE))
        loss = masked_loss(logits, labels)
        return {"loss": loss, "mlm": loss.detach(), "mlm_accuracy": accuracy(logits, labels)}


def masked_loss(logits: Float[Tensor, "masked vocab"], labels: Int[Tensor, "masked"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats over the masked positions of all processes.

    Masked words (VLMo, "Masked Language Modeling") or visual tokens of masked patches (BEiT, "Pre-Training: Masked
    Image Modeling").
    """
    count = torch.tensor(float(len(labels)), device=logits.device)
    return distributed.global_mean(F.cross_entropy(logits.float(), labels, reduction="sum"), count)


def accuracy(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]) -> Float[Tensor, ""]:
    """Share of right predictions over all processes, for the log."""
    right = (logits.detach().argmax(dim=-1) == labels).float()
    return distributed.global_mean(right.sum(), torch.tensor(float(len(labels)), device=right.device))
