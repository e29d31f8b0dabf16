"""What the published layouts share: fixed sizes, and how the shapes of tensors tell the sizes of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

from vlmo.checkpoints.report import spans

MAX_TEXT_POSITIONS = 196
"""Text positions of every published position table."""
DEFAULT_TEXT_LENGTH = 40
"""Tokens of a text in every published stage but the second."""
NUM_CLASS_ROWS = 3
"""Rows of a table for a class token: to any, any to it, to itself."""
NUM_CROSS_ROWS = 2
"""Rows of a table between the modalities."""


def shape_of(state_dict: Mapping[str, Tensor], key: str, *, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many axes, none of them empty.

    Raises:
        ValueError: It is not.
    """
    if key not in state_dict:
        raise ValueError(f"{key} is not there; the sizes of the model cannot be read without it. Is the file whole?")
    shape = tuple(state_dict[key].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{key} has shape {shape}; expected {axes} axes, none of them empty")
    return shape


def square_side(count: int) -> int | None:
    """The side of a square of `count` cells, None where there is no such square."""
    side = isqrt(max(count, 0))
    return side if side and side * side == count else None


def count_blocks(numbers: Iterable[int]) -> int:
    """How many blocks there are.

    Raises:
        ValueError: They are not numbered 0 and on without gaps.
    """
    found = set(numbers)
    if not found or max(found) != len(found) - 1:
        raise ValueError(
            f"blocks are numbered {spans(found) or 'nothing'}; expected 0 and on without gaps. The file is incomplete"
        )
    return len(found)


def joined(parts: Mapping[str, Tensor], *, axis: int) -> Float[Tensor, "..."]:
    """Matrices beside each other, in their order.

    Raises:
        ValueError: They are not alike.
    """
    check_alike(parts)
    return torch.cat(list(parts.values()), dim=axis)


def check_alike(parts: Mapping[str, Tensor]) -> None:
    """Refuses what cannot be joined or added.

    Raises:
        ValueError: These are no matrices, of several shapes, or no floating-point numbers.
    """
    shapes = {tuple(tensor.shape) for tensor in parts.values()}
    for key, tensor in parts.items():
        if tensor.ndim != 2 or len(shapes) > 1:
            raise ValueError(
                f"{key} and those that belong to it have shapes {', '.join(map(str, sorted(shapes)))}; expected two"
                " axes and the same for all"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"weights are no floating-point numbers: {key}")


def one_number(name: str, tensor: Float[Tensor, "..."]) -> Float[Tensor, "1"]:
    """A temperature with the one axis that ours has.

    Raises:
        ValueError: It is not one number.
    """
    if tensor.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected one number")
    return tensor.reshape(1)


def without_batch(name: str, tensor: Float[Tensor, "1 ..."]) -> Float[Tensor, "..."]:
    """Image positions without the leading axis of published files.

    Raises:
        ValueError: There is no such axis.
    """
    if tensor.ndim != 3 or len(tensor) != 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (1, positions, width)")
    return tensor[0]
