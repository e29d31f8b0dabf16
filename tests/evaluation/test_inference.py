import pytest
import torch
from torch import nn

from vlmo.evaluation.inference import map_batches


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout(0.5).eval()


def test_batches_come_in_order_and_modes_stay_as_they_were():
    model, told = Model().train(), []
    model.frozen.eval()

    def run(rows: range) -> list[int]:
        assert not model.training
        assert torch.is_inference_mode_enabled()
        return list(rows)

    found = map_batches(run, 5, model=model, batch=2, title="rows", report=lambda *state: told.append(state))
    assert found == [[0, 1], [2, 3], [4]]
    assert told == [("rows", 2, 5), ("rows", 4, 5), ("rows", 5, 5)]
    assert model.training
    assert not model.frozen.training


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        map_batches(list, 0, model=Model())
