"""A contrastive batch in chunks: the losses, draws and gradients of the whole one, in memory that does not grow."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.losses.steps import ATOL, Results, note_draws, results, retrieval, stage_3
from tests.toy_batch import make_batch, with_false_texts
from tests.toy_model import BEIT3, shaken
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vlmo.losses import gradient_cache
from vlmo.losses.gradient_cache import recomputed, row_blocks, row_slices
from vlmo.losses.itc import itc_loss, same_pairs
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective


def assert_equal(actual: Results, expected: Results, *, atol: float = ATOL) -> None:
    for found, wanted in zip(actual, expected, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            # Gradients of parameters that are read thousands of times are large, and so are their roundings.
            largest = max(1.0, float(value.abs().max()))
            torch.testing.assert_close(
                found[name],
                value,
                atol=atol * largest,
                rtol=0,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize(
    ("make", "model", "config", "cached"),
    [
        *[(stage_3, {}, {}, {"cache_chunk": chunk}) for chunk in (2, 5, 100)],
        (stage_3, {}, {"mlm_stride": 2, "itm_stride": 4, "negatives": 3}, {"cache_chunk": 3}),
        (stage_3, {}, {"exclude_same": False, "negative_groups": 2}, {"cache_chunk": 4}),
        (stage_3, BEIT3, {}, {"cache_chunk": 2}),
        (retrieval, {}, {}, {"cache_chunk": 2}),
        (
            retrieval,
            {"contrast_fusion_branch": False},
            {"itm_weight": 1, "negative_sharpness": 0.5},
            {"cache_chunk": 2},
        ),
    ],
)
def test_cached_chunks_equal_the_whole_batch(make, model, config, cached):
    """Every loss and gradient, MLM over all masked words and ITM's negatives drawn from the whole batch included."""
    whole, parts = make(model, **config), make(model, **config, **cached)
    assert_equal(results(parts, make_batch()), results(whole, make_batch()))


def test_cached_chunks_hold_false_captions_too():
    whole, parts = (
        stage_3(itc_false_captions=True, **config) for config in ({}, {"cache_chunk": 3})
    )
    batch = with_false_texts(make_batch())
    assert_equal(results(parts, batch), results(whole, batch))
    for loss in ("itc", "itm"):
        assert results(whole, batch)[0][loss] != results(whole, make_batch())[0][loss]


def random_parts(monkeypatch, *, cached: bool, device: str = "cpu") -> Results:
    """A step with dropout and drop path in chunks of two, kept in memory or computed again."""
    torch.manual_seed(0)
    batch = {name: value.to(device) for name, value in make_batch().items()}
    config = VLMoConfig.tiny(hidden_dropout_prob=0.3, drop_path_rate=0.5)
    objective = VisionLanguageObjective(
        shaken(VLMoForPreTraining(config), size=0.1).train().to(device),
        config=VisionLanguageConfig(cache_chunk=2),
    )
    with monkeypatch.context() as patch:
        if not cached:
            patch.setattr(
                gradient_cache, "recomputed", lambda function, *args, **_: function(*args)
            )
        torch.manual_seed(5)
        found = results(objective, batch)
    assert abs(objective(batch)["loss"] - found[0]["loss"]) > 1e-3  # another draw, another loss
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dropout_and_drop_path_are_replayed(monkeypatch, device):
    expected = random_parts(monkeypatch, cached=False, device=device)
    assert_equal(random_parts(monkeypatch, cached=True, device=device), expected, atol=1e-6)


def test_random_numbers_of_the_device_are_replayed_too(monkeypatch):
    """`checkpoint` saves the generators of those devices that it sees tensors of among its arguments."""
    seen = []
    monkeypatch.setattr(gradient_cache, "checkpoint", lambda _, *args, **__: seen.extend(args))
    recomputed(len, slice(0, 2), device=torch.device("meta"))
    assert [argument.device.type for argument in seen if isinstance(argument, Tensor)] == ["meta"]
    assert seen[-1] == slice(0, 2)


def test_gradients_of_chunks_are_summed_in_float32():
    weight = torch.ones(1, 1, requires_grad=True)
    small = torch.full((1, 1), 2.0**-10)  # bfloat16 adds it to 1 without effect

    def product(factor: Tensor) -> Tensor:
        return F.linear(factor, weight)

    def gradient(function: Callable[[Tensor], Tensor]) -> float:
        weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            total = torch.stack(
                [function(factor).float() for factor in (*[small] * 16, torch.ones(1, 1))]
            ).sum()
        total.backward()
        return float(weight.grad)

    assert (
        gradient(lambda factor: recomputed(product, factor, device=factor.device))
        == 1 + 16 * 2.0**-10
    )
    assert gradient(product) != 1 + 16 * 2.0**-10  # backward starts with the last


class Memory(TorchDispatchMode):
    """Bytes of the tensors that operations made and that live, at their most; and the largest tensor."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        del types
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.seen:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.seen.add(storage)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def peak_of(count: int, **config: Any) -> int:
    """Most bytes that a step holds beside the batch."""
    shallow = {"num_hidden_layers": 2, "num_fusion_layers": 1}
    rows = torch.arange(count)
    batch = {name: value[rows % 8] if value.ndim else value for name, value in make_batch().items()}
    objective, batch = stage_3(shallow, **config), batch | {"image_ids": rows}
    with Memory(*batch.values()) as memory:
        objective(batch)["loss"].backward()
    return memory.peak


def test_memory_does_not_grow_with_the_batch():
    small, large = peak_of(4, cache_chunk=2), peak_of(12, cache_chunk=2)
    assert large < 1.1 * small  # embeddings, images and autograd's nodes grow
    assert peak_of(12) > 3 * large  # and what there is to measure


def test_logits_of_all_pairs_are_never_in_memory(monkeypatch):
    monkeypatch.setattr(gradient_cache, "_BLOCK_ELEMENTS", 2**10)
    count, dim = 256, 4
    embeds = torch.randn(2, count, dim, generator=torch.Generator().manual_seed(0))
    leaf = F.normalize(embeds, dim=-1).requires_grad_()
    scale = torch.tensor([2.0], requires_grad=True)
    same = same_pairs(torch.arange(count) // 2, torch.arange(count))
    with Memory() as memory:
        loss = itc_loss(*leaf, logit_scale=scale, same=same)
        loss.backward()
    assert (
        memory.largest <= 8 * 2**10
    )  # int64 numbers of one block, where all logits would take 4 * 2**16
    whole, whole_scale = leaf.detach().requires_grad_(), torch.tensor([2.0], requires_grad=True)
    logits = whole_scale.exp() * whole[0] @ whole[1].T
    logits = logits.masked_fill(same[:] & ~torch.eye(count, dtype=torch.bool), -torch.inf)
    expected = (
        F.cross_entropy(logits, torch.arange(count))
        + F.cross_entropy(logits.T, torch.arange(count))
    ) / 2
    expected.backward()
    for actual, wanted in (
        (loss, expected),
        (leaf.grad, whole.grad),
        (scale.grad, whole_scale.grad),
    ):
        torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-5)


def test_negatives_are_drawn_block_by_block(monkeypatch):
    draws = note_draws(monkeypatch)
    whole = results(stage_3(), make_batch())
    expected = torch.cat([rows for *_, rows in draws])
    draws.clear()
    monkeypatch.setattr(gradient_cache, "_BLOCK_ELEMENTS", 3 * 8)
    assert_equal(results(stage_3(cache_chunk=2), make_batch()), whole)
    assert [len(rows) for *_, rows in draws] == [3, 3, 2] * 2
    assert torch.equal(torch.cat([rows for *_, rows in draws]), expected)


def test_blocks_cover_every_row_once():
    for blocks in (row_blocks(7, width=2**21), row_slices(7, size=2)):
        assert [list(range(7)[rows]) for rows in blocks] == [[0, 1], [2, 3], [4, 5], [6]]
    assert row_blocks(2, width=2**30) == [slice(0, 1), slice(1, 2)]
    assert row_slices(0, size=4) == [slice(0, 0)]
