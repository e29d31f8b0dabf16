"""Stage 3: contrast, hard negatives, matching and masked words; shared with retrieval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlmo import distributed
from vlmo import model as models
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.examples import RowExamples
from vlmo.data.masking import IGNORED
from vlmo.data.rows import false_captions
from vlmo.distributed import gather_with_grad, global_mean
from vlmo.folder.card import Usage
from vlmo.losses.distillation import distillation_loss
from vlmo.losses.gradient_cache import cached, row_slices
from vlmo.losses.itc import FalseCaptions, SamePairs, caption_keys, itc_loss, own_pairs, same_pairs
from vlmo.losses.itm import FusedPairs, itm_loss, itm_pairs, join_pairs, mlm_pairs, sample_negatives
from vlmo.tasks.inputs import Reads
from vlmo.tasks.pair_sets import PairSet
from vlmo.tasks.task import Losses, Objective, RunContext, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining

RETRIEVAL_PIPELINE = (
    "zero-shot-image-classification",
    '"image.png", candidate_labels=["a red heart", "a sailing boat"]',
)
# Losses that have a weight, in the order in which they are summed.
_PARTS = ("itc", "teacher", "mlm", "itm")
_TEXT_TENSORS = (
    "input_ids",
    "attention_mask",
    "false_input_ids",
    "false_attention_mask",
    "mlm_input_ids",
    "mlm_labels",
)


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Weights and switches of stage 3.

    Attributes:
        mlm_weight: 0.25 in the published code; a weight of 0 leaves the passes out.
        exclude_same: Rows that share an image or a caption are never negatives of one another.
        itc_false_captions: A row's false caption, if the data have one, is a further negative of
            its image in ITC.
        negative_groups: Groups of equal size, of neighboring rows, that the global batch is divided
            into for sampling hard negatives: a row's come from its own group. 1, as in the paper,
            gives global negatives; the number of processes gives local ones, from a process's own
            rows.
        negative_sharpness: Hard negatives are sampled by the softmax of ITC's logits times this. 1
            as in the paper; 0 samples evenly. Softer ones are easier to tell from true pairs, for
            small data.
        negatives: Negative images, and negative texts, of a true pair in ITM; 1 in the paper.
        mlm_stride: Every n-th row of the batch takes part in MLM; 1 = all rows.
        itm_stride: Every n-th row of the batch takes part in ITM; 1 = all rows.
        teacher_weight: Of the distance to a teacher's vectors (`distillation_loss`), if there is
            one.
        cache_chunk: Pairs that any encoder holds activations of; None = all. The contrast, and the
            choice of hard negatives, are over the whole batch all the same: backward computes the
            chunks again (a gradient cache).
    """

    itc_weight: float = 1.0
    mlm_weight: float = 0.25
    itm_weight: float = 1.0
    exclude_same: bool = True
    itc_false_captions: bool = False
    negative_groups: int = 1
    negative_sharpness: float = 1.0
    negatives: int = 1
    mlm_stride: int = 1
    itm_stride: int = 1
    teacher_weight: float = 4.0
    cache_chunk: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if a number is too small or none, or all weights are 0."""
        if not (self.itc_weight or self.mlm_weight or self.itm_weight):
            raise ValueError("itc_weight, mlm_weight and itm_weight are all 0; give one a weight")
        for name in (
            "itc_weight",
            "mlm_weight",
            "itm_weight",
            "teacher_weight",
            "negative_sharpness",
        ):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; give a number from 0 up")
        for name in ("negative_groups", "negatives", "mlm_stride", "itm_stride", "cache_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give 1 or more")

    def check_batch(self, micro_batch: int, *, processes: int) -> None:
        """Raise ValueError if a micro-batch of this many pairs does not fit strides and groups."""
        # Else processes and micro-batches would have different numbers of rows.
        for name in ("mlm_stride", "itm_stride"):
            stride = getattr(self, name)
            if micro_batch % stride:
                raise ValueError(
                    f"{name} {stride} does not divide the micro-batch of {micro_batch} pairs."
                )
        # Groups divide the rows of all processes.
        batch = micro_batch * processes
        if self.itm_weight and batch % self.negative_groups:
            raise ValueError(
                f"negative_groups {self.negative_groups} does not divide the batch of "
                f"{batch} pairs."
            )


class VisionLanguageObjective(Objective):
    """Image-text contrast, masked language modeling and matching with global hard negatives.

    On `VLMoForPreTraining` this is stage 3. On `VLMoForImageTextRetrieval` it is fine-tuning for
    retrieval: contrast of the unimodal branch, which the dual encoder embeds with, and matching if
    there is a head for it. With a frozen `teacher`, the vectors of this branch also learn to be the
    teacher's.

    Raises:
        ValueError: A loss has a weight, but the model lacks its head.
    """

    def __init__(
        self,
        model: VLMoForPreTraining | VLMoForImageTextRetrieval,
        *,
        config: VisionLanguageConfig | None = None,
        teacher: VLMoForImageTextRetrieval | None = None,
    ) -> None:
        super().__init__(model)
        config = config or VisionLanguageConfig()
        self.config = config
        self.teacher = teacher
        if config.mlm_weight and not isinstance(model, models.VLMoForPreTraining):
            raise ValueError(
                f"mlm_weight is {config.mlm_weight}, but {type(model).__name__} has no head for "
                "words; set the weight to 0."
            )
        if config.itm_weight and model.match_head is None:
            raise ValueError(
                f"itm_weight is {config.itm_weight}, but the model has no matching head; "
                "set use_match_head to True."
            )
        # Whole batches at once, or in chunks that are computed again in the backward pass.
        self.encode_images = cached(model.image_vectors, size=config.cache_chunk)
        self.encode_texts = cached(model.text_vectors, size=config.cache_chunk)
        self.fuse = cached(self._fuse, size=config.cache_chunk)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's)
        """Set the mode of the model; a teacher never drops anything."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` and its parts `itc`, `teacher`, `mlm`, `itm`, with accuracies.

        The batch holds images, captions, masked captions and `step_seed`. False captions, if there
        are any, are negatives of ITM and, with `itc_false_captions`, of ITC; empty ones are none.
        """
        config = self.config
        config.check_batch(len(batch["input_ids"]), processes=distributed.world_size())
        batch = _pad_to_global_length(batch)
        pixels = batch["pixel_values"]
        losses: Losses = {}
        pairs: list[FusedPairs] = []

        if config.mlm_weight:
            rows = torch.arange(0, len(pixels), config.mlm_stride, device=pixels.device)
            pairs.append(mlm_pairs(batch, rows=rows))

        # Matching needs contrast too, whose similarities choose its hard negatives.
        if config.itc_weight or config.itm_weight or self.teacher is not None:
            same = self._same_pairs(batch)
            # By branch, the unimodal one first: images and texts, each (batch, dim).
            image_vectors = self.encode_images(pixels)
            text_vectors = self.encode_texts(batch["input_ids"], batch["attention_mask"])
            vectors = list(zip(image_vectors, text_vectors, strict=True))
            # Those of all processes: (global, dim).
            keys = [
                (gather_with_grad(images), gather_with_grad(texts)) for images, texts in vectors
            ]
            if config.itc_weight:
                losses["itc"] = self._itc_loss(batch, vectors, keys, same=same)
            if self.teacher is not None:
                losses["teacher"] = self._distillation_loss(batch, vectors[0], same=same)
            if config.itm_weight:
                pixels, matching = self._matching_pairs(batch, vectors[0], keys[0], same=same)
                pairs.append(matching)

        # Masked language modeling and image-text matching in one pass of the fusion encoder.
        if pairs:
            losses |= self._fusion_losses(join_pairs(pairs), pixels=pixels)
        return self._with_total(losses)

    def _with_total(self, losses: Losses) -> Losses:
        """Return the weighted sum of the losses as `loss`, beside the losses and temperature."""
        weights = {name: getattr(self.config, f"{name}_weight") for name in _PARTS}
        weighted = [weights[name] * losses[name] for name in _PARTS if name in losses]
        metrics = {name: value.detach() for name, value in losses.items()}
        metrics["temperature"] = (-self.model.contrast_head.logit_scale.detach()).exp()[0]
        return {"loss": torch.stack(weighted).sum(), **metrics}

    def _same_pairs(self, batch: Batch) -> SamePairs:
        input_ids = batch["input_ids"]
        if not self.config.exclude_same:
            return own_pairs(len(input_ids), device=input_ids.device)
        return same_pairs(batch["image_ids"], caption_keys(input_ids, batch["attention_mask"]))

    def _itc_loss(
        self,
        batch: Batch,
        vectors: list[tuple[Tensor, Tensor]],
        keys: list[tuple[Tensor, Tensor]],
        *,
        same: SamePairs,
    ) -> Float[Tensor, ""]:
        """Return the mean of ITC's loss over its branches, which have `vectors` and `keys`."""
        false_captions = self._false_captions(batch)
        # The published code has a second branch, through the vision-language experts.
        branch_losses = []
        for branch, head in enumerate(self.model.contrast_heads):
            images, texts = vectors[branch]
            branch_loss = itc_loss(
                images,
                texts,
                logit_scale=head.logit_scale,
                same=same,
                keys=keys[branch],
                false_captions=false_captions[branch],
            )
            branch_losses.append(branch_loss)
        return torch.stack(branch_losses).mean()

    def _false_captions(self, batch: Batch) -> list[FalseCaptions | None]:
        """Return the false captions of the batch by branch; None where ITC reads none."""
        if not self.config.itc_false_captions or "false_input_ids" not in batch:
            return [None] * len(self.model.contrast_heads)
        input_ids = batch["false_input_ids"]
        attention_mask = batch["false_attention_mask"]
        valid = attention_mask.any(dim=1)
        # Rows without a false caption are left out, but processes must encode equally many texts,
        # and so chunks: as many as the process with the most.
        num_encoded = max(1, int(distributed.all_reduce(valid.sum(), op="max")))
        rows = valid.int().argsort(descending=True, stable=True)[:num_encoded]
        # A row that fills up attends to its first token.
        attention_mask = attention_mask.clone()
        attention_mask[:, 0] |= ~valid
        false_captions: list[FalseCaptions | None] = []
        for embeds in self.encode_texts(input_ids[rows], attention_mask[rows]):
            all_rows = embeds.new_zeros(len(input_ids), embeds.shape[1])
            false_captions.append(FalseCaptions(all_rows.index_copy(0, rows, embeds), valid))
        return false_captions

    def _distillation_loss(
        self, batch: Batch, vectors: tuple[Tensor, Tensor], *, same: SamePairs
    ) -> Float[Tensor, ""]:
        teacher = self.teacher
        assert teacher is not None  # its caller asks
        input_ids = batch["input_ids"]
        attention_mask = batch["attention_mask"]
        # As many pairs at a time as the student encodes, for the same memory.
        slices = row_slices(len(input_ids), size=self.config.cache_chunk or len(input_ids))
        with torch.no_grad():
            images = [teacher.get_image_features(batch["pixel_values"][rows]) for rows in slices]
            texts = [
                teacher.get_text_features(input_ids[rows], attention_mask[rows]) for rows in slices
            ]
        targets = torch.cat(images), torch.cat(texts)
        logit_scale = teacher.contrast_head.logit_scale
        return distillation_loss(vectors, targets, logit_scale=logit_scale, same=same)

    def _matching_pairs(
        self,
        batch: Batch,
        vectors: tuple[Tensor, Tensor],
        keys: tuple[Tensor, Tensor],
        *,
        same: SamePairs,
    ) -> tuple[Float[Tensor, "images 3 height width"], FusedPairs]:
        """Return images and pairs of ITM, with hard negatives by the similarity of `vectors`."""
        config = self.config
        input_ids = batch["input_ids"]
        rows = torch.arange(0, len(input_ids), config.itm_stride, device=input_ids.device)
        negatives = sample_negatives(
            vectors,
            keys,
            logit_scale=self.model.contrast_head.logit_scale,
            same=same,
            rows=rows,
            seed=batch["step_seed"],
            count=config.negatives,
            groups=config.negative_groups,
            sharpness=config.negative_sharpness,
        )
        return itm_pairs(batch, negatives, rows=rows)

    def _fusion_losses(
        self, pairs: FusedPairs, *, pixels: Float[Tensor, "images 3 height width"]
    ) -> Losses:
        """Return the losses of MLM and ITM, with accuracies, over the pairs of all processes."""
        match_logits, word_losses, word_hits = self.fuse(
            pairs.images, pairs.input_ids, pairs.attention_mask, pairs.mlm_labels, pixels=pixels
        )
        losses: Losses = {}
        if self.config.mlm_weight:
            # Processes mask different numbers of words, and all words weigh alike.
            num_words = (pairs.mlm_labels != IGNORED).sum().float()
            losses["mlm"] = global_mean(word_losses.sum(), num_words)
            losses["mlm_accuracy"] = global_mean(word_hits.sum(), num_words)
        if self.config.itm_weight:
            valid = pairs.valid
            losses["itm"] = itm_loss(match_logits, pairs.targets, valid=valid)
            hits = (match_logits.detach().argmax(dim=-1) == pairs.targets) & valid
            losses["itm_accuracy"] = global_mean(hits.sum().float(), valid.sum().float())
        return losses

    def _fuse(
        self,
        images: Int[Tensor, "pairs"],
        input_ids: Int[Tensor, "pairs text"],
        attention_mask: Int[Tensor, "pairs text"],
        mlm_labels: Int[Tensor, "pairs text"],
        *,
        pixels: Float[Tensor, "images 3 height width"],
    ) -> tuple[Float[Tensor, "pairs 2"], Float[Tensor, "words"], Float[Tensor, "words"]]:
        """Return match logits of pairs; losses of masked words, and 1 for those predicted."""
        model = self.model
        is_masked = mlm_labels != IGNORED
        # A chunk of the gradient cache embeds the images of its pairs alone, and once.
        used_images, image_rows = images.unique(return_inverse=True)
        encoded = model.vlmo.encode(
            pixels.index_select(0, used_images),
            input_ids,
            attention_mask,
            wanted=is_masked,
            image_rows=image_rows,
        )
        word_losses = word_hits = encoded.first.new_zeros(0)
        # Computed here, so that the gradient cache holds no logits over the vocabulary.
        if isinstance(model, models.VLMoForPreTraining) and self.config.mlm_weight:
            # Of masked words alone: (words, vocabulary).
            logits = model.mlm_head(encoded.tokens)
            targets = mlm_labels.flatten().index_select(0, encoded.positions)
            word_losses = F.cross_entropy(logits.float(), targets, reduction="none")
            word_hits = (logits.detach().argmax(dim=-1) == targets).float()
        return model.match_logits(encoded.first), word_losses, word_hits


def _pad_to_global_length(batch: Batch) -> Batch:
    """Pad texts to the longest of all processes, so that exchanged texts fit."""
    texts = {name: batch[name] for name in _TEXT_TENSORS if name in batch}
    length = max(text.shape[1] for text in texts.values())
    # A process alone need not wait for its device.
    if distributed.world_size() > 1:
        local_length = batch["input_ids"].new_tensor(length)
        length = int(distributed.all_reduce(local_length, op="max"))
    for name, text in texts.items():
        fill = IGNORED if name == "mlm_labels" else 0
        texts[name] = F.pad(text, (0, length - text.shape[1]), value=fill)
    return cast("Batch", batch | texts)


@dataclass(frozen=True)
class PairTask(Task):
    """A task that trains on pairs by contrast, and perhaps by masked words and matching.

    Attributes:
        losses: Weights and switches.
        teacher: Folder or name of a model whose dual encoder is learned too: distillation, see
            `losses.teacher-weight`.
    """

    reads = Reads(caption=True, streams=True)
    evaluation = PairSet
    losses: VisionLanguageConfig = VisionLanguageConfig()
    teacher: str | None = None

    @property
    def targets(self) -> str | None:
        """The teacher."""
        return self.teacher

    def step(self, model: VLMoForPreTraining | VLMoForImageTextRetrieval) -> Objective:
        """Return all losses that have a weight."""
        return VisionLanguageObjective(model, config=self.losses)

    def objective(self, run: RunContext) -> Objective:
        """Return the losses of a started model, with the teacher's if there is one.

        Raises:
            ValueError: The teacher has another vocabulary, vectors of another size, or fewer
                positions for text.
        """
        objective = cast("VisionLanguageObjective", super().objective(run))
        if self.teacher is None:
            return objective
        teacher, processor = load_retrieval_model(self.teacher)
        size = teacher.config.projection_size
        student_size = objective.model.config.projection_size
        positions = teacher.config.max_text_positions
        max_length = run.tokenizer.model_max_length
        # Its vectors become targets of the model, for the same tokens.
        fault = None
        if processor.tokenizer.get_vocab() != run.tokenizer.get_vocab():
            fault = "another vocabulary; start from a folder with the teacher's"
        elif size != student_size:
            fault = (
                f"vectors of {size} dimensions, the model of {student_size}; set "
                f"model.projection-size to {size}"
            )
        elif max_length > positions:
            fault = (
                f"{positions} positions for text, the recipe {max_length}; set text.max-length to "
                f"{positions}"
            )
        if fault is not None:
            raise ValueError(f"the teacher {self.teacher} has {fault}")
        # Beside the model, so that it is not saved with it.
        objective.teacher = teacher.requires_grad_(requires_grad=False)
        return objective

    def without_data(self) -> Task:
        """Return the task without a gradient cache, and with negatives from the whole batch."""
        return replace(self, losses=replace(self.losses, cache_chunk=None, negative_groups=1))

    def examples(self, run: RunContext) -> RowExamples:
        """Return pairs, with the rows' `false_captions` if they have any and a loss reads them."""
        # Tokens of captions that no loss reads would be made for nothing.
        false_texts = None
        if self.losses.itm_weight or self.losses.itc_false_captions:
            false_texts = false_captions(run.rows)
            # Empty texts stand for rows without a false caption.
            if not any(map(any, false_texts)):
                false_texts = None
        contents = self.contents(run)
        return RowExamples(run.rows, contents, unit=run.data.unit, false_texts=false_texts)


class VisionLanguageTask(PairTask):
    """Stage 3, contrast, masked language modeling and matching.

    Its models are measured as those for retrieval.
    """

    name = "vision-language"
    title = "stage 3, contrast, masked language modeling and matching"
    reads = Reads(caption=True, masks_words=True, streams=True)
    architectures = ("VLMoForPreTraining",)
    usage = Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its "
        "retrieval part",
        *RETRIEVAL_PIPELINE,
    )
