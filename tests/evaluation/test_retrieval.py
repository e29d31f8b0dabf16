import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from tests.distributed.gloo import run_processes
from tests.toy_model import toy
from torch import Tensor, nn

from vlmo.evaluation import RetrievalSet, Weights, evaluate_retrieval
from vlmo.evaluation.inference import local_batches, map_batches
from vlmo.evaluation.retrieval import Ranking, _rerank
from vlmo.model import VLMoForImageTextRetrieval

NUM_IMAGES, CAPTIONS = 12, 2
TEXT_TO_IMAGE = torch.arange(NUM_IMAGES).repeat(CAPTIONS)
TEMPERATURE = 0.05


class FakeModel(nn.Module):
    """Looks embeddings up by the number that is written into every pixel or into the first token."""

    def __init__(self, *, images: Tensor, texts: Tensor, match: str = "constant") -> None:
        super().__init__()
        self.images, self.texts, self.kind = images, texts, match
        self.frozen = nn.Dropout(0.5)
        self.frozen.eval()
        self.contrast_head = SimpleNamespace(logit_scale=torch.tensor([math.log(1 / TEMPERATURE)]))
        self.device = torch.device("cpu")
        self.pairs: list[tuple[int, int]] = []
        self.widths: list[int] = []

    def get_image_features(self, *, pixel_values: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return self.images[pixel_values[:, 0, 0, 0].long()]

    def get_text_features(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert not self.training
        return self.texts[input_ids[:, 0]]

    def match(self, *, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert not self.training
        image, text = pixel_values[:, 0, 0, 0].long(), input_ids[:, 0]
        self.pairs += zip(image.tolist(), text.tolist(), strict=True)
        self.widths.append(input_ids.shape[1])
        # Texts have 1 to 20 tokens: what is cut off must have been padding.
        assert torch.equal(attention_mask.sum(dim=1), text % 20 + 1)
        if self.kind == "constant":
            return torch.zeros(len(image), 2)
        right = torch.where(TEXT_TO_IMAGE[text] == image, 50.0, -50.0)
        if self.kind == "nan":
            right = right * torch.nan
        return torch.stack([torch.full_like(right, 3), right + 3], dim=1)


def retrieval_set() -> RetrievalSet:
    def read_images(numbers: range) -> Tensor:
        return torch.tensor(numbers).float()[:, None, None, None].expand(-1, 3, 2, 2)

    def read_texts(numbers: range) -> tuple[Tensor, Tensor]:
        first = torch.tensor(numbers)
        lengths = first % 20 + 1
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return mask * first[:, None], mask

    return RetrievalSet(read_images=read_images, read_texts=read_texts, text_to_image=TEXT_TO_IMAGE)


def unit(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape), dim=-1)


def fake(match: str = "constant") -> FakeModel:
    return FakeModel(images=unit(NUM_IMAGES, 4), texts=unit(NUM_IMAGES * CAPTIONS, 4), match=match)


def test_perfect_embeddings_have_recall_one() -> None:
    model = FakeModel(images=torch.eye(NUM_IMAGES), texts=torch.eye(NUM_IMAGES)[TEXT_TO_IMAGE])
    result = evaluate_retrieval(model, retrieval_set(), ks=(1, 5))
    assert result.metrics == {"tr@1": 1.0, "tr@5": 1.0, "ir@1": 1.0, "ir@5": 1.0}
    assert result.chance["ir@5"] == pytest.approx(5 / NUM_IMAGES)
    assert result.reranked is None
    assert torch.equal(result.dual.text_to_image.indices[:, 0], TEXT_TO_IMAGE)
    assert (
        TEXT_TO_IMAGE[result.dual.image_to_text.indices[:, :2]] == torch.arange(NUM_IMAGES)[:, None]
    ).all()


@pytest.mark.parametrize("rerank", [0, 3, 100])
def test_a_model_that_returns_constants_finds_nothing(rerank: int) -> None:
    model = FakeModel(
        images=torch.eye(4)[[0] * NUM_IMAGES], texts=torch.eye(4)[[0] * NUM_IMAGES * CAPTIONS]
    )
    result = evaluate_retrieval(model, retrieval_set(), ks=(1, 5), rerank=rerank)
    assert set(result.metrics.values()) == {0.0}


@pytest.mark.parametrize("shortlist", [1, 4, NUM_IMAGES, 1000])
@pytest.mark.parametrize("batch", [5, 1000])
def test_oracle_puts_the_right_one_first_if_it_is_on_the_shortlist(
    shortlist: int, batch: int
) -> None:
    result = evaluate_retrieval(
        fake("oracle"), retrieval_set(), ks=(1, shortlist), rerank=shortlist, batch=batch
    )
    assert result.reranked is not None
    for dual, reranked in (
        (result.dual.image_to_text, result.reranked.image_to_text),
        (result.dual.text_to_image, result.reranked.text_to_image),
    ):
        on_shortlist = dual.ranks <= shortlist
        assert (reranked.ranks[on_shortlist] == 1).all()
        assert torch.equal(reranked.ranks[~on_shortlist], dual.ranks[~on_shortlist])
    assert result.metrics["rerank_ir@1"] == result.metrics[f"ir@{shortlist}"]
    assert result.metrics["rerank_tr@1"] == result.metrics[f"tr@{shortlist}"]
    if shortlist >= NUM_IMAGES:
        assert result.metrics["rerank_ir@1"] == 1.0


def test_mixed_score_is_as_documented() -> None:
    result = evaluate_retrieval(
        fake("oracle"), retrieval_set(), ks=(1,), rerank=NUM_IMAGES, rerank_weight=0.25
    )
    assert result.reranked is not None
    dual, reranked = result.dual.text_to_image, result.reranked.text_to_image
    similarity = torch.empty(NUM_IMAGES * CAPTIONS, NUM_IMAGES).scatter_(
        1, dual.indices, dual.scores
    )
    odds = torch.where(TEXT_TO_IMAGE[:, None] == torch.arange(NUM_IMAGES), 50.0, -50.0)
    expected = (0.75 * similarity / TEMPERATURE + 0.25 * odds).gather(1, reranked.indices)
    torch.testing.assert_close(reranked.scores, expected)


def test_each_direction_has_its_weight() -> None:
    model, weights = fake("oracle"), Weights(image_to_text=1.0, text_to_image=0.0)
    result = evaluate_retrieval(model, retrieval_set(), ks=(1, 3), rerank=4, rerank_weight=weights)
    alone = [
        evaluate_retrieval(
            model, retrieval_set(), ks=(1, 3), rerank=4, rerank_weight=weight
        ).metrics
        for weight in weights
    ]
    for direction, single in zip(("tr", "ir"), alone, strict=True):
        for name in (f"rerank_{direction}@1", f"rerank_{direction}@3"):
            assert result.metrics[name] == single[name]
    assert alone[0] != alone[1]


def test_weight_for_sharper_or_softer_negatives_gives_the_true_order() -> None:
    # A query with three candidates. ITM has learnt log p / q for negatives drawn from the softmax of 0.3 x the logits.
    p, logits, sharpness = torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[2.0, 1.0, 0.0]]), 0.3
    log_odds = (p / (sharpness * logits).softmax(1)).log()
    dual = Ranking(
        torch.tensor([[0, 1, 2]]), logits * TEMPERATURE, torch.tensor([1]), is_right=p == p.max()
    )
    orders = {}
    for weight in (1 / (1 + sharpness), 0.5):
        found = _rerank(dual, log_odds, weight=weight, scale=1 / TEMPERATURE)
        orders[weight] = found.indices[0].tolist()
    assert orders == {1 / (1 + sharpness): [1, 2, 0], 0.5: [1, 0, 2]}


def test_recall_by_weight_is_that_of_each_weight_and_scores_once() -> None:
    model = fake("oracle")
    weights = (0.0, 0.01, 1.0)
    rerank = evaluate_retrieval(model, retrieval_set(), rerank=4, ks=(1, 3)).rerank
    assert rerank is not None
    found = [rerank(Weights(weight, weight)).metrics((1, 3)) for weight in weights]
    assert len(model.pairs) == len(set(model.pairs))
    for weight, metrics in zip(weights, found, strict=True):
        expected = evaluate_retrieval(
            model, retrieval_set(), ks=(1, 3), rerank=4, rerank_weight=weight
        )
        assert metrics == {
            name: expected.metrics[f"rerank_{name}"] for name in ("tr@1", "tr@3", "ir@1", "ir@3")
        }
    assert found[0] != found[2]
    assert evaluate_retrieval(model, retrieval_set()).rerank is None


def test_each_pair_is_matched_once_and_with_little_padding() -> None:
    model = fake("oracle")
    seen: list[tuple[str, int, int]] = []
    options = {"rerank": 4, "batch": 5, "progress": lambda *state: seen.append(state)}
    model.train()
    model.frozen.eval()
    dual = evaluate_retrieval(model, retrieval_set(), **options).dual
    assert model.training
    assert not model.frozen.training
    found_texts, found_images = (
        dual.image_to_text.indices[:, :4].tolist(),
        dual.text_to_image.indices[:, :4].tolist(),
    )
    asked = {(image, text) for image, texts in enumerate(found_texts) for text in texts}
    asked |= {(image, text) for text, images in enumerate(found_images) for image in images}
    assert len(model.pairs) == len(set(model.pairs))
    assert set(model.pairs) == asked
    assert set(model.widths) <= {8, 16, 20}
    assert min(model.widths) == 8
    assert [state for state in seen if state[0] == "images"] == [
        ("images", done, 12) for done in (5, 10, 12)
    ]
    for what, total in (
        ("images", NUM_IMAGES),
        ("texts", NUM_IMAGES * CAPTIONS),
        ("pairs", len(asked)),
    ):
        done = [event[1:] for event in seen if event[0] == what]
        assert done == sorted(done)
        assert done[-1] == (total, total)


@pytest.mark.parametrize(
    "options", [{"rerank": -1}, {"rerank": 1, "rerank_weight": 2}, {"batch": 0}, {"ks": ()}]
)
def test_wrong_options_are_refused(options) -> None:
    with pytest.raises(ValueError, match="Expected ks >= 1"):
        evaluate_retrieval(fake(), retrieval_set(), **options)


def test_images_without_a_text_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="every image number"):
        dataclasses.replace(retrieval_set(), text_to_image=torch.tensor([0, 2]))
    model = FakeModel(images=unit(NUM_IMAGES, 4) * torch.nan, texts=unit(NUM_IMAGES * CAPTIONS, 4))
    with pytest.raises(ValueError, match="NaN"):
        evaluate_retrieval(model, retrieval_set())


Read = list[tuple[int, int]]


def noise(read: Read) -> RetrievalSet:
    """Eleven images with two texts each; `read` notes which images were asked for."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(11, 3, 64, 64, generator=generator)
    ids = torch.randint(5, 96, (22, 8), generator=generator)
    lengths = torch.randint(2, 9, (len(ids),), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()

    def read_images(numbers: range) -> Tensor:
        read.append((numbers.start, numbers.stop))
        return pixels[numbers.start : numbers.stop]

    return RetrievalSet(
        read_images=read_images,
        read_texts=lambda numbers: (
            ids[numbers.start : numbers.stop],
            mask[numbers.start : numbers.stop],
        ),
        text_to_image=torch.arange(11).repeat_interleave(2),
    )


def test_real_model_is_scored_as_pair_by_pair() -> None:
    model, pairs = toy(VLMoForImageTextRetrieval), noise([])
    result = evaluate_retrieval(model, pairs, batch=4, ks=(1,), rerank=11, rerank_weight=1.0)
    assert result.reranked is not None
    found, pixels = result.reranked.text_to_image, pairs.read_images(range(11))
    for text in range(0, 22, 7):
        ids, mask = pairs.read_texts(range(text, text + 1))
        with torch.no_grad():
            logits = torch.cat(
                [model.match(pixels[[image]], ids, mask) for image in found.indices[text].tolist()]
            )
        # Batches of another size: 1e-5 covers the order of summation in float32.
        torch.testing.assert_close(
            found.scores[text], logits[:, 1] - logits[:, 0], atol=1e-5, rtol=0
        )


def evaluated(batch: int) -> tuple[dict[str, float], list[Tensor], Read]:
    """Figures, rankings and the images that this process read."""
    read: Read = []
    result = evaluate_retrieval(
        toy(VLMoForImageTextRetrieval), noise(read), ks=(1, 3), rerank=4, batch=batch
    )
    assert result.reranked is not None
    rankings = [
        tensor
        for both in (result.dual, result.reranked)
        for one in (both.image_to_text, both.text_to_image)
        for tensor in (one.indices, one.scores, one.ranks)
    ]
    return result.metrics, rankings, read


def evaluated_in_batches() -> dict[int, tuple[dict[str, float], list[Tensor], Read]]:
    """With more batches than processes, and with one alone, which leaves a process without work."""
    return {batch: evaluated(batch) for batch in (3, 100)}


@pytest.fixture(scope="module")
def processes() -> list[dict[int, tuple[dict[str, float], list[Tensor], Read]]]:
    return run_processes(evaluated_in_batches)


@pytest.mark.parametrize("batch", [3, 100])
def test_two_processes_give_the_figures_of_one(batch, processes):
    metrics, rankings, _ = evaluated(batch)
    for results in processes:
        other_metrics, other_rankings, _ = results[batch]
        assert other_metrics == metrics
        for other, one in zip(other_rankings, rankings, strict=True):
            # Numbers and ranks are equal; a score may round differently where its vector lies elsewhere in memory.
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_each_image_is_read_by_one_process(processes):
    first, second = (results[3][2] for results in processes)
    assert set(first) == {(0, 3), (3, 6)}
    assert set(second) == {(6, 9), (9, 11)}
    assert len(first) == len(second) == 4  # once to be embedded, once for the shortlist
    assert not processes[0][100][2]
    assert set(processes[1][100][2]) == {(0, 11)}


def test_shares_are_all_batches(monkeypatch):
    for total, world_size in ((11, 2), (11, 5), (1, 3), (24, 4)):
        monkeypatch.setattr("vlmo.distributed.world_size", lambda size=world_size: size)
        shares = []
        for rank in range(world_size):
            monkeypatch.setattr("vlmo.distributed.rank", lambda number=rank: number)
            shares.append(local_batches(total, batch=3))
        assert [number for share in shares for numbers in share for number in numbers] == list(
            range(total)
        )
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        map_batches(list, 0, model=torch.nn.Identity())
