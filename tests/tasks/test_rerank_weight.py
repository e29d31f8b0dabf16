from __future__ import annotations

import json
import shutil

import pytest
from tests.integrations.toy_gallery import CAPTIONS, drawings, trained_folder

from vlmo import VLMoForImageTextRetrieval, VLMoProcessor
from vlmo.tasks import evaluate
from vlmo.tasks.rerank_weight import WEIGHTS, best_weight, choose_rerank_weight, write_settings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The gallery, all of it in the split `val`."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["image,caption,split"]
    for number, drawing in enumerate(drawings()):
        drawing.save(folder / f"{number}.png")
        lines += [f"{number}.png,{caption},validation" for caption in CAPTIONS[number]]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def test_weight_with_the_best_recall_is_kept(folder, pictures):
    before = json.loads((folder / "config.json").read_text())
    choice = choose_rerank_weight(folder, source=pictures, split="validation", rerank=8, device="cpu")
    assert choice.before == (0.5, 0.5)
    assert choice.table().row_count == len(WEIGHTS)
    for direction, chosen in zip(("tr", "ir"), choice.chosen, strict=True):
        means = [sum(metrics[f"{direction}@{k}"] for k in (1, 5, 10)) for metrics in choice.metrics]
        assert max(means) == means[WEIGHTS.index(chosen)]
        assert max(means) > min(means)  # else there was nothing to choose
    # Only the weights have changed, and transformers reads them.
    after = json.loads((folder / "config.json").read_text())
    names = {"rerank_weight": choice.chosen.text_to_image, "rerank_weight_image_to_text": choice.chosen.image_to_text}
    assert after == before | names
    config = VLMoForImageTextRetrieval.from_pretrained(folder).config
    assert {name: vars(config)[name] for name in names} == names
    # What it measured is what the evaluation measures.
    for weight in (WEIGHTS[0], choice.chosen.text_to_image, WEIGHTS[-1]):
        result = evaluate(folder, source=pictures, split="validation", rerank=8, rerank_weight=weight, device="cpu")
        measured = {name: result.metrics[f"rerank_{name}"] for name in choice.metrics[0]}
        assert measured == pytest.approx(choice.metrics[WEIGHTS.index(weight)])
    result = evaluate(folder, source=pictures, split="validation", rerank=8, device="cpu")
    assert result.settings["rerank_weight"] == choice.chosen._asdict()
    assert result.metrics["rerank_tr@1"] == choice.metrics[WEIGHTS.index(choice.chosen.image_to_text)]["tr@1"]
    assert result.metrics["rerank_ir@1"] == choice.metrics[WEIGHTS.index(choice.chosen.text_to_image)]["ir@1"]
    published = evaluate(folder, source=pictures, split="validation", rerank=8, rerank_score="published", device="cpu")
    assert published.settings == {"rerank": 8, "rerank_score": "published"}
    published = evaluate(folder, source=pictures, split="validation", rerank_score="published", device="cpu")
    assert published.settings["rerank"] == 32
    with pytest.raises(ValueError, match="nothing is reordered"):
        evaluate(folder, source=pictures, split="validation", rerank=0, rerank_score="published", device="cpu")
    with pytest.raises(ValueError, match="the published score has no weight"):
        evaluate(folder, source=pictures, split="validation", rerank_score="published", rerank_weight=0.5, device="cpu")


def test_saved_model_keeps_the_weight(folder, tmp_path):
    write_settings(folder, rerank_weight_image_to_text=0.2, rerank_weight=0.35)
    model = VLMoForImageTextRetrieval.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy")
    VLMoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "copy")
    config = VLMoForImageTextRetrieval.from_pretrained(tmp_path / "copy").config
    assert (config.rerank_weight, config.rerank_weight_image_to_text) == (0.35, 0.2)


@pytest.mark.parametrize(
    ("means", "chosen"), [([1, 3, 2, 1], 0.25), ([1, 3, 3, 3], 0.5), ([2, 2, 2, 2], 0.25), ([0, 0, 0, 1], 0.75)]
)
def test_of_several_best_the_middle_one_is_taken(means, chosen):
    assert best_weight((0.0, 0.25, 0.5, 0.75), means) == chosen


def test_split_of_the_test_is_refused(folder, pictures):
    with pytest.raises(ValueError, match="another part of the data than test"):
        choose_rerank_weight(folder, source=pictures, split="test")
    with pytest.raises(ValueError, match="rerank is 0"):
        choose_rerank_weight(folder, source=pictures, split="validation", rerank=0)
    assert json.loads((folder / "config.json").read_text())["rerank_weight"] == 0.5


def test_command_prints_recall_by_weight(folder, pictures, capsys):
    from vlmo.cli import main

    line = ["evaluate", str(folder), "--data", pictures, "--rerank", "4", "--choose-rerank-weight"]
    main(line)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Recall by rerank weight on pictures" in shown
    assert " validation, percent" in shown
    assert "chosen" in shown
    assert "(before: 0.5)" in shown
    for options, words in (
        ([*line, "--out", "x.json"], "leave out --out"),
        ([*line[:-1], "--choose-rerank-weight", "--rerank-weight", "0.3"], "leave out --rerank-weight"),
        ([*line, "--split", "test"], "than test"),
    ):
        with pytest.raises(SystemExit):
            main(options)
        assert words in capsys.readouterr().err
