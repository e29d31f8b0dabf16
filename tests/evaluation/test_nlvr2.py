import pytest
import torch
from tests.evaluation.toy_pair_model import LookUp, batches

from vlmo.evaluation.nlvr2 import Sentence, guessed_metrics, judge_sentences, nlvr2_metrics


def sentences(groups: str, labels: list[bool | None]) -> list[Sentence]:
    """One letter of `groups` for each row."""
    return [
        Sentence(identifier=f"dev-{number}-0-0", sentence="both are cats", group=group, label=label)
        for number, (group, label) in enumerate(zip(groups, labels, strict=True))
    ]


def test_consistency_counts_groups_of_which_every_row_is_right():
    rows = sentences("aabbbc", [True, False, True, True, False, True])
    metrics = nlvr2_metrics(rows, [True, False, True, False, False, True])
    assert metrics == {"accuracy": 5 / 6, "consistency": 2 / 3}


def test_rows_without_a_label_count_for_nothing():
    rows = sentences("aabb", [True, None, False, None])
    assert nlvr2_metrics(rows, [True, False, True, True]) == {"accuracy": 0.5, "consistency": 0.5}
    with pytest.raises(ValueError, match="the label of none of 2 sentences is known"):
        nlvr2_metrics(sentences("ab", [None, None]), [True, True])


def test_a_coin_is_right_about_all_of_a_group_with_half_to_the_power_of_its_size():
    rows = sentences("aaab", [True, False, None, True])
    assert guessed_metrics(rows) == {"accuracy": 0.5, "consistency": (0.25 + 0.5) / 2}


def test_judgement_is_the_larger_logit():
    judged = judge_sentences(LookUp(torch.tensor([[0.0, 1.0], [2.0, -1.0], [-3.0, -2.5]])), batches(3, size=2))
    assert [judgement.is_true for judgement in judged] == [True, False, True]
    expected = torch.tensor([1.0, -3.0, 0.5]).sigmoid().tolist()
    assert [judgement.confidence for judgement in judged] == pytest.approx(expected, abs=1e-6)  # float32
