import itertools
import re

import pytest
from datasets import Dataset
from false_captions import false_caption, false_captions, main, with_false_captions
from PIL import Image

from vlmo.data.builtin.scenes import Scene
from vlmo.data.builtin.shapes import make_scene, pools, sentences
from vlmo.data.sources import open_source

PHRASE = re.compile(r"an? ([a-z]+) ([a-z]+)(?: at the (top|bottom) (left|right))?")
BETWEEN = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
BETWEEN |= {"under": (1, 1), "over": (1, -1)}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A cat sleeping on a wooden table.", {"A wooden table sleeping on a cat."}),
        (
            "A small bird sits on top of a car",
            {"A big bird", "sits under a car", "A car sits on top"},
        ),
        ("Two dogs", {"Three dogs", "Four dogs"}),  # never fewer: where two are, one is
        ("The woman is on the left.", {"The woman is on the right."}),
        ("A young man", {"An old man"}),
        ("An old bus", set()),  # no young one
        ("The dogs on a bed", {"A bed on the dogs"}),
        ("A truck drives over a bridge", {"A bridge drives over a truck", "under a bridge"}),
        ("A bird is flying over a lake.", {"A lake is flying over a bird.", "is flying under a"}),
        ("A girl eats an orange.", set()),  # the fruit
        ("The ball is orange.", {"The ball is purple."}),
        ("a yellow bus and a green car", {"blue bus", "red car", "a green bus and a yellow car"}),
        # Of these, the opposite may be true as well, or nothing is known to be false.
        ("a star above a star", set()),
        ("A black and white cat", set()),
        ("A red, white and blue flag", set()),
        ("a cup of coffee and a spoon", set()),
        ("", set()),
    ],
)
def test_captions_that_one_change_makes(caption, expected):
    found = [text for change in false_captions(caption) for text in change]
    assert bool(found) == bool(expected)
    for part in expected:
        assert any(part in text for text in found), part
    assert all(text != caption for text in found)
    assert false_caption(caption) in (found or [""])
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE) for text in found)


def is_true(caption: str, scene: Scene) -> bool:
    """Say whether objects of the scene, each for one phrase, are as the caption says."""
    objects = [
        (each.thing, each.left + each.side / 2, each.top + each.side / 2) for each in scene.objects
    ]
    phrases = list(PHRASE.finditer(caption))
    relation = next((each for each in BETWEEN if each in caption), None)
    assert relation is None or len(phrases) == 2, caption
    for chosen in itertools.permutations(objects, len(phrases)):
        right = all(
            (thing.color, thing.name) == (phrase[1], phrase[2])
            and (
                phrase[3] is None
                or ((phrase[3] == "top") == (y < 48) and (phrase[4] == "left") == (x < 48))
            )
            for phrase, (thing, x, y) in zip(phrases, chosen, strict=True)
        )
        if right and relation:
            axis, sign = BETWEEN[relation]
            right = (chosen[0][1 + axis] - chosen[1][1 + axis]) * sign > 0
        if right:
            return True
    return False


def test_they_are_false_of_scenes_of_which_the_caption_is_true():
    made, pool = 0, pools()["train"]
    for number in range(400):
        scene, choices = make_scene("train", number, pool)
        for caption in map(str, sentences(scene, choices)):
            assert is_true(caption, scene), (caption, scene)
            for text in itertools.chain(*false_captions(caption)):
                made += 1
                assert not is_true(text, scene), (caption, text, scene)
    assert made > 4000


def test_a_missing_caption_gets_none():
    rows = Dataset.from_list([{"captions": ["a red car", None]}, {"captions": None}])
    expected = [[false_caption("a red car"), ""], []]
    assert list(with_false_captions(rows)["false_captions"]) == expected


def test_script_adds_them_to_ones_own_captions(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    line = '{"file_name": "a.png", "captions": ["a red car", "a car"]}'
    (images / "metadata.jsonl").write_text(line)
    main(str(images), str(tmp_path / "out"))
    assert "1 of 2 captions have a false version" in capsys.readouterr().out
    read = open_source(str(tmp_path / "out"))
    assert list(read["captions"]) == [["a red car", "a car"]]
    assert list(read["false_captions"]) == [[false_caption("a red car"), ""]]
    with pytest.raises(ValueError, match="have false captions already"):
        main(str(tmp_path / "out"), str(tmp_path / "x"))
