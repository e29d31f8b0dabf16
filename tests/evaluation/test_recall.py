import math

import pytest
import torch

from vlmo.evaluation.retrieval import chance_metrics, chance_recall, rank_candidates, recall_metrics


def recall_of(
    images: torch.Tensor, texts: torch.Tensor, *, text_to_image: torch.Tensor, ks: tuple[int, ...]
) -> dict[str, float]:
    """Recall in both directions by the dot products of embeddings."""
    numbers = torch.arange(len(images))
    text_ranks = rank_candidates(images, texts, numbers, text_to_image, k=1).ranks
    image_ranks = rank_candidates(texts, images, text_to_image, numbers, k=1).ranks
    return recall_metrics(text_ranks=text_ranks, image_ranks=image_ranks, ks=ks)


def test_recall_of_several_captions_an_image() -> None:
    # Texts 0, 1, 2 describe image 0, text 3 describes image 1.
    text_to_image = torch.tensor([0, 0, 0, 1])
    similarity = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.5, 0.4, 0.8, 0.6]])
    # Image 0: its caption 1 is first. Image 1: text 2 is first, its only caption second.
    # Texts: 0 -> image 1 first (rank 2), 1 -> 1, 2 -> 2, 3 -> 1.
    metrics = recall_of(similarity, torch.eye(4), text_to_image=text_to_image, ks=(1, 2))
    assert metrics == {"tr@1": 0.5, "tr@2": 1.0, "ir@1": 0.5, "ir@2": 1.0}


@pytest.mark.parametrize(
    ("scores", "labels", "rank"),
    [
        (
            [0.9, 0.9, 0.8, 0.95],
            [0, 0, 0, 1],
            2,
        ),  # other captions of the image never stand in front
        ([0.5, 0.9, 0.5, 0.1], [0, 1, 2, 3], 3),  # a tie counts against the model
    ],
)
def test_rank_by_hand(scores, labels, rank) -> None:
    ranking = rank_candidates(
        torch.tensor([scores]), torch.eye(4), torch.tensor([0]), torch.tensor(labels), k=4
    )
    assert ranking.ranks.tolist() == [rank]
    assert ranking.is_right[0].tolist() == [labels[number] == 0 for number in ranking.indices[0]]


@pytest.mark.parametrize("value", [0.0, 1.0, -math.inf])
def test_constant_similarity_puts_the_right_one_last(value: float) -> None:
    metrics = recall_of(
        torch.full((4, 1), value), torch.ones(4, 1), text_to_image=torch.arange(4), ks=(1, 3, 4)
    )
    assert metrics == {"tr@1": 0.0, "tr@3": 0.0, "tr@4": 1.0, "ir@1": 0.0, "ir@3": 0.0, "ir@4": 1.0}


def test_nan_is_refused() -> None:
    embeds = torch.tensor([[torch.nan, 0.0], [0.0, 1.0]])
    for queries, candidates in ((embeds, torch.eye(2)), (torch.eye(2), embeds)):
        with pytest.raises(ValueError, match="NaN"):
            rank_candidates(queries, candidates, torch.arange(2), torch.arange(2), k=1)


def test_queries_without_a_right_candidate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"first: \[2\]"):
        recall_of(torch.zeros(2, 1), torch.ones(3, 1), text_to_image=torch.arange(3), ks=(1,))


@pytest.mark.parametrize(
    ("num_candidates", "k", "num_positives", "expected"),
    [
        (500, 1, 1, 1 / 500),
        (500, 10, 1, 10 / 500),
        (4, 1, 2, 1 / 2),
        (4, 2, 2, 1 - 1 / 6),  # only one of the six pairs of candidates holds no right one
        (5, 4, 2, 1.0),
        (3, 10, 1, 1.0),
    ],
)
def test_chance_of_a_random_order(
    num_candidates: int, k: int, num_positives: int, expected: float
) -> None:
    assert chance_recall(num_candidates, k=k, num_positives=num_positives) == pytest.approx(
        expected, abs=1e-12
    )


def test_chance_metrics_weigh_images_by_their_captions() -> None:
    # Image 0 has three of the four texts, image 1 one of them.
    chance = chance_metrics(torch.tensor([0, 0, 0, 1]), ks=(1, 2))
    assert chance == pytest.approx(
        {"tr@1": (3 / 4 + 1 / 4) / 2, "tr@2": (1 + 1 / 2) / 2, "ir@1": 0.5, "ir@2": 1.0}
    )


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_best_candidates_equal_those_of_the_full_product(chunk: int, k: int) -> None:
    # Float64 and random: products differ by more than any order of summation.
    queries, candidates = (
        torch.randn(11, 6, dtype=torch.float64),
        torch.randn(17, 6, dtype=torch.float64),
    )
    all_right = torch.zeros(11), torch.zeros(17)
    ranking = rank_candidates(queries, candidates, *all_right, k=k, chunk=chunk)
    full = (queries @ candidates.T).topk(min(k, 17), dim=1)
    assert torch.equal(ranking.indices, full.indices)
    torch.testing.assert_close(ranking.scores, full.values)


def test_equal_scores_stay_in_order() -> None:
    candidates = torch.tensor([[1.0], [2.0], [1.0], [2.0], [1.0]])
    ranking = rank_candidates(torch.ones(1, 1), candidates, torch.zeros(1), torch.arange(5), k=5)
    assert ranking.indices.tolist() == [[1, 3, 0, 2, 4]]
    assert ranking.scores.tolist() == [[2.0, 2.0, 1.0, 1.0, 1.0]]
    assert ranking.is_right.tolist() == [[False, False, True, False, False]]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_ranks_equal_those_of_the_full_product(chunk: int) -> None:
    # Small whole numbers: exact products and many ties.
    images, texts = torch.randint(-2, 3, (9, 4)).float(), torch.randint(-2, 3, (27, 4)).float()
    text_to_image = torch.arange(9).repeat(3)
    similarity = images @ texts.T
    for queries, candidates, query_labels, candidate_labels, full in (
        (images, texts, torch.arange(9), text_to_image, similarity),
        (texts, images, text_to_image, torch.arange(9), similarity.T),
    ):
        ranks = rank_candidates(
            queries, candidates, query_labels, candidate_labels, k=1, chunk=chunk
        ).ranks
        for rank, label, scores in zip(ranks.tolist(), query_labels, full, strict=True):
            right = candidate_labels == label
            assert rank == 1 + int((scores[~right] >= scores[right].max()).sum())
