from __future__ import annotations

import numpy as np
from PIL import Image

from vlmo.demo.examples import Decision, contact_sheet, decision_sheet, decisions, example_queries

GREEN = (31, 138, 76)


def test_examples_come_from_predictions():
    images = {name: Image.new("RGB", (4, 4)) for name in "uvwxyz"}
    predictions = [
        {"query": "caption", "caption": "a", "image_id": "x", "rank": 2, "found": [*"zxyuvw"]},
        {"query": "caption", "caption": "b", "image_id": "y", "rank": 6, "found": [*"xzuvwy"]},
        {"query": "caption", "caption": "c", "image_id": "y", "rank": 1, "found": [*"yzxuvw"]},
        {"query": "image", "image_id": "x", "rank": 5, "found": [*"bcdeaf"]},
        {"query": "image", "image_id": "y", "rank": 1, "found": [*"cbadef"]},
    ]
    by_text, by_image = example_queries(predictions, images=images, count=5)
    assert [(query.text, query.correct, query.rank, query.answer) for query in by_text] == [
        ("a", 1, 2, images["x"]),
        ("b", None, 6, images["y"]),
        ("c", 0, 1, images["y"]),
    ]
    assert by_text[0].images == [images[name] for name in "zxyuv"]
    assert [(query.image, query.texts, query.correct, query.rank) for query in by_image] == [
        (images["x"], [*"bcdea"], [4], 5),
        (images["y"], [*"cbade"], [0, 1], 1),
    ]
    assert [query.text for query in example_queries(predictions, images=images, count=1)[0]] == ["a"]


def test_contact_sheet_frames_only_the_right_images():
    image = Image.new("RGB", (64, 64), "black")
    found = {
        "a word that is quite a bit too long for one line of the sheet " * 3: [
            (image, is_right) for is_right in (False, True, False, False, False)
        ],
        "missed": [(image, False)] * 5,
    }
    sheet = contact_sheet(found)
    assert sheet.width == 786  # five images of 92 pixels
    pixels = np.asarray(sheet).astype(int)
    # The frame, far from black, white and grey.
    green = (np.abs(pixels - np.array(GREEN)).sum(axis=-1) < 60).nonzero()
    assert len(green[0]) > 500
    assert green[0].max() < sheet.height // 2
    assert 345 < green[1].min() < green[1].max() < 450  # the second of five


def test_contact_sheet_takes_unusual_input():
    sheet = contact_sheet({"": [(Image.new("LA", (3, 90)), True)], "x" * 300: []})
    assert sheet.width == 362


def test_decisions_are_texts_that_one_encoder_alone_finds_the_image_of():
    ranks = [("both", 1, 1), ("fusion", 3, 1), ("dual", 1, 2), ("neither", 2, 2)]
    predictions = [{"query": "caption", "caption": name, "rank": a, "rerank_rank": b} for name, a, b in ranks]
    predictions.append({"query": "image", "rank": 2, "rerank_rank": 1})
    gained, lost = decisions(predictions)
    assert [row["caption"] for row in gained] == ["fusion"]
    assert [row["caption"] for row in lost] == ["dual"]


def test_decision_sheet_frames_the_image_of_the_fusion_encoder():
    black, white = (Image.new("RGB", (64, 64), name) for name in ("black", "white"))
    sheet = decision_sheet([Decision("a red star left of a blue ring", dual=black, fusion=white)] * 2, columns=2)
    pixels = np.asarray(sheet).astype(int)
    dark = (pixels.sum(axis=-1) < 30).sum(axis=0).nonzero()[0]
    green = (np.abs(pixels - np.array(GREEN)).sum(axis=-1) < 60).sum(axis=0) > 60  # a side of the frame
    half = sheet.width // 2
    for columns in (green[:half], green[half:]):
        assert columns.any()
    assert dark[dark < half].max() < green[:half].nonzero()[0].min()
