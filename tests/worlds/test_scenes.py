import hashlib
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from vlmo.data import builtin
from vlmo.data.builtin import shapes
from vlmo.data.builtin.scenes import COLORS, Placed, Scene, Sentence, Thing, plural
from vlmo.data.decoding import decode_image, decode_mask
from worlds import scenes
from worlds.pools import SHAPE, DrawnPool, SizedPhrase, codes_of, draw, drawings, make_pools

DOG = Thing("dog", None, "twemoji/1f436")
TINY = {"NUM_SCENES": 100, "NUM_BINDING": 15, "NUM_QUESTIONS": 100, "NUM_STATEMENTS": 20}
HELD_OUT = {"1f404", "1f405", "1f40c"}  # a cow, a tiger and a snail


@pytest.fixture(scope="module")
def pools() -> dict[str, DrawnPool]:
    return make_pools(drawings(), HELD_OUT)


def some_rows(split: str, pool: DrawnPool, number: int) -> list[dict]:
    return list(itertools.islice(scenes.pair_rows(split, pool), number))


def make_scene(split: str, number: int, pools: dict[str, DrawnPool]) -> tuple:
    return scenes.make_scene(split, number, pools[split])


def test_scenes_show_drawings_that_models_train_on_alone():
    drawn, pools = drawings(), scenes.pools()
    shown, tested = (
        set(builtin.load("drawings-pairs", split=split)["image_id"]) for split in ("train", "test")
    )
    concepts = set(builtin.load("drawings-concepts", split="test")["image_id"])
    trained = {thing for thing in drawn if f"twemoji/{codes_of(thing)}" in shown}
    assert set(pools["train"].drawings) == trained < set(drawn)
    assert {f"twemoji/{codes_of(thing)}" for thing in {*drawn} - trained} <= concepts
    assert {f"openmoji/{codes_of(thing)}" for thing in pools["artist"].first} <= tested


def test_splits_share_the_drawings_that_the_card_says_they_share():
    pools = scenes.pools()
    artist = pools.pop("artist").drawings
    (shared,) = {pool.drawings for pool in pools.values()}
    train = pools["train"]
    assert [len(x) for x in (shared, artist, train.shapes, train.unseen)] == [387, 115, 84, 16]
    facts = {(thing.name, codes_of(thing)) for thing in shared}
    assert {(thing.name, codes_of(thing)) for thing in artist} < facts
    assert {thing.image.partition("/")[0] for thing in artist} == {"openmoji"}


@pytest.mark.parametrize("split", ["train", "artist", "combinations", "longer"])
def test_every_caption_is_true(split, pools):
    rows, shown = some_rows(split, pools[split], 60), []
    for row in rows:
        scene, choices = make_scene(split, int(row["image_id"].rpartition("/")[2]), pools)
        if split == "longer":
            true = [scenes.long_sentence(scene, choices)]
        else:
            true = scenes.sentences(scene, choices)
        assert all(scene.truth(sentence) for sentence in true)
        known = {str(sentence): sentence for sentence in true}
        assert set(row["captions"]) <= known.keys()
        assert split != "train" or row["captions"] == list(known)
        shown.append((scene, known[row["captions"][0]]))
    if split != "train":
        assert {len(row["captions"]) for row in rows} == {1}
        for (_, sentence), (other, _) in itertools.permutations(shown, 2):
            assert other.truth(sentence) is False  # nor unclear


def test_false_captions_are_false_of_their_scene(pools):
    pool = pools["train"]
    known = {(each.name, each.color) for each in pool.shapes + pool.drawings}
    for number in range(100):
        scene, choices = make_scene("train", number, pools)
        for sentence in scenes.sentences(scene, choices):
            if (false := scenes.edited_sentence(scene, sentence, pool, choices)) is not None:
                assert scene.truth(false) is False
                assert {(each.name, each.color) for each in false.phrases} <= known
                assert (false.form, len(false.phrases)) == (sentence.form, len(sentence.phrases))
    for row in some_rows("train", pool, 20):
        assert len(row["false_captions"]) == len(row["captions"])
        assert any(row["false_captions"])
        assert not set(row["false_captions"]) & set(row["captions"])


DIGESTS = {
    "scenes": "76c8f21efc46a539",
    "scenes-binding": "47e8b6371f5959ff",
    "scenes-questions": "a13670d638500bf0",
    "scenes-statements": "80d201816d673dfe",
    "scenes-masks": "f903c38e7ebbc769",
    "scenes-kinds": "dec705c0fbc682ef",
}


@pytest.mark.parametrize("name", scenes.SETS)
def test_rows_are_those_of_earlier_versions(name, pools, monkeypatch):
    monkeypatch.setattr(scenes, "pools", lambda: pools)
    for numbers, count in TINY.items():
        monkeypatch.setattr(scenes, numbers, dict.fromkeys(vars(scenes)[numbers], count))
    # the toy artist draws animals alone
    monkeypatch.setattr(scenes, "NUM_PIXELS", {"train": 30, "test": 15})
    _, splits = scenes.SETS[name]()
    text = json.dumps(splits, sort_keys=True, default=bytes.hex)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]


def test_sizes_and_plurals():
    scene = Scene((Placed(DOG, 2, 2, 26, ""), Placed(DOG, 40, 40, 40, "")), "ffffff")
    truths = (("small", 1, True), ("large", 1, True), (None, 2, True), (None, 1, None))
    for size, count, truth in truths:
        assert scene.truth(Sentence((SizedPhrase("dog", count=count, size=size),))) is truth
    small = Scene(scene.objects[:1], "ffffff")
    assert small.truth(Sentence((SizedPhrase("dog", size="large"),))) is False
    phrase = SizedPhrase("star", "red", where="on the left", size="small")
    assert str(phrase) == "a small red star on the left"
    plurals = ["mice", "foxes", "butterflies", "wolves"]
    assert [plural(name) for name in ("mouse", "fox", "butterfly", "wolf")] == plurals


def test_a_drawing_lies_in_the_middle_of_its_square(monkeypatch):
    wide = Image.new("RGBA", (20, 10), "blue")
    monkeypatch.setattr("worlds.pools.read_drawing", lambda *_, **__: wide)
    opaque = np.asarray(draw("wide", 48, style="toy"))[:, :, 3] > 0
    assert opaque[12:36].all()
    assert opaque.sum() == 24 * 48


def test_what_splits_hold_out(pools):
    def things(split: str) -> list[set[Thing]]:
        shown = [make_scene(split, number, pools)[0] for number in range(80)]
        return [{placed.thing for placed in scene.objects} for scene in shown]

    held_out, trained = set(pools["train"].unseen), set.union(*things("train"))
    assert 10 <= len(held_out) <= 20
    assert not trained & held_out
    assert {thing.color for thing in trained} == {None, *COLORS}
    assert all(found & held_out for found in things("combinations"))
    codes = {codes_of(thing) for thing in set.union(*things("artist")) if thing.color is None}
    assert codes == HELD_OUT


def test_no_question_alone_tells_its_answer(pools):
    rows = []
    for number in range(900):
        rows += shapes.question_rows("test", number, pools["test"])
    words = CountVectorizer(ngram_range=(1, 2)).fit_transform([row["question"] for row in rows])
    chances = {
        "what color": 0.1,
        "what shape": 0.1,
        "how many": 1 / 3,
        "is there": 0.5,
        "is the": 0.5,
    }
    for kind, chance in chances.items():
        chosen = [number for number, row in enumerate(rows) if row["question_type"] == kind]
        answers = [rows[number]["answers"][0] for number in chosen]
        half = len(chosen) // 2
        model = LogisticRegression(max_iter=200).fit(words[chosen[:half]], answers[:half])
        # three standard errors of 90
        assert model.score(words[chosen[half:]], answers[half:]) < chance + 0.16, kind
    assert all(shapes.ANSWERS[row["answer_labels"][0]] == row["answers"][0] for row in rows)


def test_masks_are_where_the_objects_are(pools):
    square = Placed(Thing("square", "red", "square"), 10, 40, 24, "dc1c24")
    scene = Scene((square, Placed(DOG, 60, 44, 30, "")), "ffffff")
    mask = decode_mask(scenes.mask_cell(scene, "m"))
    assert mask.shape == (96, 96)
    assert set(np.unique(mask)) == {0, *map(scenes.PIXEL_KINDS.index, (SHAPE, "animal"))}
    image = np.asarray(decode_image(scene.cell("s"))).astype(int)
    red = np.abs(image - (0xDC, 0x1C, 0x24)).max(axis=2) < 120
    np.testing.assert_array_equal((mask == 1)[:, :50], red[:, :50])
    assert (image[mask == 0] > 120).all()
    (row,) = scenes.mask_rows("test", 0, pools["test"])
    assert decode_mask(row["mask"]).max() < len(scenes.PIXEL_KINDS)
    assert builtin.labels("scenes-masks") == list(scenes.PIXEL_KINDS)
