"""The comparison on a handful of painted pictures: what it says means nothing, that it says it does."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import clip_peer
import quality_vs_clip
from vlmo.processing import VLMoProcessor
from vlmo.recipes import find_recipe

BATCH, NUM_TRAIN, NUM_TEST = 16, 24, 12
COLORS = ("red", "green", "blue", "black", "orange", "purple")
SHAPES = ("ellipse", "rectangle", "line")
# The same sums in another order.
TOLERANCE = 1e-5


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Colored shapes with their names, of which some are for testing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for number in range(NUM_TRAIN + NUM_TEST):
            color, shape, size = COLORS[number % 6], SHAPES[number // 6 % 3], ("small", "big")[number // 18]
            picture = Image.new("RGB", (64, 64), "white")
            end = 40 if size == "small" else 60
            getattr(ImageDraw.Draw(picture), shape)((8, 8, end, end), fill=color)
            picture.save(folder / f"{number}.png")
            table.writerow([f"{number}.png", f"a {size} {color} {shape}", "train" if number < NUM_TRAIN else "test"])
    return folder


@pytest.mark.slow
def test_both_sides_take_their_best_rate_and_go_on(tmp_path, pictures, monkeypatch, capsys) -> None:
    recipe = find_recipe("small-retrieval-again")
    small = replace(
        recipe,
        data=replace(recipe.data, source=str(pictures), weights=()),
        loader=replace(recipe.loader, global_batch_size=BATCH),
        model=replace(recipe.model, hidden_size=32, num_attention_heads=2, num_hidden_layers=2),
    )
    monkeypatch.setattr(quality_vs_clip, "find_recipe", lambda _: small)
    monkeypatch.setattr(quality_vs_clip, "_HELD_OUT", 6)
    run, out = tmp_path / "run", tmp_path / "results" / "result.json"
    options = ["--tests", str(pictures), "--run", str(run), "--out", str(out), "--seeds", "0", "5"]
    options += ["--clip-width", "64", "--clip-layers", "1", "--lrs", "1e-3", "5e-4", "--seconds", "0.5"]

    quality_vs_clip.main(options)
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    for side in quality_vs_clip.SIDES:
        rates = result[side]["validation_ir@1"]
        assert rates[f"{result[side]['lr']:g}"] == max(rates.values())
        assert [each["lr"] for each in result[side]["runs"]] == [result[side]["lr"]] * 2
        assert all(each["seconds"] >= 0.5 for each in result[side]["runs"])
        assert all(each["samples_seen"] == BATCH * each["steps"] > 0 for each in result[side]["runs"])
        recalls = [each["metrics"][str(pictures)]["ir@1"] for each in result[side]["runs"]]
        assert result["ir@1"][str(pictures)][side] == pytest.approx(sum(recalls) / 2)
    found = result["ir@1"][str(pictures)]
    assert found["difference"] == pytest.approx(found["vlmo"] - found["clip"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert result["tests"] == {str(pictures): {"images": NUM_TEST, "texts": NUM_TEST}}

    quality_vs_clip.main(options)
    # They were trained for their time, and are read from their states.
    again = json.loads(out.read_text())
    assert again["ir@1"] == result["ir@1"]
    assert [each["steps"] for each in again["clip"]["runs"]] == [each["steps"] for each in result["clip"]["runs"]]


def test_difference_has_an_interval_over_queries_and_seeds() -> None:
    half = np.arange(100) % 2.0
    assert quality_vs_clip.difference({"vlmo": [half, half], "clip": [half, half]})[0] == 0
    mean, low, high = quality_vs_clip.difference({"vlmo": [half, np.ones(100)], "clip": [np.zeros(100)]})
    assert mean == 0.75
    assert low == pytest.approx(0.42, abs=0.04)  # the first seed twice, a tenth of a share of queries below its half
    assert high == 1


def make_processor() -> VLMoProcessor:
    return VLMoProcessor.train(["a big red line", "a small ellipse"] * 2, vocab_size=100, image_size=64)


def make_peer(processor: VLMoProcessor) -> clip_peer.Peer:
    return clip_peer.Peer(processor, patch_size=16, width=64, layers=2)


def test_peer_pools_at_the_end_token_and_padding_changes_nothing() -> None:
    processor = make_processor()
    peer = make_peer(processor).eval()
    texts = processor(text=["a big red line", "a line", "a red red big line"], return_tensors="pt")
    full = processor(text=["a big red line", "a line", "a red red big line"], padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        short = peer.get_text_features(**texts)
        padded = peer.clip.encode_text(full["input_ids"], normalize=True)
        others = {key: texts[key].clone() for key in texts}
        others["input_ids"][others["attention_mask"] == 0] = processor.tokenizer.mask_token_id
        noise_behind = peer.get_text_features(**others)
        end = texts["attention_mask"].sum(dim=1) - 1
        others["input_ids"][torch.arange(3), end - 1] = processor.tokenizer.unk_token_id
        other_last_word = peer.get_text_features(**others)
    torch.testing.assert_close(padded, short, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(short, noise_behind, rtol=0, atol=TOLERANCE)
    assert ((short - other_last_word).abs().amax(dim=1) > 100 * TOLERANCE).all()
