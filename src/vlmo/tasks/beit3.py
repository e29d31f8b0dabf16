"""BEiT-3's pre-training: masked images, texts and pairs in one step (arXiv 2208.10442)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from vlmo.data.config import StreamConfig
from vlmo.data.examples import Contents
from vlmo.data.masking import IGNORED, WordMaskConfig
from vlmo.data.sampler import sample_seed
from vlmo.folder.card import Usage
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.model.masks import true_positions
from vlmo.tasks.inputs import Reads
from vlmo.tasks.language import LanguageObjective, LanguageTask
from vlmo.tasks.task import Losses, Objective, RunContext
from vlmo.tasks.vision import PatchesTask, VisionObjective, VisionTask
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model import VLMoForMaskedDataModeling
    from vlmo.model.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True)
class AloneConfig:
    """Images without texts, or texts without images, that a step reads beside its pairs.

    Attributes:
        source: As `data.source`; without `streams` too, the images, or the texts, of the pairs.
        streams: Shards to read instead of `source`.
        per_pair: Number of them in a step, for each pair of it; 0 leaves them out.
    """

    source: str = ""
    streams: StreamConfig = StreamConfig()
    per_pair: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a number below 0, or two kinds of data."""
        if self.per_pair < 0 or (self.source and self.streams.patterns):
            raise ValueError(f"{self}: give per_pair from 0 up, and a source or streams")


class BEiT3Objective(Objective):
    """Masked data modeling (BEiT-3, "Pretraining Task: Masked Data Modeling").

    Images and texts go through their own experts, pairs through the fusion encoder. The paper does
    not say how the losses weigh: here a loss is the mean over its own masked tokens, and `loss` the
    sum. ValueError as `VisionObjective`.
    """

    def __init__(self, model: VLMoForMaskedDataModeling, *, tokenizer: VisualTokenizer) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer
        # In a tuple, so that the model is no second time a part of this module.
        self._alone = (
            VisionObjective(model, tokenizer=tokenizer),
            LanguageObjective(model, freeze=False),
        )

    def forward(self, batch: Batch) -> Losses:
        """Return `loss` and its parts `pair_mlm`, `pair_mim`, `text_mlm`, `image_mim`.

        Accuracies have names alike. Reads masked images with masked texts, and where the names of
        tensors begin with `images.` and `texts.`, the batches of stages 1 and 2.
        """
        losses_by_kind = {"pair": self._pair_losses(batch)}
        for kind, objective in zip(("image", "text"), self._alone, strict=True):
            # `JointLoader` puts these names before those of the tensors.
            prefix = f"{kind}s."
            part = {
                name.removeprefix(prefix): value
                for name, value in batch.items()
                if name.startswith(prefix)
            }
            if part:
                losses_by_kind[kind] = objective(part)
        total = torch.stack([losses.pop("loss") for losses in losses_by_kind.values()]).sum()
        named = {"loss": total}
        for kind, losses in losses_by_kind.items():
            named |= {f"{kind}_{name}": value for name, value in losses.items()}
        return named

    def _pair_losses(self, batch: Batch) -> Losses:
        model = self.model
        masked_patches = batch["bool_masked_pos"]
        masked_words = batch["mlm_labels"] != IGNORED
        pixels = normalize_pixels(batch["pixel_values"])
        # Words and patches are masked at once: what is left of one kind helps to predict the
        # other.
        states = model.vlmo(
            pixels,
            batch["mlm_input_ids"],
            batch["attention_mask"],
            bool_masked_pos=masked_patches,
            mask_token=model.mim_head.mask_token,
        )
        word_positions, patch_positions = true_positions(masked_words, masked_patches)
        # (masked words, vocabulary)
        word_states = states.text_hidden_state.flatten(0, 1).index_select(0, word_positions)
        word_logits = model.mlm_head(word_states)
        words = batch["mlm_labels"].flatten().index_select(0, word_positions)
        # The class token comes first.
        patch_states = states.image_hidden_state[:, 1:].flatten(0, 1)
        patch_logits = model.mim_head(patch_states.index_select(0, patch_positions))
        patches = self._alone[0].tokens(pixels, patch_positions)
        # Means over the masked tokens of all processes.
        mlm = masked_loss(word_logits, words)
        mim = masked_loss(patch_logits, patches)
        return {
            "loss": mlm + mim,
            "mlm": mlm.detach(),
            "mim": mim.detach(),
            "mlm_accuracy": accuracy(word_logits, words),
            "mim_accuracy": accuracy(patch_logits, patches),
        }


@dataclass(frozen=True)
class BEiT3Task(PatchesTask):
    """BEiT-3's pre-training; `loader.global_batch_size` counts pairs.

    Attributes:
        masked_share: Share of the patches of images, alone and in pairs, that are masked, in
            blocks.
        images: Images alone, beside the pairs of `data`.
        texts: Texts alone, beside the pairs of `data`.
        text_mask_probability: Share of the tokens of texts alone that are masked, as whole words.
        pair_mask_probability: Share of the tokens of texts in pairs that are masked, as whole
            words.
    """

    name = "beit3"
    title = "masked data modeling of images, texts and pairs (BEiT-3)"
    reads = Reads(caption=True, masks_words=True, streams=True)
    architectures = ("VLMoForMaskedDataModeling",)
    usage = Usage(
        "predicts masked words and the visual tokens of masked patches; a start for fine-tuning on "
        "any task",
        "image-feature-extraction",
        '"image.png"',
    )
    losses_of = BEiT3Objective
    # BEiT-3, "Pretraining Task: Masked Data Modeling": 40 % of the patches, 15 % of the tokens of
    # texts alone and 50 % of those of texts in pairs.
    masked_share: float = 0.4
    images: AloneConfig = AloneConfig()
    texts: AloneConfig = AloneConfig()
    text_mask_probability: float = 0.15
    pair_mask_probability: float = 0.5

    @property
    def mask_probability(self) -> float:
        """Share of all words of a step that are masked, where texts are alike in length."""
        texts = self.texts.per_pair
        return (self.pair_mask_probability + texts * self.text_mask_probability) / (1 + texts)

    def contents(self, run: RunContext) -> Contents:
        """Return pairs with masked words and patches."""
        data = run.data
        words = WordMaskConfig(self.pair_mask_probability, data.mask_only, data.mask_only_share)
        return replace(super().contents(run), words=words)

    def beside(self, recipe: Any) -> dict[str, Any]:
        """Return stages 1 and 2 for images and texts alone, in orders of their own.

        ValueError where they are no whole number in a step.
        """
        num_pairs = recipe.loader.global_batch_size
        tasks = {
            "images": VisionTask(self.visual_tokenizer, self.masked_share),
            "texts": LanguageTask(freeze=False),
        }
        recipes = {}
        for number, (name, task) in enumerate(tasks.items()):
            alone: AloneConfig = getattr(self, name)
            count = round(alone.per_pair * num_pairs)
            # Products of shares such as 0.1 are a little beside the whole number.
            if abs(count - alone.per_pair * num_pairs) > 1e-6:
                raise ValueError(
                    f"task.{name}.per_pair {alone.per_pair} of {num_pairs} pairs is no whole number"
                )
            if not count:
                continue
            # Texts alone are masked as in stage 2.
            data = replace(recipe.data, mlm_probability=self.text_mask_probability, mask_only=())
            if alone.source or alone.streams.patterns:
                data = replace(data, source=alone.source, streams=alone.streams, weights=())
            if name == "images":
                # An image is visited once an epoch, however many captions it has.
                data = replace(data, unit="image", weights=())
            recipes[name] = replace(
                recipe,
                task=task,
                data=data,
                loader=replace(recipe.loader, global_batch_size=count),
                # Else images alone would come in the order of the pairs.
                seed=sample_seed(recipe.seed, epoch=0, index=number, purpose="beside"),
            )
        return recipes

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return pairs with images and texts alone."""
        tensors = cast("dict[str, Tensor]", {**batch})
        # The step's number and seed have no rows.
        names = [name for name, value in tensors.items() if value.ndim]
        for kind, alone in (("images", self.images), ("texts", self.texts)):
            count = round(alone.per_pair * len(batch["input_ids"]))
            for name in names if count else ():
                value = tensors[name]
                tensors[f"{kind}.{name}"] = value.new_zeros(count, *value.shape[1:])
        return cast("Batch", tensors)
