"""Collectives that are exact under differentiation and plain identities without a process group.

Convention: every process holds the same number of rows, and the "global" batch is their concatenation in rank order. A
loss that each process computes for its own rows, averaged over processes, is the loss of the global batch; data
parallelism averages gradients in the same way, so an objective never asks how many processes there are.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def rank() -> int:
    """Return the number of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Return True on the process that writes files and shows progress."""
    return rank() == 0


def keep_until_exit(group: object) -> None:
    """Keep a group of gloo until the process ends.

    Its destructor waits for gloo's threads with the interpreter's lock held, and one of them may want the lock, to drop
    the tensors of the last call: both then wait for ever.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def keep_memory() -> None:
    """Let glibc keep what one step frees for the next, which would get it from the system anew, page by page."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    # M_MMAP_THRESHOLD, which old versions refuse, then M_TRIM_THRESHOLD: never.
    if hasattr(libc, "mallopt") and libc.mallopt(-3, 1 << 30):
        libc.mallopt(-1, -1)


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of this process: `name`, else its GPU (CUDA, then Apple's MPS), else the CPU.

    MPS serves a run of one process: it has no collectives.

    Raises:
        ValueError: There is no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name is None:
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        # Several processes need collectives, which MPS lacks.
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps and alone else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; give 'cpu', 'cuda', 'cuda:N' or 'mps'") from None
    if device.type == "mps" and not has_mps:
        raise ValueError(f"device is {name!r}, but PyTorch sees no GPU of Apple here; give 'cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here"
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        dist.barrier()


def all_reduce(tensor: Shaped[Tensor, "*shape"], *, op: str = "sum") -> Shaped[Tensor, "*shape"]:
    """Return the sum, or largest value (`op="max"`), over processes; carries no gradient, leaves its argument alone."""
    result = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(result, op={"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
    return result


def gather_objects(value: Any) -> list[Any]:
    """Return `value` of every process, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather(tensor: Shaped[Tensor, "batch *shape"]) -> Shaped[Tensor, "global *shape"]:
    """Return the rows of all processes in rank order, without gradient."""
    if world_size() == 1:
        return tensor.detach()
    tensor = tensor.detach().contiguous()
    rows = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(rows, tensor)
    return rows


def gather_with_grad(tensor: Float[Tensor, "batch *shape"]) -> Float[Tensor, "global *shape"]:
    """Return the rows of all processes in rank order; the gradients of a row flow back to its owner, summed."""
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def exchange(
    tensor: Shaped[Tensor, "batch *shape"], wanted: Int[Tensor, "chosen"]
) -> Shaped[Tensor, "chosen *shape"]:
    """Return rows `wanted` (numbers in the global batch), fetched from the processes that own them.

    Only the chosen rows travel. Differentiable: the gradient of a fetched row returns to its owner.
    """
    if world_size() == 1:
        # Its gradient sums in order, with any number of threads.
        return tensor.index_select(0, wanted)
    batch = tensor.shape[0]
    owners = wanted // batch
    # All-to-all sends consecutive rows: requests are sorted by owner, and put back at the end.
    order = torch.argsort(owners, stable=True)
    # Rows that come from each process; `bincount` would make the host wait for a GPU.
    ranks = torch.arange(world_size(), device=wanted.device)
    receive = (owners[:, None] == ranks).sum(dim=0)
    send = torch.empty_like(receive)
    # First how many rows, then which, then the rows themselves.
    dist.all_to_all_single(send, receive)
    # One copy to the host for both.
    receive_splits, send_splits = torch.stack([receive, send]).tolist()
    requested = wanted.new_empty(sum(send_splits))
    dist.all_to_all_single(requested, wanted[order].contiguous(), send_splits, receive_splits)
    rows = _Exchange.apply(
        tensor.index_select(0, requested - rank() * batch), receive_splits, send_splits
    )
    return rows[torch.argsort(order)]


def append_rows(
    tensor: Shaped[Tensor, "batch *shape"], wanted: Int[Tensor, "chosen"]
) -> tuple[Shaped[Tensor, "rows *shape"], Int[Tensor, "chosen"]]:
    """Return the own rows with those that `exchange` fetches behind them, and where the `wanted` ones stand there."""
    if world_size() == 1:
        return tensor, wanted
    fetched = exchange(tensor, wanted)
    return torch.cat([tensor, fetched]), len(tensor) + torch.arange(
        len(wanted), device=wanted.device
    )


def global_mean(total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the mean over the rows of all processes, from this process's sum and number of rows.

    The value is equal on every process; its gradient, averaged over processes, is that of the global mean. 0 if there
    are no rows at all.
    """
    # W times this process's part, so that the mean over W processes is the global mean.
    share = total * world_size() / all_reduce(count).clamp(min=1)
    if world_size() == 1:
        return share
    mean = all_reduce(share) / world_size()
    # The difference is 0 and carries the gradient; this order leaves the value untouched.
    return mean + (share - share.detach())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(_ctx: object, grad: Tensor) -> Tensor:
        # Reduce-scatter, spelled as all-to-all and a sum: gloo has the former only in some versions.
        received = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, grad.contiguous())
        return received.unflatten(0, (world_size(), -1)).sum(0)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, receive_splits: list[int], send_splits: list[int]
    ) -> Tensor:
        ctx.splits = receive_splits, send_splits
        received = rows.new_empty((sum(receive_splits), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), receive_splits, send_splits)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        receive_splits, send_splits = ctx.splits
        # The way back: what was received is sent, what was sent is received.
        returned = grad.new_empty((sum(send_splits), *grad.shape[1:]))
        dist.all_to_all_single(returned, grad.contiguous(), send_splits, receive_splits)
        return returned, None, None
