import re

import numpy as np
import pytest
from datasets import Dataset

from vlmo.data.builtin.emoji import english_names
from vlmo.data.schema import FEATURES
from vlmo.data.sources import decode_image, open_source

pytestmark = pytest.mark.slow

SAME_LOOK = 5.0  # root mean square of 255 levels at 40 x 40 pixels; the full moon and a yellow circle are 2.4 apart


@pytest.fixture(scope="module")
def pairs(shared_folder) -> dict[str, Dataset]:
    return {
        split: open_source("emoji-pairs", split=split, cache_dir=shared_folder).with_format(None)
        for split in ("train", "test")
    }


def small_images(rows: Dataset) -> np.ndarray:
    """Every image at 40 x 40 pixels."""
    images = (decode_image(cell).resize((40, 40), 4) for cell in rows["image"][:])
    return np.stack([np.asarray(image, dtype=np.float32).ravel() for image in images])


def smallest_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The distance of each of the right images to the nearest of the left: |a - b|^2 = |a|^2 + |b|^2 - 2ab."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.sqrt(squares.clip(min=0) / left.shape[1]).min(axis=0)


def names_without_variant(name: str) -> set[str]:
    plain = re.sub(r" ((medium-)?(light|dark)|medium) skin tone", "", name)
    plain = plain.removesuffix(" facing right")
    person = re.sub(r"^(man|woman) ", "person ", plain)
    # Hair by itself is a drawing of its own: "bald" is no person who is bald.
    role = "" if re.search("(bald|hair)$", plain) else re.sub(r"^(man|woman) ", "", plain)
    return {plain, person, role}


def test_names_are_plain_english_and_aliases_belong_to_one() -> None:
    names = english_names()
    assert names["1f600"][0] == "grinning face"
    assert names["1f1e8-1f1ee"][0] == "Côte d'Ivoire"
    assert "thumbsup" in names["1f44d"]
    plain = [known[0].lower() for known in names.values()]
    aliases = [alias.lower() for known in names.values() for alias in known[1:]]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & set(plain)


def test_rows_are_as_many_and_follow_the_schema(pairs) -> None:
    assert {split: len(rows) for split, rows in pairs.items()} == {"train": 2933, "test": 500}
    # Of the 1,727 concepts' files 1,719 have pixels of their own.
    assert pairs["train"]["source"][:].count("twemoji") == 1719
    licences = {"twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
    for split, rows in pairs.items():
        assert rows.features == FEATURES
        assert len(set(rows["image_id"])) == len(rows)
        for row in rows.remove_columns("image").to_list():
            assert row["licence"] == licences[row["source"]]
            assert row["image_id"].startswith(row["source"] + "/")
            assert row["captions"]
            assert split == "train" or row["source"] == "openmoji"


def test_test_names_are_distinct_and_plain(pairs) -> None:
    test, train = pairs["test"], pairs["train"]
    assert all(len(captions) == 1 for captions in test["captions"])
    assert len({captions[0].lower() for captions in test["captions"]}) == 500
    # Each is a concept whose other drawing, under the same name, is trained on.
    rows = zip(train["source"], train["captions"], strict=True)
    known = {caption for source, captions in rows if source == "twemoji" for caption in captions}
    assert {captions[0] for captions in test["captions"]} <= known


def test_no_training_drawing_is_one_for_testing_or_looks_like_it_or_is_its_variant(pairs) -> None:
    assert not set(pairs["train"]["image_id"]) & set(pairs["test"]["image_id"])
    train, test = (small_images(rows) for rows in pairs.values())
    assert smallest_distances(train, test).min() >= SAME_LOOK
    # Variants by names, where the builder goes by code points.
    names, held_out = english_names(), {captions[0] for captions in pairs["test"]["captions"]}
    for image_id in pairs["train"]["image_id"]:
        style, codes = image_id.split("/")
        if style == "openmoji" and codes in names:
            assert not names_without_variant(names[codes][0]) & held_out


def test_rows_have_images_of_their_own_and_flags_with_one_image_share_a_row(pairs) -> None:
    cells = [cell for rows in pairs.values() for cell in rows["image"][:]]
    assert len({decode_image(cell).tobytes() for cell in cells}) == len(cells)
    flags = {"Norway", "Svalbard & Jan Mayen"}
    assert any(flags <= set(captions) for captions in pairs["train"]["captions"])
