"""What a run will need, from its recipe alone: no data, no start folder, no memory (models live on the meta device).

Counted are the model and its heads as the objective runs them. Not counted: the frozen visual tokenizer of stage 1,
evaluation, buffers of the libraries, and what fragments memory. The last block counts as a whole one, although most of
it is run for few tokens only, so figures are upper bounds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import nn

from vlmo.data.loader import validate_sizes
from vlmo.model.multiway import MultiwayBlock
from vlmo.objectives.traffic import pair_traffic
from vlmo.recipes.schema import Recipe, check_recipe
from vlmo.recipes.work import PairWork, Work, work_of

_FLOAT32, _BFLOAT16 = 4, 2
# FSDP2 gathers the weights of a block while the one before it runs. It gives none up while the gradient cache computes
# a chunk again, until the backward pass has been through it.
_GATHERED_BLOCKS = 2


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes for one process; FLOPs forward and backward, a multiplication and its addition being two."""

    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    """With FSDP2 the process's share, and the weights that are gathered at a time."""
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept by one micro-batch for its backward pass, with the bf16 copies of the weights."""
    micro_batch: int
    """Samples of one process in one backward pass."""
    processes: int
    gradient_traffic: int
    """Bytes that a process sends a step to average gradients, and with FSDP2 to gather weights (by rings)."""
    embedding_traffic: int
    """Bytes that a process sends a step for the contrastive logits, gradients included."""
    negative_traffic: int
    """Bytes that a process sends a step for hard negatives, gradients included."""
    flops_per_sample: int
    """Nothing counts twice that is computed twice to save memory."""
    flops_per_step: int
    """Of all processes."""
    assumed_classes: int | None
    """Size of the last layer, where the data decide it."""

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2)

    def table(self, *, title: str) -> Table:
        """For people."""
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in self._rows():
            table.add_row(name, value)
        return table

    def _rows(self) -> list[tuple[str, str]]:
        known = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes
        rows = [
            ("parameters", f"{self.parameters:,} ({self.trainable_parameters:,} trained)"),
            ("memory of parameters", _size(self.parameter_bytes)),
            ("memory of gradients", _size(self.gradient_bytes)),
            ("memory of the optimizer", _size(self.optimizer_bytes)),
            (f"activations of a micro-batch of {self.micro_batch:,}", f"about {_size(self.activation_bytes)}"),
            ("memory, all of these", f"about {_size(known)}"),
        ]
        if self.processes > 1:
            rows += [
                ("sent a step: gradients and weights", f"about {_size(self.gradient_traffic)}"),
                ("sent a step: embeddings for contrast", _size(self.embedding_traffic)),
                ("sent a step: hard negatives", _size(self.negative_traffic)),
            ]
        rows += [
            ("work of a sample, forward and backward", _flops(self.flops_per_sample)),
            ("work of a step, all processes", _flops(self.flops_per_step)),
        ]
        if self.assumed_classes is not None:
            rows.append(("classes, as the data may have others", f"{self.assumed_classes:,} assumed"))
        return rows


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**27 else f"{count / 2**20:,.2f} MiB"


def _flops(count: int) -> str:
    return f"{count / 1e12:,.1f} TFLOPs" if count >= 1e12 else f"{count / 1e9:,.1f} GFLOPs"


def estimate(recipe: Recipe, *, processes: int = 1) -> Estimate:
    """What each of `processes` needs for the recipe's run.

    Raises:
        ValueError: The global batch cannot be shared by so many processes, or settings contradict each other.
    """
    validate_sizes(recipe.loader)
    pieces = processes * recipe.loader.accumulation
    batch = recipe.loader.global_batch_size
    if processes < 1 or batch % pieces:
        raise ValueError(
            f"processes is {processes}; loader.global_batch_size {batch} must be a multiple of processes x "
            f"loader.accumulation ({recipe.loader.accumulation})"
        )
    check_recipe(recipe, processes=processes)
    with torch.device("meta"):
        work = work_of(recipe)
    micro = batch // pieces
    total, trained = _count(work.model), _count(work.model, trained=True)
    weights = _weights(recipe, work, processes=processes)
    embeddings, negatives = (0.0, 0.0) if work.pairs is None else _sent(work.pairs, processes=processes, batch=micro)
    flops = work.flops_of_a_sample(contrastive=micro * processes)
    return Estimate(
        parameters=total,
        trainable_parameters=trained,
        parameter_bytes=round(total * _FLOAT32 / weights.shares + weights.gathered_bytes),
        gradient_bytes=round(trained * _FLOAT32 / weights.shares),
        optimizer_bytes=round(2 * trained * _FLOAT32 / weights.shares),
        activation_bytes=round(work.kept_bytes(micro, contrastive=micro * processes) + weights.copied_bytes),
        micro_batch=micro,
        processes=processes,
        gradient_traffic=round(weights.traffic),
        embedding_traffic=round(recipe.loader.accumulation * embeddings),
        negative_traffic=round(recipe.loader.accumulation * negatives),
        flops_per_sample=round(flops),
        flops_per_step=round(flops * batch),
        assumed_classes=work.assumed_classes,
    )


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@dataclass(frozen=True)
class _Weights:
    """What data parallelism and autocast do with the weights; in bytes but for `shares`."""

    shares: int
    """Processes that hold the parameters, gradients and moments between them."""
    gathered_bytes: float
    copied_bytes: float
    traffic: float


def _weights(recipe: Recipe, work: Work, *, processes: int) -> _Weights:
    half, sent = recipe.trainer.precision == "bf16", (processes - 1) / processes
    total, trained = _count(work.model), _count(work.model, trained=True)
    if processes == 1 or recipe.trainer.engine.data_parallel == "ddp":
        return _Weights(
            shares=1,
            gathered_bytes=0.0,
            copied_bytes=_BFLOAT16 * total if half else 0.0,
            traffic=2 * sent * trained * _FLOAT32,
        )
    blocks = [module for module in work.model.modules() if isinstance(module, MultiwayBlock)]
    in_blocks, size = sum(map(_count, blocks)), _BFLOAT16 if half else _FLOAT32
    root, micro_batches = total - in_blocks, recipe.loader.accumulation
    # A block's weights are gathered whenever it runs, forward and backward; their gradients are summed as often, but
    # for those of all micro-batches before the last.
    forward, backward = work.runs_of_a_block(recipe.loader.global_batch_size // (processes * micro_batches))
    trained_in_blocks = sum(_count(block, trained=True) for block in blocks)
    of_blocks = (forward + backward) * micro_batches * in_blocks * size + backward * trained_in_blocks * _FLOAT32
    of_root = (micro_batches * root + trained - trained_in_blocks) * _FLOAT32
    cached = getattr(getattr(recipe.stage, "losses", None), "cache_chunk", None) is not None
    share = 1.0 if cached else _GATHERED_BLOCKS / max(len(blocks), _GATHERED_BLOCKS)
    gathered = share * in_blocks * size + root * _FLOAT32
    return _Weights(
        shares=processes,
        gathered_bytes=gathered,
        copied_bytes=_BFLOAT16 * root if half else 0.0,
        traffic=sent * (of_blocks + of_root),
    )


def _sent(pairs: PairWork, *, processes: int, batch: int) -> tuple[float, float]:
    """Bytes that a process sends for contrast and for hard negatives, in one micro-batch."""
    traffic = pair_traffic(
        processes=processes,
        batch=batch,
        chosen=round(batch * pairs.fetched_share(processes)),
        projection=pairs.projection,
        endings=pairs.endings,
        picture_bytes=pairs.picture_bytes,
        gradient_bytes=pairs.gradient_bytes,
        text=pairs.text,
    )
    return traffic.contrast + traffic.identities, traffic.requests + traffic.negatives
