"""Captions: training learns them, their metrics by hand, and files of captions for whole folders."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.folder.test_atomic import full_disk
from tests.recipes.toy_recipes import tiny
from tests.toy_questions import COLORS

from vlmo.data.sources import open_source
from vlmo.evaluation.metrics import caption_metrics
from vlmo.processing import TransformConfig
from vlmo.recipes.schema import DataConfig, TextConfig
from vlmo.retrieval.metadata import MetadataTable
from vlmo.run.build import build
from vlmo.tasks import CaptioningTask, Inputs, evaluate, predict
from vlmo.tasks.captioning import caption_files

LIVELY = {
    "initializer_range": 0.2,
    "layer_scale_init": None,
    "position_embedding": "absolute",
    "position_init": "sincos",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Plain images of four colors in folders by color, with a caption each."""
    folder = tmp_path_factory.mktemp("images")
    lines = []
    for number in range(32):
        color = list(COLORS)[number % 4]
        name = f"{color}/{number}.png"
        (folder / color).mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 24), COLORS[color]).save(folder / name)
        split = "test" if number < 8 else "train"
        lines.append(json.dumps({"image": name, "captions": [f"a {color} square"], "split": split}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    plain = DataConfig(str(images), transform=TransformConfig(rand_augment_ops=0))
    text = TextConfig(vocab_size=90, learn_from=(str(images),), max_length=16)
    recipe = tiny(
        CaptioningTask(), images, sizes=LIVELY, steps=160, batch=16, lr=3e-3, data=plain, text=text
    )
    assert build(recipe, run_dir=folder, device="cpu").fit().status == "finished"
    return folder / "model"


def test_trained_captions_are_true(run, images):
    result = evaluate(run, source=str(images), device="cpu")
    assert result.metrics["exact"] == 1
    assert result.metrics["bleu4"] < result.metrics["cider"]
    assert result.chance["exact"] == 0.25
    (row,) = predict(run, Inputs([images / "blue" / "2.png"], caption=True), device="cpu").rows
    assert row["caption"] == "a blue square"


def test_folders_are_captioned_once_into_a_table_that_others_read(run, tmp_path):
    photos = tmp_path / "photos"
    for color in ("red", "blue"):
        (photos / color).mkdir(parents=True)
        Image.new("RGB", (30, 30), COLORS[color]).save(photos / color / "1.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    out = tmp_path / "captions.jsonl"
    assert caption_files(run, [photos / "red"], out, device="cpu", num_beams=1) == (1, [])
    with (
        full_disk(out.stat().st_size + 10),
        pytest.raises(OSError, match=r"File too large.+captions\.jsonl"),
    ):
        caption_files(run, [photos], out, device="cpu")
    assert not out.read_text().endswith("\n")  # half a line is left
    number, (bad,) = caption_files(run, [photos], out, device="cpu")
    assert number == 1
    assert "broken.jpg" in bad
    captions = {"photos/red/1.png": "a red square", "photos/blue/1.png": "a blue square"}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["image"]: line["caption"] for line in lines} == captions
    rows = open_source(str(out), split="train", test_share=0.0)
    assert sorted(rows["captions"]) == sorted([caption] for caption in captions.values())
    table = MetadataTable(out)
    for name, caption in captions.items():
        read = table.about(name.removeprefix("photos/"), str(tmp_path / name))
        assert read.captions == (caption,)
    with pytest.raises(ValueError, match=r"photos/red has no image, or is not in .*below"):
        caption_files(run, [photos / "red"], tmp_path / "below" / "captions.jsonl", device="cpu")


def test_metrics_by_hand():
    # All words stand in one image's captions alone, so they weigh alike. The first caption is a true one: 10. Of the
    # second, a half of the words and a third of the pairs are true: 10 * (1/2 + 1/3) / 4.
    metrics = caption_metrics(["A b, c d.", "e f x y"], [["a b c d"], ["e f g h"]])
    values = {metric.name: metric for metric in metrics}
    assert values["cider"].value == pytest.approx((10 + 10 * (1 / 2 + 1 / 3) / 4) / 2)
    assert values["bleu4"].value == pytest.approx((6 / 8 * 4 / 6 * 2 / 4 * 1 / 2) ** 0.25)
    assert values["exact"].value == 0.5
    assert values["cider"].chance == pytest.approx(5)  # "a b c d" for both
    assert caption_metrics(["it is n't well-known 's"], [["It isn't well-known's!"]])[-1].value == 1
    with pytest.raises(ValueError, match="no true caption"):
        caption_metrics(["a"], [[]])
