from itertools import chain, repeat

import pytest

from vlmo.processing.answers import answer_list, leave_one_out_score, normalize_answer, soft_targets

EXACT = 1e-12
"""Sums of a few fractions in float64."""


def ten(*answers: tuple[str, int]) -> list[str]:
    given = list(chain.from_iterable(repeat(answer, count) for answer, count in answers))
    assert len(given) == 10
    return given


# Answers and their normal forms. Beside a space every mark of its kind vanishes, also one inside a word.
# A comma between digits makes every mark vanish.
CASE_ARTICLES_NUMBERS = """
Yes=yes | the red car=red car | An apple a day=apple day | the= | two dogs=2 dogs | none=0 | Ten=10 | eleven=eleven
"""
CONTRACTIONS = """
dont know=don't know | don't know=don't know | DONT=don't | couldnt've=couldn't've | couldn'tve=couldn't've | its=its
couldntve=couldntve | twas='twas | y'alldve=y'alldve | y'alld've=y'all'd've | yes maam=yes ma'am | well=well | im=im
shell=shell | somebody'd=somebodyd | someone=someone | girl's=girl's
"""
MARKS = """
t-shirt=t shirt | yes!=yes | black/white=black white | black/white / red=blackwhite red | red, blue=red blue
black-white / red=black white red | red,blue=red blue | 100,978=100978 | 1,000-2,000=10002000 | 12:30=12:30 | 2.5=2.5
.5=.5 | u.s.=us | 3.=3 | what?no=what no | (left)=left | a_b=b
"""


@pytest.mark.parametrize("table", [CASE_ARTICLES_NUMBERS, CONTRACTIONS, MARKS])
def test_normalize_answer(table: str) -> None:
    pairs = [pair.split("=") for pair in table.strip().replace("\n", " | ").split(" | ")]
    pairs += [["  red \n", "red"], ["a\tb-c", "b c"]]
    assert {raw: normalize_answer(raw) for raw, _ in pairs} == dict(pairs)


@pytest.mark.parametrize(("count", "score"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_target_is_the_score_with_ten_annotators(count: int, score: float) -> None:
    annotators = ten(("cat", count), ("dog", 10 - count))
    assert soft_targets(annotators, numbers={"cat": 7}) == ([7], [score])
    assert leave_one_out_score("cat", annotators) == pytest.approx(score, abs=EXACT)


def test_leave_one_out_score_by_hand() -> None:
    # Of four, three say "cat". Without one of these three, two matches are left: 2/3. Without the fourth, three: 1.
    cat = leave_one_out_score("cat", ["cat", "cat", "cat", "dog"])
    assert cat == pytest.approx((3 * 2 / 3 + 1) / 4, abs=EXACT)
    # Without the one who says "dog" no match is left; without any other, one: 1/3.
    dog = leave_one_out_score("dog", ["cat", "cat", "cat", "dog"])
    assert dog == pytest.approx(3 * (1 / 3) / 4, abs=EXACT)
    with pytest.raises(ValueError, match=r"3 annotators \(red, red, red\); .* needs at least 4"):
        leave_one_out_score("red", ["red"] * 3)


def test_leave_one_out_score_normalises_both_sides_where_annotators_differ() -> None:
    annotators = ten(("Two", 1), ("2", 1), ("the 2.", 1), ("several", 7))
    assert leave_one_out_score("two", annotators) == pytest.approx(0.9, abs=EXACT)
    assert leave_one_out_score("2", annotators) == pytest.approx(0.9, abs=EXACT)


def test_leave_one_out_score_takes_unanimous_answers_as_they_stand() -> None:
    annotators = ten(("the cat", 10))
    assert leave_one_out_score("the cat\n", annotators) == 1
    assert leave_one_out_score("cat", annotators) == 0
    assert leave_one_out_score("The cat", annotators) == 0
    # White space at the ends makes no difference between annotators.
    assert leave_one_out_score("two", [*ten(("two", 10))[:9], " two\n"]) == 1


def test_answer_list_counts_normal_forms_in_their_first_order() -> None:
    majority = ["no", *["Red"] * 4, *["2"] * 8, *["no"] * 8, *["red"] * 5, "two", *["blue"] * 8]
    assert answer_list(majority) == ["no", "red", "2"]
    assert answer_list([]) == []
    assert answer_list([*["a"] * 9, *["b"] * 9]) == ["", "b"]  # an article alone is an empty answer
