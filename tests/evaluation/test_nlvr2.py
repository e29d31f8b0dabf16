import pytest

from vlmo.evaluation.nlvr2 import Sentence, guessed_metrics, nlvr2_metrics


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
