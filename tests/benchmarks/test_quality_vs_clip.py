"""The comparison on a handful of painted pictures: what it says means nothing, that it says it does."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console

import clip_peer
import quality_vs_clip
from vlmo.model import VLMoConfig, VLMoForImageTextRetrieval
from vlmo.processing import VLMoProcessor
from vlmo.recipes import find_recipe

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


@pytest.fixture
def model(tmp_path: Path, pictures: Path) -> Path:
    """A retrieval model of ours with random weights that knows the words of the pictures."""
    words = [f"a {size} {colour} {shape}" for size in ("small", "big") for colour in COLOURS for shape in SHAPES]
    processor = VLMoProcessor.train(words, vocab_size=200, image_size=64)
    config = VLMoConfig.small(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, image_size=64, vocab_size=processor.vocab_size
    )
    VLMoForImageTextRetrieval(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_both_are_compared_on_the_same_pictures_and_the_peer_goes_on(
    tmp_path, pictures, model, monkeypatch, capsys
) -> None:
    recipe = find_recipe("small-retrieval-again")
    small = replace(
        recipe,
        data=replace(recipe.data, source=str(pictures), weights=()),
        loader=replace(recipe.loader, global_batch_size=BATCH),
    )
    monkeypatch.setattr(quality_vs_clip, "find_recipe", lambda _: small)
    run, out = tmp_path / "run", tmp_path / "results" / "result.json"
    options = ["--model", str(model), "--tests", str(pictures), "--run", str(run), "--out", str(out)]
    options += ["--clip-width", "64", "--clip-layers", "1", "--clip-lr", "1e-3", "5e-4", "--seconds", "0.5"]

    quality_vs_clip.main(options)
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    peers = [result["clip"], *result["clip_others"]]
    assert {peer["lr"] for peer in peers} == {1e-3, 5e-4}
    assert all(peer["seconds"] >= 0.5 and peer["samples_seen"] == BATCH * peer["steps"] > 0 for peer in peers)
    recalls = [peer["metrics"][str(pictures)]["ir@1"] for peer in peers]
    assert recalls[0] == max(recalls)
    assert result["tests"] == {str(pictures): {"images": NUM_TEST, "texts": NUM_TEST}}
    assert result["ours"]["metrics"][str(pictures)].keys() == result["clip"]["metrics"][str(pictures)].keys()

    quality_vs_clip.main(options)
    again = json.loads(out.read_text())
    # It was trained for its time, and is read from its state.
    assert again["clip"]["steps"] == result["clip"]["steps"]
    assert again["clip"]["metrics"] == result["clip"]["metrics"]


def test_peer_goes_on_where_it_was(tmp_path: Path, pictures: Path) -> None:
    processor = make_processor()
    recipe = find_recipe("small-retrieval-again")
    recipe = replace(
        recipe,
        data=replace(recipe.data, source=str(pictures), weights=()),
        loader=replace(recipe.loader, global_batch_size=BATCH),
    )
    loader = clip_peer.peer_loader(recipe, processor, quarantine=tmp_path / "quarantine.jsonl")
    settings = {"lr": 1e-3, "bf16": False, "console": Console(quiet=True), "state": tmp_path / "peer.pt"}
    first = clip_peer.train_peer(make_peer(processor), loader, seconds=0.3, **settings)
    second = clip_peer.train_peer(make_peer(processor), loader, seconds=0.6, **settings)
    assert second["steps"] > first["steps"] > 0
    assert second["samples_seen"] == BATCH * second["steps"]
    assert 0.6 <= second["seconds"] < 0.6 + first["seconds"]
    with pytest.raises(ValueError, match="other settings; give another folder"):
        clip_peer.train_peer(make_peer(processor), loader, seconds=0.9, **settings | {"settings": "others"})


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


def test_every_parameter_of_the_peer_learns_from_short_texts() -> None:
    processor = make_processor()
    peer = make_peer(processor)
    texts = processor(text=["a big red line", "a line"], return_tensors="pt")
    images = peer.get_image_features(pixel_values=torch.randn(2, 3, 64, 64))
    clip_peer.ClipLoss()(images, peer.get_text_features(**texts), peer.clip.logit_scale.exp()).backward()
    assert [name for name, parameter in peer.named_parameters() if parameter.grad is None] == []
    used = peer.clip.positional_embedding.grad.abs().sum(dim=1) > 0
    assert used.tolist() == [place < int(texts["attention_mask"].sum(dim=1).max()) for place in range(len(used))]


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    shares = [clip_peer.lr_share(step / 1000) for step in range(1001)]
    assert shares[0] == 0
    assert shares[10] == pytest.approx(0.5)
    assert max(shares) == shares[20] == 1
    assert shares[510] == pytest.approx(0.5)
    assert shares[1000] == pytest.approx(0)
