"""Collectives on two and three processes, in values, gradients and bytes, against the same sums on one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.gloo import Sent, run_processes
from vlmo import distributed
from vlmo.losses import itm
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective

SHARE, WIDTH = 4, 3  # rows of each process, numbers in a row
# Global rows that each process wants: others' and its own, some twice, in no order; the last process wants none.
WANTED = {2: ([6, 0, 1, 6, 5], []), 3: ([9, 2, 9, 4], [11, 5, 0], [])}
ATOL = 1e-6  # float32 sums in another order
BATCH, TEXT = 4, 8  # pairs of each process, tokens of a text
PIXELS = 3 * 64 * 64


def rows(world_size: int) -> Tensor:
    return torch.randn(world_size * SHARE, WIDTH, generator=torch.Generator().manual_seed(0))


def weights(rank: int, count: int) -> Tensor:
    """What a process multiplies the rows that it sees by, before it sums them up: its gradient."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1 + rank))


def make_share() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(distributed.rank())
    ids = torch.randint(4, 96, (BATCH, TEXT), generator=generator)
    return {
        "pixel_values": torch.randint(
            0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8, generator=generator
        ),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_ids": torch.arange(BATCH) + BATCH * distributed.rank(),
        "step_seed": torch.tensor(3),
    }


def from_the_next_process(similarities: Tensor, **_: Tensor) -> tuple[Tensor, Tensor]:
    """A draw in which every negative lives elsewhere."""
    rows = torch.arange(len(similarities))
    start = (distributed.rank() + 1) % distributed.world_size() * BATCH
    return start + rows, torch.ones(len(rows), dtype=torch.bool)


def step(chunk: int | None, itm_weight: float) -> dict[str, dict[str, int]]:
    torch.manual_seed(0)
    config = VisionLanguageConfig(mlm_weight=0, itm_weight=itm_weight, cache_chunk=chunk)
    objective = VisionLanguageObjective(VLMoForPreTraining(VLMoConfig.tiny()), config=config)
    with Sent() as sent:
        objective(make_share())["loss"].backward()
    return {"gathered": sent.gathered, "exchanged": sent.exchanged}


def everything() -> dict[str, Any]:
    """What one process gets from each collective."""
    rank, world_size = distributed.rank(), distributed.world_size()
    own = rows(world_size)[rank * SHARE : (rank + 1) * SHARE]
    result: dict[str, Any] = {"rank": rank, "world_size": world_size, "main": distributed.is_main()}

    leaf = own.clone().requires_grad_()
    gathered = distributed.gather_with_grad(leaf)
    (gathered * weights(rank, len(gathered))).sum().backward()
    result |= {"gathered": gathered.detach(), "gathered_gradient": leaf.grad}
    result["gathered_numbers"] = distributed.gather(torch.arange(2) + 10 * rank)

    leaf = own.clone().requires_grad_()
    wanted = torch.tensor(WANTED[world_size][rank], dtype=torch.long)
    with Sent() as sent:
        fetched = distributed.exchange(leaf, wanted)
        result |= {"sent": sent.exchanged["float"], "gathered_bytes": sent.gathered}
        (fetched * weights(rank, len(wanted))).sum().backward()
        result["returned"] = sent.exchanged["float"] - result["sent"]
    result |= {"fetched": fetched.detach(), "fetched_gradient": leaf.grad}
    result["fetched_numbers"] = distributed.exchange(
        10 * rank + torch.arange(SHARE)[:, None], wanted
    )

    for name, count in (
        ("mean", float(2 * rank)),
        ("empty_mean", 0.0),
    ):  # the first process has no rows
        total = torch.tensor(1.0 + rank if count else 0.0, requires_grad=True)
        mean = distributed.global_mean(total, torch.tensor(count))
        mean.backward()
        result |= {name: mean.detach(), f"{name}_gradient": total.grad}

    value = torch.tensor([1.0 + rank, -rank], requires_grad=True)
    result |= {"sum": distributed.all_reduce(value), "max": distributed.all_reduce(value, op="max")}
    result["untouched"] = value.detach()
    distributed.barrier()
    itm.sample_hard_negatives = from_the_next_process
    return result | {"cached": step(2, 1), "contrast alone": step(2, 0)}


@pytest.fixture(scope="module", params=[2, 3])
def results(request) -> list[dict[str, Any]]:
    """What each of two, or of three, processes got; they start once."""
    return run_processes(everything, world_size=request.param)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


def test_gather_joins_rows_in_rank_order_and_returns_the_gradients_of_all(results):
    size = len(results)
    assert [(r["rank"], r["world_size"], r["main"]) for r in results] == [
        (n, size, n == 0) for n in range(size)
    ]
    for result in results:
        assert torch.equal(result["gathered"], rows(size))
        assert result["gathered_numbers"].tolist() == [
            10 * rank + i for rank in range(size) for i in range(2)
        ]
    expected = sum(weights(rank, size * SHARE) for rank in range(size))
    close(torch.cat([result["gathered_gradient"] for result in results]), expected)


def test_exchange_fetches_rows_in_the_wanted_order_and_returns_gradients_to_their_owners(results):
    size, total = len(results), 0
    leaf = rows(size).requires_grad_()
    for rank, (result, wanted) in enumerate(zip(results, WANTED[size], strict=True)):
        assert torch.equal(result["fetched"], rows(size)[wanted])
        assert result["fetched_numbers"].tolist() == [
            [10 * (row // SHARE) + row % SHARE] for row in wanted
        ]
        total = total + (leaf[wanted] * weights(rank, len(wanted))).sum()
    total.backward()
    close(torch.cat([result["fetched_gradient"] for result in results]), leaf.grad)


def test_exchange_sends_the_chosen_rows_only(results):
    moved = [
        (row // SHARE, asks) for asks, wanted in enumerate(WANTED[len(results)]) for row in wanted
    ]
    moved = [(owner, asks) for owner, asks in moved if owner != asks]
    for rank, result in enumerate(results):
        assert result["sent"] == 4 * WIDTH * sum(owner == rank for owner, _ in moved)
        assert result["returned"] == 4 * WIDTH * sum(asks == rank for _, asks in moved)
        assert not any(result["gathered_bytes"].values())


def test_negatives_cost_what_is_chosen(results):
    texts = 2 * TEXT * 8
    for result in results:
        with_matching, without = result["cached"], result["contrast alone"]
        assert with_matching["exchanged"]["pixel"] == BATCH * PIXELS
        numbers = with_matching["exchanged"]["number"] - without["exchanged"]["number"]
        requests = 2 * (BATCH + len(results) - 1) * 8
        assert numbers == BATCH * texts + requests
        # Nothing is gathered for them: the embeddings are there for the contrast.
        assert with_matching["gathered"] == without["gathered"]
        assert with_matching["exchanged"]["float"] == without["exchanged"]["float"]


def test_global_mean_weighs_processes_by_their_rows(results):
    # Two processes: 2 over 2 rows. Three: 2 + 3 over 2 + 4 rows. The first total, 0 over no rows, adds nothing.
    expected, count = {2: (2 / 2, 2), 3: (5 / 6, 6)}[len(results)]
    for result in results:
        assert result["mean"].item() == pytest.approx(expected)
        assert result["mean_gradient"].item() / len(results) == pytest.approx(1 / count)
        assert result["empty_mean"].item() == 0


def test_all_reduce_leaves_its_argument_alone(results):
    size = len(results)
    for rank, result in enumerate(results):
        assert result["sum"].tolist() == [size * (size + 1) / 2, -size * (size - 1) / 2]
        assert result["max"].tolist() == [size, 0]
        assert not result["sum"].requires_grad
        assert result["untouched"].tolist() == [1 + rank, -rank]


def test_one_process_needs_no_group():
    tensor = torch.randn(4, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_with_grad(tensor) is tensor
    assert torch.equal(distributed.gather(tensor), tensor)
    assert not distributed.gather(tensor).requires_grad
    assert torch.equal(distributed.exchange(tensor, torch.tensor([3, 1, 1])), tensor[[3, 1, 1]])
    assert torch.equal(distributed.all_reduce(tensor, op="max"), tensor)
    assert distributed.global_mean(torch.tensor(6.0), torch.tensor(4.0)) == 1.5
    assert distributed.global_mean(torch.tensor(0.0), torch.tensor(0.0)) == 0
    distributed.barrier()
