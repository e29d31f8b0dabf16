from functools import cache

import numpy as np
import pytest
from datasets import Dataset
from tests.data.test_builtin_emoji import SAME_LOOK, names_without_variant, smallest_distances

from vlmo.data.builtin import emoji
from vlmo.data.builtin.emoji import LOOK_ALIKES, TEST, english_names
from vlmo.data.sources import open_source
from worlds.emoji import _installed, is_hidden, unlike

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sets(shared_folder) -> dict[str, Dataset]:
    names = ["emoji-pairs/train", "emoji-pairs/test", "drawings-pairs/train", "drawings-pairs/test"]
    built = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "png_of", cache(emoji.png_of))  # two sets have the same drawings
        for name in (*names, "drawings-concepts/test"):
            source, _, split = name.partition("/")
            built[name] = open_source(source, split=split, cache_dir=shared_folder)
    return built


def test_counts(sets) -> None:
    assert {name: len(rows) for name, rows in sets.items()} == {
        "emoji-pairs/train": 2933,
        "emoji-pairs/test": 500,
        "drawings-pairs/train": 3216,
        "drawings-pairs/test": 500,
        "drawings-concepts/test": 150,
    }
    assert sets["drawings-pairs/test"]["captions"][:] == sets["emoji-pairs/test"]["captions"][:]
    concepts, pairs = (
        set(sets[f"{name}/train"]["image_id"]) for name in ("emoji-pairs", "drawings-pairs")
    )
    # One drawing of each new concept, and of others that look like them; no other artist's is in both.
    lacking = [image_id for image_id in concepts - pairs if image_id.startswith("twemoji")]
    assert 150 <= len(lacking) < 170
    assert set(sets["drawings-pairs/train"]["source"]) == {"twemoji"}


def test_the_package_keeps_the_same_drawings_for_testing() -> None:
    found = _installed()
    assert [drawing.codes for drawing in found.test] == TEST
    untrained = set(found.concepts.codes) - unlike(found.openmoji, found.test)
    assert untrained == LOOK_ALIKES.union(TEST)
    assert len({drawing.image_id for drawing in found.twemoji.values()}) == 3963  # of 4,009 files


def test_new_concepts_are_absent_in_every_style_variant_and_look(sets) -> None:
    names = english_names()
    train = sets["drawings-pairs/train"]
    new = sets["drawings-concepts/test"]
    held_out = {caption for (caption,) in new["captions"]}
    for image_id in train["image_id"]:
        codes = image_id.split("/")[1]
        assert codes not in names or not names_without_variant(names[codes][0]) & held_out
    hidden = _installed().hidden_names
    assert all(is_hidden(caption, hidden) for caption in held_out)
    # In both styles: `emoji-pairs` holds the drawings of the new concepts.
    pairs = sets["emoji-pairs/train"]
    codes = {image_id.split("/")[1] for image_id in new["image_id"]}
    drawn = [image_id for image_id in pairs["image_id"] if image_id.split("/")[1] in codes]
    # some of OpenMoji's look like its test drawings, and so are in no set
    assert 290 < len(drawn) <= 300
    found = _installed()
    drawings = [*found.twemoji.values(), *found.openmoji.values()]
    looks = {f"{each.style}/{each.codes}": each.small for each in drawings}
    tested = np.stack([looks[image_id] for image_id in (*drawn, *new["image_id"])])
    trained = np.stack([looks[image_id] for image_id in train["image_id"]])
    assert smallest_distances(trained, tested).min() >= SAME_LOOK
