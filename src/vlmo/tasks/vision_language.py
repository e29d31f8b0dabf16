"""Stage 3, and what fine-tuning for retrieval shares with it: contrast, hard negatives, matching and masked words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from vlmo import distributed
from vlmo import model as models
from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.examples import RowExamples
from vlmo.data.rows import false_captions
from vlmo.folder.card import Usage
from vlmo.losses.distillation import distillation_loss
from vlmo.losses.gradient_cache import row_slices, run_blocks
from vlmo.losses.itc import SamePairs, caption_keys, first_dims, itc_loss, own_pairs, same_pairs
from vlmo.losses.itm import HardNegatives, itm_loss, sample_by_similarity, sample_uniform
from vlmo.losses.masked import accuracy
from vlmo.model.config import FusionStart
from vlmo.model.heads import ContrastHead
from vlmo.model.sequence import LANGUAGE, masked_positions
from vlmo.tasks.costs import SampleSizes, Work, pair_work
from vlmo.tasks.evaluation_set import EvaluationSet
from vlmo.tasks.pair_sets import PairSet
from vlmo.tasks.run_context import RunContext
from vlmo.tasks.task import Task
from vlmo.types import Batch

if TYPE_CHECKING:
    from vlmo.model import VLMoForImageTextRetrieval, VLMoForPreTraining

RETRIEVAL_PIPELINE = "zero-shot-image-classification", '"image.png", candidate_labels=["a red heart", "a sailing boat"]'


@dataclass(frozen=True)
class VisionLanguageConfig:
    """Weights and switches of stage 3.

    Attributes:
        mlm_weight: 0.25 in the published code; a weight of 0 leaves the passes out.
        exclude_same: Rows that share an image or a caption are never each other's negatives.
        negative_groups: Groups of equal size, of neighbouring rows, that the global batch is divided into for
            sampling hard negatives: a row's come from its own group. 1, as in the paper, gives global negatives; the
            number of processes gives local ones, each process sampling from its own rows.
        negative_sharpness: Hard negatives are sampled by the softmax of ITC's logits times this. 1 as in the paper; 0
            samples evenly. Softer ones are easier to tell from true pairs, for small data.
        negatives: Negative images, and negative texts, that ITM judges for each true pair; 1 in the paper.
        mlm_stride: Every n-th row of the batch takes part in MLM; 1 = all rows.
        itm_stride: Every n-th row of the batch takes part in ITM; 1 = all rows.
        teacher_weight: Of the distance to a teacher's vectors (`distillation_loss`), if there is one.
        nested_dims: Numbers of dimensions that shall do alone, such as (32, 64): ITC is the mean over the whole vectors
            and over the first so many dimensions of each, L2-normalised again ("Matryoshka Representation Learning",
            Kusupati et al. 2022). Hard negatives are sampled by the whole vectors.
        cache_chunk: Pairs that any encoder holds activations of; None = all. The contrast, and the choice of hard
            negatives, are over the whole batch all the same: backward computes each chunk again (a gradient cache).
    """

    itc_weight: float = 1.0
    mlm_weight: float = 0.25
    itm_weight: float = 1.0
    exclude_same: bool = True
    negative_groups: int = 1
    negative_sharpness: float = 1.0
    negatives: int = 1
    mlm_stride: int = 1
    itm_stride: int = 1
    teacher_weight: float = 4.0
    nested_dims: tuple[int, ...] = ()
    cache_chunk: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if a number is too small or none, or all weights are 0."""
        if not 0 <= self.teacher_weight < math.inf:
            raise ValueError(f"teacher_weight is {self.teacher_weight}; give a number from 0 up")
        weights = self.itc_weight, self.mlm_weight, self.itm_weight
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(f"itc_weight, mlm_weight and itm_weight are {weights}; give numbers from 0, not all 0")
        if not 0 <= self.negative_sharpness < math.inf:
            raise ValueError(f"negative_sharpness is {self.negative_sharpness}; give a number from 0 up")
        for name in ("negative_groups", "negatives", "mlm_stride", "itm_stride", "cache_chunk"):
            if (number := vars(self)[name]) is not None and number < 1:
                raise ValueError(f"{name} is {number}; give 1 or more")
        if min(self.nested_dims, default=1) < 1:
            raise ValueError(f"nested_dims are {self.nested_dims}; give numbers from 1 up")

    def check_dims(self, size: int) -> None:
        """Raise ValueError if vectors of this size have no such `nested_dims`."""
        if max(self.nested_dims, default=0) >= size:
            raise ValueError(
                f"nested_dims are {self.nested_dims}, but the model's vectors have {size} dimensions; give fewer."
            )

    def check_batch(self, rows: int, *, processes: int) -> None:
        """Raise ValueError if the `rows` of each process and micro-batch do not fit the stride and the groups."""
        for name in ("mlm_stride", "itm_stride"):
            if rows % vars(self)[name]:
                raise ValueError(f"{name} {vars(self)[name]} does not divide the micro-batch of {rows} pairs.")
        if self.itm_weight and rows * processes % self.negative_groups:
            batch = rows * processes
            raise ValueError(f"negative_groups {self.negative_groups} does not divide the batch of {batch} pairs.")


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs for the fusion encoder.

    Attributes:
        texts: Token ids, or embedded tokens.
        images: Pixels, or embedded patches; pair i shows `images[rows[i]]`.
        labels: Of MLM, -100 where no prediction is asked for; None for pairs that ITM judges.
    """

    texts: Tensor
    mask: Int[Tensor, "pairs text"]
    images: Tensor
    rows: Int[Tensor, "pairs"]
    labels: Int[Tensor, "pairs text"] | None = None

    def __getitem__(self, part: slice) -> Pairs:
        labels = None if self.labels is None else self.labels[part]
        return Pairs(self.texts[part], self.mask[part], self.images, self.rows[part], labels)


class TextBlock(NamedTuple):
    """Rows of a batch that are encoded together, their texts cut to `length` tokens."""

    rows: slice | Int[Tensor, "rows"]
    length: int


class VisionLanguageObjective(nn.Module):
    """Image-text contrast, masked language modelling and matching with global hard negatives.

    On `VLMoForPreTraining` this is stage 3. On `VLMoForImageTextRetrieval` it is fine-tuning for retrieval: contrast of
    the unimodal branch, which is what the dual encoder embeds with, and matching if there is a head for it. With a
    frozen `teacher`, the vectors of this branch also learn to be the teacher's.

    Raises:
        ValueError: A loss has a weight, but the model lacks its head; or `nested_dims` are no parts of its vectors.
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
        self.config.check_dims(model.contrast_head.image_projection.out_features)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's)
        """Set the mode of the model; a teacher never drops anything."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its parts `itc`, `teacher`, `mlm`, `itm`, with accuracies.

        Reads images, captions, masked captions and `step_seed`; false captions, which ITM judges beside the sampled
        negatives, if there are any (an empty one counts for nothing). With `cache_chunk` the encoders run block by
        block, and the backward pass computes each block again; without it, all passes share the embeddings of the
        batch.
        """
        config, head = self.config, self.model.contrast_head
        config.check_batch(len(batch["input_ids"]), processes=distributed.world_size())
        batch = _pad_to_global_length(batch)
        images, texts = batch["pixel_values"], batch["input_ids"]
        if config.cache_chunk is None:
            images, texts = self._embed(images, texts)

        every = torch.arange(len(texts), device=texts.device)
        masked, matched = every[:: config.mlm_stride], every[:: config.itm_stride]
        losses: dict[str, Tensor] = {}
        negatives = None
        if config.itc_weight or config.itm_weight or self.teacher is not None:
            losses, negatives = self._contrast(batch, images, texts, matched=matched)

        # Masked words of the pairs, and matching of pairs and negatives, in the fusion encoder.
        pairs = self._pairs(batch, images, texts, masked=masked, matched=matched, negatives=negatives)
        sums, logits = self._fuse(batch, pairs)
        if sums is not None:
            count = (batch["mlm_labels"][masked] != -100).sum().float()
            losses["mlm"] = distributed.global_mean(sums[0], count)
            losses["mlm_accuracy"] = distributed.global_mean(sums[1].detach(), count)
        if logits is not None and negatives is not None:
            labels, valid = negatives.labels, negatives.valid
            if "false_input_ids" in batch:
                labels = torch.cat([labels, torch.zeros_like(matched)])
                valid = torch.cat([valid, batch["false_attention_mask"][matched].any(dim=1)])
            losses["itm"] = itm_loss(logits, labels, valid=valid)
            losses["itm_accuracy"] = accuracy(logits[valid], labels[valid])

        loss = torch.stack(
            [
                vars(config)[f"{name}_weight"] * losses[name]
                for name in ("itc", "teacher", "mlm", "itm")
                if name in losses
            ]
        ).sum()
        temperature = (-head.logit_scale.detach()).exp()[0]
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()} | {"temperature": temperature}

    def _embed(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Embed pixels and token ids; what is embedded already stays as it is."""
        backbone = self.model.vlmo
        images = backbone.embed_image(images) if images.ndim == 4 else images
        return images, backbone.embed_text(texts) if texts.ndim == 2 else texts

    # ------------------------------------------------------------------------------------------------ dual encoder

    def _contrast(
        self, batch: Batch, images: Tensor, texts: Tensor, *, matched: Int[Tensor, "matched"]
    ) -> tuple[dict[str, Tensor], HardNegatives | None]:
        """Return `itc`, `teacher` if there is one, and hard negatives for ITM if it has a weight."""
        config = self.config
        # Contrast of the vectors of all processes, for each ITC branch and number of dimensions.
        blocks = self._blocks(batch["attention_mask"])
        vectors = self._encode(batch, images, texts, blocks=blocks)
        keys = [(distributed.gather_with_grad(image), distributed.gather_with_grad(text)) for image, text in vectors]
        same = self._same_pairs(batch)
        left_out = same if config.exclude_same else None
        branches = [
            itc_loss(
                *first_dims(pair, number), logit_scale=head.logit_scale, same=left_out, keys=first_dims(both, number)
            )
            for head, pair, both in zip(self._contrast_heads(), vectors, keys, strict=True)
            for number in (None, *config.nested_dims)
        ]
        losses, negatives = {"itc": torch.stack(branches).mean()}, None
        if self.teacher is not None:
            losses["teacher"] = self._distance(batch, vectors[0], blocks=blocks, same=same)
        if config.itm_weight:
            # By the similarities of the unimodal branch.
            negatives = self._sample_negatives(vectors[0], keys[0], same=same, rows=matched, seed=batch["step_seed"])
        return losses, negatives

    def _encode(
        self, batch: Batch, images: Tensor, texts: Tensor, *, blocks: list[TextBlock]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return L2-normalised image and text vectors of each ITC branch."""
        backbone, heads, mask = self.model.vlmo, self._contrast_heads(), batch["attention_mask"]
        grid = backbone.image_embeddings.grid_of(batch["pixel_values"])
        image_bias = backbone.make_position_bias(num_text=0, grid=grid)
        text_bias = backbone.make_position_bias(num_text=mask.shape[1], grid=None)

        def encode(block: TextBlock) -> list[tuple[Tensor, Tensor]]:
            rows, length = block
            image, text = self._embed(images[rows], texts[rows][:, :length])
            own_bias = None if text_bias is None else [bias[..., :length, :length] for bias in text_bias]
            sequences = (
                backbone.join(image=image, grid=grid, position_bias=image_bias),
                backbone.join(text=text, attention_mask=mask[rows][:, :length], position_bias=own_bias),
            )
            states = [backbone.contrast_states(each, fusion_branch=len(heads) > 1) for each in sequences]
            return [(head.embed_image(i), head.embed_text(t)) for head, i, t in zip(heads, *states, strict=True)]

        outputs = run_blocks(encode, blocks, recompute=self.config.cache_chunk is not None, device=mask.device)
        return [
            (_join_rows(images, blocks), _join_rows(texts, blocks))
            for images, texts in (zip(*branch, strict=True) for branch in zip(*outputs, strict=True))
        ]

    def _blocks(self, mask: Int[Tensor, "batch text"]) -> list[TextBlock]:
        """Return blocks of `cache_chunk` rows, or one; on a CPU of similar length if that halves the text tokens.

        Elsewhere the lengths would have to be waited for; and all processes have to have as many blocks (FSDP).
        """
        size = self.config.cache_chunk
        if mask.device.type == "cpu" and distributed.world_size() == 1:
            lengths = (mask * torch.arange(1, mask.shape[1] + 1)).amax(dim=1)
            sorted_rows = lengths.argsort().split(size or math.ceil(len(mask) / 4))
            blocks = [(rows, int(lengths[rows].max())) for rows in sorted_rows]
            if sum(len(rows) * length for rows, length in blocks) < mask.numel() / 2:
                return [TextBlock(*block) for block in blocks]
        return [TextBlock(rows, mask.shape[1]) for rows in row_slices(len(mask), size=size or len(mask))]

    def _contrast_heads(self) -> list[ContrastHead]:
        """Return the head of each ITC branch: unimodal, and VL-FFN where the model has one."""
        second = self.model.fusion_contrast_head if isinstance(self.model, models.VLMoForPreTraining) else None
        return [self.model.contrast_head] if second is None else [self.model.contrast_head, second]

    def _same_pairs(self, batch: Batch) -> SamePairs:
        if self.config.exclude_same:
            return same_pairs(batch["image_ids"], caption_keys(batch["input_ids"], batch["attention_mask"]))
        return own_pairs(len(batch["input_ids"]), device=batch["input_ids"].device)

    def _distance(
        self, batch: Batch, vectors: tuple[Tensor, Tensor], *, blocks: list[TextBlock], same: SamePairs
    ) -> Tensor:
        teacher = cast("VLMoForImageTextRetrieval", self.teacher)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            texts = [
                teacher.get_text_features(ids[rows][:, :length], mask[rows][:, :length]) for rows, length in blocks
            ]
            targets = teacher.get_image_features(batch["pixel_values"]), _join_rows(texts, blocks)
        return distillation_loss(vectors, targets, logit_scale=teacher.contrast_head.logit_scale, same=same)

    def _sample_negatives(
        self,
        vectors: tuple[Tensor, Tensor],
        keys: tuple[Tensor, Tensor],
        *,
        same: SamePairs,
        rows: Int[Tensor, "rows"],
        seed: Int[Tensor, ""],
    ) -> HardNegatives:
        """Sample `negatives` other texts and images for each of `rows`; those of a row are neighbours."""
        count = self.config.negatives
        uniform = sample_uniform(seed, batch=len(vectors[0]), rounds=2 * count)[:, rows]
        uniform = uniform.view(2, count, len(rows)).transpose(1, 2).flatten(1)
        rows = rows.repeat_interleave(count)
        (text, text_found), (image, image_found) = (
            sample_by_similarity(
                own[rows],
                others,
                logit_scale=self.model.contrast_head.logit_scale,
                uniform=numbers,
                same=same,
                rows=rows,
                groups=self.config.negative_groups,
                sharpness=self.config.negative_sharpness,
            )
            for own, others, numbers in zip(vectors, reversed(keys), uniform, strict=True)
        )
        return HardNegatives(text=text, image=image, text_found=text_found, image_found=image_found, count=count)

    # ---------------------------------------------------------------------------------------------- fusion encoder

    def _pairs(
        self,
        batch: Batch,
        images: Tensor,
        texts: Tensor,
        *,
        masked: Int[Tensor, "masked"],
        matched: Int[Tensor, "matched"],
        negatives: HardNegatives | None,
    ) -> list[Pairs]:
        """Return pairs for MLM, then for ITM: true ones, a negative image, a negative text, a false text.

        Args:
            masked: Rows of MLM.
            matched: Rows of ITM.
        """
        mask, pairs = batch["attention_mask"], []
        if self.config.mlm_weight:
            ids, labels = batch["mlm_input_ids"][masked], batch["mlm_labels"][masked]
            pairs.append(Pairs(ids, mask[masked], images, masked, labels=labels))
        if negatives is not None:
            sent = torch.stack([batch["input_ids"], mask], dim=1)
            other_ids, other_mask = distributed.exchange(sent, negatives.text).unbind(1)
            again = matched.repeat_interleave(self.config.negatives)
            pairs.append(Pairs(texts[matched], mask[matched], images, matched))
            pairs.append(Pairs(texts[again], mask[again], *distributed.fetch_rows(images, negatives.image)))
            pairs.append(Pairs(other_ids, other_mask, images, again))
            if "false_input_ids" in batch:
                false = batch["false_input_ids"][matched], batch["false_attention_mask"][matched]
                pairs.append(Pairs(*false, images, matched))
        new = [number for number, each in enumerate(pairs) if each.texts.ndim == 2]
        if new and self.config.cache_chunk is None:
            # Embedded together, since each look-up costs a gradient of the size of the word table.
            embedded = self.model.vlmo.embed_text(torch.cat([pairs[number].texts for number in new]))
            for number, part in zip(new, embedded.split([len(pairs[number].texts) for number in new]), strict=True):
                pairs[number] = replace(pairs[number], texts=part)
        return pairs

    def _fuse(
        self, batch: Batch, groups: list[Pairs]
    ) -> tuple[Float[Tensor, "2"] | None, Float[Tensor, "judged 2"] | None]:
        """Return sums of MLM (of losses, and of right predictions), and the logits of ITM; None for one left out."""
        backbone, config, mask = self.model.vlmo, self.config, batch["attention_mask"]
        grid = backbone.image_embeddings.grid_of(batch["pixel_values"])
        blocks, bias = [groups] if groups else [], None
        if groups:
            bias = backbone.make_position_bias(num_text=mask.shape[1], grid=grid)
        if (size := config.cache_chunk) is not None:
            blocks = [[pairs[part]] for pairs in groups for part in row_slices(len(pairs.rows), size=size)]

        def fuse(groups: list[Pairs]) -> tuple[Tensor | None, Tensor | None]:
            words, first = self._fused_states(groups, grid=grid, position_bias=bias)
            labels = [pairs.labels for pairs in groups if pairs.labels is not None]
            judged = first[sum(map(len, labels)) :]
            sums = None
            if labels and isinstance(self.model, models.VLMoForPreTraining):  # others have been refused an mlm_weight
                wanted = torch.cat(labels)
                wanted = wanted[wanted != -100]
                predicted = self.model.mlm_head(backbone.finish(words, modality=LANGUAGE))
                right = (predicted.detach().argmax(dim=-1) == wanted).float().sum()
                sums = torch.stack([F.cross_entropy(predicted.float(), wanted, reduction="sum"), right])
            return sums, self.model.judge(backbone.pool_pair(judged)) if len(labels) < len(groups) else None

        outputs = run_blocks(fuse, blocks, recompute=config.cache_chunk is not None, device=mask.device)
        sums = [each for each, _ in outputs if each is not None]
        logits = [each for _, each in outputs if each is not None]
        return torch.stack(sums).sum(0) if sums else None, torch.cat(logits) if logits else None

    def _fused_states(
        self, groups: list[Pairs], *, grid: tuple[int, int], position_bias: list[Tensor] | None
    ) -> tuple[Float[Tensor, "words dim"], Float[Tensor, "pairs dim"]]:
        """Return states of masked words and of first tokens, before the final norm."""
        backbone = self.model.vlmo
        embedded = [self._embed(pairs.images.index_select(0, pairs.rows), pairs.texts) for pairs in groups]
        image, text = (torch.cat(parts) for parts in zip(*embedded, strict=True))
        mask = torch.cat([pairs.mask for pairs in groups])
        words = [torch.zeros_like(p.mask, dtype=torch.bool) if p.labels is None else p.labels != -100 for p in groups]
        positions, filled = masked_positions(torch.cat(words))
        sequence = backbone.join(text=text, attention_mask=mask, image=image, grid=grid, position_bias=position_bias)
        states = backbone.run(sequence, fusion=True, queries=sequence.queries(words=positions))
        return states[:, 1:][filled], states[:, 0]


def _join_rows(parts: Sequence[Tensor], blocks: Sequence[TextBlock]) -> Tensor:
    """Return the rows of all blocks in the order of the batch."""
    rows = [block.rows for block in blocks if isinstance(block.rows, Tensor)]
    joined = torch.cat(list(parts))
    return joined[torch.cat(rows).argsort()] if rows else joined


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

    can_stream: ClassVar[bool] = True
    needs_caption: ClassVar[bool] = True
    evaluation: ClassVar[type[EvaluationSet] | None] = PairSet
    losses: VisionLanguageConfig = VisionLanguageConfig()
    """Weights and switches."""
    teacher: str | None = None
    """Folder or name of a model whose dual encoder is learnt too: distillation, see `losses.teacher-weight`."""

    @property
    def targets(self) -> str | None:
        """The teacher."""
        return self.teacher

    def pair_objective(self, run: RunContext, model: Any) -> VisionLanguageObjective:
        """Return the losses of a started model, with the teacher's if there is one.

        Raises:
            ValueError: The teacher has another vocabulary, or vectors of another size.
        """
        teacher = None
        if self.teacher is not None:
            teacher, processor = load_retrieval_model(self.teacher)
            teacher.requires_grad_(requires_grad=False)
            if processor.tokenizer.get_vocab() != run.text_processor.tokenizer.get_vocab():
                raise ValueError(
                    f"the teacher {self.teacher} has another vocabulary; start from a folder that has the teacher's."
                )
            if (size := teacher.config.projection_size) != model.config.projection_size:
                raise ValueError(
                    f"the teacher {self.teacher} has vectors of {size} dimensions, the model of "
                    f"{model.config.projection_size}; set model.projection-size to {size}."
                )
        return VisionLanguageObjective(model, config=self.losses, teacher=teacher)

    def examples(self, run: RunContext) -> RowExamples:
        """Return pairs, with the rows' `false_captions` if they have any and ITM has a weight."""
        false = false_captions(run.rows) if self.losses.itm_weight else []
        return RowExamples(
            run.rows,
            unit=run.recipe.data.unit,
            cache_images=run.recipe.data.cache_images,
            false_texts=false if any(map(any, false)) else None,
            **self.contents(run),
        )

    def work(self, model: Any, sample: SampleSizes) -> Work:
        """Return the work of all losses that have a weight."""
        return pair_work(model, sample, losses=self.losses)


@dataclass(frozen=True)
class VisionLanguageTask(PairTask):
    """Stage 3, contrast, masked language modelling and matching. Its models are measured as those for retrieval."""

    name: ClassVar[str] = "vision-language"
    title: ClassVar[str] = "stage 3, contrast, masked language modelling and matching"
    masks_words: ClassVar[bool] = True
    architectures = ("VLMoForPreTraining",)
    usage: ClassVar[Usage | None] = Usage(
        "holds every head of stage 3: contrast, matching and masked words; most people use its retrieval part",
        *RETRIEVAL_PIPELINE,
    )
    fusion_experts_from: FusionStart = "language"
    """Expert of the same layer that starts `vision_language` experts which the start folder lacks."""

    def objective(self, run: RunContext) -> nn.Module:
        """Return all three losses on pairs."""
        model = self.build_model(run.model)
        run.start(model, fusion_experts_from=self.fusion_experts_from)
        return self.pair_objective(run, model)
