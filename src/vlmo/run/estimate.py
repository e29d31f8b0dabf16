"""The dry run: memory, operations and traffic of a run, from its recipe alone.

Models live on the meta device: PyTorch counts operations, and a formula over shapes gives the memory that the backward
pass needs. Not counted: the frozen visual tokenizer of stage 1, a teacher, evaluation, buffers of the libraries,
fragmented memory. The last block counts as a whole one, although most of it is run for few tokens only, so the numbers
are upper bounds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from vlmo.checkpoints.loading import check_model_folder
from vlmo.folder import read_config
from vlmo.model import VLMoForImageTextRetrieval, VLMoPreTrainedModel
from vlmo.model.multiway import MultiwayBlock
from vlmo.model.stages import start_from
from vlmo.processing.tokenizers import PAD_MULTIPLE
from vlmo.recipes.schema import Recipe, check_recipe
from vlmo.released import find_model
from vlmo.tasks.costs import BFLOAT16, FLOAT32, SampleSizes, Work
from vlmo.training.lora import add_adapters

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
    if processes < 1:
        raise ValueError(f"processes is {processes}; give a number from 1 up")
    check_recipe(recipe, processes=processes)
    pieces, batch = processes * recipe.loader.accumulation, recipe.loader.global_batch_size
    if batch % pieces:
        raise ValueError(
            f"processes is {processes}; loader.global_batch_size {batch} must be a multiple of processes x "
            f"loader.accumulation ({recipe.loader.accumulation})"
        )
    with torch.device("meta"):
        work = _work(recipe)
        if recipe.lora.rank is not None:
            add_adapters(work.model, recipe.lora, start="")
    micro = batch // pieces
    total, trained = _count(work.model), _count(work.model, trained=True)
    weights = _weights(recipe, work, processes=processes, micro=micro)
    flops, embeddings, negatives = work.flops, 0.0, 0.0
    half, checkpointed = recipe.trainer.precision == "bf16", recipe.trainer.engine.activation_checkpointing
    activations = work.kept_bytes(micro, half=half, checkpointed=checkpointed)
    if work.pairs is not None:
        flops += work.pairs.flops(micro * processes)
        activations += work.pairs.kept_bytes(micro, processes=processes)
        embeddings, negatives = work.pairs.traffic(micro, processes=processes)
    return Estimate(
        parameters=total,
        trainable_parameters=trained,
        parameter_bytes=round(total * FLOAT32 / weights.shares + weights.gathered_bytes),
        gradient_bytes=round(trained * FLOAT32 / weights.shares),
        optimizer_bytes=round(2 * trained * FLOAT32 / weights.shares),
        activation_bytes=round(activations + weights.copied_bytes),
        micro_batch=micro,
        processes=processes,
        gradient_traffic=round(weights.traffic),
        embedding_traffic=round(recipe.loader.accumulation * embeddings),
        negative_traffic=round(recipe.loader.accumulation * negatives),
        flops_per_sample=round(flops),
        flops_per_step=round(flops * batch),
        assumed_classes=recipe.task.num_classes,
    )


def check_start(recipe: Recipe, original: Recipe | None = None) -> list[str]:
    """Validate that the start folder fits the recipe's model and that there is a teacher, without any data.

    Returns:
        What to do about those that `original`, the recipe before changes, names too and that are not there yet.

    Raises:
        ValueError: One does not fit, as the run would say, or is no model folder.
    """
    lines = []
    start, teacher = recipe.init, getattr(recipe.task, "teacher", None)
    if original is not None:
        if teacher == getattr(original.task, "teacher", None) and _is_to_come(teacher):
            lines.append(f"Its teacher is {teacher}, which is not there yet: train that first, or give --task.teacher.")
            teacher = None
        if start == original.init and _is_to_come(start):
            lines.append(f"It starts from {start}, which is not there yet: train that first, or give --init.")
            start = None
    if teacher is not None:
        try:
            check_model_folder(teacher, VLMoForImageTextRetrieval)
        except ValueError as error:
            raise ValueError(f"task.teacher: {error} Name another with --task.teacher, or None") from None
    if start is None:
        return lines
    config = read_config(start)
    settings = asdict(recipe.model) | {name: config[name] for name in ("vocab_size", "id2label") if name in config}
    if not recipe.task.reads_text and "max_text_positions" in config:
        settings["max_text_positions"] = config["max_text_positions"]
    with torch.device("meta"):
        model = recipe.task.build_model(settings)
    start_from(model, start)
    return lines


def _is_to_come(model: str | None) -> bool:
    return model is not None and not Path(find_model(model)).exists()


def _work(recipe: Recipe) -> Work:
    """Return the work of the recipe's task; call it where the meta device is the default one."""
    task, settings = recipe.task, asdict(recipe.model)
    if task.reads_text:
        settings["vocab_size"] = recipe.text.vocab_size
    if (classes := task.num_classes) is not None:
        settings["id2label"] = {number: str(number) for number in range(classes)}
    model: Any = task.build_model(settings)
    if isinstance(model, VLMoPreTrainedModel):
        model.set_attn_implementation("eager")  # its products are counted one by one
    text = -(-recipe.text.max_length // PAD_MULTIPLE) * PAD_MULTIPLE
    return task.work(model, SampleSizes(recipe.model.image_size, text, recipe.data.mlm_probability * text))


class _Weights(NamedTuple):
    """Weights under data parallelism and autocast: processes that share them, and bytes."""

    shares: int
    gathered_bytes: float  # of other processes, at a time
    copied_bytes: float  # in bf16
    traffic: float  # sent a step, by ring algorithms


def _weights(recipe: Recipe, work: Work, *, processes: int, micro: int) -> _Weights:
    half, sent = recipe.trainer.precision == "bf16", (processes - 1) / processes
    total, trained = _count(work.model), _count(work.model, trained=True)
    if processes == 1 or recipe.trainer.engine.data_parallel == "ddp":
        return _Weights(1, 0.0, BFLOAT16 * total if half else 0.0, 2 * sent * trained * FLOAT32)
    blocks = [module for module in work.model.modules() if isinstance(module, MultiwayBlock)]
    in_blocks, trained_in_blocks = sum(map(_count, blocks)), sum(_count(block, trained=True) for block in blocks)
    size, root, micro_batches = BFLOAT16 if half else FLOAT32, total - in_blocks, recipe.loader.accumulation
    # A block's weights are gathered whenever it runs, forward (once more where it is recomputed) and backward; their
    # gradients are summed as often. Those of the root are summed in the last micro-batch alone.
    backward = sum(each.block_runs(micro) for each in work.passes) / max(len(blocks), 1)
    forward = sum(each.block_runs(micro) * (1 + each.recomputed) for each in work.passes) / max(len(blocks), 1)
    of_blocks = (forward + backward) * micro_batches * in_blocks * size + backward * trained_in_blocks * FLOAT32
    of_root = (micro_batches * root + trained - trained_in_blocks) * FLOAT32
    cached = getattr(getattr(recipe.task, "losses", None), "cache_chunk", None) is not None
    share = 1.0 if cached else _GATHERED_BLOCKS / max(len(blocks), _GATHERED_BLOCKS)
    gathered = share * in_blocks * size + root * FLOAT32
    return _Weights(processes, gathered, BFLOAT16 * root if half else 0.0, sent * (of_blocks + of_root))


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
