import hashlib
import itertools
import json
from collections import Counter

import pytest

from vlmo.data import builtin
from vlmo.data.builtin import shapes
from vlmo.data.builtin.pools import Pool
from vlmo.data.builtin.scenes import Choices, Phrase, Placed, Scene, Sentence, Thing
from vlmo.data.decoding import decode_image

RED_STAR, BLUE_STAR = (Thing("star", color, "star") for color in ("red", "blue"))
DOG = Thing("dog", None, "twemoji/1f436")
TINY = {
    "NUM_SCENES": 300,
    "NUM_CROWDED": 300,
    "NUM_BINDING": 40,
    "NUM_HALF_TRUTHS": 300,
    "NUM_QUESTIONS": 300,
    "NUM_STATEMENTS": 60,
}
DIGESTS = {
    "shapes": "aedd7845e1864e03",
    "shapes-crowded": "c4d7dc18d905b37f",
    "shapes-binding": "956f450894f8ed09",
    "shapes-half-truths": "ac545d08ffcb5074",
    "shapes-questions": "61d7b76ac6a6e21f",
    "shapes-statements": "f93cd0fc1c36b82a",
}


def placed(thing: Thing, left: int, top: int, side: int = 24) -> Placed:
    return Placed(thing, left, top, side, "dc1c24" if thing.color else "")


@pytest.fixture(scope="module")
def pools() -> dict[str, Pool]:
    return shapes.pools()


def some_rows(split: str, pool: Pool, number: int) -> list[dict]:
    return list(itertools.islice(shapes.pair_rows(split, pool), number))


@pytest.mark.parametrize("name", shapes.SETS)
def test_rows_are_those_of_earlier_versions(name, monkeypatch):
    for numbers, count in TINY.items():
        monkeypatch.setattr(shapes, numbers, dict.fromkeys(vars(shapes)[numbers], count))
    _, splits = shapes.SETS[name]()
    text = json.dumps(splits, sort_keys=True, default=bytes.hex)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]
    rows = [row for rows in splits.values() for row in rows]
    assert {row["licence"] for row in rows} == {"CC0-1.0"}
    # Joined sources take rows of one id for one image.
    assert all(row["image_id"].startswith(f"{name}/") and row["source"] == "shapes" for row in rows)
    assert decode_image(rows[0]["image"]).size == (96, 96)


def test_truth_of_sentences():
    things = (placed(RED_STAR, 2, 40), placed(DOG, 60, 44), placed(BLUE_STAR, 40, 2))
    scene = Scene(things, "ffffff")
    red, blue, dog = Phrase("star", "red"), Phrase("star", "blue"), Phrase("dog")
    left = Sentence((red, dog), ((0, "left of", 1),), "{0} left of {1}")
    assert str(left) == "a red star left of a dog"
    assert str(Sentence((red, blue, dog))) == "a red star, a blue star and a dog"
    for sentence, truth in (
        (left, True),
        (Sentence((red, dog), ((0, "right of", 1),)), False),
        (Sentence((red, dog), ((0, "above", 1),)), None),  # neither said nor denied
        (Sentence((red, blue, dog)), True),
        (Sentence((Phrase("star", "green"), dog)), False),
        (Sentence((Phrase("star"), dog)), None),  # there are two
        (Sentence((Phrase("star", count=2), dog)), True),
    ):
        assert scene.truth(sentence) is truth, sentence


def test_captions_are_true_and_false_ones_are_true_of_other_scenes(pools):
    pool = pools["train"]
    known = {(each.name, each.color) for each in pool.shapes}
    for number in range(300):
        scene, choices = shapes.make_scene("train", number, pool)
        for sentence in shapes.sentences(scene, choices):
            assert scene.truth(sentence)
            assert sentence.relations or all(each.where for each in sentence.phrases)
            false = shapes.false_sentence(scene, sentence, pool, choices)
            assert scene.truth(false) is False
            assert len({(each.name, each.color) for each in false.phrases}) == len(false.phrases)
            assert {(each.name, each.color) for each in false.phrases} <= known
    for row in some_rows("train", pool, 20):
        assert len(row["false_captions"]) == len(row["captions"])
    assert not any(row["false_captions"] for row in some_rows("test", pools["test"], 5))


def test_captions_for_evaluation_are_true_of_no_other_scene(pools):
    pool, shown = pools["test"], []
    for row in some_rows("test", pool, 300):
        scene, choices = shapes.make_scene("test", int(row["image_id"].rpartition("/")[2]), pool)
        sentences = {str(sentence): sentence for sentence in shapes.sentences(scene, choices)}
        shown.append((scene, sentences[row["captions"][0]]))
    for (scene, sentence), (other, _) in itertools.permutations(shown, 2):
        assert scene.truth(sentence)
        assert not other.truth(sentence)
    assert sum(bool(sentence.relations) for _, sentence in shown) == 150
    names = [frozenset(each.thing for each in scene.objects) for scene, _ in shown]
    assert len(set(names)) < 0.9 * len(names)  # the same things in other places


def test_crowded_scenes_stand_in_pairs_of_the_same_things(monkeypatch):
    # The text of a caption is all that the rows keep, so both are read back from it.
    monkeypatch.setattr(shapes, "NUM_CROWDED", {"train": 200, "test": 200})
    pool = shapes.crowded_pools()["test"]
    shown = []

    class Watched(shapes.Gallery):
        def add(self, scene: Scene, sentence: Sentence) -> bool:
            shown.append((scene, sentence))
            return super().add(scene, sentence)

    monkeypatch.setattr(shapes, "Gallery", Watched)
    rows = list(shapes.crowded_rows("test", pool))
    assert [row["captions"][0] for row in rows] == [str(sentence) for _, sentence in shown]
    for (scene, sentence), (other, _) in itertools.permutations(shown, 2):
        assert scene.truth(sentence)
        assert not other.truth(sentence)
    for (first, caption), (second, other) in zip(shown[::2], shown[1::2], strict=True):
        assert len(first.objects) in {3, 4}
        assert len(set(first.things())) == len(first.objects)
        # The same shapes and the same colors, and clearly not the same scene.
        for field in ("name", "color"):
            assert Counter(getattr(thing, field) for thing in first.things()) == Counter(
                getattr(thing, field) for thing in second.things()
            )
        assert second.truth(caption) is False
        assert first.truth(other) is False
    assert Counter(len(sentence.phrases) for _, sentence in shown).keys() == {2, 3}
    training = list(shapes.crowded_rows("train", pool))
    assert all(len(row["captions"]) == len(row["false_captions"]) > 0 for row in training)


def phrases_of(caption: str) -> set[Phrase]:
    parts = caption.replace(", ", " and ").split(" and ")
    return {
        Phrase(shape, color, where=" ".join(where))
        for _, color, shape, *where in map(str.split, parts)
    }


def test_half_truths_add_one_wrong_detail_to_a_true_caption():
    pool = shapes.crowded_pools()["test"]
    changes = Counter()
    for number in range(200):
        (row,) = shapes.half_truth_rows("test", number, pool)
        scene = pool.scene(Choices(f"scenes-half-truths/test/{number}"))
        assert row["image"] == scene.cell(row["image_id"])
        true = phrases_of(row["captions"][0])
        (wrong,) = phrases_of(row["false_caption"]) - true
        assert true < phrases_of(row["false_caption"])
        assert all(scene.truth(Sentence((phrase,))) for phrase in true)
        assert scene.truth(Sentence((wrong,))) is False
        is_shown = (wrong.name, wrong.color) in {(x.name, x.color) for x in scene.things()}
        changes["place" if is_shown else "thing"] += 1
    assert 0.65 < changes["place"] / 200 < 0.85


@pytest.mark.parametrize("kind", shapes.BINDING_KINDS)
def test_each_caption_of_a_pair_is_true_of_one_image_and_false_of_the_other(kind, pools):
    for number in range(15):
        first, second = shapes.binding_rows("test", number, pools["test"], kind=kind)
        assert first["captions"] == [second["false_caption"]]
        assert second["captions"] == [first["false_caption"]]
        assert first["image"]["bytes"] != second["image"]["bytes"]
        words, others = (text.split() for text in (first["captions"][0], first["false_caption"]))
        if kind == "swap":
            assert Counter(words) - Counter(("a", "an")) == Counter(others) - Counter(("a", "an"))
        assert first["kind"] == second["kind"] == kind


def test_answers_are_what_the_scene_shows(pools):
    things = (placed(RED_STAR, 2, 40), placed(DOG, 60, 44, 40), placed(BLUE_STAR, 10, 2))
    scene, pool = Scene(things, "ffffff"), pools["test"]
    asked = {kind: set() for kind in shapes.QUESTIONS}
    for number in range(300):
        choices = Choices(str(number))
        for kind, ask in shapes.QUESTIONS.items():
            asked[kind].add(ask(scene, choices, pool, number))
    assert asked["what color"] == {None}  # there are two stars
    assert asked["what shape"] - {None} == {
        ("what shape is above the red star?", "star"),
        ("what shape is below the blue star?", "star"),
    }  # both stars lie to the left of the dog
    assert asked["how many"] - {None} == {
        ("how many stars are there?", "2"),
        ("how many dogs are there?", "1"),
        ("how many red shapes are there?", "1"),
        ("how many blue shapes are there?", "1"),
    }
    there = {question for question, answer in asked["is there"] - {None} if answer == "yes"}
    assert there == {"is there a red star?", "is there a blue star?", "is there a dog?"}
    assert {
        ("is the red star left of the dog?", "yes"),
        ("is the red star right of the dog?", "no"),
        ("is the dog left of the red star?", "no"),
    } <= asked["is the"]
    assert builtin.labels("shapes-questions") == list(shapes.ANSWERS)


def test_a_statement_is_true_of_two_pairs_and_false_of_two_that_share_an_image(pools):
    for number in range(12):
        rows = list(shapes.statement_rows("train", number, pools["train"]))
        assert [row["label"] for row in rows] == [1, 0, 1, 0]
        assert len({(row["captions"][0], row["sentence_group"]) for row in rows}) == 1
        for true, false in (rows[:2], rows[2:]):
            images = ("image", "second_image")
            assert sum(true[name]["bytes"] == false[name]["bytes"] for name in images) == 1
