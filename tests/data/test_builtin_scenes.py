"""Scenes: captions that are true of them, and pairs of captions of which one is."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from vlmo.data import builtin
from vlmo.data.builtin import scene_pixels, scene_questions, scene_statements, scenes, world
from vlmo.data.builtin.world import Phrase, Placed, Scene, Sentence, Thing
from vlmo.data.decoding import decode_image, decode_mask, encode_image
from vlmo.data.schema import FEATURES, make_row

RED_STAR, BLUE_STAR = (Thing("star", color, world.SHAPE, "star") for color in ("red", "blue"))
DOG = Thing("dog", None, "animal", "twemoji/1f436")
HELD_OUT = {"1f404", "1f405", "1f40c"}  # a cow, a tiger and a snail


def placed(thing: Thing, left: int, top: int, side: int = 24) -> Placed:
    return Placed(thing, left, top, side, "dc1c24" if thing.color else "")


@pytest.fixture(scope="module")
def pools() -> dict[str, world.Pool]:
    return scenes.make_pools(world.drawings(), HELD_OUT)


@pytest.fixture(scope="module")
def shape_pools() -> dict[str, world.Pool]:
    return scenes.pools_of({}, icons=None, only_shapes=True)


def some_rows(split: str, pool: world.Pool, number: int) -> list[dict]:
    return list(itertools.islice(scenes.pair_rows(split, pool), number))


def told_of(row: dict, split: str, pool: world.Pool) -> tuple[Scene, Sentence]:
    """The scene of a row for evaluation and its caption as a sentence."""
    scene, choices = scenes.make_scene(split, int(row["image_id"].rpartition("/")[2]), pool)
    return scene, next(
        each for each in scenes._captions(split, scene, choices, pool) if str(each) == row["captions"][0]
    )


def test_scenes_show_drawings_that_models_train_on_alone():
    new = [thing for thing in world.drawings() if thing.name in {"lemon", "snake"}]
    named = [thing for thing in world.drawings() if thing not in new]
    drawn = {"train": [{"image_id": f"twemoji/{thing.codes}"} for thing in named]}
    pools = scenes.pools_of(drawn | {"test": [{"image_id": "openmoji/1f404"}]}, icons=None, only_shapes=False)
    assert {each.name for each in pools["artist"].first} == {"cow"}
    assert set(pools["train"].drawings) == set(named)
    shown = {row["image_id"] for row in builtin.load("drawings-pairs", split="train").select_columns("image_id")}
    concepts = {row["image_id"] for row in builtin.load("drawings-concepts", split="test").select_columns("image_id")}
    left_out = {f"twemoji/{thing.codes}" for thing in world.drawings()} - shown
    assert left_out
    assert left_out <= concepts


def test_relations_are_told_where_people_would_tell_them():
    left, right, far = placed(RED_STAR, 5, 40), placed(DOG, 60, 44), placed(BLUE_STAR, 54, 2)
    assert left.relation_to(right) == "left of"
    assert right.relation_to(left) == "right of"
    assert far.relation_to(right) == "above"
    assert right.relation_to(far) == "below"
    assert placed(RED_STAR, 5, 50).relation_to(far) is None  # as much to the left as below
    assert placed(DOG, 40, 40).relation_to(placed(DOG, 44, 41)) is None  # nearly one place


def test_truth_of_sentences():
    scene = Scene((placed(RED_STAR, 2, 40), placed(DOG, 60, 44, 40), placed(BLUE_STAR, 40, 2)), "ffffff")
    red, blue, dog = Phrase("star", "red"), Phrase("star", "blue"), Phrase("dog")
    left = Sentence((red, dog), ((0, "left of", 1),), "{0} left of {1}")
    assert str(left) == "a red star left of a dog"
    assert scene.truth(left)
    assert scene.truth(Sentence((red, dog), ((0, "right of", 1),))) is False
    assert scene.truth(Sentence((red, dog), ((0, "above", 1),))) is None  # neither said nor denied
    assert scene.truth(Sentence((red, blue, dog)))
    assert scene.truth(Sentence((Phrase("star", "green"), dog))) is False
    assert scene.truth(Sentence((Phrase("star"), dog))) is None  # there are two
    assert scene.truth(Sentence((Phrase("star", count=2), dog)))
    assert scene.truth(Sentence((Phrase("dog", size="large"),)))
    assert scene.truth(Sentence((Phrase("dog", size="small"),))) is False


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        (Phrase("star", "orange"), "an orange star"),
        (Phrase("octopus", size="small"), "a small octopus"),
        (Phrase("unicorn"), "a unicorn"),
        (Phrase("cat", where="at the top left"), "a cat at the top left"),
        (Phrase("cross", "red", count=2), "two red crosses"),
        (Phrase("cherry", count=3), "three cherries"),
        (Phrase("mouse", count=2), "two mice"),
    ],
)
def test_words_of_phrases(phrase, text):
    assert str(phrase) == text


def test_drawings_have_names_of_their_own_that_are_no_shape_or_color():
    names = [thing.name for thing in world.drawings()]
    assert len(names) == len(set(names)) > 400
    words = {word for name in names for word in name.split()}
    assert not words & ({*world.COLORS} | {*world.SHAPES})
    assert Counter(thing.kind for thing in world.drawings()).keys() == world.KINDS.keys()
    assert {"dog", "cat", "bicycle"} <= set(names)


@pytest.mark.parametrize(
    ("left", "top", "where"),
    [
        (0, 0, "at the top left"),
        (72, 0, "at the top right"),
        (36, 40, "in the middle"),
        (60, 42, "on the right"),
        (30, 72, "at the bottom"),
        (0, 72, "at the bottom left"),
    ],
)
def test_places_in_a_scene(left, top, where):
    thing = world.drawings()[0]
    placed = world.Placed(thing, left, top, 24, "")
    assert placed.where == where
    assert Phrase(thing.name, where=where).fits(placed)
    assert not Phrase(thing.name, where="on the left").fits(placed)


def test_two_of_five_training_scenes_show_one_object(pools):
    alone = sum(len(scenes.make_scene("train", number, pools["train"])[0].objects) == 1 for number in range(500))
    assert 170 <= alone <= 230


@pytest.mark.parametrize("split", ["train", "artist", "combinations", "longer"])
def test_every_caption_is_true(split, pools):
    rows = some_rows(split, pools[split], 60)
    for row in rows:
        number = int(row["image_id"].rpartition("/")[2])
        scene, choices = scenes.make_scene(split, number, pools[split])
        told = [scenes.long_sentence(scene, choices)] if split == "longer" else scenes.sentences(scene, choices)
        assert all(scene.truth(sentence) for sentence in told)
        known = list(dict.fromkeys(map(str, told)))
        assert row["captions"] == known if split == "train" else set(row["captions"]) <= set(known)
        assert (1 if split == "train" else 2) <= len(scene.objects) <= 5
        for place, each in enumerate(scene.objects):
            assert min(each.left, each.top) >= 0
            assert max(each.left, each.top) + each.side <= 96
            assert all(world._is_free(each.left, each.top, each.side, other) for other in scene.objects[:place])
    if split != "train":
        assert {len(row["captions"]) for row in rows} == {1}
        for (_, sentence), (other, _) in itertools.permutations([told_of(row, split, pools[split]) for row in rows], 2):
            assert other.truth(sentence) is False  # nor unclear


def test_scenes_of_shapes_have_captions_that_tell_where_things_lie(shape_pools):
    pool = shape_pools["train"]
    for number in range(60):
        scene, choices = scenes.make_scene("train", number, pool)
        told = scenes.shape_sentences(scene, choices)
        assert all(scene.truth(sentence) for sentence in told)
        assert all(
            sentence.relations or all(each.where or each.count > 1 for each in sentence.phrases) for sentence in told
        )
        if len(told) == 3:  # the last one tells places and the relation
            assert all(each.where for each in told[2].phrases)
            assert told[2].relations == told[1].relations
        assert len({(each.left // 48, each.top // 48) for each in scene.objects}) == len(scene.objects)
        assert all(each.left % 48 + each.side < 48 and each.top % 48 + each.side < 48 for each in scene.objects)
    shown = [scenes.make_scene("train", number, pool)[0].objects for number in range(500)]
    assert 70 <= sum(len(objects) == 1 for objects in shown) <= 130
    assert {each.thing.color for objects in shown for each in objects} == set(world.FEW_COLORS)


def test_false_captions_of_shapes_are_what_another_scene_would_be_told(shape_pools):
    pool = shape_pools["train"]
    known = {(each.name, each.color) for each in pool.shapes}
    sides = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom")}
    sides["below"] = ("bottom", "top")
    edits = Counter()
    for number in range(300):
        scene, choices = scenes.make_scene("train", number, pool)
        for sentence in scenes.shape_sentences(scene, choices):
            false = scenes.false_sentence(scene, sentence, pool, choices)
            assert scene.truth(false) is False
            assert len({(each.name, each.color) for each in false.phrases}) == len(false.phrases)
            assert {(each.name, each.color) for each in false.phrases} <= known
            assert [each.where is None for each in false.phrases] == [each.where is None for each in sentence.phrases]
            if not false.relations:
                assert [each.color for each in false.phrases] == sorted(each.color for each in false.phrases)
            elif false.phrases[0].where:
                (_, relation, _) = false.relations[0]
                assert all(side in each.where for side, each in zip(sides[relation], false.phrases, strict=True))
            changed = {(each.name, each.color) for each in false.phrases} != {
                (each.name, each.color) for each in sentence.phrases
            }
            edits["thing" if changed else "place"] += 1
    assert min(edits.values()) > 200
    rows = some_rows("train", pool, 20)
    assert all(len(row["false_captions"]) == len(row["captions"]) for row in rows)
    assert not any(row["false_captions"] for row in some_rows("test", shape_pools["test"], 5))


def test_false_captions_of_scenes_exchange_two_things_or_name_another(pools):
    pool = pools["train"]
    known = {(each.name, each.color) for each in pool.shapes + pool.drawings}
    edits, none = Counter(), 0
    for number in range(300):
        scene, choices = scenes.make_scene("train", number, pool)
        for sentence in scenes.sentences(scene, choices):
            false = scenes.edited_sentence(scene, sentence, pool, choices)
            if false is None:
                none += 1
                continue
            assert scene.truth(false) is False
            assert {(each.name, each.color) for each in false.phrases} <= known
            assert (false.form, len(false.phrases)) == (sentence.form, len(sentence.phrases))
            changed = {
                field
                for before, after in zip(sentence.phrases, false.phrases, strict=True)
                for field in before._fields
                if getattr(before, field) != getattr(after, field)
            }
            edits[" ".join(sorted(changed))] += 1
    assert min(edits[kind] for kind in ("where", "size", "color", "name", "color name")) > 10
    assert edits["where"] > 100
    shown = [scenes.make_scene("train", number, pool)[0].objects for number in range(300)]
    assert {each.where for objects in shown for each in objects} == set(world.PLACES)
    assert none < 50
    for row in some_rows("train", pool, 20):
        assert len(row["false_captions"]) == len(row["captions"])
        assert any(row["false_captions"])
        assert not set(row["false_captions"]) & set(row["captions"])


def test_false_captions_name_icons_too(pools):
    hammer, dog = Thing("hammer", "red", "tool", "a"), Thing("dog", None, "animal", "b")
    pool = replace(pools["train"], icons=(hammer, dog))
    told = Counter()
    for number in range(300):
        scene, choices = scenes.make_scene("train", number, pool)
        for sentence in scenes.sentences(scene, choices):
            if false := scenes.edited_sentence(scene, sentence, pool, choices):
                told["true"] += "red hammer" in str(sentence)
                told["false"] += "red hammer" in str(false)
    assert told["false"] > told["true"] / 2 > 50


def test_captions_for_evaluation_are_true_of_no_other_scene(shape_pools):
    pool = shape_pools["test"]
    told = [told_of(row, "test", pool) for row in some_rows("test", pool, 300)]
    for (scene, sentence), (other, _) in itertools.permutations(told, 2):
        assert scene.truth(sentence)
        assert not other.truth(sentence)
    assert sum(bool(sentence.relations) for _, sentence in told) == 150
    names = [frozenset(each.thing for each in scene.objects) for scene, _ in told]
    assert len(set(names)) < 0.9 * len(names)  # the same things in other places


def test_what_splits_hold_out(pools):
    def things(split: str) -> list[set[Thing]]:
        return [
            {each.thing for each in scenes.make_scene(split, number, pools[split])[0].objects} for number in range(80)
        ]

    held_out = set(world.shapes(held_out=True))
    assert 10 <= len(held_out) <= 20
    trained = set.union(*things("train"))
    assert not trained & held_out
    assert {thing.color for thing in trained} == {None, *world.COLORS}
    assert all(found & held_out for found in things("combinations"))
    assert {thing.file for thing in set.union(*things("artist")) if thing.color is None} == {
        "openmoji/1F404", "openmoji/1F405", "openmoji/1F40C",
    }  # fmt: skip
    words = [
        max(len(text.split()) for text in row["captions"])
        for split in ("train", "longer")
        for row in some_rows(split, pools[split], 40)
    ]
    assert sum(words[40:]) > 1.2 * sum(words[:40])


def test_a_scene_depends_on_its_split_and_number_alone(pools):
    rows = some_rows("test", pools["test"], 4)
    assert rows == some_rows("test", pools["test"], 4)
    rows += some_rows("train", pools["train"], 4)
    assert len({row["image"]["bytes"] for row in rows}) == 8
    assert decode_image(rows[0]["image"]).size == (96, 96)


@pytest.mark.parametrize("kind", scenes.BINDING_KINDS)
def test_each_caption_of_a_pair_is_true_of_one_image_and_false_of_the_other(kind, pools):
    for number in range(15):
        first, second = scenes.binding_rows("test", number, pools["test"], kind=kind)
        assert first["captions"] == [second["false_caption"]]
        assert second["captions"] == [first["false_caption"]]
        assert first["image"]["bytes"] != second["image"]["bytes"]
        words, others = (
            first[name][0].split() if name == "captions" else first[name].split()
            for name in ("captions", "false_caption")
        )
        if kind == "swap":
            assert Counter(w for w in words if w not in ("a", "an")) == Counter(
                w for w in others if w not in ("a", "an")
            )
        assert first["kind"] == second["kind"] == kind


def test_no_text_alone_tells_which_caption_is_true(pools):
    texts, labels = [], []
    for kind in scenes.BINDING_KINDS:
        for number in range(40):
            for row in scenes.binding_rows("test", number, pools["test"], kind=kind):
                texts += [row["captions"][0], row["false_caption"]]
                labels += [1, 0]
    words = CountVectorizer(ngram_range=(1, 2)).fit_transform(texts)
    half = len(labels) // 2
    for train, test in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        model = LogisticRegression(max_iter=200).fit(words[train], labels[train])
        assert model.score(words[test], labels[test]) == 0.5  # each text stands once as true and once as false


# --------------------------------------------------------------------------------------------------------- other tasks


def test_answers_are_what_the_scene_shows(pools):
    scene = Scene((placed(RED_STAR, 2, 40), placed(DOG, 60, 44, 40), placed(BLUE_STAR, 10, 2)), "ffffff")
    asked = {kind: set() for kind in scene_questions._QUESTIONS}
    for number in range(300):
        case = scene_questions.Case(scene, pools["test"], world.Choices(str(number)), number)
        for kind, ask in scene_questions._QUESTIONS.items():
            asked[kind].add(ask(case))
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
    assert {("is the red star left of the dog?", "yes"), ("is the red star right of the dog?", "no")} <= asked["is the"]
    assert ("is the dog left of the red star?", "no") in asked["is the"]


def test_no_question_alone_tells_its_answer(pools):
    rows = [scene_questions.question_row("test", number, pools["test"]) for number in range(900)]
    words = CountVectorizer(ngram_range=(1, 2)).fit_transform([row["question"] for row in rows])
    for kind, chance in (
        ("what color", 0.1),
        ("what shape", 0.1),
        ("how many", 1 / 3),
        ("is there", 0.5),
        ("is the", 0.5),
    ):
        chosen = [number for number, row in enumerate(rows) if row["question_type"] == kind]
        answers = [rows[number]["answers"][0] for number in chosen]
        half = len(chosen) // 2
        model = LogisticRegression(max_iter=200).fit(words[chosen[:half]], answers[:half])
        assert model.score(words[chosen[half:]], answers[half:]) < chance + 0.16, kind  # three standard errors of 90
    assert all(scene_questions.LABELS[row["answer_labels"][0]] == row["answers"][0] for row in rows)


def test_pairs_that_training_does_not_show_are_also_asked_for_where_they_are_not(pools):
    rows = [scene_questions.question_row("combinations", number, pools["combinations"]) for number in range(3, 1000, 5)]
    held_out = {f"is there {thing.phrase()}?" for thing in world.shapes(held_out=True)}
    answers = Counter(row["answers"][0] for row in rows if row["question"] in held_out)
    assert min(answers["yes"], answers["no"]) > 10


def test_a_statement_is_true_of_two_pairs_and_false_of_two_that_share_an_image(pools):
    split = "train"
    for number in (*range(12), 76):  # the last one speaks of a scene of five objects
        rows = scene_statements.statement_rows(split, number, pools[split])
        assert [row["label"] for row in rows] == [1, 0, 1, 0]
        assert len({row["captions"][0] for row in rows}) == len({row["sentence_group"] for row in rows}) == 1
        for true, false in (rows[:2], rows[2:]):
            same = [true[name]["bytes"] == false[name]["bytes"] for name in ("image", "second_image")]
            assert sorted(same) == [False, True]


def test_claims_hold_for_their_pairs():
    truths = {
        "both": lambda left, right: left and right,
        "exactly": lambda left, right: left != right,
        "neither": lambda left, right: not left and not right,
        "the left": lambda left, _: left,
        "the right": lambda _, right: right,
    }
    for (wording, _), pairs in scene_statements.CLAIMS.items():
        (holds,) = [truth for start, truth in truths.items() if wording.startswith(start)]
        for so, not_so in pairs:
            assert holds(*so)
            assert not holds(*not_so)
            assert sum(one != other for one, other in zip(so, not_so, strict=True)) == 1


def test_masks_are_where_the_objects_are(pools):
    scene = Scene((placed(Thing("square", "red", world.SHAPE, "square"), 10, 40), placed(DOG, 60, 44, 30)), "ffffff")
    mask = decode_mask(scene.mask("m", {world.SHAPE: 1, "animal": 7}))
    assert mask.shape == (96, 96)
    assert set(np.unique(mask)) == {0, 1, 7}
    image = np.asarray(decode_image(scene.cell("s"))).astype(int)
    red = np.abs(image - (0xDC, 0x1C, 0x24)).max(axis=2) < 120
    np.testing.assert_array_equal((mask == 1)[:, :50], red[:, :50])
    assert (image[mask == 0] > 120).all()
    row = scene_pixels.mask_row("test", 0, pools["test"])
    assert decode_mask(row["mask"]).max() < len(scene_pixels.LABELS)
    assert decode_image(row["image"]).size == (96, 96)


def test_kinds_are_those_of_the_drawing_and_equally_frequent(pools):
    kinds, drawn = list(world.KINDS), {thing.file: thing.kind for thing in world.drawings()}
    rows = [scene_pixels.kind_row("train", number, pools["train"]) for number in range(30)]
    assert Counter(row["label"] for row in rows) == dict.fromkeys(range(15), 2)
    for row in rows:
        (shown,) = row["image"]["bytes"].decode().split("|")[2:]
        assert drawn[shown.split(",")[0]] == kinds[row["label"]]


def test_icons_of_a_prepared_folder_join_the_drawings(tmp_path):
    y, x = np.mgrid[:64, :64] - 31.5
    disc, pixels = x**2 + y**2 < 20**2, np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[disc] = (0, 0, 0, 255)
    black, half = Image.fromarray(pixels), pixels.copy()
    half[disc & (x > 0)] = (250, 200, 0, 255)
    images = {"hammer": black, "dog": Image.fromarray(half), "unheard of": black, "cat": black.convert("RGB")}
    rows = [
        make_row(name, image=encode_image(image, f"{name}.png"), captions=[name], source="icons", licence="MIT")
        for name, image in images.items()
    ]
    Dataset.from_list(rows, features=FEATURES).save_to_disk(str(tmp_path / "train"))
    hammer, dog = world.icon_things(tmp_path / "train", like=world.drawings())  # no name, or no transparency: left out
    assert (hammer.name, hammer.kind, hammer.licence, dog.color) == ("hammer", "tool", "MIT", None)
    assert str(hammer.phrase()) in {f"a {color} hammer" for color in world.COLORS} | {"an orange hammer"}
    scene = Scene((Placed(hammer, 10, 10, 40, "dc1c24"), Placed(dog, 54, 54, 40, "")), "ffffff")
    image = np.asarray(decode_image(scene.cell("icons")))
    assert tuple(image[30, 30]) == (0xDC, 0x1C, 0x24)
    assert tuple(image[74, 66]) == (0, 0, 0)
    assert tuple(image[74, 84]) == (250, 200, 0)
    pool = world.Pool(world.drawings(), world.shapes(held_out=False), (), icons=(hammer, dog))
    shown = {each.thing for number in range(30) for each in pool.scene(world.Choices(str(number))).objects}
    assert {hammer, dog} <= shown


def test_icons_that_are_not_there_are_told_before_anything_is_built(tmp_path):
    with pytest.raises(ValueError, match="none is no prepared set"):
        builtin.load(f"scenes:{tmp_path}/none", split="train", cache_dir=tmp_path)


def test_sets_of_shapes_show_no_drawing(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_SCENES", dict.fromkeys(scenes.NUM_SCENES, 5))
    monkeypatch.setattr(scenes, "NUM_BINDING", 3)
    for name, (_, splits) in scenes.build({}, only_shapes=True).items():
        assert builtin.is_built_in(name.replace("scenes", "shapes"))
        assert "artist" not in splits
        assert {row["licence"] for rows in splits.values() for row in rows} == {"CC0-1.0"}
        # Joined sources take rows of one id for one image.
        assert all(row["image_id"].startswith("shapes") and row["source"] == "shapes" for row in splits["test"])
    for split, pool in scenes.pools_of({}, icons=None, only_shapes=True).items():
        scene, _ = scenes.make_scene(split, 1, pool)
        assert {each.thing.kind for each in scene.objects} == {world.SHAPE}
    assert builtin.labels("shapes-questions") == builtin.labels("scenes-questions")
