"""Two processes share the work of a retrieval evaluation and give the figures and rankings of one."""

import pytest
import torch
from tests.distributed.gloo import run_processes
from torch import Tensor

from vlmo.evaluation import RetrievalSet, evaluate_retrieval
from vlmo.evaluation.inference import own_batches
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval

NUM_IMAGES, CAPTIONS = 11, 2

Read = list[tuple[int, int]]


def tiny_set(read: Read) -> RetrievalSet:
    """Noise; `read` notes which images were asked for."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(NUM_IMAGES, 3, 64, 64, generator=generator)
    ids = torch.randint(5, 96, (NUM_IMAGES * CAPTIONS, 8), generator=generator)
    lengths = torch.randint(2, 9, (len(ids),), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()

    def read_images(numbers: range) -> Tensor:
        read.append((numbers.start, numbers.stop))
        return pixels[numbers.start : numbers.stop]

    return RetrievalSet(
        read_images=read_images,
        read_texts=lambda numbers: (ids[numbers.start : numbers.stop], mask[numbers.start : numbers.stop]),
        text_to_image=torch.arange(NUM_IMAGES).repeat_interleave(CAPTIONS),
    )


def evaluated(batch: int) -> tuple[dict[str, float], list[Tensor], Read]:
    """Figures, rankings and the images that this process read."""
    torch.manual_seed(0)
    model = VLMoForImageTextRetrieval(VLMoConfig.tiny(initializer_range=0.2, layer_scale_init=1.0))
    read: Read = []
    result = evaluate_retrieval(model, tiny_set(read), ks=(1, 3), rerank=4, batch=batch)
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
    assert set(processes[1][100][2]) == {(0, NUM_IMAGES)}


def test_shares_are_all_batches(monkeypatch):
    for total, world_size in ((11, 2), (11, 5), (1, 3), (24, 4)):
        monkeypatch.setattr("vlmo.distributed.world_size", lambda size=world_size: size)
        shares = []
        for rank in range(world_size):
            monkeypatch.setattr("vlmo.distributed.rank", lambda number=rank: number)
            shares.append(own_batches(total, batch=3))
        assert [number for share in shares for numbers in share for number in numbers] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
