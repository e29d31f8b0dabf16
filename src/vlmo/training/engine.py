"""Engine of one objective: compiled, checkpointed, and spread over processes, in this order."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import checkpoint

from vlmo.distributed import world_size
from vlmo.model.multiway import MultiwayBlock
from vlmo.training.checkpoint import TensorTree, training_tensors
from vlmo.training.config import EngineConfig, Precision
from vlmo.types import Batch

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Graphs of the forward of a block: it is traced for each modality, branch and drop path rate.
_GRAPHS_PER_BLOCK = 16


def multiplies_in_bf16(device: torch.device) -> bool:
    """Return True if PyTorch knows of instructions for bf16 on the device; without them it is computed by detours.

    Releases of PyTorch without `torch.cpu.get_capabilities` tell nothing of Arm, which is False here.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        # The last is Arm's.
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def choose_precision(name: Precision | Literal["auto"], *, device: torch.device) -> Precision:
    """Return `name`, or for "auto" bf16 if the device has instructions for it, else float32; warn of bf16 without."""
    if name == "auto":
        return "bf16" if multiplies_in_bf16(device) else "float32"
    if name == "bf16" and not multiplies_in_bf16(device):
        logger.warning(
            "bf16 on a %s that is not known to have instructions for it: float32 may be faster",
            device.type,
        )
    return name


class _Step(nn.Module):
    """The objective as data parallelism should see it: only "loss" leads back to the parameters."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        values = self.objective(batch)
        # A logged value that kept its graph would make DDP wait for gradients that never come.
        return {
            name: value.float() if name == "loss" else value.detach().float()
            for name, value in values.items()
        }


class Engine:
    """Wrapper that runs an objective; all methods are called on every process alike.

    Parameters that a step does not use are found at each step, as objectives may leave out any of them; like on one
    process, their gradient stays None. With "fsdp" all processes must leave out the same ones.

    Args:
        objective: Holds a module `model`. Sharding replaces its parameters, so an optimizer is built afterwards.
        precision: Of the activations; the caller switches autocast on.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        config: EngineConfig | None = None,
        precision: Precision = "float32",
    ) -> None:
        config = config or EngineConfig()
        self.objective = objective
        # Of the model, whole and without weights, where the model itself is sharded.
        self._twin = None
        shards = world_size() > 1 and config.data_parallel == "fsdp"
        if shards:
            _same_everywhere([*objective.parameters(), *objective.buffers()])
            # Before the model is sharded: a copy of sharded parameters would be sharded, too.
            self._twin = _drop_weights(copy.deepcopy(objective.get_submodule("model")).eval())
        blocks = [module for module in objective.modules() if isinstance(module, MultiwayBlock)]
        if config.compile:
            # Beyond its limit PyTorch runs a block uncompiled.
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, _GRAPHS_PER_BLOCK * len(blocks))
        for block in blocks:
            # `forward` itself is replaced, so that the hooks of sharding stay outside.
            forward: Callable[..., Any] = block.forward
            if config.compile:
                forward = torch.compile(forward)
            if config.activation_checkpointing:
                forward = partial(_checkpointed, forward)
            block.forward = forward
        self._step: nn.Module = _Step(objective)
        if shards:
            _shard(self._step, blocks, precision=precision)
        elif world_size() > 1:
            # Routes leave out experts: a step of images alone gives those of texts no gradient.
            # Gradients live in the buckets: without a second copy at the size of the model.
            self._step = DistributedDataParallel(
                self._step, find_unused_parameters=True, gradient_as_bucket_view=True
            )

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a micro-batch, in float32; only "loss" carries a gradient."""
        return self._step(batch)

    @contextlib.contextmanager
    def synchronized(self, *, last: bool) -> Iterator[None]:
        """Context of one micro-batch's forward and backward; gradients are averaged over processes in the last one."""
        if isinstance(self._step, FSDPModule):
            # Until then gradients add up on each process, at the size of whole parameters.
            self._step.set_requires_gradient_sync(last)
        if isinstance(self._step, DistributedDataParallel) and not last:
            with self._step.no_sync():
                yield
        else:
            yield

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[nn.Module]:
        """Context without gradients that gives the model in evaluation mode.

        Any part of the model may be called, not the same on all processes: a sharded model is given as a whole float32
        copy, which is there only for so long.
        """
        model = self.objective.get_submodule("model")
        _same_everywhere(model.buffers())
        with torch.no_grad():
            if self._twin is not None:
                weights = get_model_state_dict(
                    model, options=StateDictOptions(full_state_dict=True)
                )
                self._twin.load_state_dict(weights, assign=True)
                try:
                    yield self._twin
                finally:
                    _drop_weights(self._twin)
                return
            modes = [(module, module.training) for module in model.modules()]
            yield model.eval()
            for module, training in modes:
                module.training = training

    def weights(self) -> dict[str, Tensor]:
        """Return the model's whole state dictionary on the main process; on the CPU if the model is sharded."""
        model = self.objective.get_submodule("model")
        if self._twin is None:
            return model.state_dict()
        _same_everywhere(model.buffers())
        return cast(
            "dict[str, Tensor]",
            get_model_state_dict(
                model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            ),
        )

    def training_state(self, optimizer: torch.optim.Optimizer) -> TensorTree:
        """Return what `checkpoint.StateStore` is to save."""
        # With DDP, too, which does so before each forward: each process writes a part of its own.
        _same_everywhere(self.objective.buffers())
        return training_tensors(self.objective, optimizer)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Float[Tensor, ""]:
    """Return the norm of all gradients together, the same plain tensor on every process."""
    norm = get_total_norm(
        [parameter.grad for parameter in parameters if parameter.grad is not None]
    )
    # A sharded norm is a partial sum, which `full_tensor` reduces.
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values, as DDP does by itself with weights and running statistics."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor.detach(), src=0)


def _drop_weights(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(
                module,
                name,
                nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False),
            )
    return model


def _checkpointed(forward: Callable[..., T], *args: object, **kwargs: Any) -> T:
    # Without a backward pass there is nothing to compute again.
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _shard(step: nn.Module, blocks: Sequence[nn.Module], *, precision: Precision) -> None:
    """Shard each block, then all that is left as the root, whose forward gathers what the objective calls by itself.

    With bf16, weights of blocks travel and work in bf16. The few others, the temperature among them, stay float32 and
    meet autocast, as the residual stream does; gradients are summed in float32.
    """
    device = next(step.parameters()).device
    mesh = init_device_mesh(device.type, (world_size(),))
    inner = MixedPrecisionPolicy()
    if precision == "bf16":
        inner = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for norm in (
            module
            for block in blocks
            for module in block.modules()
            if isinstance(module, nn.LayerNorm)
        ):
            norm.forward = partial(_norm_in_float32, norm)
    for block in blocks:
        # Blocks first, as FSDP2 wants it: from the leaves to the root.
        fully_shard(block, mesh=mesh, mp_policy=inner)
    fully_shard(step, mesh=mesh)


def _norm_in_float32(
    norm: nn.LayerNorm, hidden: Float[Tensor, "*tokens dim"]
) -> Float[Tensor, "*tokens dim"]:
    """Layer norm as autocast computes it on a GPU; on a CPU it refuses a norm whose weights are bf16."""
    weight, bias = (
        None if vector is None else vector.float() for vector in (norm.weight, norm.bias)
    )
    return F.layer_norm(hidden.float(), norm.normalized_shape, weight, bias, norm.eps)
