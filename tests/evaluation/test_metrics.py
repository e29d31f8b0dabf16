"""Metrics by hand: classes, answers, statements, pixels."""

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from vlmo.evaluation.metrics import (
    Metric,
    Question,
    count_pixels,
    mean_per_class_recall,
    nlvr2_metrics,
    segmentation_metrics,
    topk_accuracy,
    vqa_metrics,
)

EXACT = 1e-12  # a few divisions in double precision
IGNORED = 255


def values(metrics: list[Metric]) -> dict[str, float]:
    return {each.name: each.value for each in metrics}


def chance(metrics: list[Metric]) -> dict[str, float | None]:
    return {each.name: each.chance for each in metrics}


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0, 10, 0, 0.2775), (0.134, 1903, 0.1194, 0.1500)],
)
def test_interval_is_that_of_the_score_test(share, count, low, high):
    """Both ends differ from the share by 1.96 standard errors at the end itself."""
    ends = Metric("accuracy", share, n=count).interval
    assert ends == pytest.approx((low, high), abs=1e-4)
    for end in ends:
        assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-9)


def test_topk_counts_ties_against_the_model_and_leaves_out_what_is_always_one() -> None:
    rows = torch.tensor([[3.0, 2, 1, 0, 0, 0]] * 3 + [[1.0, 1, 0, 0, 0, 0]])
    found = topk_accuracy(rows, torch.tensor([0, 1, 3, 0]))
    assert values(found) == {"top1": 0.25, "top5": 0.75}  # 3 ties with 4 and 5: rank 6
    assert chance(found) == {"top1": 1 / 6, "top5": 5 / 6}
    assert [each.n for each in found] == [4, 4]
    assert list(values(topk_accuracy(torch.eye(5), torch.arange(5)))) == ["top1"]
    assert values(topk_accuracy(torch.zeros(4, 6), torch.arange(4))) == {"top1": 0.0, "top5": 0.0}


def test_mean_per_class_recall_weighs_classes_alike() -> None:
    # Class 0: one of two rows; class 1: six of six; class 2 has no rows.
    logits = torch.eye(3)[[0, 2, 1, 1, 1, 1, 1, 1]]
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    metric = mean_per_class_recall(logits, labels)
    assert metric.value == pytest.approx(0.75)
    assert metric.chance == pytest.approx(1 / 3)
    # 2 squared, over 1/2 + 1/6.
    assert metric.n == 6
    assert mean_per_class_recall(torch.zeros(2, 3), torch.tensor([0, 1])).value == 0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "at least one row"),
        (torch.zeros(1, 3), torch.tensor([3]), "labels from 0 to 2"),
        (torch.zeros(1, 3), torch.tensor([-1]), "labels from 0 to 2"),
        (torch.full((1, 3), torch.nan), torch.tensor([0]), "NaN"),
    ],
)
def test_classes_that_cannot_be_scored_are_refused(logits, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        topk_accuracy(logits, labels)


def question(
    name: str, answers: list[str], *, kind: str = "other", asked: str = "what is"
) -> Question:
    return Question(name, f"picture of {name}", "what is it?", asked, kind, tuple(answers))


def test_metrics_of_answers_are_means_over_all_and_over_parts():
    questions = [
        question("1", ["yes"] * 10, kind="yes/no", asked="is it"),
        question("2", ["no"] * 10, kind="yes/no", asked="is it"),
        question("3", ["cat"] * 2 + ["dog"] * 8),
        question("4", [], kind="", asked=""),
    ]
    found = vqa_metrics(questions, ["yes", "yes", "cat", "whatever"])
    expected = {
        "accuracy": (1 + 0 + 0.6) / 3,
        "accuracy[answer: other]": 0.6,
        "accuracy[answer: yes/no]": 0.5,
        "accuracy[question: is it]": 0.5,
        "accuracy[question: what is]": 0.6,
    }
    assert values(found) == pytest.approx(expected, abs=EXACT)
    assert list(values(found)) == list(expected)
    assert [each.n for each in found] == [3, None, None, None, None]
    with pytest.raises(ValueError, match="none of 1 questions has a known answer"):
        vqa_metrics([question("1", [])], ["yes"])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        vqa_metrics([question("1", ["yes"])], [])


def test_chance_of_answers_is_the_most_frequent_one_of_each_part():
    answers = [("yes", "yes/no"), ("yes", "yes/no"), ("no", "yes/no"), ("cat", "other")]
    questions = [question("1", [answer], kind=kind) for answer, kind in answers] + [
        question("5", [])
    ]
    expected = {"accuracy": 0.5, "accuracy[answer: yes/no]": 2 / 3, "accuracy[answer: other]": 1}
    found = chance(vqa_metrics(questions, ["yes"] * 5))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    ("groups", "right", "expected", "coin"),
    [
        ("aabbbc", [True, False, True, True, True, True], (5 / 6, 2 / 3), (0.25 + 0.125 + 0.5) / 3),
        (
            "aabb",
            [True, None, False, None],
            (0.5, 0.5),
            0.5,
        ),  # rows without a label count for nothing
        ("aaab", [True, False, None, True], (2 / 3, 0.5), (0.25 + 0.5) / 2),
    ],
)
def test_consistency_counts_groups_of_which_every_row_is_right(groups, right, expected, coin):
    found = nlvr2_metrics(groups, right)
    assert tuple(values(found).values()) == pytest.approx(expected)
    assert tuple(chance(found).values()) == pytest.approx((0.5, coin))
    with pytest.raises(ValueError, match="the label of none of 2 sentences is known"):
        nlvr2_metrics("ab", [None, None])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Class 0: 3 of 4 right, one more called so: 3/5. Class 1: 1/3. Class 2: 1. Class 3 only where nothing counts.
        (
            "by hand",
            {
                "miou": (0.6 + 1 / 3 + 1) / 3,
                "aacc": 5 / 7,
                "macc": 0.75,
                "a": 0.6,
                "b": 1 / 3,
                "c": 1.0,
            },
        ),
        # A class that is only predicted counts for its intersection over union alone.
        (
            torch.tensor([[2, 2], [0, 0]]),
            {"miou": 0.25, "aacc": 0.5, "macc": 0.5, "a": 0.5, "b": 0.0},
        ),
    ],
)
def test_pixels_by_hand(counts, expected) -> None:
    if isinstance(counts, str):
        target = torch.tensor([[0, 0, 0, 0], [1, 1, 2, IGNORED]])
        counts = count_pixels(torch.tensor([[0, 0, 0, 1], [1, 0, 2, 3]]), target, num_classes=4)
    found = values(segmentation_metrics(counts, names="abcd"[: len(counts)]))
    named = {name if len(name) > 1 else f"iou[{name}]": value for name, value in expected.items()}
    assert found == pytest.approx(named)


def test_pixels_of_all_pictures_are_summed_before_they_are_divided() -> None:
    counts = torch.zeros(2, 2, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    peer = MulticlassJaccardIndex(num_classes=2, ignore_index=IGNORED)
    for predicted, target in [
        torch.randint(0, 2, (2, 5, 5), generator=generator) for _ in range(3)
    ]:
        target[0] = IGNORED
        counts += count_pixels(predicted, target, num_classes=2)
        peer.update(predicted, target)
    assert values(segmentation_metrics(counts, names="ab"))["miou"] == pytest.approx(
        peer.compute().item()
    )
    ignored = count_pixels(
        torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), IGNORED), num_classes=2
    )
    with pytest.raises(ValueError, match="no pixel counts"):
        segmentation_metrics(ignored, names="ab")
