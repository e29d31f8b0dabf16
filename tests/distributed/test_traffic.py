"""Bytes between processes: hard negatives cost what is chosen, however many processes share the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.gloo import WatchedCollectives, run_processes
from vlmo import distributed
from vlmo.losses import itm
from vlmo.model import VLMoConfig, VLMoForPreTraining
from vlmo.tasks.vision_language import VisionLanguageConfig, VisionLanguageObjective

BATCH, TEXT = 4, 8  # pairs of each process, tokens of a text
CONFIG = VLMoConfig.tiny()
PIXELS = 3 * 64 * 64


class Sent(WatchedCollectives):
    """Bytes that this process hands to others, by kind of collective and of number, while this is on."""

    def __init__(self) -> None:
        self.gathered = {"float": 0, "number": 0}
        self.exchanged = {"float": 0, "number": 0, "pixel": 0}

    def exchanging(self, sent: Tensor, splits: Sequence[int] | None) -> None:
        own = splits or [len(sent) // distributed.world_size()] * distributed.world_size()
        others = len(sent) - own[distributed.rank()]
        self.exchanged[_kind(sent)] += others * sent[:1].nbytes

    def gathering(self, sent: Tensor) -> None:
        self.gathered[_kind(sent)] += (distributed.world_size() - 1) * sent.nbytes


def _kind(tensor: Tensor) -> str:
    return {torch.float32: "float", torch.int64: "number", torch.uint8: "pixel"}[tensor.dtype]


def make_share() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(distributed.rank())
    ids = torch.randint(4, 96, (BATCH, TEXT), generator=generator)
    return {
        "pixel_values": torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8, generator=generator),
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
    objective = VisionLanguageObjective(VLMoForPreTraining(CONFIG), config=config)
    with Sent() as sent:
        objective(make_share())["loss"].backward()
    return {"gathered": sent.gathered, "exchanged": sent.exchanged}


def everything() -> dict[str, Any]:
    itm.sample_hard_negatives = from_the_next_process
    return {"cached": step(2, 1), "whole": step(None, 1), "contrast alone": step(2, 0)}


@pytest.fixture(scope="module", params=[2, 3])
def sent(request) -> list[dict[str, Any]]:
    return run_processes(everything, world_size=request.param)


def test_negatives_cost_what_is_chosen(sent):
    texts = 2 * TEXT * 8
    for result in sent:
        with_matching, without = result["cached"], result["contrast alone"]
        assert with_matching["exchanged"]["pixel"] == BATCH * PIXELS
        numbers = with_matching["exchanged"]["number"] - without["exchanged"]["number"]
        requests = 2 * (BATCH + len(sent) - 1) * 8
        assert numbers == BATCH * texts + requests
        # Nothing is gathered for them: the embeddings are there for the contrast.
        assert with_matching["gathered"] == without["gathered"]
        assert with_matching["exchanged"]["float"] == without["exchanged"]["float"]
