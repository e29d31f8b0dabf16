"""The three stages, and fine-tuning for retrieval, as modules: each holds the model and returns named losses."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from vlmo.objectives.chunks import equal_blocks, recomputed, row_blocks
from vlmo.objectives.itc import SamePairs, caption_keys, contrast_logits, itc_loss, own_pairs, same_pairs
from vlmo.objectives.itm import draw_hard_negatives, draws, itm_loss
from vlmo.objectives.mim import mim_loss
from vlmo.objectives.mlm import mlm_loss
from vlmo.objectives.pairs import Negatives, Pairs, WaitingPairs, pad_to_global_length
from vlmo.types import Batch, normalize_pixels


class VisionObjective(nn.Module):
    """Stage 1: predicts visual tokens at masked patches (VLMo, "Stagewise Pre-Training").

    Raises:
        ValueError: The tokenizer has more tokens than the model predicts.
    """

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
        pixels, masked = normalize_pixels(batch["pixel_values"]), batch["bool_masked_pos"]
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
        negative_groups: Groups of equal size, of neighbouring rows, that the global batch is divided into for drawing
            hard negatives: a row's come from its own group. 1 is the paper's way, global negatives; the number of
            processes gives local ones, each process drawing from its own rows.
        negative_sharpness: Hard negatives are drawn by the softmax of ITC's logits times this. 1 is the paper's way; 0
            draws evenly. Softer ones are easier to tell from true pairs, for small data.
        fused_stride: Every n-th row of the global batch takes part in the fused passes (MLM and ITM); 1 = all rows.
        fused_chunk: Pairs that go through the fusion encoder at once, sorted by the length of their captions; None =
            all, or `cache_chunk`. The result is the same; chunks hold less padding, which saves time where they are
            large enough.
        cache_chunk: Pairs that any encoder holds activations of; None = all. The contrast, and the choice of hard
            negatives, are over the whole batch all the same: backward computes each chunk again (a gradient cache).
    """

    itc_weight: float = 1.0
    mlm_weight: float = 0.25
    itm_weight: float = 1.0
    exclude_same: bool = True
    negative_groups: int = 1
    negative_sharpness: float = 1.0
    fused_stride: int = 1
    fused_chunk: int | None = None
    cache_chunk: int | None = None

    def __post_init__(self) -> None:
        """Looks at the values.

        Raises:
            ValueError: A weight or a sharpness is below 0 or no number, all weights are 0, or a count is below 1.
        """
        weights = self.itc_weight, self.mlm_weight, self.itm_weight
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(f"itc_weight, mlm_weight and itm_weight are {weights}; give numbers from 0, not all 0")
        if not 0 <= self.negative_sharpness < math.inf:
            raise ValueError(f"negative_sharpness is {self.negative_sharpness}; give a number from 0 up")
        numbers = self.negative_groups, self.fused_stride, self.fused_chunk, self.cache_chunk
        if any(number is not None and number < 1 for number in numbers):
            raise ValueError(
                f"negative_groups is {self.negative_groups}, fused_stride {self.fused_stride}, fused_chunk "
                f"{self.fused_chunk} and cache_chunk {self.cache_chunk}; give 1 or more (or no chunk)"
            )

    def check_batch(self, rows: int, *, processes: int) -> None:
        """Whether the fused rows and the groups of negatives come out even.

        Args:
            rows: Pairs of a micro-batch on each process.

        Raises:
            ValueError: They do not.
        """
        if rows % self.fused_stride:
            raise ValueError(
                f"fused_stride {self.fused_stride} does not divide the micro-batch of {rows} pairs; choose a divisor."
            )
        if self.itm_weight and rows * processes % self.negative_groups:
            raise ValueError(
                f"negative_groups {self.negative_groups} does not divide the batch of {rows * processes} pairs; choose "
                "a divisor."
            )


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
        config = self.config
        config.check_batch(len(batch["input_ids"]), processes=distributed.world_size())
        batch = pad_to_global_length(batch)
        losses = self._losses(batch) if config.cache_chunk is None else self._cached_losses(batch, config.cache_chunk)
        total = config.itc_weight * losses["itc"]
        total = total + config.mlm_weight * losses.get("mlm", 0.0) + config.itm_weight * losses.get("itm", 0.0)
        temperature = (-self.model.contrast_head.logit_scale.detach()).exp()[0]
        return {"loss": total} | {name: value.detach() for name, value in losses.items()} | {"temperature": temperature}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """All pairs at once."""
        config, backbone, mask = self.config, self.model.vlmo, batch["attention_mask"]
        grid = backbone.image_embeddings.grid_of(batch["pixel_values"])
        image = backbone.embed_image(batch["pixel_values"])
        text = backbone.embed_text(batch["input_ids"])
        embeds = self._embeds(backbone.join(image=image, grid=grid), backbone.join(text=text, attention_mask=mask))
        rows = self._fused_rows(len(image), image.device)
        itc, negatives = self._contrast(embeds, batch, rows)
        losses = {"itc": itc}
        if config.mlm_weight or config.itm_weight:
            words, first = self._fuse(self._fused_groups(batch, image, text, rows, negatives), grid=grid)
            if config.mlm_weight:
                losses |= self._masked_language_losses(words, batch, rows)
            if negatives is not None:
                losses |= self._matching_losses(self._judge(first[-3 * len(rows) :]), negatives)
        return losses

    def _cached_losses(self, batch: Batch, chunk: int) -> dict[str, Tensor]:
        """The same losses, with activations of `chunk` pairs in memory."""
        config, backbone = self.config, self.model.vlmo
        pixels, ids, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
        grid, num_text = backbone.image_embeddings.grid_of(pixels), ids.shape[1]
        image_bias = backbone.make_position_bias(num_text=0, grid=grid)
        text_bias = backbone.make_position_bias(num_text=num_text, grid=None)

        def embeds_of(rows: slice) -> list[tuple[Tensor, Tensor]]:
            image = backbone.embed_image(pixels[rows])
            text = backbone.embed_text(ids[rows])
            return self._embeds(
                backbone.join(image=image, grid=grid, position_bias=image_bias),
                backbone.join(text=text, attention_mask=mask[rows], position_bias=text_bias),
            )

        chunks = [recomputed(embeds_of, part, device=ids.device) for part in equal_blocks(len(ids), size=chunk)]
        embeds = [
            (torch.cat(images), torch.cat(texts))
            for images, texts in (zip(*each, strict=True) for each in zip(*chunks, strict=True))
        ]
        rows = self._fused_rows(len(ids), ids.device)
        itc, negatives = self._contrast(embeds, batch, rows)
        losses = {"itc": itc}
        if not (config.mlm_weight or config.itm_weight):
            return losses
        pair_bias = backbone.make_position_bias(num_text=num_text, grid=grid)

        def fused(pairs: WaitingPairs, judge: Callable[[slice, Tensor, Tensor], Tensor]) -> list[Tensor]:
            def of(rows: slice) -> Tensor:
                return judge(rows, *self._fuse([pairs.embedded(rows, backbone)], grid=grid, position_bias=pair_bias))

            blocks = equal_blocks(len(pairs.ids), size=config.fused_chunk or chunk)
            return [recomputed(of, part, device=ids.device) for part in blocks]

        if config.mlm_weight:
            labels = batch["mlm_labels"][rows]
            pairs = WaitingPairs(batch["mlm_input_ids"][rows], mask[rows], labels != -100, pixels, rows)
            sums = fused(pairs, lambda part, words, _: self._masked_language_sums(words, labels[part]))
            losses |= _means("mlm", torch.stack(sums).sum(0), count=(labels != -100).sum())
        if negatives is not None:
            others, places = distributed.borrow(pixels, negatives.image)
            other_ids, other_mask = self._other_texts(batch, negatives)
            none = torch.zeros_like(mask[rows], dtype=torch.bool)
            groups = [
                WaitingPairs(ids[rows], mask[rows], none, pixels, rows),
                WaitingPairs(ids[rows], mask[rows], none, others, places),
                WaitingPairs(other_ids, other_mask, none, pixels, rows),
            ]
            logits = [part for pairs in groups for part in fused(pairs, lambda _, __, first: self._judge(first))]
            losses |= self._matching_losses(torch.cat(logits), negatives)
        return losses

    def _embeds(self, images: Sequence, texts: Sequence) -> list[tuple[Tensor, Tensor]]:
        """Image and text vectors of each ending."""
        heads = self._contrast_heads()
        endings = [self._endings(sequence, count=len(heads)) for sequence in (images, texts)]
        return [(head.embed_image(i), head.embed_text(t)) for head, i, t in zip(heads, *endings, strict=True)]

    def _contrast(
        self, embeds: list[tuple[Tensor, Tensor]], batch: Batch, rows: Tensor
    ) -> tuple[Tensor, Negatives | None]:
        """Mean ITC loss of the endings, and hard negatives of `rows` if ITM counts."""
        same = self._same(batch)
        keys = [(distributed.gather_with_grad(i), distributed.gather_with_grad(t)) for i, t in embeds]
        losses = [
            itc_loss(i, t, logit_scale=head.logit_scale, same=same if self.config.exclude_same else None, keys=every)
            for head, (i, t), every in zip(self._contrast_heads(), embeds, keys, strict=True)
        ]
        negatives = None
        if self.config.itm_weight:
            uniform = draws(batch["step_seed"], batch=len(batch["input_ids"]), rounds=2)[:, rows]
            (images, texts), (image_keys, text_keys) = embeds[0], keys[0]
            text, text_found = self._draw(images[rows], text_keys, uniform=uniform[0], same=same, rows=rows)
            image, image_found = self._draw(texts[rows], image_keys, uniform=uniform[1], same=same, rows=rows)
            negatives = Negatives(text=text, image=image, text_found=text_found, image_found=image_found)
        return torch.stack(losses).mean(), negatives

    @torch.no_grad()
    def _draw(
        self, queries: Tensor, keys: Tensor, *, uniform: Tensor, same: SamePairs, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One global row for each query, by the first ending's logits, some queries at a time."""
        scale, drawn = self.model.contrast_head.logit_scale, []
        for part in row_blocks(len(queries), width=len(keys)):
            logits = contrast_logits(queries[part], keys, logit_scale=scale) * self.config.negative_sharpness
            excluded = same[rows[part]]
            if self.config.negative_groups > 1:
                first = distributed.rank() * len(same.own)
                excluded = excluded | _of_other_groups(
                    first + rows[part], total=len(keys), groups=self.config.negative_groups
                )
            drawn.append(draw_hard_negatives(logits, excluded=excluded, uniform=uniform[part]))
        chosen, found = zip(*drawn, strict=True)
        return torch.cat(chosen), torch.cat(found)

    def _same(self, batch: Batch) -> SamePairs:
        if self.config.exclude_same:
            return same_pairs(batch["image_ids"], caption_keys(batch["input_ids"], batch["attention_mask"]))
        return own_pairs(len(batch["input_ids"]), device=batch["input_ids"].device)

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
        return torch.arange(0, batch, self.config.fused_stride, device=device)

    def _fused_groups(
        self, batch: Batch, image: Tensor, text: Tensor, rows: Tensor, negatives: Negatives | None
    ) -> list[Pairs]:
        """Pairs for MLM (first, if it counts), then ITM: positives, negative images, negative texts."""
        mask, none = batch["attention_mask"], torch.zeros_like(batch["attention_mask"][rows], dtype=torch.bool)
        new_texts = [batch["mlm_input_ids"][rows]] if self.config.mlm_weight else []
        other_mask = mask[rows]
        if negatives is not None:
            other_ids, other_mask = self._other_texts(batch, negatives)
            new_texts.append(other_ids)
        # Together, since each look-up costs a gradient of the size of the word table.
        embedded = self.model.vlmo.embed_text(torch.cat(new_texts)).split(len(rows))
        groups = []
        if self.config.mlm_weight:
            groups.append(Pairs(embedded[0], mask[rows], image[rows], batch["mlm_labels"][rows] != -100))
        if negatives is not None:
            groups.append(Pairs(text[rows], mask[rows], image[rows], none))
            groups.append(Pairs(text[rows], mask[rows], distributed.exchange(image, negatives.image), none))
            groups.append(Pairs(embedded[-1], other_mask, image[rows], none))
        return groups

    def _other_texts(self, batch: Batch, negatives: Negatives) -> tuple[Tensor, Tensor]:
        """Token ids and masks of the negative texts."""
        texts = torch.stack([batch["input_ids"], batch["attention_mask"]], dim=1)
        ids, mask = distributed.exchange(texts, negatives.text).unbind(1)
        return ids, mask

    def _fuse(
        self, groups: list[Pairs], *, grid: tuple[int, int], position_bias: list[Tensor] | None = None
    ) -> tuple[Float[Tensor, "words dim"], Float[Tensor, "pairs dim"]]:
        """Fused states of the wanted words and of first tokens (before the final norm), in one batch or in chunks.

        Chunks hold captions of like length, and none pads its captions further than its own longest, unless the
        `position_bias` of the whole length is handed in.
        """
        backbone = self.model.vlmo
        text, mask = torch.cat([pairs.text for pairs in groups]), torch.cat([pairs.mask for pairs in groups])
        image = torch.cat([pairs.image for pairs in groups])
        places, filled = wanted_places(torch.cat([pairs.words for pairs in groups]))
        lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)
        rising, order = lengths.sort(stable=True)
        biases: dict[int, list[Tensor] | None] = {}
        states, chunk = [], self.config.fused_chunk or len(text)
        for rows, longest in zip(order.split(chunk), (part[-1] for part in rising.cpu().split(chunk)), strict=True):
            length = int(longest) if position_bias is None else text.shape[1]
            if length not in biases:
                biases[length] = position_bias or backbone.make_position_bias(num_text=length, grid=grid)
            sequence = backbone.join(
                text=text.index_select(0, rows)[:, :length],
                attention_mask=mask[rows, :length],
                image=image.index_select(0, rows),
                grid=grid,
                position_bias=biases[length],
            )
            states.append(backbone.run(sequence, fusion=True, kept=sequence.keep(words=places[rows])))
        kept = torch.cat(states)[order.argsort()]
        return kept[:, 1:][filled], kept[:, 0]

    def _masked_language_losses(
        self, states: Float[Tensor, "masked dim"], batch: Batch, rows: Tensor
    ) -> dict[str, Tensor]:
        """Loss and accuracy of MLM."""
        labels = batch["mlm_labels"][rows]
        return _means("mlm", self._masked_language_sums(states, labels), count=(labels != -100).sum())

    def _masked_language_sums(
        self, states: Float[Tensor, "masked dim"], labels: Int[Tensor, "rows text"]
    ) -> Float[Tensor, "2"]:
        """Sum of the losses of masked tokens, and number of right predictions."""
        assert isinstance(self.model, VLMoForPreTraining)  # others have been refused an mlm_weight
        words = labels[labels != -100]
        logits = self.model.mlm_head(self.model.vlmo.finish(states, modality=LANGUAGE))  # masked positions only
        right = (logits.detach().argmax(dim=-1) == words).float().sum()
        return torch.stack([F.cross_entropy(logits.float(), words, reduction="sum"), right])

    def _judge(self, first: Float[Tensor, "pairs dim"]) -> Float[Tensor, "pairs 2"]:
        """Matching logits from the state of the first token."""
        return self.model.judge(self.model.vlmo.pool_pair(first))

    def _matching_losses(self, logits: Float[Tensor, "pairs 2"], negatives: Negatives) -> dict[str, Tensor]:
        """Loss and accuracy of ITM."""
        labels, valid = negatives.labels, negatives.valid
        return {
            "itm": itm_loss(logits, labels, valid=valid),
            "itm_accuracy": _accuracy(logits[valid], labels[valid]),
        }


def _means(name: str, sums: Float[Tensor, "2"], *, count: Tensor) -> dict[str, Tensor]:
    """Loss and accuracy over all processes, from this one's sums over `count` predictions."""
    loss, right = sums.unbind()
    return {
        name: distributed.global_mean(loss, count.float()),
        f"{name}_accuracy": distributed.global_mean(right.detach(), count.float()),
    }


def _accuracy(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"]) -> Float[Tensor, ""]:
    """Share of right predictions over all processes, for the log."""
    right = (logits.detach().argmax(dim=-1) == labels).float()
    return distributed.global_mean(right.sum(), torch.tensor(float(len(labels)), device=right.device))


def _of_other_groups(rows: Int[Tensor, "rows"], *, total: int, groups: int) -> Bool[Tensor, "rows global"]:
    """True where a global row is not of a row's own group."""
    size = total // groups
    return (rows // size)[:, None] != torch.arange(total, device=rows.device) // size
