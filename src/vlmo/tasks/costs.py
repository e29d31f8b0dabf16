"""Operations, kept memory and traffic of a training sample, for the dry run; models may lie on the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlmo import model as models
from vlmo.losses.gradient_cache import row_blocks
from vlmo.model.config import VLMoConfig

FLOAT32, BFLOAT16 = 4, 2
LOGIT_COPIES = 3
"""Logits, their float32 form and the log of the softmax."""
_INT64 = 8


@dataclass(frozen=True)
class SampleSizes:
    """Pixels of an image's side, tokens of a padded text, and how many of these are masked on average."""

    image_size: int
    text: int
    masked: float


@dataclass(frozen=True)
class Pass:
    """Sequences that go through the blocks together.

    Attributes:
        lengths: Tokens of each.
        layers: Blocks that each goes through.
        share: Rows for each sample.
        chunk: Rows at a time; None is all.
        recomputed: Only the input of a chunk is kept, and backward computes the chunk again.
        other_bytes: Kept of a row beside what blocks keep.
    """

    lengths: tuple[int, ...]
    layers: int
    share: float = 1.0
    chunk: int | None = None
    recomputed: bool = False
    other_bytes: float = 0.0

    def rows_at_a_time(self, micro: int) -> float:
        """Return the rows of a chunk."""
        return min(micro * self.share, self.chunk or math.inf)

    def block_runs(self, micro: int) -> float:
        """Return the number of blocks that run in a micro-batch."""
        times = math.ceil(micro * self.share / self.rows_at_a_time(micro)) if self.share else 0
        return times * len(self.lengths) * self.layers


@dataclass(frozen=True)
class Work:
    """A task's model, its operations for a sample, and what its backward pass keeps.

    Attributes:
        flops: Forward and backward, without the contrast.
        row_bytes: Kept of a sample beside what `passes` keep.
        saved_bytes: Kept of a sample in float32; bf16 halves it.
    """

    model: nn.Module
    flops: float
    row_bytes: float
    passes: tuple[Pass, ...] = ()
    pairs: Pairs | None = None
    saved_bytes: float = 0.0

    def kept_bytes(self, micro: int, *, half: bool, checkpointed: bool) -> float:
        """Return the bytes that a micro-batch keeps for its backward pass, at most."""
        kept, moment = micro * (self.row_bytes + self.saved_bytes * (0.5 if half else 1.0)), 0.0
        config = cast(VLMoConfig, self.model.config)
        for each in self.passes:
            blocks = [_block_bytes(config, length, half=half) for length in each.lengths]
            inputs = [length * FLOAT32 * config.hidden_size for length in each.lengths]
            row = each.other_bytes + each.layers * sum(inputs if checkpointed else blocks)
            one_block = max(blocks) if checkpointed else 0
            if each.recomputed:
                moment = max(moment, each.rows_at_a_time(micro) * (row + one_block))
            else:
                kept += micro * each.share * row
                moment = max(moment, each.rows_at_a_time(micro) * one_block)
        return kept + moment


def _block_bytes(config: VLMoConfig, length: int, *, half: bool) -> int:
    """Return the bytes that a block keeps of a sequence.

    Of each token, in numbers of the hidden size: the residual stream before both norms, float32 in any case, the output
    of the norms (4 with it), queries, keys and values (3), the output of attention (1), and the inputs of LayerScale
    (2). Of the expert: before and after its activation. Scores of attention are computed again.
    """
    dim, inner = config.hidden_size, cast("int", config.intermediate_size)
    scaled = 0 if config.layer_scale_init is None else 2
    return length * (2 * FLOAT32 * dim + (BFLOAT16 if half else FLOAT32) * ((6 + scaled) * dim + 2 * inner))


def encode(model: Any, *, text: int = 0, image: bool = False) -> tuple[float, float]:
    """Return the operations of embeddings and blocks on a text, an image, or both; all blocks cost the same."""
    backbone, config = model.vlmo, model.config
    pixels = torch.empty(1, config.num_channels, *2 * (config.image_size,)) if image else None
    ids = torch.zeros(1, text, dtype=torch.long) if text else None
    embedded = 0.0 if pixels is None else count_flops(lambda: backbone.image_embeddings(pixels))
    return embedded, count_flops(lambda: backbone.encode(pixels, ids).tokens) - embedded


def products(module: nn.Module) -> int:
    """Return the weights of all linear layers, each of which is one multiplication a row."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def count_flops(run: Callable[[], Tensor]) -> int:
    """Return the operations of a function forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run().sum().backward()
    return counter.get_total_flops()


def encoder_work(model: Any, sample: SampleSizes, *, reads_text: bool, images: int = 1) -> Work:
    """Return the work of an encoder of images, each with the text if there is one, and of heads on single vectors."""
    config = model.config
    heads = products(model) - products(model.vlmo)
    if model.vlmo.pooler is not None:
        heads += images * products(model.vlmo.pooler)
    text = sample.text if reads_text else 0
    flops = images * sum(encode(model, text=text, image=True)) + 6 * heads
    passes = (Pass(images * (text + image_tokens(config),), config.num_hidden_layers),)
    return Work(model, flops, images * FLOAT32 * image_values(config), passes)


def image_tokens(config: VLMoConfig) -> int:
    """Return the tokens of an image, with the class token."""
    return 1 + config.grid[0] * config.grid[1]


def image_values(config: VLMoConfig) -> int:
    """Return the numbers of an image's pixels."""
    return config.num_channels * config.image_size**2


def masked_words(config: VLMoConfig, masked: float) -> tuple[float, float]:
    """Return operations and kept bytes of the masked words of a text in their head."""
    vocabulary = cast("int", config.vocab_size)
    return 6 * masked * config.hidden_size * (
        config.hidden_size + vocabulary
    ), LOGIT_COPIES * FLOAT32 * masked * vocabulary


def pair_work(model: Any, sample: SampleSizes, *, losses: Any) -> Work:
    """Return the work of stage 3 or of retrieval, without `false_captions`: of them the settings do not tell."""
    config: VLMoConfig = model.config
    depth, dim, pixels = config.num_hidden_layers, config.hidden_size, image_values(config)
    image, text, words = image_tokens(config), sample.text, masked_words(config, sample.masked)
    branches = 2 if isinstance(model, models.VLMoForPreTraining) and config.has_fusion_branch else 1
    masked, matched = int(losses.mlm_weight > 0) / losses.mlm_stride, int(losses.itm_weight > 0) / losses.itm_stride
    scored = (1 + 2 * losses.negatives) * matched
    alone = depth + (branches - 1) * config.num_fusion_layers
    projection, cached = cast("int", config.projection_size), losses.cache_chunk is not None
    heads = 6 * 2 * branches * dim * projection + masked * words[0] + 6 * scored * dim * dim
    (embedded, image_blocks), (_, text_blocks) = encode(model, image=True), encode(model, text=text)
    _, fused = encode(model, text=text, image=True)
    total = embedded + (image_blocks + text_blocks) * alone / depth + fused * (masked + scored) + heads
    floats, chunk, pair = FLOAT32 * pixels, losses.cache_chunk, (text + image,)
    if cached:
        again: dict[str, Any] = {"recomputed": True, "other_bytes": floats}
        passes = (
            Pass((image, text), alone, chunk=chunk, **again),
            Pass(pair, depth, share=masked, chunk=chunk, **again | {"other_bytes": floats + words[1]}),
            Pass(pair, depth, share=matched, chunk=chunk, **again),
            *2 * (Pass(pair, depth, share=losses.negatives * matched, chunk=chunk, **again),),
        )
    else:
        passes = (
            Pass((image, text), alone),
            Pass(pair, depth, share=masked + scored),
        )
    negatives = losses.negatives * matched
    pairs = Pairs(branches, projection, pixels, text, negatives, losses.negative_groups)
    return Work(model, total, pixels if cached else floats + masked * words[1], passes, pairs)


@dataclass(frozen=True)
class Pairs:
    """Contrast and hard negatives of image-text pairs.

    Attributes:
        branches: Branches of ITC, 1 or 2.
        projection: Length of an embedding.
        image_bytes: Bytes of an image as it travels.
        text: Tokens of a padded text.
        negatives: Hard negative images, and texts, per pair.
        groups: Parts of the global batch that hard negatives are sampled from.
    """

    branches: int
    projection: int
    image_bytes: int
    text: int
    negatives: float = 1.0
    groups: int = 1

    def traffic(self, batch: int, *, processes: int) -> tuple[float, float]:
        """Return bytes that a process sends for the contrast, and for hard negatives, which are sampled evenly.

        By ring and pairwise algorithms, gradients included: embeddings of all branches to every other process, with two
        numbers that tell same pairs; row numbers and how many of them; images, ids and masks.
        """
        others, chosen = processes - 1, round(self._fetched(batch, processes=processes))
        elsewhere = others / processes * chosen
        contrast = others * 2 * batch * (self.branches * self.projection * FLOAT32 * 2 + _INT64)
        requests = 2 * (others + elsewhere) * _INT64 if chosen else 0
        return contrast, requests + elsewhere * (self.image_bytes + 2 * self.text * _INT64)

    def flops(self, contrastive: int) -> int:
        """Return the operations of both directions of each branch, forward and backward, and to sample negatives."""
        contrasted = 3 * self.branches * self.projection
        return 2 * 2 * contrastive * (contrasted + self.projection * bool(self.negatives))

    def kept_bytes(self, micro: int, *, processes: int) -> float:
        """Return the bytes of embeddings, their gradients, logits (many: a block at a time) and fetched negatives."""
        contrastive = micro * processes
        block = row_blocks(micro, width=contrastive)[0]
        kept = 2 * self.branches if block.stop == micro else 1
        logits = kept * LOGIT_COPIES * FLOAT32 * block.stop * contrastive
        embeddings = 2 * 2 * self.branches * self.projection * FLOAT32 * contrastive
        return embeddings + logits + self._fetched(micro, processes=processes) * self.image_bytes

    def _fetched(self, micro: int, *, processes: int) -> float:
        """Return the pairs of a micro-batch whose hard negatives may lie on another process."""
        return 0.0 if self.groups % processes == 0 else micro * self.negatives
