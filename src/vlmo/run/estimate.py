"""The dry run: parameters, operations and memory of a run, from its recipe alone.

The step of the task runs forward and backward on tensors without data, on a few rows and on twice as many: operations
and what autograd keeps grow alike with each further row. Not counted: contrast and hard negatives beyond these rows, a
frozen visual tokenizer or teacher, weights that FSDP gathers for a moment, evaluation, and fragmented memory. Texts are
as long as they may be, and with a gradient cache a chunk goes through all encoders at once: upper bounds.

torch's `MemTracker` gives the peak of one run, with temporary tensors of this machine's kernels. What autograd keeps,
in all and by block, gives any micro-batch on any machine, with activation checkpointing or without.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from vlmo.model import cpu
from vlmo.model.embeddings import relative_position_index
from vlmo.model.multiway import MultiwayBlock
from vlmo.processing.tokenizers import PAD_MULTIPLE
from vlmo.recipes.schema import Recipe, check_recipe
from vlmo.training.lora import add_adapters
from vlmo.training.muon import matrices_of
from vlmo.types import Batch

_FLOAT32 = 4
# FLOPs by function; the registry of PyTorch lacks attention on a CPU.
_FLOPS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes for one process; FLOPs forward and backward, a multiplication and its addition being two.

    Attributes:
        parameter_bytes: Weights, gradients and optimizer are shared by the processes with FSDP.
        activation_bytes: Kept by one micro-batch for its backward pass, with the bf16 copies of the weights.
        micro_batch: Samples of one process in one backward pass.
        flops_per_sample: Recomputation to save memory does not count.
        flops_per_step: The same for the global batch.
    """

    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    micro_batch: int
    processes: int
    flops_per_sample: int
    flops_per_step: int

    def table(self, *, title: str) -> Table:
        """Return the numbers for people."""
        memory = (
            self.parameter_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
        )
        frozen = self.parameters - self.trainable_parameters
        rows = {
            "parameters": f"{self.trainable_parameters:,} trained, {frozen:,} frozen",
            "memory of parameters": _size(self.parameter_bytes),
            "memory of gradients": _size(self.gradient_bytes),
            "memory of the optimizer": _size(self.optimizer_bytes),
            f"activations of a micro-batch of {self.micro_batch:,}": f"about {_size(self.activation_bytes)}",
            "memory, all of these": f"about {_size(memory)}",
            "operations of a sample, forward and backward": _flops(self.flops_per_sample),
            "operations of a step, all processes": _flops(self.flops_per_step),
        }
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
    pieces = processes * recipe.loader.accumulation
    batch = recipe.loader.global_batch_size
    if batch % pieces:
        raise ValueError(
            f"processes is {processes}; loader.global_batch_size {batch} must be a multiple of processes x "
            f"loader.accumulation ({recipe.loader.accumulation})"
        )
    micro = batch // pieces
    engine = recipe.trainer.engine
    settings = asdict(recipe.model)
    if recipe.task.reads.text:
        settings["vocab_size"] = recipe.text.vocab_size
    if (classes := recipe.task.num_classes) is not None:  # those of the published set
        settings["id2label"] = {number: str(number) for number in range(classes)}
    with torch.device("meta"):
        model = recipe.task.build_model(settings)
    objective = recipe.task.without_data().step(model)
    with torch.device("meta"):
        if recipe.lora.rank is not None:
            add_adapters(model, recipe.lora, start="")
    losses: Any = getattr(recipe.task, "losses", None)
    strides = getattr(losses, "mlm_stride", 1), getattr(losses, "itm_stride", 1)
    chunk = getattr(losses, "cache_chunk", None)
    rows = max(2, math.lcm(*strides))
    chunk_scores = cpu._CHUNK_SCORES
    cpu._CHUNK_SCORES = sys.maxsize  # attention in one go: fewer operations
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            objective.to_empty(device="cpu").train()
            operations, *few = _step(recipe, objective, fake, rows=rows, backward=True)
            _, *twice = _step(recipe, objective, fake, rows=2 * rows, backward=False)
    finally:
        cpu._CHUNK_SCORES = chunk_scores
        relative_position_index.cache_clear()  # which would hand tensors without data to the next model
    flops = operations / rows
    more = min(micro, chunk or micro) / rows - 1
    kept, in_blocks, block_inputs, largest_block = (
        a + (b - a) * more for a, b in zip(few, twice, strict=True)
    )
    if engine.activation_checkpointing:
        kept += block_inputs + largest_block - in_blocks
    if chunk is not None:  # the images, of 8 bits, of the whole micro-batch
        kept += micro * recipe.model.num_channels * recipe.model.image_size**2
    shares = processes if engine.data_parallel == "fsdp" else 1
    total, trained = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or each)
        for each in (True, False)
    )
    matrices = matrices_of(model) if recipe.optimizer.muon else ()
    moments = 2 * trained - sum(p.numel() for p in matrices if p.requires_grad)  # Muon keeps one
    return Estimate(
        parameters=total,
        trainable_parameters=trained,
        parameter_bytes=round(total * _FLOAT32 / shares),
        gradient_bytes=round(trained * _FLOAT32 / shares),
        optimizer_bytes=round(moments * _FLOAT32 / shares),
        activation_bytes=round(kept),
        micro_batch=micro,
        processes=processes,
        flops_per_sample=round(flops),
        flops_per_step=round(flops * batch),
    )


def _step(
    recipe: Recipe, objective: nn.Module, fake: FakeTensorMode, *, rows: int, backward: bool
) -> tuple[int, int, int, int, int]:
    """Return FLOPs, and bytes kept: in all, in blocks, of their inputs, in the largest block."""
    kept = dict[int, int]()
    began = list[int]()
    in_blocks = list[int]()
    inputs = list[int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def enter(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        began.append(sum(kept.values()))
        inputs.append(arguments[0].nbytes)

    def leave(*_: Any) -> None:
        in_blocks.append(sum(kept.values()) - began.pop())

    weights = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    blocks = [module for module in objective.modules() if isinstance(module, MultiwayBlock)]
    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    batch, without_data = _batch(recipe, rows, fake)
    half = recipe.trainer.precision == "bf16"
    with without_data:
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saved, torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(batch)["loss"]
        if backward:
            loss.backward()
    for hook in hooks:
        hook.remove()
    return (
        without_data.flops,
        sum(kept.values()),
        sum(in_blocks),
        sum(inputs),
        max(in_blocks, default=0),
    )


def _batch(recipe: Recipe, rows: int, fake: FakeTensorMode) -> tuple[Batch, _WithoutData]:
    task = recipe.task
    size = recipe.model.image_size
    patches = (size // recipe.model.patch_size) ** 2
    text = -(-recipe.text.max_length // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.ones(rows, text, dtype=torch.long)
    masked = {patches: round(getattr(task, "masked_share", 0) * patches)}
    both = task.reads.masks_words and masked[patches] > 0
    most = rows * masked[patches]
    if task.reads.masks_words:
        masked[text] = max(
            1, round(getattr(task, "mask_probability", recipe.data.mlm_probability) * text)
        )
        most = rows // getattr(getattr(task, "losses", None), "mlm_stride", 1) * masked[text]
    batch: Batch = {
        "pixel_values": torch.zeros(rows, recipe.model.num_channels, size, size, dtype=torch.uint8),
        "input_ids": ids,
        "attention_mask": ids,
        "mlm_input_ids": ids,
        "mlm_labels": ids,
        "bool_masked_pos": torch.ones(rows, patches, dtype=torch.bool),
        "image_ids": torch.arange(rows),
        "step_seed": torch.zeros((), dtype=torch.long),
        "step": torch.zeros((), dtype=torch.long),
        "labels": torch.zeros(rows, dtype=torch.long),
    }
    longest = max(text, patches) if both else text if task.reads.caption else patches
    without_data = _WithoutData(
        fake, rows=rows, longest=longest, masked=masked, most=None if both else most
    )
    return task.batch_without_data(batch), without_data


class _WithoutData(TorchDispatchMode):
    """Counts FLOPs, and stands in for numbers that tensors without data do not have.

    Masks of tokens choose `masked` in a row, by the tokens of a row, and at `most` so many; masks of rows choose all;
    each image is needed, and texts are `longest`.
    """

    def __init__(
        self,
        fake: FakeTensorMode,
        *,
        rows: int,
        longest: int,
        masked: dict[int, int],
        most: int | None,
    ) -> None:
        super().__init__()
        self.fake = fake
        self.rows = rows
        self.longest = longest
        self.masked = masked
        self.most = most
        self.flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return what the function would, or its stand-in."""
        kwargs = kwargs or {}
        match function.__name__, *args:
            case "device.default", tensor:
                return tensor.fake_device
            case "_local_scalar_dense.default", _:
                return self.longest
            case "_unique2.default", numbers, *_:
                return (
                    numbers.new_empty(min(len(numbers), self.rows)),
                    torch.zeros_like(numbers),
                    numbers.new_empty(0),
                )
            case "index.Tensor", tensor, [Tensor(dtype=torch.bool) as mask]:
                count = len(mask)
                if mask.ndim > 1:
                    count = min(mask.numel(), count * self.masked.get(mask.shape[1], 0))
                    count = count if self.most is None else min(count, self.most)
                return tensor.new_empty(count, *tensor.shape[mask.ndim :])
            case "index_put_.default" | "_index_put_impl_.default", tensor, [
                Tensor(dtype=torch.bool)
            ], *_:
                return tensor
        if {*types} == {FakeTensor} and kwargs.get("device") is None:
            # What the mode would do too, several times slower: its cache costs more than it saves here.
            with in_kernel_invocation_manager(self.fake):
                result = function(*args, **kwargs)

            def as_fake(tensor: Tensor) -> Tensor:
                if isinstance(tensor, FakeTensor):
                    return tensor
                return FakeTensor(self.fake, tensor, torch.device("cpu"))

            result = tree_map_only(Tensor, as_fake, result)
        else:
            result = function(*args, **kwargs)
        if count := _FLOPS.get(function._overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)
        return result
