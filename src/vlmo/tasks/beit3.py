"""BEiT-3's pre-training: masked data modeling of images, texts and pairs in one step (arXiv 2208.10442)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from vlmo.data.config import StreamConfig
from vlmo.data.examples import Contents
from vlmo.data.masking import IGNORED, WordMaskConfig
from vlmo.data.sampler import sample_seed
from vlmo.folder.card import Usage
from vlmo.losses.masked import accuracy, masked_loss
from vlmo.tasks.inputs import Reads
from vlmo.tasks.language import LanguageObjective, LanguageTask
from vlmo.tasks.task import RunContext
from vlmo.tasks.vision import PatchesTask, VisionObjective, VisionTask
from vlmo.types import Batch, normalize_pixels

if TYPE_CHECKING:
    from vlmo.model.visual_tokenizer import VisualTokenizer


@dataclass(frozen=True)
class AloneConfig:
    """Images without texts, or texts without images, that a step reads beside its pairs."""

    source: str = ""
    """As `data.source`; without `streams` too, the images, or the texts, of the pairs."""
    streams: StreamConfig = StreamConfig()
    """Shards to read instead of `source`."""
    per_pair: float = 1.0
    """Number of them in a step, for each pair of it; 0 leaves them out."""

    def __post_init__(self) -> None:
        """Raise ValueError for a number below 0, or two kinds of data."""
        if self.per_pair < 0 or (self.source and self.streams.patterns):
            raise ValueError(f"{self}: give per_pair from 0 up, and a source or streams")


class BEiT3Objective(nn.Module):
    """Masked data modeling (BEiT-3, "Pretraining Task: Masked Data Modeling"); ValueError as `VisionObjective`.

    Images and texts go through their own experts, pairs through the fusion encoder. The paper does not say how the
    losses weigh: here each is the mean over its own masked tokens, and `loss` the sum.
    """

    def __init__(self, model: Any, *, tokenizer: VisualTokenizer) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        # In a tuple, so that the model is no second time a part of this module.
        self._alone = (
            VisionObjective(model, tokenizer=tokenizer),
            LanguageObjective(model, freeze=False),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and its parts `pair_mlm`, `pair_mim`, `text_mlm`, `image_mim`, with accuracies.

        Reads masked images with masked texts, and where the names of tensors begin with `images.` and `texts.`, the
        batches of stages 1 and 2.
        """
        found = {"pair": self._pair_losses(batch)}
        for kind, objective in zip(("image", "text"), self._alone, strict=True):
            start = f"{kind}s."
            part = {
                name.removeprefix(start): value
                for name, value in batch.items()
                if name.startswith(start)
            }
            if part:
                found[kind] = objective(part)
        total = torch.stack([losses.pop("loss") for losses in found.values()]).sum()
        return {"loss": total} | {
            f"{kind}_{name}": each for kind, of in found.items() for name, each in of.items()
        }

    def _pair_losses(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        masked = batch["bool_masked_pos"]
        words = batch["mlm_labels"] != IGNORED
        pixels = normalize_pixels(batch["pixel_values"])
        labels = batch["mlm_labels"][words]
        tokens = self._alone[0].tokens(pixels, masked)
        inputs = pixels, batch["mlm_input_ids"], batch["attention_mask"]
        states: Any = model.vlmo(
            *inputs, bool_masked_pos=masked, mask_token=model.mim_head.mask_token
        )
        of_words = model.mlm_head(states.text_hidden_state[words])
        of_patches = model.mim_head(states.image_hidden_state[:, 1:][masked])
        mlm = masked_loss(of_words, labels)
        mim = masked_loss(of_patches, tokens)
        right = {
            "mlm_accuracy": accuracy(of_words, labels),
            "mim_accuracy": accuracy(of_patches, tokens),
        }
        return {"loss": mlm + mim, "mlm": mlm.detach(), "mim": mim.detach()} | right


@dataclass(frozen=True)
class BEiT3Task(PatchesTask):
    """BEiT-3's pre-training; `loader.global_batch_size` counts pairs."""

    name: ClassVar[str] = "beit3"
    title: ClassVar[str] = "masked data modeling of images, texts and pairs (BEiT-3)"
    reads = Reads(caption=True, masks_words=True, streams=True)
    architectures = ("VLMoForMaskedDataModeling",)
    usage: ClassVar[Usage | None] = Usage(
        "predicts masked words and the visual tokens of masked patches; a start for fine-tuning on any task",
        "image-feature-extraction",
        '"image.png"',
    )
    losses_of = BEiT3Objective
    masked_share: float = 0.4
    """Share of the patches of images, alone and in pairs, that are masked, in blocks."""
    images: AloneConfig = AloneConfig()
    """Images alone, beside the pairs of `data`."""
    texts: AloneConfig = AloneConfig()
    """Texts alone, beside the pairs of `data`."""
    text_mask_probability: float = 0.15
    """Share of the tokens of texts alone that are masked, as whole words."""
    pair_mask_probability: float = 0.5
    """Share of the tokens of texts in pairs that are masked, as whole words."""

    @property
    def mask_probability(self) -> float:
        """Share of all words of a step that are masked, where texts are alike in length."""
        texts = self.texts.per_pair
        return (self.pair_mask_probability + texts * self.text_mask_probability) / (1 + texts)

    def contents(self, run: RunContext) -> Contents:
        """Return pairs with masked words and patches."""
        words = WordMaskConfig(
            self.pair_mask_probability, run.data.mask_only, run.data.mask_only_share
        )
        return replace(super().contents(run), words=words)

    def beside(self, recipe: Any) -> dict[str, Any]:
        """Return stages 1 and 2 for images and texts alone, in orders of their own; ValueError for a part of one."""
        tasks = {
            "images": VisionTask(self.visual_tokenizer, self.masked_share),
            "texts": LanguageTask(freeze=False),
        }
        found = {}
        pairs = recipe.loader.global_batch_size
        for number, (name, task) in enumerate(tasks.items()):
            alone = getattr(self, name)
            data = recipe.data
            if abs((count := round(alone.per_pair * pairs)) - alone.per_pair * pairs) > 1e-6:
                raise ValueError(
                    f"task.{name}.per_pair {alone.per_pair} of {pairs} pairs is no whole number"
                )
            if alone.source or alone.streams.patterns:
                data = replace(data, source=alone.source, streams=alone.streams, weights=())
            if name == "images":
                data = replace(data, unit="image", weights=())
            if count:
                found[name] = replace(
                    recipe,
                    task=task,
                    data=replace(data, mlm_probability=self.text_mask_probability, mask_only=()),
                    loader=replace(recipe.loader, global_batch_size=count),
                    seed=sample_seed(recipe.seed, epoch=0, index=number, purpose="beside"),
                )
        return found

    def batch_without_data(self, batch: Batch) -> Batch:
        """Return pairs with images and texts alone."""
        found: dict[str, Any] = {**batch}
        rows = {name: value for name, value in found.items() if value.ndim}
        for kind, alone in (("images", self.images), ("texts", self.texts)):
            if count := round(alone.per_pair * len(rows["input_ids"])):
                found |= {
                    f"{kind}.{name}": value.new_zeros(count, *value.shape[1:])
                    for name, value in rows.items()
                }
        return cast("Batch", found)
