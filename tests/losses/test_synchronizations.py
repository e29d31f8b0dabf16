"""Operations of a step for which the host of a GPU would wait."""

from typing import Any

import torch
from tests.losses.steps import stage_3
from tests.toy_batch import make_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def has_boolean_index(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in arguments[1])


class Synchronizations(TorchDispatchMode):
    """Notes operations whose results have a shape, or a number for Python, that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:
            waits = has_boolean_index(args)
        else:
            waits = bool(READS.intersection(function.tags))
        if waits:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_operations_that_wait_for_values_are_counted() -> None:
    numbers = torch.arange(4)
    with Synchronizations() as noted:
        numbers = numbers[numbers > 1]
        numbers[numbers.nonzero()[:, 0]].max().item()
    assert noted.names == ["index", "nonzero", "_local_scalar_dense"]


def test_a_step_of_stage_3_waits_six_times_for_values() -> None:
    objective = stage_3()
    batch = make_batch()
    with Synchronizations() as noted:
        objective(batch)["loss"].backward()
    # The seed and the fullest row; images of the pairs; states and labels of masked words, and the
    # gradient of those states.
    expected = ["_local_scalar_dense"] * 2 + ["_unique2", "index", "index", "index_put"]
    assert sorted(noted.names) == sorted(expected)
