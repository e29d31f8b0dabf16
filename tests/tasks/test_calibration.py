"""Settings of reranking that the command chooses and keeps: the weights, and the cut-off of "no match"."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tests.integrations.toy_gallery import CAPTIONS, drawings, trained_folder

from vlmo import VLMoForImageTextRetrieval, VLMoProcessor
from vlmo.cli import main
from vlmo.data.sources import decode_image, open_source
from vlmo.retrieval import Encoder
from vlmo.tasks import evaluate
from vlmo.tasks.calibration import (
    WEIGHTS,
    best_cutoff,
    choose_cutoff,
    choose_rerank_weight,
    cross_fitted,
    middle_best,
    write_settings,
)


def flags(text):
    return torch.tensor([each == "1" for each in text])


def gallery(folder, *, split, more=()):
    lines = ["image,caption,split"]
    for number, drawing in enumerate(drawings()):
        drawing.save(folder / f"{number}.png")
        lines += [f"{number}.png,{caption},{split}" for caption in [*CAPTIONS[number], *more]]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return gallery(tmp_path_factory.mktemp("pictures"), split="validation")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same with a caption that all images have."""
    return gallery(tmp_path_factory.mktemp("shared"), split="val", more=["a drawing"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_weight_with_the_best_recall_is_kept(folder, pictures):
    before, where = config_of(folder), {"source": pictures, "split": "validation", "device": "cpu"}
    choice = choose_rerank_weight(folder, **where, rerank=8)
    names = {"ir": "rerank_weight", "tr": "rerank_weight_image_to_text"}
    assert choice.before == dict.fromkeys(names.values(), 0.5)
    assert choice.table.row_count == len(WEIGHTS)
    for direction, name in names.items():
        means = {weight: sum(rates[f"{direction}@{k}"] for k in (1, 5, 10)) for weight, rates in choice.rates.items()}
        assert max(means.values()) == means[choice.settings[name]]
        assert max(means.values()) > min(means.values())  # else there was nothing to choose
    # Only the weights have changed, and transformers reads them.
    assert config_of(folder) == before | choice.settings
    config = VLMoForImageTextRetrieval.from_pretrained(folder).config
    assert {name: vars(config)[name] for name in choice.settings} == choice.settings
    # What it measured is what the evaluation measures.
    for weight in (WEIGHTS[0], choice.settings["rerank_weight"], WEIGHTS[-1]):
        result = evaluate(folder, **where, rerank=8, rerank_weight=weight)
        assert {name: result.metrics[f"rerank_{name}"] for name in choice.rates[weight]} == choice.rates[weight]
    result = evaluate(folder, **where, rerank=8)
    image_to_text, text_to_image = choice.settings[names["tr"]], choice.settings[names["ir"]]
    assert result.settings["rerank_weight"] == {"image_to_text": image_to_text, "text_to_image": text_to_image}
    assert result.metrics["rerank_tr@1"] == choice.rates[image_to_text]["tr@1"]
    assert result.metrics["rerank_ir@1"] == choice.rates[text_to_image]["ir@1"]


def test_published_score_has_a_shortlist_and_no_weight(folder, pictures):
    where = {"source": pictures, "split": "validation", "device": "cpu", "rerank_score": "published"}
    assert evaluate(folder, **where, rerank=8).settings == {"rerank": 8, "rerank_score": "published"}
    assert evaluate(folder, **where).settings["rerank"] == 32
    for options, words in (({"rerank": 0}, "nothing is reordered"), ({"rerank_weight": 0.5}, "score has no weight")):
        with pytest.raises(ValueError, match=words):
            evaluate(folder, **where, **options)


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
    assert middle_best((0.0, 0.25, 0.5, 0.75), means) == chosen


@pytest.mark.parametrize(
    ("scores", "present", "cutoff"),
    [
        ([0.9, 0.3, 0.8, 0.2], "1010", 0.55),  # nothing in between is wrong
        ([0.9, 0.4, 0.6, 0.1, 0.2], "11000", 0.3),  # (2/2 + 2/3) / 2 beats (1/2 + 3/3) / 2
        ([0.875, 0.625, 0.5, 0.75], "1100", 0.5625),  # as good as 0.8125, and as far from the middle of both
        ([0.1, 0.2, 0.3], "100", 0.25),  # all are wrong somewhere; 0.25 refuses one of two
    ],
)
def test_cutoff_has_the_best_balanced_accuracy(scores, present, cutoff):
    assert best_cutoff(torch.tensor(scores, dtype=torch.float64), present=flags(present)) == pytest.approx(cutoff)
    with pytest.raises(ValueError, match=r"score 0\.5: nothing separates"):
        best_cutoff(torch.full((len(scores),), 0.5), present=flags(present))


def test_rates_are_those_of_the_other_folds_cutoff():
    # The fold of the first four chooses 0.55, that of the others 0.25, with which 0.3 counts as a match.
    scores = torch.tensor([0.9, 0.8, 0.3, 0.1, 0.9, 0.4, 0.1, 0.1], dtype=torch.float64)
    found = cross_fitted(scores, present=flags("11001100"), fold=flags("11110000"))
    assert (found.found, found.refused, found.accuracy) == (0.75, 0.75, 0.75)
    assert found.cutoff == pytest.approx(0.35)  # between 0.3 and 0.4


def test_cutoff_is_that_of_the_scores_one_by_one(folder, shared):
    before = config_of(folder)
    choice = choose_cutoff(folder, source=shared, split="val", rerank=4, device="cpu")
    rows, encoder = list(open_source(shared, split="val")), Encoder(folder, device="cpu")
    images = [decode_image(row["image"]) for row in rows]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    kept = [number for number in range(len(rows)) if order[number] % 2 == 0]
    vectors, cosine, best, present = encoder.embed_images([images[number] for number in kept]), [], [], []
    for number, row in enumerate(rows):
        # Every image has the caption "a drawing": without its image, it still has matches.
        for caption in row["captions"] if number in kept else row["captions"][:2]:
            similarity = vectors @ encoder.embed_texts([caption])[0]
            nearest = [images[kept[found]] for found in np.argsort(-similarity)[:4]]
            best.append(encoder.match(nearest, [caption] * 4).max())
            cosine.append(similarity.max())
            present.append(number in kept)
    assert "36 texts with their image in the gallery and 24 without" in str(choice.table.title)
    assert (sum(present), len(present)) == (36, 60)
    match, similarity = choice.rates.values()
    for scores, found in ((1 / (1 + np.exp(-np.array(best))), match), (np.array(cosine), similarity)):
        expected = best_cutoff(torch.from_numpy(scores).double(), present=torch.tensor(present))
        assert found.cutoff == pytest.approx(expected, abs=1e-5)
    cells = [list(column.cells) for column in choice.table.columns]
    assert cells[0] == ["probability of a match", "cosine similarity"]
    assert cells[4] == [f"{100 * each.accuracy:.1f}" for each in (match, similarity)]
    assert cells[5] == ["50.0", "50.0"]
    assert config_of(folder) == before | {"match_cutoff": match.cutoff}
    # Indexes stay valid, and another choice says the one before.
    assert Encoder(folder, device="cpu").match_cutoff == match.cutoff
    assert Encoder(folder, device="cpu").fingerprint == encoder.fingerprint
    again = choose_cutoff(folder, source=shared, split="val", device="cpu")
    assert again.before == {"match_cutoff": match.cutoff}


@pytest.mark.parametrize(
    ("choose", "options", "words"),
    [
        (choose_cutoff, {"split": "test"}, "another part of the data than test"),
        (choose_cutoff, {"rerank": 0}, "rerank is 0"),
        (choose_cutoff, {"limit": 3}, "3 images are too few"),
        (choose_rerank_weight, {"split": "test"}, "another part of the data than test"),
        (choose_rerank_weight, {"rerank": 0}, "rerank is 0"),
    ],
)
def test_wrong_requests_are_refused(choose, options, words, folder, pictures):
    before = config_of(folder)
    with pytest.raises(ValueError, match=words):
        choose(folder, source=pictures, device="cpu", **({"split": "validation"} | options))
    assert config_of(folder) == before


def test_cutoff_that_is_no_number_is_refused(folder):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {"match_cutoff": "high"}))
    with pytest.raises(ValueError, match=r"config\.json: match_cutoff is 'high'"):
        Encoder(folder, device="cpu")


def test_command_prints_its_choice(folder, pictures, capsys):
    line = ["evaluate", str(folder), "--data", pictures, "--rerank", "4", "--choose-rerank-weight"]
    main(line)
    shown = " ".join(capsys.readouterr().out.split())
    expected = ("Recall by rerank weight on pictures", " validation, percent", "chosen for", "(before: ")
    for words in (*expected, str(folder / "config.json")):
        assert words in shown
    for options, words in (
        ([*line, "--split", "test"], "than test"),
        (["evaluate", "vlmo-small", "--choose-rerank-weight"], "is a published model and stays as it is"),
    ):
        with pytest.raises(SystemExit):
            main(options)
        assert words in " ".join(capsys.readouterr().err.split())
