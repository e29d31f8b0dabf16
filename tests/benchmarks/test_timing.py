"""Rates, turns and counted operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timing


def test_each_program_is_first_in_turn(monkeypatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    rates = timing.rates_by_turns(calls, rows=1, turns=2, seconds=0.0)
    assert order == list("aabbcc" + "bbccaa")  # once to warm up, once timed
    assert {name: len(each) for name, each in rates.items()} == {"a": 2, "b": 2, "c": 2}


def test_layer_flops_are_those_of_a_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, dim_feedforward=64, batch_first=True)
    layer.self_attn.batch_first = False  # no fast path, which the counter does not see into
    with FlopCounterMode(display=False) as counter:
        layer.train()(torch.zeros(1, 8, 16))
    products = 2 * 8 * 12 * 16**2
    assert counter.get_total_flops() >= products
    assert timing.layer_flops(tokens=8, width=16) == products + 4 * 8 * 8 * 16
    assert timing.layer_flops(tokens=8, width=16, outputs=1) == 2 * 16**2 * (2 * 8 + 10) + 4 * 8 * 16
