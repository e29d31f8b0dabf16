"""The dry run: parameters, operations and memory of a run, from its recipe alone.

The step of the task runs forward and backward on tensors without data, on the rows of one process.
Not counted: hard negatives of other processes, a frozen visual tokenizer or teacher, weights that
FSDP gathers for a moment, evaluation, and fragmented memory. Texts are as long as they may be, and
with a gradient cache a chunk goes through all encoders at once: upper bounds.

torch's `MemTracker` gives the peak of one run, with temporary tensors of this machine's kernels.
What autograd keeps, in all and by block, gives any micro-batch on any machine, with activation
checkpointing or without.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from jaxtyping import Float64
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from vlmo.model import cpu, masks
from vlmo.model.embeddings import relative_position_index
from vlmo.model.masks import count_true
from vlmo.model.multiway import MultiwayBlock
from vlmo.processing.tokenizers import PAD_MULTIPLE
from vlmo.recipes.schema import Recipe, check_recipe
from vlmo.run.fake_cuda import FAKE_CUDA, fake_cuda
from vlmo.training.lora import add_adapters
from vlmo.training.muon import matrices_of
from vlmo.training.parallel import to_device
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
        activation_bytes: Kept by one micro-batch for its backward pass, with the bf16 copies of the
            weights.
        micro_batch: Samples of one process in one backward pass.
        flops_per_sample: Recomputation to save memory does not count.
        flops_per_step: The same for the global batch.
        waits: Operations of a micro-batch at which the host waits for a GPU; none on a CPU.
    """

    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    micro_batch: int
    flops_per_sample: int
    flops_per_step: int
    waits: tuple[str, ...]

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


def estimate(
    recipe: Recipe, *, processes: int = 1, device: Literal["cpu", "cuda"] = "cpu"
) -> Estimate:
    """Return the needs of each of `processes` that share the recipe's run.

    Args:
        device: "cpu", or "cuda" for `waits`: a GPU need not be there, but numbers are float32's.

    Raises:
        ValueError: The processes cannot share the global batch, or settings contradict each other.
    """
    micro_batch = _micro_batch(recipe, processes=processes)
    objective, model = _build_without_data(recipe)
    torch_device = FAKE_CUDA if device == "cuda" else torch.device("cpu")
    chunk = getattr(getattr(recipe.task, "losses", None), "cache_chunk", None)
    # With a gradient cache a chunk at a time is kept.
    rows = min(micro_batch, chunk or micro_batch)
    with _tensors_without_data(device):
        objective.to_empty(device=torch_device).train()
        counts, kept = _step(recipe, objective, rows=rows, device=torch_device)
    flops = counts.flops / rows
    activations, in_blocks, block_inputs, largest_block = kept
    engine = recipe.trainer.engine
    # Blocks keep their inputs, and one block at a time is recomputed whole.
    if engine.activation_checkpointing:
        activations += block_inputs + largest_block - in_blocks
    # The cache holds the images, of 8 bits, of the whole micro-batch.
    if chunk is not None:
        activations += micro_batch * recipe.model.num_channels * recipe.model.image_size**2
    # DDP keeps everything on each process.
    shards = processes if engine.data_parallel == "fsdp" else 1
    total = sum(parameter.numel() for parameter in model.parameters())
    num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # AdamW's mean and mean square.
    moments = 2 * num_trained
    # Muon keeps one moment of a matrix.
    if recipe.optimizer.muon:
        moments -= sum(matrix.numel() for matrix in matrices_of(model) if matrix.requires_grad)
    return Estimate(
        parameters=total,
        trainable_parameters=num_trained,
        parameter_bytes=round(total * _FLOAT32 / shards),
        gradient_bytes=round(num_trained * _FLOAT32 / shards),
        optimizer_bytes=round(moments * _FLOAT32 / shards),
        activation_bytes=round(activations),
        micro_batch=micro_batch,
        flops_per_sample=round(flops),
        flops_per_step=round(flops * recipe.loader.global_batch_size),
        waits=tuple(counts.waits),
    )


def _micro_batch(recipe: Recipe, *, processes: int) -> int:
    """Return the rows that a process has in memory at a time; ValueError if the batch cannot be shared."""
    if processes < 1:
        raise ValueError(f"processes is {processes}; give a number from 1 up")
    check_recipe(recipe, processes=processes)
    batch = recipe.loader.global_batch_size
    accumulation = recipe.loader.accumulation
    if batch % (processes * accumulation):
        raise ValueError(
            f"processes is {processes}; loader.global_batch_size {batch} must be a multiple of processes x "
            f"loader.accumulation ({accumulation})"
        )
    return batch // (processes * accumulation)


def _build_without_data(recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """Return the objective of a recipe and its model, without memory for weights."""
    settings = asdict(recipe.model)
    if recipe.task.reads.text:
        settings["vocab_size"] = recipe.text.vocab_size
    # A run takes the classes of its data, the published set has these.
    if recipe.task.num_classes is not None:
        settings["id2label"] = {number: str(number) for number in range(recipe.task.num_classes)}
    with torch.device("meta"):
        model = recipe.task.build_model(settings)
    objective = recipe.task.without_data().step(model)
    if recipe.lora.rank is not None:
        with torch.device("meta"):
            add_adapters(model, recipe.lora, start="")
    return objective, model


@contextlib.contextmanager
def _tensors_without_data(device: str) -> Iterator[None]:
    """Context in which tensors on `device` have no data."""
    chunk_scores = cpu._CHUNK_SCORES
    # Attention in one go has fewer operations.
    cpu._CHUNK_SCORES = sys.maxsize
    mode = fake_cuda() if device == "cuda" else FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            yield
    finally:
        cpu._CHUNK_SCORES = chunk_scores
        # The cache would hand tensors without data to the next model.
        relative_position_index.cache_clear()


def _step(
    recipe: Recipe, objective: nn.Module, *, rows: int, device: torch.device
) -> tuple[_WithoutData, Float64[np.ndarray, "4"]]:
    """Return the step's counts, and bytes kept: in all, in blocks, of their inputs, in the largest block."""
    weights = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    kept: dict[int, int] = {}
    kept_before_block: list[int] = []
    kept_in_block: list[int] = []
    block_inputs: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            # By storage: autograd saves one tensor for several operations, or views of it.
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def enter_block(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        kept_before_block.append(sum(kept.values()))
        block_inputs.append(arguments[0].nbytes)

    def leave_block(*_: object) -> None:
        kept_in_block.append(sum(kept.values()) - kept_before_block.pop())

    hooks = []
    for module in objective.modules():
        if isinstance(module, MultiwayBlock):
            hooks.append(module.register_forward_pre_hook(enter_block))
            hooks.append(module.register_forward_hook(leave_block))
    batch, counts = _batch(recipe, rows)
    batch = to_device(batch, device)
    bf16 = recipe.trainer.precision == "bf16"
    with counts, patch.object(masks, "count_true", counts.count_true):
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        # Autocast's copies of the weights are kept, too, and counted.
        with saved, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = objective(batch)["loss"]
        loss.backward()
    largest = max(kept_in_block, default=0)
    sizes = [sum(kept.values()), sum(kept_in_block), sum(block_inputs), largest]
    return counts, np.array(sizes, dtype=np.float64)


def _batch(recipe: Recipe, rows: int) -> tuple[Batch, _WithoutData]:
    task = recipe.task
    size = recipe.model.image_size
    num_patches = (size // recipe.model.patch_size) ** 2
    # As the collator pads the longest text.
    num_text = PAD_MULTIPLE * math.ceil(recipe.text.max_length / PAD_MULTIPLE)
    masked_patches = round(getattr(task, "masked_share", 0) * num_patches)
    masked = {num_patches: masked_patches}
    most: int | None = rows * masked_patches
    longest = num_text if task.reads.caption else num_patches
    if task.reads.masks_words:
        probability = getattr(task, "mask_probability", recipe.data.mlm_probability)
        masked[num_text] = max(1, round(probability * num_text))
        rows_of_words = rows // getattr(getattr(task, "losses", None), "mlm_stride", 1)
        most = rows_of_words * masked[num_text]
        # A batch has masks of both kinds.
        if masked_patches:
            most = None
            longest = max(num_text, num_patches)
    ids = torch.ones(rows, num_text, dtype=torch.long)
    batch: Batch = {
        "pixel_values": torch.zeros(rows, recipe.model.num_channels, size, size, dtype=torch.uint8),
        "input_ids": ids,
        "attention_mask": ids,
        "mlm_input_ids": ids,
        "mlm_labels": ids,
        "bool_masked_pos": torch.ones(rows, num_patches, dtype=torch.bool),
        "image_ids": torch.arange(rows),
        "step_seed": torch.zeros((), dtype=torch.long),
        "step": torch.zeros((), dtype=torch.long),
        "labels": torch.zeros(rows, dtype=torch.long),
    }
    counts = _WithoutData(rows=rows, longest=longest, masked=masked, most=most)
    return task.batch_without_data(batch), counts


# Results whose shape, or a number for Python, depends on values.
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def _waits_for_gpu(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True for an operation at which the host waits for a GPU, such as a number that it reads."""
    tensors = [argument for argument in args if isinstance(argument, FakeTensor)]
    devices = {tensor.fake_device.type for tensor in tensors}
    match function.__name__:
        case "_to_copy.default":
            target = kwargs.get("device")
            devices |= {target.type} if target is not None else set()
            return devices == {"cpu", "cuda"} and not kwargs.get("non_blocking")
        case "copy_.default":
            non_blocking = kwargs.get("non_blocking") or args[2:] == (True,)
            return devices == {"cpu", "cuda"} and not non_blocking
        case (
            "index.Tensor" | "index_put.default" | "index_put_.default" | "_index_put_impl_.default"
        ):
            is_mask = [isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]]
            return any(is_mask) and "cuda" in devices
    return "cuda" in devices and not _READS.isdisjoint(function.tags)


class _WithoutData(TorchDispatchMode):
    """Counts FLOPs and waits for the GPU, and stands in for numbers that tensors without data do not have.

    Masks of tokens choose `masked` in a row, by the tokens of a row, and at `most` so many, of which
    a row may have `longest`; each image is needed.
    """

    def __init__(
        self,
        *,
        rows: int,
        longest: int,
        masked: dict[int, int],
        most: int | None,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.longest = longest
        self.masked = masked
        self.most = most
        self.flops = 0
        self.waits: list[str] = []

    def count_true(self, *masks: Tensor) -> list[tuple[int, int]]:
        """Stand in for `masks.count_true`."""
        # For its waits.
        count_true(*masks)
        numbers = []
        for mask in masks:
            rows, tokens = mask.shape
            total = min(mask.numel(), rows * self.masked.get(tokens, 0))
            if self.most is not None:
                total = min(total, self.most)
            numbers.append((min(self.longest, tokens), total))
        return numbers

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return what the function would, or its stand-in."""
        kwargs = kwargs or {}
        if _waits_for_gpu(function, args, kwargs):
            self.waits.append(function.__name__)
        match function.__name__, *args:
            case "_local_scalar_dense.default", _:
                return self.longest
            case "_unique2.default", numbers, *_:
                return (
                    numbers.new_empty(min(len(numbers), self.rows)),
                    torch.zeros_like(numbers),
                    numbers.new_empty(0),
                )
        result = function(*args, **kwargs)
        count_flops = _FLOPS.get(function._overloadpacket)
        if count_flops is not None:
            self.flops += count_flops(*args, **kwargs, out_val=result)
        return result
