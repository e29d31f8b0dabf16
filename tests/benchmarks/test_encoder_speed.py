"""The dual encoder against CLIP at toy size: every program is timed on the same work, and ratios say what they mean."""

from __future__ import annotations

import json

import torch
from torch.utils.flop_counter import FlopCounterMode

import encoder_speed
from encoder_speed import OPEN_CLIP, OURS, SIZES, TRANSFORMERS


def test_every_program_is_timed_and_the_result_written(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("timing.PAUSE", 0)
    out = tmp_path / "results" / "encoder_speed.json"
    small = ["--size", "toy", "--turns", "1", "--seconds", "0", "--batches", "1", "3", "--threads", "1"]
    engine = torch.backends.quantized.engine
    encoder_speed.main([*small, "--out", str(out)])
    assert torch.backends.quantized.engine == engine
    result = json.loads(out.read_text())
    assert list(result["precisions"]) == ["float32", "bfloat16"]
    for precision, figures in result["precisions"].items():
        programs = [OURS, OPEN_CLIP, TRANSFORMERS]
        for batch in ("batch 1", "batch 3"):
            for what in ("images", "texts", "pairs"):
                found = figures[batch][what]
                assert set(found["a_second"]) == set(programs)
                assert all(each > 0 for each in found["a_second"].values())
            assert figures[batch]["pairs"]["a_second"][OURS] < figures[batch]["images"]["a_second"][OURS]
            bar = figures[batch]["images"].get("bar")
            assert bar == {"float32": 1.0, "bfloat16": 1.5}[precision]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 2 * 3


def test_ratio_is_to_the_faster_peer_of_each_turn() -> None:
    rates = {OURS: [6.0, 9.0, 8.0], OPEN_CLIP: [3.0, 1.0, 1.0], TRANSFORMERS: [2.0, 3.0, 8.0]}
    assert encoder_speed.compared(rates)["ratio_to_best_peer"] == 2.0


def test_text_lengths_and_ends() -> None:
    ids, mask = encoder_speed.text_batch(3, (8, 24), pad_to=None, vocab=100)
    assert mask.sum(dim=1).tolist() == [8, 16, 24]
    assert ids.argmax(dim=1).tolist() == [7, 15, 23]
    assert encoder_speed.text_batch(1, (8, 24), pad_to=77, vocab=100)[1].sum() == 16
    assert encoder_speed.text_batch(1, (8, 24), pad_to=77, vocab=100)[0].shape == (1, 77)


def test_counted_operations_are_those_of_the_towers() -> None:
    sizes = SIZES["toy"]
    expected = encoder_speed.image_flops(sizes)
    projection = 2 * sizes.width**2
    model = encoder_speed.our_model(sizes)
    pixels = torch.zeros(1, 3, sizes.image_size, sizes.image_size)
    model.set_attn_implementation("eager")  # attention as plain products, which the counter knows on every device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.get_image_features(pixels)
    assert counter.get_total_flops() == expected[OURS] + projection
    assert expected[OURS] < expected["clip"]
