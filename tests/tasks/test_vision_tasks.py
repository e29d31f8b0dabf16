"""Figures and predictions of model folders for classes of pictures and of pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tasks.toy_vision import NAMES, PIXELS, segment_rows, write_class_set

from vlmo.evaluation.metrics import segmentation_metrics
from vlmo.model import VLMoForSemanticSegmentation
from vlmo.processing.segmentation import eval_pixel_values
from vlmo.tasks import Inputs, evaluate, predict
from vlmo.tasks.segmentation import segment


def test_classifier_is_scored_on_its_predictions(folders, sets) -> None:
    folder, where = (
        folders["classification"],
        {"source": str(sets["classification"]), "split": "test"},
    )
    result = evaluate(folder, **where, batch_size=3)
    assert {each.n for each in result.measured} == {len(result.predictions)}
    assert list(result.metrics) == ["top1"]  # five of three classes would always be right
    assert result.chance == {"top1": 1 / 3}
    rows = result.predictions
    assert [row["image_id"] for row in rows] == [f"test/{number}" for number in range(8)]
    assert [row["label"] for row in rows] == [NAMES[number % 3] for number in range(8)]
    assert result.metrics["top1"] == np.mean([row["prediction"] == row["label"] for row in rows])
    assert all(
        sorted(row["guesses"]) == sorted(NAMES) and row["guesses"][0] == row["prediction"]
        for row in rows
    )
    assert evaluate(folder, **where, limit=2).predictions == rows[:2]


def test_segmentation_can_be_scored_again(folders, sets) -> None:
    result = evaluate(folders["segmentation"], source=str(sets["segmentation"]), split="test")
    assert not any(
        each.n for each in result.measured
    )  # pixels of an image are no independent examples
    assert list(result.metrics)[:3] == ["miou", "aacc", "macc"]
    assert {name for name in result.metrics if "[" in name} <= {f"iou[{name}]" for name in PIXELS}
    counts = torch.zeros(4, 4, dtype=torch.long)
    for row in result.predictions:
        for true, predicted, pixels in row["pixels"]:
            counts[true, predicted] += pixels
    assert segmentation_metrics(counts, names=PIXELS) == result.measured
    assert int(counts.sum()) == 8 * 63 * 80  # the first row of each mask does not count
    background = 1 - 8 * 32 * 32 / (8 * 63 * 80)
    assert result.chance["aacc"] == pytest.approx(background, abs=0.01)
    assert result.chance["macc"] == 0.25
    assert result.chance["miou"] == pytest.approx(result.chance["aacc"] / 4)


def test_pixels_of_a_picture(folders, tmp_path) -> None:
    picture, drawn = tmp_path / "picture.png", tmp_path / "new" / "drawn.png"
    picture.write_bytes(segment_rows("test", 1)[0]["image"]["bytes"])
    rows = predict(folders["segmentation"], Inputs((picture,), save=drawn)).rows
    with Image.open(picture) as opened:
        pixels = eval_pixel_values(opened, short_side=64)
    classes = segment(
        VLMoForSemanticSegmentation.from_pretrained(folders["segmentation"]), pixels
    ).argmax(dim=0)
    assert classes.shape == (64, 80)
    counts = classes.flatten().bincount(minlength=len(PIXELS))
    assert rows[0]["class"] == PIXELS[int(counts.argmax())]
    assert rows[0]["share"] == pytest.approx(int(counts.max()) / classes.numel(), abs=1e-4)
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)
    with Image.open(drawn) as shown:
        assert shown.mode == "P"
        assert np.array_equal(np.asarray(shown), classes.numpy())


def test_other_classes_are_refused(folders, tmp_path) -> None:
    other = write_class_set(tmp_path / "other", names=["cat", "dog", "cow"])
    with pytest.raises(
        ValueError, match=r"the model has 3 classes \(red, .*\), .*other has 3 \(cat, "
    ):
        evaluate(folders["classification"], source=str(other), split="test", limit=2)
