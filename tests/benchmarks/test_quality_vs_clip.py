"""The comparison on a handful of painted pictures: what it says means nothing, that it says it does."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import clip_peer
import quality_vs_clip
from vlmo.demo.quickstart import STAGE1, STAGE2, STAGE3, TOKENIZER, quickstart_recipes
from vlmo.processing import VLMoProcessor
from vlmo.recipes import Recipe
from vlmo.tasks import TokenizerStage

BATCH, NUM_TRAIN, NUM_TEST = 16, 24, 12
COLOURS = ("red", "green", "blue", "black", "orange", "purple")
SHAPES = ("ellipse", "rectangle", "line")
# The same sums in another order.
TOLERANCE = 1e-5


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Coloured shapes with their names, of which some are for testing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for number in range(NUM_TRAIN + NUM_TEST):
            colour, shape, size = COLOURS[number % 6], SHAPES[number // 6 % 3], ("small", "big")[number // 18]
            picture = Image.new("RGB", (64, 64), "white")
            end = 40 if size == "small" else 60
            getattr(ImageDraw.Draw(picture), shape)((8, 8, end, end), fill=colour)
            picture.save(folder / f"{number}.png")
            table.writerow([f"{number}.png", f"a {size} {colour} {shape}", "train" if number < NUM_TRAIN else "test"])
    return folder


def tiny(recipe: Recipe, source: Path) -> Recipe:
    stage = recipe.stage
    if isinstance(stage, TokenizerStage):
        stage = replace(stage, tokenizer=replace(stage.tokenizer, num_tokens=16, hidden_size=32, code_size=8))
    return replace(
        recipe,
        stage=stage,
        data=replace(recipe.data, source=str(source)),
        text=replace(recipe.text, learn_from=(str(source),), vocab_size=200),
        loader=replace(recipe.loader, global_batch_size=BATCH),
        trainer=replace(recipe.trainer, max_steps=2),
        schedule=replace(recipe.schedule, warmup_steps=1),
    )


@pytest.mark.slow
def test_both_are_trained_and_compared_on_the_same_pictures(tmp_path, pictures, monkeypatch, capsys) -> None:
    def recipes(run: Path, *, scale: float) -> dict[str, Recipe]:
        return {name: tiny(recipe, pictures) for name, recipe in quickstart_recipes(run, scale=scale).items()}

    monkeypatch.setattr(quality_vs_clip, "quickstart_recipes", recipes)
    run, out = tmp_path / "run", tmp_path / "results" / "result.json"
    options = ["--run", str(run), "--threads", "1", "--out", str(out), "--clip-lr", "1e-3", "5e-4"]

    quality_vs_clip.main([*options, "--seconds", "0.5"])
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    stages, peers = result["ours"]["stages"], [result["clip"], *result["clip_others"]]
    assert list(stages) == [TOKENIZER, STAGE1, STAGE2, STAGE3]
    assert all(stage["steps"] == 2 and stage["trained_in_this_call"] for stage in stages.values())
    assert result["ours"]["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()))
    assert {peer["lr"] for peer in peers} == {1e-3, 5e-4}
    assert all(peer["seconds"] >= 0.5 and peer["samples_seen"] == BATCH * peer["steps"] > 0 for peer in peers)
    assert result["clip"]["figures"]["ir@1"] == max(peer["figures"]["ir@1"] for peer in peers)
    assert result["test"] == {"source": str(pictures), "images": NUM_TEST, "texts": NUM_TEST}
    assert result["chance"]["ir@1"] == pytest.approx(1 / NUM_TEST)
    assert result["ours"]["figures"].keys() == result["clip"]["figures"].keys() == result["chance"].keys()

    quality_vs_clip.main([*options, "--seconds", "0.01"])
    again = json.loads(out.read_text())["ours"]
    assert not any(stage["trained_in_this_call"] for stage in again["stages"].values())
    assert again["figures"] == result["ours"]["figures"]
    assert 0 < again["seconds"] <= result["ours"]["seconds"]  # writing the model folders is no longer counted


def make_processor() -> VLMoProcessor:
    return VLMoProcessor.train(["a big red line", "a small ellipse"] * 2, vocab_size=100, image_size=64)


def test_peer_pools_at_the_end_token_and_padding_changes_nothing() -> None:
    processor = make_processor()
    peer = clip_peer.Peer(processor, patch_size=16, pad_to=77).eval()
    texts = processor(text=["a big red line", "a line", "a red red big line"], return_tensors="pt")
    with torch.inference_mode():
        padded = peer.get_text_features(**texts)
        peer.pad_to = None
        short = peer.get_text_features(**texts)
        others = {key: texts[key].clone() for key in texts}
        others["input_ids"][others["attention_mask"] == 0] = processor.tokenizer.mask_token_id
        noise_behind = peer.get_text_features(**others)
        end = texts["attention_mask"].sum(dim=1) - 1
        others["input_ids"][torch.arange(3), end - 1] = processor.tokenizer.unk_token_id
        other_last_word = peer.get_text_features(**others)
    torch.testing.assert_close(padded, short, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(short, noise_behind, rtol=0, atol=TOLERANCE)
    assert ((short - other_last_word).abs().amax(dim=1) > 100 * TOLERANCE).all()


def test_every_parameter_of_the_peer_learns_from_short_texts() -> None:
    processor = make_processor()
    peer = clip_peer.Peer(processor, patch_size=16, pad_to=None)
    texts = processor(text=["a big red line", "a line"], return_tensors="pt")
    images = peer.get_image_features(pixel_values=torch.randn(2, 3, 64, 64))
    clip_peer.ClipLoss()(images, peer.get_text_features(**texts), peer.clip.logit_scale.exp()).backward()
    assert [name for name, parameter in peer.named_parameters() if parameter.grad is None] == []
    used = peer.clip.positional_embedding.grad.abs().sum(dim=1) > 0
    assert used.tolist() == [place < int(texts["attention_mask"].sum(dim=1).max()) for place in range(len(used))]


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    shares = [clip_peer.lr_share(step / 1000) for step in range(1001)]
    assert shares[0] == 0
    assert shares[50] == pytest.approx(0.5)
    assert max(shares) == shares[100] == 1
    assert shares[550] == pytest.approx(0.5)
    assert shares[1000] == pytest.approx(0)
