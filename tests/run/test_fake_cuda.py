"""Steps on a GPU that is not there: devices, and operations at which the host waits for it."""

from dataclasses import replace

import pytest
import torch

from vlmo.model.masks import count_true
from vlmo.recipes import find_recipe
from vlmo.run.estimate import Estimate, estimate
from vlmo.run.fake_cuda import FAKE_CUDA, fake_cuda

COPY = "_to_copy.default"
# Recipes of all tasks, at their own sizes, and their waits on one process; the dry run leaves out
# visual tokenizers, teachers and codebooks. Numbers of masked tokens are copied
# to the host; stage 3 embeds each image of its pairs once.
WAITS = {
    "base-stage1": (COPY,),
    "base-stage2": (COPY,),
    "base-stage3": ("_unique2.default", COPY),
    "base-beit3": (COPY, COPY, COPY),
    "base-coco-captioning": (COPY,),
    "base-coco-retrieval": (),
    "base-vqa": (),
    "base-nlvr2": (),
    "base-imagenet": (),
    "base-ade20k": (),
    "shapes-tokenizer": (),
}


def trace(name: str) -> Estimate:
    recipe = find_recipe(name)
    recipe = replace(recipe, trainer=replace(recipe.trainer, precision="bf16"))
    return estimate(recipe, processes=8, device="cuda")


@pytest.mark.parametrize("name", WAITS)
def test_step_waits_for_the_gpu_at_most_three_times(name) -> None:
    assert len(WAITS[name]) <= 3
    assert sorted(trace(name).waits) == sorted(WAITS[name])


def test_blocking_copies_and_numbers_that_are_read_are_counted(monkeypatch) -> None:
    def careless(*masks):
        mask = masks[0]
        # A copy to the GPU, a number, and a dynamic shape.
        bound = torch.tensor(0.5, device=mask.device)
        (mask.float().mean() > bound).item()
        mask.sum(dim=1).to(mask.device, non_blocking=True)
        return count_true(*masks)

    monkeypatch.setattr("vlmo.run.estimate.count_true", careless)
    assert trace("base-stage2").waits == (COPY, "_local_scalar_dense.default", COPY)


def test_mixed_devices_are_refused_and_gradients_are_on_the_gpu() -> None:
    with fake_cuda():
        weight = torch.empty(3, 3, device=FAKE_CUDA, requires_grad=True)
        with pytest.raises(RuntimeError, match=r"cuda:0 and cpu|cpu and cuda:0"):
            weight @ torch.empty(3, 3)
        (weight @ weight.T).sum().backward()
        assert weight.grad.device == FAKE_CUDA
