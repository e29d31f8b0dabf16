import pytest

from vlmo.model.reranking import num_wanted

MODEL = {"weight": 0.25, "scale": 3.0}


def test_candidates_are_wanted_until_the_rest_may_hardly_be_the_one_and_come_among_the_best():
    # Log-odds of 1 and -1, deviation 1. Logits 3 + 1, 3 - 1, 2.7, 2.4 and 0: shares of 1, 0.1353, 0.2725, 0.2019 and
    # 0.0183 of 1.628. The best score is 0.75 * 3 + 0.25 * 1 = 2.5, for which the others need log-odds of
    # (2.5 - 0.75 * 2.7) / 0.25 = 1.9, 2.8 and 10: 0.9, 1.8 and 9 above 1, probabilities of 0.184, 0.0359 and 0.
    # Products: 0.1674 * 0.184 = 0.0308, 0.1240 * 0.0359 = 0.0045, which is below 0.005.
    similarity = [1.0, 1.0, 0.9, 0.8, 0.0]
    assert num_wanted(similarity, [1.0, -1.0], top=1, **MODEL) == 1
    # Without the third: 0.1490 * 0.0359 = 0.0053, and with 0.75 in place of 0.8 0.1309 * 0.0122 = 0.0016.
    assert num_wanted([1.0, 1.0, 0.8, 0.0], [1.0, -1.0], top=1, **MODEL) == 1
    assert num_wanted([1.0, 1.0, 0.75, 0.0], [1.0, -1.0], top=1, **MODEL) == 0
    # The second best score is 2: probabilities of -1.1, -0.2 and 7 deviations, 0.864, 0.579 and 0.
    assert num_wanted(similarity, [1.0, -1.0], top=2, **MODEL) == 2
    assert num_wanted(similarity, [1.0, -1.0], top=3, **MODEL) == 3


def test_extreme_scores_and_weights_are_decided_without_overflow():
    assert num_wanted([1.0, 0.0], [0.0], weight=0.0, scale=1e4, top=1) == 0
    assert num_wanted([0.0, 0.0, 0.0], [1e3, -1e3], weight=0.999, scale=1.0, top=1) == 0
    assert num_wanted([0.0, 0.0, 0.0], [-1e3, -1e3], weight=0.999, scale=1.0, top=1) == 1
    assert num_wanted([0.0, 0.0], [], weight=0.5, scale=1.0, top=1) == 2
    assert num_wanted([0.0, 0.0, 0.0], [float("nan")], weight=0.5, scale=1.0, top=1) == 2
    assert num_wanted([0.0, 0.0], [1.0, 2.0], weight=0.5, scale=1.0, top=1) == 0


@pytest.mark.parametrize("odds", [-5.0, 5.0])
def test_fusion_encoder_alone_scores_all(odds):
    assert num_wanted([1.0, 0.0], [odds], weight=1.0, scale=100.0, top=1) == 1
