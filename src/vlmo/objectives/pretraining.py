"""The three stages, and fine-tuning for retrieval, as modules: each holds the model and returns named losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo import distributed
from vlmo.model import (
    VLMoForImageTextRetrieval,
    VLMoForMaskedImageModeling,
    VLMoForMaskedLM,
    VLMoForPreTraining,
    language_stage_parameters,
)
from vlmo.model.backbone import Sequence
from vlmo.model.heads import ContrastHead
from vlmo.model.multiway import LANGUAGE, VISION, wanted_places
from vlmo.model.visual_tokenizer import VisualTokenizer
from vlmo.objectives.itc import caption_keys, contrast_logits, itc_loss, same_pairs
from vlmo.objectives.itm import draw_hard_negatives, draws, itm_loss
from vlmo.objectives.mim import mim_loss
from vlmo.objectives.mlm import mlm_loss
from vlmo.types import Batch


class VisionObjective(nn.Module):
    """Stage 1: predicts visual tokens at masked patches (VLMo, "Stagewise Pre-Training")."""

    def __init__(self, model: VLMoForMaskedImageModeling, *, tokenizer: VisualTokenizer) -> None:
        super().__init__()
        if tokenizer.num_tokens > model.config.num_visual_tokens:
            raise ValueError(
                f"The visual tokenizer has {tokenizer.num_tokens} tokens, the model's head "
                f"{model.config.num_visual_tokens}; set the model's num_visual_tokens to the former."
            )
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses `loss` (= `mim`) and `mim_accuracy`; reads `pixel_values` and `bool_masked_pos`."""
        pixels, masked = batch["pixel_values"], batch["bool_masked_pos"]
        grid = self.model.vlmo.image_embeddings.grid_of(pixels)
        with torch.no_grad():
            tokens = self.tokenizer.tokenize(pixels, grid=grid)[masked]
        logits = self.model.mim_head(self.model.encode_masked(pixels, bool_masked_pos=masked))
        loss = mim_loss(logits, tokens)
        return {"loss": loss, "mim": loss.detach(), "mim_accuracy": _accuracy(logits, tokens)}


class LanguageObjective(nn.Module):
    """Stage 2: predicts masked words with attention and vision experts frozen (VLMo, "Stagewise Pre-Training")."""

    def __init__(self, model: VLMoForMaskedLM, *, freeze: bool = True) -> None:
        super().__init__()
        self.model = model
        if freeze:
            model.requires_grad_(requires_grad=False)
            for parameter in [*language_stage_parameters(model), *model.mlm_head.parameters()]:
                parameter.requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses `loss` (= `mlm`) and `mlm_accuracy`; reads `mlm_input_ids`, `attention_mask`, `mlm_labels`."""
        backbone, chosen = self.model.vlmo, batch["mlm_labels"] != -100
        text = backbone.embed_text(batch["mlm_input_ids"])
        sequence = backbone.join(text=text, attention_mask=batch["attention_mask"])
        places, filled = wanted_places(chosen)
        states = backbone.run(sequence, fusion=False, kept=sequence.keep(words=places))[:, 1:][filled]
        labels = batch["mlm_labels"][chosen]
        logits = self.model.mlm_head(backbone.finish(states, modality=LANGUAGE))
        loss = mlm_loss(logits, labels)
        return {"loss": loss, "mlm": loss.detach(), "mlm_accuracy": _accuracy(logits, labels)}


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Weights and switches of stage 3.

    Attributes:
        mlm_weight: 0.25 in the published code; a weight of 0 leaves the passes out.
        exclude_same: Rows that share a picture or a caption are never each other's negatives.
        local_negatives: Draw hard negatives from the process's own rows only (an ablation of the paper).
        negative_sharpness: Hard negatives are drawn by the softmax of ITC's logits times this. 1 is the paper's way; 0
            draws evenly, which small data need to learn any matching at all.
        fused_stride: Every n-th row of the global batch takes part in the fused passes (MLM and ITM); 1 = all rows.
        fused_chunk: Pairs that go through the fusion encoder at once, sorted by the length of their captions; None =
            all. The result is the same; chunks hold less padding, which saves time where they are large enough.
    """

    itc_weight: float = 1.0
    mlm_weight: float = 0.25
    itm_weight: float = 1.0
    exclude_same: bool = True
    local_negatives: bool = False
    negative_sharpness: float = 1.0
    fused_stride: int = 1
    fused_chunk: int | None = None

    def __post_init__(self) -> None:
        weights = self.itc_weight, self.mlm_weight, self.itm_weight
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(f"itc_weight, mlm_weight and itm_weight are {weights}; give numbers from 0, not all 0")
        if not 0 <= self.negative_sharpness < math.inf:
            raise ValueError(f"negative_sharpness is {self.negative_sharpness}; give a number from 0 up")
        if self.fused_stride < 1 or (self.fused_chunk is not None and self.fused_chunk < 1):
            raise ValueError(
                f"fused_stride is {self.fused_stride} and fused_chunk {self.fused_chunk}; give 1 or more (or no chunk)"
            )


@dataclass(frozen=True)
class _Pairs:
    """Embedded pairs that wait for the fusion encoder."""

    text: Float[Tensor, "pairs text dim"]
    mask: Int[Tensor, "pairs text"]
    image: Float[Tensor, "pairs 1+patch dim"]
    words: Bool[Tensor, "pairs text"]
    """Whose states are wanted beside that of the first token."""


class VisionLanguageObjective(nn.Module):
    """Image-text contrast, masked language modelling and matching with global hard negatives.

    On `VLMoForPreTraining` this is stage 3. On `VLMoForImageTextRetrieval` it is fine-tuning for retrieval: contrast of
    the first ending, which is what the dual encoder embeds with, and matching if there is a head for it.

    Raises:
        ValueError: A loss has a weight, but the model lacks its head.
    """

    def __init__(
        self, model: VLMoForPreTraining | VLMoForImageTextRetrieval, *, config: VisionLanguageConfig | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config or VisionLanguageConfig()
        if self.config.mlm_weight and not isinstance(model, VLMoForPreTraining):
            raise ValueError(
                f"mlm_weight is {self.config.mlm_weight}, but {type(model).__name__} has no head for words; set the "
                "weight to 0."
            )
        if self.config.itm_weight and model.match_head is None:
            raise ValueError(
                f"itm_weight is {self.config.itm_weight}, but the model has no matching head (use_match_head is "
                "False); set the weight to 0, or use_match_head to True."
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts `itc`, `mlm`, `itm`, with accuracies; reads pairs, masked captions and `step_seed`."""
        config, backbone = self.config, self.model.vlmo
        batch = _pad_to_global_length(batch)
        grid = backbone.image_embeddings.grid_of(batch["pixel_values"])
        image = backbone.embed_image(batch["pixel_values"])
        text = backbone.embed_text(batch["input_ids"])
        same = self._same(batch)
        itc, logits_per_image, logits_per_text = self._contrast(image, text, batch, grid=grid, same=same)
        losses = {"itc": itc}
        if config.mlm_weight or config.itm_weight:
            rows = self._fused_rows(len(image), image.device)
            groups, labels, valid = self._fused_groups(
                batch, image, text, rows, same=same, logits=(logits_per_image, logits_per_text)
            )
            words, first = self._fuse(groups, grid=grid)
            if self.config.mlm_weight:
                losses |= self._masked_language_losses(words, batch, rows)
            if self.config.itm_weight:
                losses |= self._matching_losses(first[-len(labels) :], labels=labels, valid=valid)
        total = config.itc_weight * losses["itc"]
        total = total + config.mlm_weight * losses.get("mlm", 0.0) + config.itm_weight * losses.get("itm", 0.0)
        temperature = (-self.model.contrast_head.logit_scale.detach()).exp()[0]
        return {"loss": total} | {name: value.detach() for name, value in losses.items()} | {"temperature": temperature}

    def _same(self, batch: Batch) -> Bool[Tensor, "batch global"]:
        if self.config.exclude_same:
            return same_pairs(batch["image_ids"], caption_keys(batch["input_ids"], batch["attention_mask"]))
        own = torch.arange(len(batch["input_ids"]), device=batch["input_ids"].device)
        own = own + distributed.rank() * len(own)
        return own[:, None] == torch.arange(len(own) * distributed.world_size(), device=own.device)

    def _contrast(
        self, image: Tensor, text: Tensor, batch: Batch, *, grid: tuple[int, int], same: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ITC loss of the endings, and the first ending's logits (no gradient) for drawing negatives."""
        backbone = self.model.vlmo
        heads = self._contrast_heads()
        images = self._endings(backbone.join(image=image, grid=grid), count=len(heads))
        texts = self._endings(backbone.join(text=text, attention_mask=batch["attention_mask"]), count=len(heads))
        embeds = [(head.embed_image(i), head.embed_text(t)) for head, i, t in zip(heads, images, texts, strict=True)]
        losses = [
            itc_loss(i, t, logit_scale=head.logit_scale, same=same if self.config.exclude_same else None)
            for head, (i, t) in zip(heads, embeds, strict=True)
        ]
        with torch.no_grad():
            image_embeds, text_embeds = embeds[0]
            scale = heads[0].logit_scale
            per_image = contrast_logits(image_embeds, distributed.gather(text_embeds), logit_scale=scale)
            per_text = contrast_logits(text_embeds, distributed.gather(image_embeds), logit_scale=scale)
        return torch.stack(losses).mean(), per_image, per_text

    def _contrast_heads(self) -> list[ContrastHead]:
        """The head of each ending of ITC."""
        second = self.model.fusion_contrast_head if isinstance(self.model, VLMoForPreTraining) else None
        return [self.model.contrast_head] if second is None else [self.model.contrast_head, second]

    def _endings(self, sequence: Sequence, *, count: int) -> list[Float[Tensor, "batch dim"]]:
        """First token after each ending; the blocks of a second one are not run where there is no head for it."""
        backbone = self.model.vlmo
        if count > 1:
            return backbone.contrast_endings(sequence)
        modality = LANGUAGE if sequence.num_text else VISION
        return [backbone.finish(backbone.run_to_first(sequence, fusion=False), modality=modality)]

    def _fused_rows(self, batch: int, device: torch.device) -> Int[Tensor, "rows"]:
        stride = self.config.fused_stride
        if batch % stride:
            raise ValueError(
                f"fused_stride {stride} does not divide the micro-batch of {batch} pairs; choose a divisor."
            )
        return torch.arange(0, batch, stride, device=device)

    def _fused_groups(
        self,
        batch: Batch,
        image: Tensor,
        text: Tensor,
        rows: Tensor,
        *,
        same: Tensor,
        logits: tuple[Tensor, Tensor],
    ) -> tuple[list[_Pairs], Tensor, Tensor]:
        """Pairs for MLM (first, if it counts), then ITM: positives, negative images, negative texts."""
        backbone, mask = self.model.vlmo, batch["attention_mask"]
        groups, none = [], torch.zeros_like(mask[rows], dtype=torch.bool)
        if self.config.mlm_weight:
            masked_text = backbone.embed_text(batch["mlm_input_ids"][rows])
            groups.append(_Pairs(masked_text, mask[rows], image[rows], batch["mlm_labels"][rows] != -100))
        labels = valid = torch.empty(0, device=image.device)
        if self.config.itm_weight:
            uniform = draws(batch["step_seed"], batch=len(image), rounds=2)
            excluded = same if not self.config.local_negatives else same | ~_local(same)
            per_image, per_text = (part[rows] * self.config.negative_sharpness for part in logits)
            negative_text, text_found = draw_hard_negatives(
                per_image, excluded=excluded[rows], uniform=uniform[0, rows]
            )
            negative_image, image_found = draw_hard_negatives(
                per_text, excluded=excluded[rows], uniform=uniform[1, rows]
            )
            other_image = distributed.exchange(image, negative_image)
            other_ids, other_mask = distributed.exchange(
                torch.stack([batch["input_ids"], mask], dim=1), negative_text
            ).unbind(1)
            groups.append(_Pairs(text[rows], mask[rows], image[rows], none))
            groups.append(_Pairs(text[rows], mask[rows], other_image, none))
            groups.append(_Pairs(backbone.embed_text(other_ids), other_mask, image[rows], none))
            labels = torch.ones(3 * len(rows), dtype=torch.long, device=image.device)
            labels[len(rows) :] = 0
            valid = torch.cat([torch.ones_like(image_found), image_found, text_found])
        return groups, labels, valid

    def _fuse(
        self, groups: list[_Pairs], *, grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "words dim"], Float[Tensor, "pairs dim"]]:
        """Fused states of the wanted words and of first tokens (before the final norm), in one batch or in chunks.

        Chunks hold captions of like length, and none pads its captions further than its own longest.
        """
        backbone = self.model.vlmo
        text, mask = torch.cat([pairs.text for pairs in groups]), torch.cat([pairs.mask for pairs in groups])
        image = torch.cat([pairs.image for pairs in groups])
        places, filled = wanted_places(torch.cat([pairs.words for pairs in groups]))
        lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
        rising, order = lengths.sort(stable=True)
        position_bias: dict[int, list[Tensor] | None] = {}
        states, chunk = [], self.config.fused_chunk or len(text)
        for rows, longest in zip(order.split(chunk), (part[-1] for part in rising.cpu().split(chunk)), strict=True):
            length = int(longest)
            if length not in position_bias:
                position_bias[length] = backbone.make_position_bias(num_text=length, grid=grid)
            sequence = backbone.join(
                text=text.index_select(0, rows)[:, :length],
                attention_mask=mask[rows, :length],
                image=image.index_select(0, rows),
                grid=grid,
                position_bias=position_bias[length],
            )
            states.append(backbone.run(sequence, fusion=True, kept=sequence.keep(words=places[rows])))
        kept = torch.cat(states)[order.argsort()]
        return kept[:, 1:][filled], kept[:, 0]

    def _masked_language_losses(
        self, states: Float[Tensor, "masked dim"], batch: Batch, rows: Tensor
    ) -> dict[str, Tensor]:
        """Loss and accuracy of MLM."""
        assert isinstance(self.model, VLMoForPreTraining)  # others have been refused an mlm_weight
        labels = batch["mlm_labels"][rows]
        words = labels[labels != -100]
        logits = self.model.mlm_head(self.model.vlmo.finish(states, modality=LANGUAGE))  # masked positions only
        return {"mlm": mlm_loss(logits, words), "mlm_accuracy": _accuracy(logits, words)}

    def _matching_losses(
        self, first: Float[Tensor, "pairs dim"], *, labels: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Loss and accuracy of ITM."""
        logits = self.model.judge(self.model.vlmo.pool_pair(first))
        return {
            "itm": itm_loss(logits, labels, valid=valid),
            "itm_accuracy": _accuracy(logits[valid], labels[valid]),
        }


def _accuracy(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]) -> Float[Tensor, ""]:
    """Share of right predictions over all processes, for the log."""
    right = (logits.detach().argmax(dim=-1) == labels).float()
    return distributed.global_mean(right.sum(), torch.tensor(float(len(labels)), device=right.device))


def _local(same: Bool[Tensor, "batch global"]) -> Bool[Tensor, "global"]:
    """True for global rows that live on this process."""
    own = torch.zeros(same.shape[1], dtype=torch.bool, device=same.device)
    start = distributed.rank() * same.shape[0]
    own[start : start + same.shape[0]] = True
    return own


def _pad_to_global_length(batch: Batch) -> Batch:
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
