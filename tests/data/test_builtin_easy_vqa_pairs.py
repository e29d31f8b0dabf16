from collections import Counter, defaultdict

import pytest

from vlmo.data.builtin.easy_vqa import COLORS, SHAPES, Drawn, asked, facts
from vlmo.data.builtin.easy_vqa_pairs import CLAIMS, Slots, pair_rows
from vlmo.data.schema import REASONING_FEATURES
from vlmo.data.sources import open_source


@pytest.fixture(scope="module")
def pairs(cache_dir):
    return {split: open_source("easy-vqa-pairs", split=split, cache_dir=cache_dir) for split in ("train", "test")}


def means(sentence: str, left: Drawn, right: Drawn) -> bool:
    """What the sentence says of two shapes, read word by word: another way than that of the claims."""
    words = sentence.split()
    shapes = [word for word in words if word in SHAPES]
    colors = [word for word in words if word in COLORS]
    kinds, paints = [left.shape, right.shape], [left.color, right.color]
    if "kind" in words:
        return left.shape == right.shape
    if not shapes and not colors:
        return left.color != right.color
    if {"both", "each"} & set(words):
        return all(word in (*kinds, *paints) for word in shapes + colors) and (
            len(set(kinds)) == 1 if shapes else len(set(paints)) == 1
        )
    if {"neither", "no", "not"} & set(words):
        return not set(shapes + colors) & {*kinds, *paints}
    if len(colors) == 2:
        return paints == colors
    if len(shapes) == 2:
        return sorted(kinds) == sorted(shapes)
    if words[0] == "one" or ("one" in words and {"left", "right"}.isdisjoint(words)):
        return sum(all(word in vars(drawn).values() for word in shapes + colors) for drawn in (left, right)) == 1
    (shape,), (color,) = shapes, colors
    shape_is_right = "right shape" in sentence or "right of" in sentence
    return (
        (right.shape, left.color) == (shape, color) if shape_is_right else (left.shape, right.color) == (shape, color)
    )


def test_sizes_and_splits(pairs) -> None:
    assert (len(pairs["train"]), len(pairs["test"])) == (24_000, 2_000)
    shown = {}
    for split, rows in pairs.items():
        assert rows.features == REASONING_FEATURES
        assert len(set(rows["image_id"][:])) == len(rows)
        assert set(rows["licence"][:]) == {"MIT"}
        shown[split] = {cell["bytes"] for name in ("image", "second_image") for cell in rows[name][:]}
    assert not shown["train"] & shown["test"]
    assert len(shown["train"]) > 3_000


def test_each_sentence_is_true_of_two_pairs_and_false_of_two(pairs) -> None:
    for rows in pairs.values():
        columns = (rows[name][:] for name in ("sentence_group", "label", "captions"))
        groups = defaultdict(list)
        for group, label, captions in zip(*columns, strict=True):
            groups[group].append((label, *captions))
        for members in groups.values():
            assert Counter(label for label, _ in members) == {0: 2, 1: 2}
            assert len({sentence for _, sentence in members}) == 1


def test_labels_are_what_the_sentences_say(pairs) -> None:
    rows, shown = pairs["test"], facts(asked("test"))

    def drawn(cell: dict) -> Drawn:
        return shown[int(cell["path"].removesuffix(".png"))]

    for row in rows:
        (sentence,) = row["captions"]
        left, right = drawn(row["image"]), drawn(row["second_image"])
        assert row["label"] == means(sentence, left, right), (sentence, left, right)
    # A false pair is a true one but for one of its pictures, so one picture alone rarely tells.
    for number in range(0, 100, 2):
        true, false = rows[number], rows[number + 1]
        same = [true[name]["path"] == false[name]["path"] for name in ("image", "second_image")]
        assert sorted(same) == [False, True]


def test_rows_depend_on_nothing_but_the_arguments() -> None:
    drawings = [Drawn(shape, color) for shape in SHAPES for color in COLORS] * 2
    shown = dict(enumerate(drawings))
    files = {number: str(number).encode() for number in shown}
    rows = pair_rows("train", shown=shown, files=files, num_groups=30)
    assert rows == pair_rows("train", shown=shown, files=files, num_groups=30)
    assert rows[:40] == pair_rows("train", shown=shown, files=files, num_groups=10)
    assert rows[0]["captions"] == ["both pictures show a circle"]
    assert {row["captions"][0] for row in rows} != {
        row["captions"][0] for row in pair_rows("test", shown=shown, files=files, num_groups=30)
    }


def test_no_claim_leaves_a_reading_open() -> None:
    slots = Slots(shape="circle", color="red", other_shape="triangle", other_color="blue")
    red_circle, blue_triangle = Drawn("circle", "red"), Drawn("triangle", "blue")
    said = {claim.forms[0].format_map(slots._asdict()): claim.holds(red_circle, red_circle, slots) for claim in CLAIMS}
    # "One of the pictures shows a circle" where both do: some say yes, some no.
    assert [sentence for sentence, holds in said.items() if holds is None] == [
        "one of the pictures shows something red",
        "one of the pictures shows a circle",
        "one of the pictures shows a red circle",
    ]
    assert all(claim.holds(red_circle, blue_triangle, slots) in {True, False} for claim in CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.forms[0])
def test_forms_name_only_slots_and_read_as_sentences(claim) -> None:
    slots = Slots(shape="circle", color="red", other_shape="triangle", other_color="blue")
    for form in claim.forms:
        sentence = form.format_map(slots._asdict())
        assert "{" not in sentence
        assert len(sentence.split()) <= 14
