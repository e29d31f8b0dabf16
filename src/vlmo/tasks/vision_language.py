"""Stage 3, and what fine-tuning for retrieval shares with it: contrast, hard negatives, matching and masked words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo import distributed
from vlmo import model as models
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.examples import RowExamples
from vlmo.data.rows import false_captions
from vlmo.distributed import gather_with_grad, global_mean
from vlmo.folder.card import Usage
from vlmo.losses.distillation import distillation_loss
from vlmo.losses.gradient_cache import cached
from vlmo.losses.itc import SamePairs, caption_keys, itc_loss, own_pairs, same_pairs
from vlmo.losses.itm import FusedPairs, itm_loss, itm_pairs, mlm_pairs, sample_negatives
from vlmo.losses.masked import accuracy
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.inputs import Reads
from vlmo.tasks.pair_sets import PairSet
from vlmo.tasks.task import RunContext, Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining

RETRIEVAL_PIPELINE = "zero-shot-image-classification", '"image.png", candidate_labels=["a red heart", "a sailing boat"]'
_PARTS = ("itc", "teacher", "mlm", "itm")


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Weights and switches of stage 3.

    Attributes:
        mlm_weight: 0.25 in the published code; a weight of 0 leaves the passes out.
        exclude_same: Rows that share an image or a caption are never each other's negatives.
        itc_false_captions: A row's false caption, if the data have one, is a further negative of its image in ITC.
        negative_groups: Groups of equal size, of neighbouring rows, that the global batch is divided into for
            sampling hard negatives: a row's come from its own group. 1, as in the paper, gives global negatives; the
            number of processes gives local ones, each process sampling from its own rows.
        negative_sharpness: Hard negatives are sampled by the softmax of ITC's logits times this. 1 as in the paper; 0
            samples evenly. Softer ones are easier to tell from true pairs, for small data.
        negatives: Negative images, and negative texts, of each true pair in ITM; 1 in the paper.
        mlm_stride: Every n-th row of the batch takes part in MLM; 1 = all rows.
        itm_stride: Every n-th row of the batch takes part in ITM; 1 = all rows.
        teacher_weight: Of the distance to a teacher's vectors (`distillation_loss`), if there is one.
        cache_chunk: Pairs that any encoder holds activations of; None = all. The contrast, and the choice of hard
            negatives, are over the whole batch all the same: backward computes each chunk again (a gradient cache).
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
        weights = self.itc_weight, self.mlm_weight, self.itm_weight
        if not any(weights):
            raise ValueError("itc_weight, mlm_weight and itm_weight are all 0; give one a weight")
        for name in ("itc_weight", "mlm_weight", "itm_weight", "teacher_weight", "negative_sharpness"):
            if not 0 <= (number := vars(self)[name]) < math.inf:
                raise ValueError(f"{name} is {number}; give a number from 0 up")
        for name in ("negative_groups", "negatives", "mlm_stride", "itm_stride", "cache_chunk"):
            if (number := vars(self)[name]) is not None and number < 1:
                raise ValueError(f"{name} is {number}; give 1 or more")

    def check_batch(self, rows: int, *, processes: int) -> None:
        """Raise ValueError if the `rows` of each process and micro-batch do not fit the stride and the groups."""
        for name in ("mlm_stride", "itm_stride"):
            if rows % vars(self)[name]:
                raise ValueError(f"{name} {vars(self)[name]} does not divide the micro-batch of {rows} pairs.")
        if self.itm_weight and rows * processes % self.negative_groups:
            batch = rows * processes
            raise ValueError(f"negative_groups {self.negative_groups} does not divide the batch of {batch} pairs.")


class VisionLanguageObjective(nn.Module):
    """Image-text contrast, masked language modelling and matching with global hard negatives.

    On `VLMoForPreTraining` this is stage 3. On `VLMoForImageTextRetrieval` it is fine-tuning for retrieval: contrast of
    the unimodal branch, which is what the dual encoder embeds with, and matching if there is a head for it. With a
    frozen `teacher`, the vectors of this branch also learn to be the teacher's.

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
        super().__init__()
        self.model = model
        self.teacher = teacher
        self.config = config or VisionLanguageConfig()
        if self.config.mlm_weight and not isinstance(model, models.VLMoForPreTraining):
            name, weight = type(model).__name__, self.config.mlm_weight
            raise ValueError(f"mlm_weight is {weight}, but {name} has no head for words; set the weight to 0.")
        if self.config.itm_weight and model.match_head is None:
            weight = self.config.itm_weight
            raise ValueError(f"itm_weight is {weight}, but the model has no matching head; set use_match_head to True.")
        size = self.config.cache_chunk
        self.encode_images = cached(model.image_vectors, size=size)
        self.encode_texts = cached(model.text_vectors, size=size)
        self.fuse = cached(self._fuse, size=size)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's)
        """Set the mode of the model; a teacher never drops anything."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its parts `itc`, `teacher`, `mlm`, `itm`, with accuracies.

        Reads images, captions, masked captions and `step_seed`; false captions, if there are any, which ITM scores
        beside the sampled negatives and ITC may (`itc_false_captions`); an empty one counts for nothing.
        """
        config, model, losses, pairs = self.config, self.model, dict[str, Tensor](), list[FusedPairs]()
        config.check_batch(len(batch["input_ids"]), processes=distributed.world_size())
        batch = _pad_to_global_length(batch)
        pixels, ids, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
        rows, scale = torch.arange(len(ids), device=ids.device), model.contrast_head.logit_scale

        # Pairs with masked words.
        if config.mlm_weight:
            pairs.append(mlm_pairs(batch, rows=rows[:: config.mlm_stride]))

        # Image-text contrast in each branch, with the vectors of all processes.
        if config.itc_weight or config.itm_weight or self.teacher is not None:
            alone = own_pairs(len(ids), device=ids.device)
            same = same_pairs(batch["image_ids"], caption_keys(ids, mask)) if config.exclude_same else alone
            vectors = list(zip(self.encode_images(pixels), self.encode_texts(ids, mask), strict=True))
            keys = [(gather_with_grad(images), gather_with_grad(texts)) for images, texts in vectors]
            branches = zip(model.contrast_heads, vectors, keys, self._false_vectors(batch), strict=True)
            contrasts = [
                itc_loss(*own, logit_scale=head.logit_scale, same=same, keys=every, false=false)
                for head, own, every, false in branches
            ]
            losses["itc"] = torch.stack(contrasts).mean()
            if self.teacher is not None:
                losses["teacher"] = self._distillation_loss(batch, vectors[0], same=same)

            # Pairs to match, with hard negatives by the similarities of the unimodal branch.
            if config.itm_weight:
                matched, seed = rows[:: config.itm_stride], batch["step_seed"]
                number, groups, sharpness = config.negatives, config.negative_groups, config.negative_sharpness
                how: dict[str, Any] = {"count": number, "groups": groups, "sharpness": sharpness, "seed": seed}
                negatives = sample_negatives(vectors[0], keys[0], logit_scale=scale, same=same, rows=matched, **how)
                pixels, matching = itm_pairs(batch, negatives, rows=matched)
                pairs.append(matching)

        # Masked language modelling and image-text matching in one pass of the fusion encoder.
        if pairs:
            fused = FusedPairs(*map(torch.cat, zip(*pairs, strict=True)))
            logits, of_words, right = self.fuse(*fused[:4], pixels=pixels)
            if config.mlm_weight:
                count = (fused.mlm_labels != -100).sum().float()
                losses["mlm"], losses["mlm_accuracy"] = (global_mean(each.sum(), count) for each in (of_words, right))
            if config.itm_weight:
                losses["itm"] = itm_loss(logits, fused.targets, valid=fused.valid)
                losses["itm_accuracy"] = accuracy(logits[fused.valid], fused.targets[fused.valid])

        weighted = [vars(config)[f"{name}_weight"] * losses[name] for name in _PARTS if name in losses]
        named = {name: value.detach() for name, value in losses.items()}
        return {"loss": torch.stack(weighted).sum()} | named | {"temperature": (-scale.detach()).exp()[0]}

    def _false_vectors(self, batch: Batch) -> list[tuple[Tensor, Tensor] | None]:
        """Return vectors of false captions in each branch, with False for rows without; None where ITC reads none."""
        if not self.config.itc_false_captions or "false_input_ids" not in batch:
            return [None] * len(self.model.contrast_heads)
        ids, mask = batch["false_input_ids"], batch["false_attention_mask"]
        found = mask.any(dim=1)
        # Other rows are left out, as far as all processes encode as many texts, and so as many chunks.
        most = max(1, int(distributed.all_reduce(found.sum(), op="max")))
        rows = found.int().argsort(descending=True, stable=True)[:most]
        mask = torch.cat([mask[:, :1] | ~found[:, None], mask[:, 1:]], dim=1)[rows]
        encoded = self.encode_texts(ids[rows], mask)
        return [(each.new_zeros(len(ids), each.shape[1]).index_copy(0, rows, each), found) for each in encoded]

    def _distillation_loss(self, batch: Batch, vectors: tuple[Tensor, Tensor], *, same: SamePairs) -> Tensor:
        teacher, size = cast("Any", self.teacher), self.config.cache_chunk or len(batch["input_ids"])
        pixels, ids, mask = (batch[name].split(size) for name in ("pixel_values", "input_ids", "attention_mask"))
        with torch.no_grad():
            targets = map(teacher.get_image_features, pixels), map(teacher.get_text_features, ids, mask)
            images, texts = (torch.cat([*parts]) for parts in targets)
        return distillation_loss(vectors, (images, texts), logit_scale=teacher.contrast_head.logit_scale, same=same)

    def _fuse(
        self, images: Tensor, ids: Tensor, mask: Tensor, labels: Tensor, *, pixels: Tensor
    ) -> tuple[Float[Tensor, "pairs 2"], Float[Tensor, "words"], Float[Tensor, "words"]]:
        """Return match logits of pairs; loss of each masked word, and 1 where the prediction is right."""
        model: Any = self.model
        wanted = labels != -100
        shown, rows = images.unique(return_inverse=True)
        encoded = model.vlmo.encode(pixels.index_select(0, shown), ids, mask, wanted=wanted, image_rows=rows)
        losses = right = encoded.first.new_zeros(0)
        if self.config.mlm_weight:  # here, so that the gradient cache holds no logits over the vocabulary
            words, targets = model.mlm_head(encoded.tokens), labels[wanted]
            losses = F.cross_entropy(words.float(), targets, reduction="none")
            right = (words.detach().argmax(dim=-1) == targets).float()
        return model.match_logits(encoded.first), losses, right


def _pad_to_global_length(batch: Batch) -> Batch:
    """Pad texts to the longest of all processes, so that exchanged texts fit (padding changes no result)."""
    names = ("input_ids", "attention_mask", "false_input_ids", "false_attention_mask", "mlm_input_ids", "mlm_labels")
    texts = {name: batch[name] for name in names if name in batch}
    length = max(text.shape[1] for text in texts.values())
    longest = int(distributed.all_reduce(torch.tensor(length, device=batch["input_ids"].device), op="max"))
    padded = {
        name: F.pad(text, (0, longest - text.shape[1]), value=-100 if name == "mlm_labels" else 0)
        for name, text in texts.items()
        if text.shape[1] < longest
    }
    return cast("Batch", batch | padded)


@dataclass(frozen=True)
class PairTask(Task):
    """A task that trains on pairs by contrast, and perhaps by masked words and matching."""

    reads: ClassVar[Reads] = Reads(caption=True, streams=True)
    evaluation: ClassVar[type[EvaluationSet] | None] = PairSet
    losses: VisionLanguageConfig = VisionLanguageConfig()
    """Weights and switches."""
    teacher: str | None = None
    """Folder or name of a model whose dual encoder is learnt too: distillation, see `losses.teacher-weight`."""

    @property
    def targets(self) -> str | None:
        """The teacher."""
        return self.teacher

    def step(self, model: Any) -> VisionLanguageObjective:
        """Return all losses that have a weight."""
        return VisionLanguageObjective(model, config=self.losses)

    def objective(self, run: RunContext) -> nn.Module:
        """Return the losses of a started model, with the teacher's if there is one.

        Raises:
            ValueError: The teacher has another vocabulary, vectors of another size, or fewer positions for text.
        """
        objective: Any = super().objective(run)
        if self.teacher is None:
            return objective
        teacher, processor = load_retrieval_model(self.teacher)
        size, own = teacher.config.projection_size, objective.model.config.projection_size
        most, length = teacher.config.max_text_positions, run.tokenizer.model_max_length
        is_known = processor.tokenizer.get_vocab() == run.tokenizer.get_vocab()
        for fits, fault in (
            (is_known, "another vocabulary; start from a folder with the teacher's"),
            (size == own, f"vectors of {size} dimensions, the model of {own}; set model.projection-size to {size}"),
            (length <= most, f"{most} positions for text, the recipe {length}; set text.max-length to {most}"),
        ):
            if not fits:
                raise ValueError(f"the teacher {self.teacher} has {fault}")
        objective.teacher = teacher.requires_grad_(requires_grad=False)
        return objective

    def without_data(self) -> Task:
        """Return the task without a gradient cache, and with negatives from the whole batch."""
        return replace(self, losses=replace(self.losses, cache_chunk=None, negative_groups=1))

    def examples(self, run: RunContext) -> RowExamples:
        """Return pairs, with the rows' `false_captions` if they have any and a loss reads them."""
        false = false_captions(run.rows) if self.losses.itm_weight or self.losses.itc_false_captions else []
        false = false if any(map(any, false)) else None
        return RowExamples(run.rows, self.contents(run), unit=run.data.unit, false_texts=false)


@dataclass(frozen=True)
class VisionLanguageTask(PairTask):
    """Stage 3, contrast, masked language modelling and matching. Its models are measured as those for retrieval."""

    name: ClassVar[str] = "vision-language"
    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    reads = Reads(caption=True, masks_words=True, streams=True)
    architectures = ("VLMoForPreTraining",)
    usage: ClassVar[Usage | None] = Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        *RETRIEVAL_PIPELINE,
    )
