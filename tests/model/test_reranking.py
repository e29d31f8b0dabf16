import pytest

from vlmo.model.reranking import is_settled

MODEL = {"weight": 0.25, "scale": 3.0}


def test_share_of_the_others_decides_by_the_size_of_the_result():
    # Logits 3 + 1/3 * 3 = 4, 3, 0: the others have (e^3 + 1) / (e^4 + e^3 + 1) = 0.2786; with odds of 9: 0.0498.
    similarity = [1.0, 1.0, 0.0]
    assert not is_settled(similarity, [3.0], top=1, **MODEL)
    assert is_settled(similarity, [9.0], top=1, **MODEL)
    assert is_settled(similarity, [9.0], top=4, **MODEL)
    assert not is_settled(similarity, [9.0], top=5, **MODEL)
    # Both of the first scored: 1 / (e^4 + e^3 + 1) = 0.0132.
    assert is_settled(similarity, [3.0, 0.0], top=15, **MODEL)
    assert not is_settled(similarity, [3.0, 0.0], top=16, **MODEL)


def test_extreme_scores_and_weights_are_decided_without_overflow():
    assert is_settled([1.0, 0.0], [0.0], weight=0.0, scale=1e4, top=10_000)
    assert is_settled([0.0, 0.0], [1e3], weight=0.999, scale=1.0, top=10_000)
    assert not is_settled([0.0, 0.0], [-1e3], weight=0.999, scale=1.0, top=1)


@pytest.mark.parametrize("odds", [-5.0, 5.0])
def test_fusion_encoder_alone_scores_all(odds):
    assert not is_settled([1.0, 0.0], [odds], weight=1.0, scale=100.0, top=1)
