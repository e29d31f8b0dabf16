"""The dry run: memory, operations and traffic of a run, from its recipe alone.

Models live on the meta device: PyTorch counts operations, and a formula over shapes gives the memory that the backward
pass needs. Not counted: the frozen visual tokenizer of stage 1, evaluation, buffers of the libraries, fragmented
memory. The last block counts as a whole one, although most of it is run for few tokens only,
so the numbers are upper bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.model.multiway import MultiwayBlock
from vlmo.objectives.gradient_cache import row_blocks
from vlmo.objectives.unimodal import LanguageObjective
from vlmo.objectives.vision_language import VisionLanguageConfig
from vlmo.recipes.schema import Recipe, check_recipe
from vlmo.tasks import (
    LanguageStage,
    QuestionStage,
    ReasoningStage,
    RetrievalStage,
    SegmentationStage,
    TokenizerStage,
    VisionLanguageStage,
    VisionStage,
)

_FLOAT32, _BFLOAT16, _INT64 = 4, 2, 8
_PAD_MULTIPLE = 8
_LOGIT_COPIES = 3  # logits, their float32 form and the log of the softmax
# FSDP2 gathers the weights of a block while the one before it runs. It gives none up while the gradient cache computes
# a chunk again, until the backward pass has been through it.
_GATHERED_BLOCKS = 2


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes for one process; FLOPs forward and backward, a multiplication and its addition being two.

    Attributes:
        parameter_bytes: With FSDP2 the process's share, and the weights that are gathered at a time.
        activation_bytes: Kept by one micro-batch for its backward pass, with the bf16 copies of the weights.
        micro_batch: Samples of one process in one backward pass.
        gradient_traffic: Bytes that a process sends a step to average gradients, and with FSDP2 to gather weights.
        embedding_traffic: Bytes that a process sends a step for the contrastive logits, gradients included.
        negative_traffic: Bytes that a process sends a step for hard negatives, gradients included.
        flops_per_sample: Recomputation to save memory does not count.
        flops_per_step: The same for the global batch.
        assumed_classes: Size of the last layer, where the data decide it.
    """

    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    micro_batch: int
    processes: int
    gradient_traffic: int
    embedding_traffic: int
    negative_traffic: int
    flops_per_sample: int
    flops_per_step: int
    assumed_classes: int | None

    def to_json(self) -> str:
        """Return all numbers."""
        return json.dumps(asdict(self), indent=2)

    def table(self, *, title: str) -> Table:
        """Return the numbers for people."""
        memory = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes
        rows = {
            "parameters": f"{self.parameters:,} ({self.trainable_parameters:,} trained)",
            "memory of parameters": _size(self.parameter_bytes),
            "memory of gradients": _size(self.gradient_bytes),
            "memory of the optimizer": _size(self.optimizer_bytes),
            f"activations of a micro-batch of {self.micro_batch:,}": f"about {_size(self.activation_bytes)}",
            "memory, all of these": f"about {_size(memory)}",
        }
        if self.processes > 1:
            rows["sent a step: gradients and weights"] = f"about {_size(self.gradient_traffic)}"
            rows["sent a step: embeddings for contrast"] = _size(self.embedding_traffic)
            rows["sent a step: hard negatives"] = _size(self.negative_traffic)
        rows["operations of a sample, forward and backward"] = _flops(self.flops_per_sample)
        rows["operations of a step, all processes"] = _flops(self.flops_per_step)
        if self.assumed_classes is not None:
            rows["classes, as the data may have others"] = f"{self.assumed_classes:,} assumed"
        table = Table(title=title, show_header=False, title_justify="left")
        for row in rows.items():
            table.add_row(*row)
        return table


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.2f} MiB"


def _flops(count: int) -> str:
    return f"{count / 1e12:,.1f} TFLOPs" if count >= 1e12 else f"{count / 1e9:,.1f} GFLOPs"


def estimate(recipe: Recipe, *, processes: int = 1) -> Estimate:
    """Return the needs of each of `processes` that share the recipe's run.

    Raises:
        ValueError: The processes cannot share the global batch, or settings contradict each other.
    """
    if processes > 0:
        check_recipe(recipe, processes=processes)
    pieces, batch = processes * recipe.loader.accumulation, recipe.loader.global_batch_size
    if processes < 1 or batch % pieces:
        raise ValueError(
            f"processes is {processes}; loader.global_batch_size {batch} must be a multiple of processes x "
            f"loader.accumulation ({recipe.loader.accumulation})"
        )
    with torch.device("meta"):
        work = _work(recipe)
    micro = batch // pieces
    total, trained = _count(work.model), _count(work.model, trained=True)
    weights = _weights(recipe, work, processes=processes, micro=micro)
    flops, activations, embeddings, negatives = work.flops, work.kept_bytes(recipe, micro), 0.0, 0.0
    if work.pairs is not None:
        flops += work.pairs.flops(micro * processes)
        activations += work.pairs.kept_bytes(micro, processes=processes)
        traffic = work.pairs.traffic(micro, processes=processes)
        embeddings, negatives = traffic.contrast + traffic.identities, traffic.requests + traffic.negatives
    return Estimate(
        parameters=total,
        trainable_parameters=trained,
        parameter_bytes=round(total * _FLOAT32 / weights.shares + weights.gathered_bytes),
        gradient_bytes=round(trained * _FLOAT32 / weights.shares),
        optimizer_bytes=round(2 * trained * _FLOAT32 / weights.shares),
        activation_bytes=round(activations + weights.copied_bytes),
        micro_batch=micro,
        processes=processes,
        gradient_traffic=round(weights.traffic),
        embedding_traffic=round(recipe.loader.accumulation * embeddings),
        negative_traffic=round(recipe.loader.accumulation * negatives),
        flops_per_sample=round(flops),
        flops_per_step=round(flops * batch),
        assumed_classes=recipe.stage.num_classes,
    )


# ------------------------------------------------------------------------------------ operations and activations


@dataclass(frozen=True)
class _Pass:
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
        return min(micro * self.share, self.chunk or math.inf)

    def block_runs(self, micro: int) -> float:
        """Return the number of blocks that run in a micro-batch."""
        times = math.ceil(micro * self.share / self.rows_at_a_time(micro)) if self.share else 0
        return times * len(self.lengths) * self.layers


@dataclass(frozen=True)
class _Work:
    """A task's model, its operations for a sample, and what its backward pass keeps.

    Attributes:
        flops: Forward and backward, without the contrast.
        row_bytes: Kept of a sample beside what `passes` keep.
    """

    model: nn.Module
    flops: float
    row_bytes: float
    passes: tuple[_Pass, ...] = ()
    pairs: Pairs | None = None

    def kept_bytes(self, recipe: Recipe, micro: int) -> float:
        """Return what a micro-batch keeps for its backward pass, at most."""
        half, checkpointed = recipe.trainer.precision == "bf16", recipe.trainer.engine.activation_checkpointing
        kept, moment = micro * self.row_bytes, 0.0
        config = cast(VLMoConfig, self.model.config)
        for each in self.passes:
            blocks = [_block_bytes(config, length, half=half) for length in each.lengths]
            inputs = [length * _FLOAT32 * config.hidden_size for length in each.lengths]
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
    return length * (2 * _FLOAT32 * dim + (_BFLOAT16 if half else _FLOAT32) * ((6 + scaled) * dim + 2 * inner))


def _work(recipe: Recipe) -> _Work:
    """Return the work of the recipe's task; call it where the meta device is the default one."""
    task, settings = recipe.stage, asdict(recipe.model)
    if task.reads_text:
        settings["vocab_size"] = recipe.text.vocab_size
    if (classes := task.num_classes) is not None:
        settings["id2label"] = {number: str(number) for number in range(classes)}
    model: Any = task.build_model(settings)
    if isinstance(task, TokenizerStage):
        return _tokenizer_work(model, patches=(recipe.model.image_size // model.config.patch_size) ** 2)
    if isinstance(task, LanguageStage):
        LanguageObjective(model, freeze=task.freeze)  # freezes
    model.set_attn_implementation("eager")  # its products are counted one by one
    config: Any = model.config
    depth, dim, pixels = config.num_hidden_layers, config.hidden_size, config.num_channels * config.image_size**2
    image, text = 1 + config.grid[0] * config.grid[1], -(-recipe.text.max_length // _PAD_MULTIPLE) * _PAD_MULTIPLE
    masked = recipe.data.mlm_probability * text
    # Operations and bytes of a text's masked words in their head.
    words = 6 * masked * dim * (dim + config.vocab_size), _LOGIT_COPIES * _FLOAT32 * masked * config.vocab_size
    if isinstance(task, LanguageStage):
        return _Work(model, sum(_encode(model, text=text)) + words[0], words[1], (_Pass((text,), depth),))
    if isinstance(task, VisionLanguageStage | RetrievalStage):
        return _pair_work(model, task.losses, image=image, text=text, words=words)
    if isinstance(task, QuestionStage | ReasoningStage):
        count = 2 if isinstance(task, ReasoningStage) else 1
        heads = count * dim**2 + _products(model) - _products(model.vlmo)  # the pooler's, and its own
        flops = count * sum(_encode(model, text=text, image=True)) + 6 * heads
        return _Work(model, flops, count * _FLOAT32 * pixels, (_Pass(count * (text + image,), depth),))
    flops, kept = sum(_encode(model, image=True)), _FLOAT32 * pixels
    if isinstance(task, VisionStage):
        predicted = task.masked_share * (image - 1) * config.num_visual_tokens
        flops, kept = flops + 6 * predicted * dim, kept + _FLOAT32 * _LOGIT_COPIES * predicted
    elif isinstance(task, SegmentationStage):
        heads, saved = _segmentation_heads(model)
        logits = 2 * _LOGIT_COPIES * _FLOAT32 * config.num_labels * config.image_size**2
        flops, kept = flops + heads, kept + saved * (0.5 if recipe.trainer.precision == "bf16" else 1.0) + logits
    else:
        flops += 6 * dim * config.num_labels
    return _Work(model, flops, kept, (_Pass((image,), depth),))


def _encode(model: Any, *, text: int = 0, image: bool = False) -> tuple[float, float]:
    """Return the operations of embeddings and blocks on a text, an image, or both; all blocks cost the same."""
    backbone, config = model.vlmo, model.config
    parts: dict[str, Any] = {}

    def run(layers: int) -> Tensor:
        if image:
            parts["image"] = backbone.embed_image(torch.empty(1, config.num_channels, *2 * (config.image_size,)))
            parts["grid"] = config.grid
        if text:
            parts["text"] = backbone.embed_text(torch.zeros(1, text, dtype=torch.long))
        return backbone.run(backbone.join(**parts), layers=range(layers), fusion=len(parts) == 3)

    embedded, one_block = (_count_flops(lambda layers=layers: run(layers)) for layers in (0, 1))
    return embedded, config.num_hidden_layers * (one_block - embedded)


def _products(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def _count_flops(run: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        run().sum().backward()
    return counter.get_total_flops()


def _tokenizer_work(model: nn.Module, *, patches: int) -> _Work:
    config: Any = model.config
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    products = 6 * sum(layer.weight.numel() for layer in layers) + 2 * config.code_size * config.num_tokens
    widths = sum(layer.weight.shape[0] + layer.weight[0].numel() for layer in layers if isinstance(layer, nn.Linear))
    return _Work(model, float(patches * products), float(patches * _FLOAT32 * (widths + config.num_tokens)))


def _segmentation_heads(model: Any) -> tuple[float, float]:
    """Return operations and kept bytes of the heads on one image."""
    rows, config = 2, model.config  # batch normalisation needs more than one value
    levels = [torch.empty(rows, config.hidden_size, *config.grid).requires_grad_() for _ in config.feature_layers]
    own, kept = {id(parameter) for parameter in model.parameters()}, dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def run() -> Tensor:
        pyramid = model.pyramid(levels)
        return model.decode_head(pyramid).sum() + model.auxiliary_head(pyramid).sum()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        flops = _count_flops(run)
    return flops / rows, sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / rows


def _pair_work(model: Any, losses: VisionLanguageConfig, *, image: int, text: int, words: tuple[float, float]) -> _Work:
    """Return the work of stage 3 or of retrieval."""
    config: VLMoConfig = model.config
    depth, dim, pixels = config.num_hidden_layers, config.hidden_size, config.num_channels * config.image_size**2
    branches = 2 if isinstance(model, VLMoForPreTraining) and config.has_fusion_branch else 1
    masked, matched = (int(weight > 0) / losses.fused_stride for weight in (losses.mlm_weight, losses.itm_weight))
    alone = depth + (branches - 1) * config.num_fusion_layers
    projection, cached = cast("int", config.projection_size), losses.cache_chunk is not None
    heads = 6 * 2 * branches * dim * projection + masked * words[0] + 6 * 3 * matched * dim * dim
    (embedded, image_blocks), (_, text_blocks) = _encode(model, image=True), _encode(model, text=text)
    _, fused = _encode(model, text=text, image=True)
    total = embedded + (image_blocks + text_blocks) * alone / depth + fused * (masked + 3 * matched) + heads
    floats, chunk, pair = _FLOAT32 * pixels, losses.fused_chunk or losses.cache_chunk, (text + image,)
    if cached:
        again: dict[str, Any] = {"recomputed": True, "other_bytes": floats}
        passes = (
            _Pass((image, text), alone, chunk=losses.cache_chunk, **again),
            _Pass(pair, depth, share=masked, chunk=chunk, **again | {"other_bytes": floats + words[1]}),
            *3 * (_Pass(pair, depth, share=matched, chunk=chunk, **again),),
        )
    else:
        passes = (
            _Pass((image, text), alone),
            _Pass(pair, depth, share=masked + 3 * matched, chunk=losses.fused_chunk),
        )
    image_bytes, gradient_bytes = (pixels, 0) if cached else 2 * (image * dim * _FLOAT32,)
    pairs = Pairs(branches, projection, image_bytes, gradient_bytes, text, matched, losses.negative_groups)
    return _Work(model, total, pixels if cached else floats + masked * words[1], passes, pairs)


# ------------------------------------------------------------------------------------ traffic


class Traffic(NamedTuple):
    """Bytes that one process sends to others, forward and backward, by the ring or pairwise algorithms in use.

    Attributes:
        contrast: Embeddings of all branches to every other process, and the gradients back.
        identities: Numbers of images and captions, by which pairs are known as the same.
        requests: Row numbers, and how many of them, for hard negatives.
        negatives: Images and texts of hard negatives, and the gradients of embedded ones.
    """

    contrast: float
    identities: float
    requests: float
    negatives: float


@dataclass(frozen=True)
class Pairs:
    """Contrast and hard negatives of image-text pairs.

    Attributes:
        branches: Branches of ITC, 1 or 2.
        projection: Length of an embedding.
        image_bytes: Bytes of an image as it travels: its pixels with `cache_chunk`, else its embedded patches.
        gradient_bytes: Bytes that come back for an image; 0 for pixels.
        text: Tokens of a padded text.
        matched: Share of the pairs that get a hard negative image and a hard negative text.
        groups: Parts of the global batch that hard negatives are sampled from.
    """

    branches: int
    projection: int
    image_bytes: int
    gradient_bytes: int
    text: int
    matched: float = 1.0
    groups: int = 1

    def traffic(self, batch: int, *, processes: int) -> Traffic:
        """Return what a process sends on average for its `batch` pairs, hard negatives being sampled evenly."""
        others, chosen = processes - 1, round(self._fetched(batch, processes=processes))
        share = others / processes  # of the sampled rows, those that live elsewhere
        return Traffic(
            contrast=others * 2 * self.branches * batch * self.projection * _FLOAT32 * 2,
            identities=others * 2 * batch * _INT64,
            requests=2 * (others + share * chosen) * _INT64 if chosen else 0,
            negatives=share * chosen * (self.image_bytes + self.gradient_bytes + 2 * self.text * _INT64),  # ids, mask
        )

    def flops(self, contrastive: int) -> int:
        """Both directions of each branch, forward and backward, and once more to sample negatives."""
        return 2 * 2 * self.projection * contrastive * (3 * self.branches + bool(self.matched))

    def kept_bytes(self, micro: int, *, processes: int) -> float:
        """All embeddings and their gradients, logits (all, or of many a block at a time), and fetched negatives."""
        contrastive = micro * processes
        block = row_blocks(micro, width=contrastive)[0]
        kept = 2 * self.branches if block.stop == micro else 1
        logits = kept * _LOGIT_COPIES * _FLOAT32 * block.stop * contrastive
        embeddings = 2 * 2 * self.branches * self.projection * _FLOAT32 * contrastive
        return embeddings + logits + self._fetched(micro, processes=processes) * self.image_bytes

    def _fetched(self, micro: int, *, processes: int) -> float:
        """Pairs of a micro-batch whose hard negatives may lie on another process."""
        return 0.0 if self.groups % processes == 0 else micro * self.matched


class _Weights(NamedTuple):
    """Weights under data parallelism and autocast: processes that share them, and bytes."""

    shares: int
    gathered_bytes: float  # of other processes, at a time
    copied_bytes: float  # in bf16
    traffic: float  # sent a step, by ring algorithms


def _weights(recipe: Recipe, work: _Work, *, processes: int, micro: int) -> _Weights:
    half, sent = recipe.trainer.precision == "bf16", (processes - 1) / processes
    total, trained = _count(work.model), _count(work.model, trained=True)
    if processes == 1 or recipe.trainer.engine.data_parallel == "ddp":
        return _Weights(1, 0.0, _BFLOAT16 * total if half else 0.0, 2 * sent * trained * _FLOAT32)
    blocks = [module for module in work.model.modules() if isinstance(module, MultiwayBlock)]
    in_blocks, trained_in_blocks = sum(map(_count, blocks)), sum(_count(block, trained=True) for block in blocks)
    size, root, micro_batches = _BFLOAT16 if half else _FLOAT32, total - in_blocks, recipe.loader.accumulation
    # A block's weights are gathered whenever it runs, forward (once more where it is recomputed) and backward; their
    # gradients are summed as often. Those of the root are summed in the last micro-batch alone.
    backward = sum(each.block_runs(micro) for each in work.passes) / max(len(blocks), 1)
    forward = sum(each.block_runs(micro) * (1 + each.recomputed) for each in work.passes) / max(len(blocks), 1)
    of_blocks = (forward + backward) * micro_batches * in_blocks * size + backward * trained_in_blocks * _FLOAT32
    of_root = (micro_batches * root + trained - trained_in_blocks) * _FLOAT32
    cached = getattr(getattr(recipe.stage, "losses", None), "cache_chunk", None) is not None
    share = 1.0 if cached else _GATHERED_BLOCKS / max(len(blocks), _GATHERED_BLOCKS)
    gathered = share * in_blocks * size + root * _FLOAT32
    return _Weights(processes, gathered, _BFLOAT16 * root if half else 0.0, sent * (of_blocks + of_root))


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
