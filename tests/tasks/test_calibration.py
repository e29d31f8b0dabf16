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
    before = config_of(folder)
    where = {"source": pictures, "split": "validation", "device": "cpu", "rerank": 8}
    choice = choose_rerank_weight(folder, **where)
    names = {"ir": "rerank_weight", "tr": "rerank_weight_image_to_text"}
    assert choice.before == dict.fromkeys(names.values(), 0.5)
    assert choice.rates.keys() == set(WEIGHTS)
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
    for weight in (WEIGHTS[0], WEIGHTS[-1]):
        metrics = evaluate(folder, **where, rerank_weight=weight).metrics
        rates = choice.rates[weight]
        assert {name: metrics[f"rerank_{name}"] for name in rates} == rates
    result = evaluate(folder, **where)
    image_to_text, text_to_image = choice.settings[names["tr"]], choice.settings[names["ir"]]
    weights = {"image_to_text": image_to_text, "text_to_image": text_to_image}
    assert result.settings["rerank_weight"] == weights
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
    options = {"source": pictures, "split": "validation"} | options
    with pytest.raises(ValueError, match=words):
        choose_rerank_weight(folder, device="cpu", **options)
    assert config_of(folder) == before


def test_command_prints_its_choice(folder, pictures, capsys):
    main(["evaluate", str(folder), "--data", pictures, "--rerank", "4", "--choose-rerank-weight"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Recall by rerank weight on pictures" in shown
    assert "rerank_weight" in config_of(folder)
