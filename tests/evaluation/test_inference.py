import pytest
import torch
from tests.evaluation.toy_pair_model import LookUp, batches

from vlmo.evaluation.inference import top_logits

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 5.0], [4.0, 0.5, 0.0]])


def test_top_logits_come_best_first_in_the_order_of_rows():
    heard = []
    values, classes = top_logits(LookUp(LOGITS), batches(3, size=2), top=2, advance=heard.append)
    assert values.tolist() == [[3, 1], [5, 2], [4, 0.5]]
    assert classes.tolist() == [[1, 2], [2, 0], [0, 1]]
    assert heard == [2, 3]


def test_top_logits_gives_all_where_fewer_are_there():
    values, _ = top_logits(LookUp(LOGITS), batches(3, size=3), top=10)
    assert values.shape == (3, 3)


def test_top_logits_leaves_the_modes_as_they_were():
    model = LookUp(LOGITS).train()
    model.frozen.eval()
    top_logits(model, batches(1, size=1), top=1)
    assert model.training
    assert not model.frozen.training


def test_top_logits_refuses_nan_and_nothing():
    with pytest.raises(ValueError, match="NaN"):
        top_logits(LookUp(LOGITS * torch.nan), batches(3, size=3), top=1)
    with pytest.raises(ValueError, match="no rows"):
        top_logits(LookUp(LOGITS), iter(()), top=1)
