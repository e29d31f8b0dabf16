"""Tensors without data on a GPU, whether or not this machine or this build of PyTorch has one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

FAKE_CUDA = torch.device("cuda", 0)
_META = torch.device("meta")


class _FakeCUDA(FakeTensorMode):
    """Mode that shows its GPU to Python and to checks of devices, but the meta device to autograd.

    Without a GPU, autograd has no streams for gradients on one; those of the meta device need none.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Return a tensor without data, or another answer to what PyTorch asks."""
        kwargs = dict(kwargs or {})
        aten = torch.ops.aten
        if func is torch.ops.prim.device.default:
            device = args[0].fake_device
            return _META if device == FAKE_CUDA else device
        # Options that autograd has copied from a tensor.
        if kwargs.get("device") == _META:
            kwargs["device"] = FAKE_CUDA
        if func is aten._to_copy.default:
            source = args[0]
            is_same = kwargs.get("device", source.fake_device) == source.fake_device
            # A GPU's tensor that is sent to its GPU stays as it is, if its type does.
            if is_same and kwargs.get("dtype", source.dtype) == source.dtype:
                return super().dispatch(aten.alias.default, types, args, {})
        return super().dispatch(func, types, args, kwargs)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Yield the mode in which tensors on `FAKE_CUDA` have shapes and types alone.

    Autocast to bf16 is accepted there, but casts nothing, and attention is not fused.
    """
    # Autocast asks for the GPU itself, which no mode sees.
    with (
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        _FakeCUDA(allow_non_fake_inputs=True) as mode,
    ):
        yield mode
