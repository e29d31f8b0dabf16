"""The cut-off of "no match": hand-worked choices, and the one that the command keeps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tests.integrations.toy_gallery import CAPTIONS, drawings, trained_folder

from vlmo.cli import main
from vlmo.data.sources import decode_image, open_source
from vlmo.retrieval import Encoder
from vlmo.tasks.match_cutoff import best_cutoff, choose_cutoff, cross_fitted


def flags(text):
    return torch.tensor([each == "1" for each in text])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    lines = ["image,caption,split"]
    for number, drawing in enumerate(drawings()):
        drawing.save(folder / f"{number}.png")
        lines += [f"{number}.png,{caption},val" for caption in [*CAPTIONS[number], "a drawing"]]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return trained_folder(tmp_path / "model", steps=1)


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


def test_equal_scores_have_no_cutoff():
    with pytest.raises(ValueError, match=r"score 0\.5: nothing separates"):
        best_cutoff(torch.full((4,), 0.5), present=flags("1010"))


def test_rates_are_those_of_the_other_folds_cutoff():
    # The fold of the first four chooses 0.55, that of the others 0.25, with which 0.3 counts as a match.
    scores = torch.tensor([0.9, 0.8, 0.3, 0.1, 0.9, 0.4, 0.1, 0.1], dtype=torch.float64)
    found = cross_fitted(scores, present=flags("11001100"), fold=flags("11110000"))
    assert (found.found, found.refused, found.accuracy) == (0.75, 0.75, 0.75)
    assert found.value == pytest.approx(0.35)  # between 0.3 and 0.4


def test_cutoff_is_that_of_the_scores_one_by_one(folder, pictures):
    before = json.loads((folder / "config.json").read_text())
    choice = choose_cutoff(folder, source=pictures, split="val", rerank=4, device="cpu")
    rows, encoder = list(open_source(pictures, split="val")), Encoder(folder, device="cpu")
    images = [decode_image(row["image"]) for row in rows]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    gallery = [number for number in range(len(rows)) if order[number] % 2 == 0]
    vectors, cosine, best, present = encoder.embed_images([images[number] for number in gallery]), [], [], []
    for number, row in enumerate(rows):
        # Every image has the caption "a drawing": without its image, it still has matches.
        for caption in row["captions"] if number in gallery else row["captions"][:2]:
            similarity = vectors @ encoder.embed_texts([caption])[0]
            nearest = [images[gallery[place]] for place in np.argsort(-similarity)[:4]]
            best.append(encoder.match(nearest, [caption] * 4).max())
            cosine.append(similarity.max())
            present.append(number in gallery)
    assert choice.num_queries == (36, 24) == (sum(present), len(present) - sum(present))
    for scores, cutoff in ((1 / (1 + np.exp(-np.array(best))), choice.match), (np.array(cosine), choice.cosine)):
        expected = best_cutoff(torch.from_numpy(scores).double(), present=torch.tensor(present))
        assert cutoff.value == pytest.approx(expected, abs=1e-5)
    cells = [list(column.cells) for column in choice.table().columns]
    assert cells[0] == ["probability of a match", "cosine similarity"]
    assert cells[4] == [f"{100 * each.accuracy:.1f}" for each in (choice.match, choice.cosine)]
    assert cells[5] == ["50.0", "50.0"]
    after = json.loads((folder / "config.json").read_text())
    assert after == before | {"match_cutoff": choice.match.value}
    # Indexes stay valid, and another choice tells the one before.
    assert Encoder(folder, device="cpu").match_cutoff == choice.match.value
    assert Encoder(folder, device="cpu").fingerprint == encoder.fingerprint
    assert choose_cutoff(folder, source=pictures, split="val", device="cpu").before == choice.match.value


def test_wrong_requests_are_refused(folder, pictures, tmp_path):
    for options, words in (
        ({"split": "test"}, "another part of the data than test"),
        ({"split": "val", "rerank": 0}, "rerank is 0"),
        ({"split": "val", "limit": 3}, "3 images are too few"),
    ):
        with pytest.raises(ValueError, match=words):
            choose_cutoff(folder, source=pictures, device="cpu", **options)
    assert "match_cutoff" not in json.loads((folder / "config.json").read_text())
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"match_cutoff": "high"}))
    with pytest.raises(ValueError, match=r"config\.json: match_cutoff is 'high'"):
        Encoder(copy, device="cpu")


def test_command_prints_both_cutoffs_beside_chance(folder, pictures, capsys):
    line = ["evaluate", str(folder), "--data", pictures, "--split", "val", "--choose-cutoff"]
    main(line)
    shown = " ".join(capsys.readouterr().out.split())
    assert "36 texts with their image in the gallery and 24 without" in shown
    cutoff = json.loads((folder / "config.json").read_text())["match_cutoff"]
    assert f"match_cutoff {cutoff:.4g} (before: None) in {folder / 'config.json'}" in shown
    for options, words in (
        ([*line, "--choose-rerank-weight"], "leave out --choose-rerank-weight"),
        ([*line, "--out", "x.json"], "leave out --out"),
        (["evaluate", "vlmo-small", "--choose-cutoff"], "leave out --choose-cutoff"),
    ):
        with pytest.raises(SystemExit):
            main(options)
        assert words in " ".join(capsys.readouterr().err.split())
