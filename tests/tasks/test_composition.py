"""Composition: each encoder prefers the true caption or the false one."""

import json

import pytest
import torch
from datasets import Dataset
from PIL import Image

from vlmo.checkpoints.loading import load_retrieval_model
from vlmo.data.decoding import encode_image
from vlmo.data.schema import COMPOSITION_FEATURES, make_row
from vlmo.tasks import evaluate
from vlmo.tasks.calibration import choose_rerank_weight

COLORS = ("red", "green", "blue")
KINDS = ("color", "swap", "color")


def write_rows(path, *, captions=None, split="test"):
    """Three squares, each with a true and a false caption."""
    rows = []
    for color, other, kind in zip(COLORS, COLORS[1:] + COLORS[:1], KINDS, strict=True):
        image = encode_image(Image.new("RGB", (64, 64), color), f"{color}.png")
        true = captions or [f"a {color} square"]
        row = make_row(color, image=image, captions=true, source="squares", licence="CC0-1.0")
        rows.append(row | {"false_caption": f"a {other} square", "kind": kind})
    Dataset.from_list(rows, features=COMPOSITION_FEATURES).save_to_disk(str(path / split))
    (path / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    return str(path)


def test_accuracies_are_those_of_the_scores_one_by_one(folders, tmp_path):
    result = evaluate(folders["retrieval"], source=write_rows(tmp_path / "set"), device="cpu")
    model, processor = load_retrieval_model(folders["retrieval"], device="cpu")
    assert [row["image_id"] for row in result.predictions] == list(COLORS)
    for row in result.predictions:
        texts = [row["caption"], row["false_caption"]]
        image = Image.new("RGB", (64, 64), row["image_id"])
        encoded = processor(images=image, text=texts, return_tensors="pt")
        with torch.inference_mode():
            output = model(**encoded)
            similarity = (output.text_embeds @ output.image_embeds.T)[:, 0]
            pixels = encoded["pixel_values"].expand(2, -1, -1, -1)
            logits = model.match(pixels, encoded["input_ids"], encoded["attention_mask"])
        assert row["dual"] == bool(similarity[0] > similarity[1])
        assert row["fusion"] == bool((logits[0, 1] - logits[0, 0]) > (logits[1, 1] - logits[1, 0]))
    for encoder in ("dual", "fusion"):
        first, second, third = (row[encoder] for row in result.predictions)
        assert result.metrics[encoder] == pytest.approx((first + second + third) / 3)
        assert result.metrics[f"{encoder}[swap]"] == second
        assert result.metrics[f"{encoder}[color]"] == (first + third) / 2
    assert set(result.chance.values()) == {0.5}
    assert [result[f"dual{kind}"].n for kind in ("", "[color]", "[swap]")] == [3, 2, 1]


def test_a_model_without_a_matching_head_is_measured_as_dual_encoder(folders, tmp_path):
    result = evaluate(folders["dual"], source=write_rows(tmp_path / "set"), device="cpu")
    assert {name.partition("[")[0] for name in result.metrics} == {"dual"}


def test_rows_of_another_form_are_refused(folders, tmp_path):
    source = write_rows(tmp_path / "two", captions=["red", "a red one"])
    with pytest.raises(ValueError, match="red has 2 captions; expected one true caption"):
        evaluate(folders["retrieval"], source=source, device="cpu")
    source = write_rows(tmp_path / "set", split="validation")
    with pytest.raises(ValueError, match="has false captions"):
        choose_rerank_weight(folders["retrieval"], source=source, split="validation", device="cpu")
