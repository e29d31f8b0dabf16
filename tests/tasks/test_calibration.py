"""Weights of reranking that the command chooses and keeps."""

import json

import pytest
from tests.integrations.toy_gallery import CAPTIONS, drawings, trained_folder

from vlmo import VLMoForImageTextRetrieval
from vlmo.cli import main
from vlmo.tasks import evaluate
from vlmo.tasks.calibration import WEIGHTS, choose_rerank_weight, middle_best


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("pictures"), ["image,caption,split"]
    for number, drawing in enumerate(drawings()):
        drawing.save(folder / f"{number}.png")
        lines += [f"{number}.png,{caption},validation" for caption in CAPTIONS[number]]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return trained_folder(tmp_path / "model")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_weight_with_the_best_recall_is_kept(folder, pictures):
    before, where = config_of(folder), {"source": pictures, "split": "validation", "device": "cpu"}
    choice = choose_rerank_weight(folder, **where, rerank=8)
    names = {"ir": "rerank_weight", "tr": "rerank_weight_image_to_text"}
    assert choice.before == dict.fromkeys(names.values(), 0.5)
    assert choice.table.row_count == len(WEIGHTS)
    for direction, name in names.items():
        means = {
            weight: sum(rates[f"{direction}@{k}"] for k in (1, 5, 10))
            for weight, rates in choice.rates.items()
        }
        assert max(means.values()) == means[choice.settings[name]]
        assert max(means.values()) > min(means.values())  # else there was nothing to choose
    # Only the weights have changed, and transformers reads and keeps them.
    assert config_of(folder) == before | choice.settings
    model = VLMoForImageTextRetrieval.from_pretrained(folder)
    model.save_pretrained(folder.with_name("copy"))
    assert config_of(folder.with_name("copy")).items() >= choice.settings.items()
    # What it measured is what the evaluation measures.
    for weight in (WEIGHTS[0], choice.settings["rerank_weight"], WEIGHTS[-1]):
        result = evaluate(folder, **where, rerank=8, rerank_weight=weight)
        assert {
            name: result.metrics[f"rerank_{name}"] for name in choice.rates[weight]
        } == choice.rates[weight]
    result = evaluate(folder, **where, rerank=8)
    image_to_text, text_to_image = choice.settings[names["tr"]], choice.settings[names["ir"]]
    assert result.settings["rerank_weight"] == {
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
    }
    assert result.metrics["rerank_tr@1"] == choice.rates[image_to_text]["tr@1"]
    assert result.metrics["rerank_ir@1"] == choice.rates[text_to_image]["ir@1"]


@pytest.mark.parametrize(
    ("means", "chosen"),
    [([1, 3, 2, 1], 0.25), ([1, 3, 3, 3], 0.5), ([2, 2, 2, 2], 0.25), ([0, 0, 0, 1], 0.75)],
)
def test_of_several_best_the_middle_one_is_taken(means, chosen):
    assert middle_best((0.0, 0.25, 0.5, 0.75), means) == chosen


@pytest.mark.parametrize(
    ("options", "words"), [({"split": "test"}, "another than test"), ({"rerank": 0}, "--rerank 0")]
)
def test_wrong_requests_are_refused(options, words, folder, pictures):
    before = config_of(folder)
    with pytest.raises(ValueError, match=words):
        choose_rerank_weight(
            folder, source=pictures, device="cpu", **({"split": "validation"} | options)
        )
    assert config_of(folder) == before


def test_command_prints_its_choice(folder, pictures, capsys):
    main(["evaluate", str(folder), "--data", pictures, "--rerank", "4", "--choose-rerank-weight"])
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "Recall by rerank weight on pictures",
        " validation, percent",
        "chosen for",
        "rerank_weight",
    ):
        assert words in shown
    assert "rerank_weight" in config_of(folder)
