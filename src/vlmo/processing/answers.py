"""Answers to questions about images: the form in which VQA's evaluation compares them, and what they score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

MIN_COUNT = 9
"""Number of times that an answer must be given to be in the answer list; on VQAv2 this leaves the published 3,129."""
MIN_ANNOTATORS = 4
"""With fewer, three others can never agree with an answer, so that no answer can score 1."""

# Neither the apostrophe, which makes "girl's" differ from "girls", nor the colon, which stands in times of the day.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBERS = {"none": "0"} | dict(zip(_NUMBER_WORDS, map(str, range(11)), strict=True))

# Forms that are other words without their apostrophe (she'd, we'll, it's, I'm) are not among the evaluation's.
_CONTRACTED = """
ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've shouldn't shouldn't've should've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't wouldn't
wouldn't've would've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS: dict[str, str] = {}
for _word in _CONTRACTED.split():
    for _apostrophe in re.finditer("'", _word):
        _CONTRACTIONS[_word[: _apostrophe.start()] + _word[_apostrophe.end() :]] = _word
# The official table has this one the other way round, and official scores depend on it.
_CONTRACTIONS["somebody'd"] = "somebodyd"

_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def normalize_answer(answer: str) -> str:
    """Return the form in which answers are compared: lower case, digits, no articles or marks, whole contractions.

    A mark of punctuation becomes a space; all of its kind vanish instead where one of them is
    beside a space, or where a comma stands between digits ("100,978" is "100978"). A period stays
    before a digit. "the" gives an empty text.
    """
    tidy = _tidy(answer)
    text = tidy
    for mark in _MARKS:
        vanishes = f"{mark} " in tidy or f" {mark}" in tidy or _THOUSANDS.search(tidy)
        text = text.replace(mark, "" if vanishes else " ")
    text = _PERIOD.sub("", text)
    words = []
    for word in text.lower().split():
        word = _NUMBERS.get(word, word)
        if word not in _ARTICLES:
            words.append(_CONTRACTIONS.get(word, word))
    return " ".join(words)


def _tidy(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def leave_one_out_score(answer: str, annotators: Sequence[str]) -> float:
    """Return VQA's accuracy of one answer: min(matches / 3, 1), averaged over leaving out each annotator in turn.

    As the official evaluation does, answers are normalized only where the annotators differ from
    each other; where all say the same, nothing but white space at the ends is overlooked.
    ValueError for fewer than four annotators: no answer could score 1.
    """
    number = len(annotators)
    if number < MIN_ANNOTATORS:
        raise ValueError(
            f"{number} annotators ({', '.join(annotators)}); the score needs at least {MIN_ANNOTATORS}:"
            " repeat a single answer ten times"
        )
    annotators = list(map(_tidy, annotators))
    answer = _tidy(answer)
    if len(set(annotators)) > 1:
        annotators = list(map(normalize_answer, annotators))
        answer = normalize_answer(answer)
    matches = annotators.count(answer)
    with_match_left_out = min((matches - 1) / 3, 1) if matches else 0
    return (matches * with_match_left_out + (number - matches) * min(matches / 3, 1)) / number


def answer_list(majority_answers: Iterable[str]) -> list[str]:
    """Return normalized answers that occur at least `MIN_COUNT` times, in the order in which they first occur.

    Given VQAv2's `multiple_choice_answer` of train2014, then of val2014, these are the published
    answers with their published numbers, so that answer heads of published checkpoints fit. The
    empty answer can be among them ("a", the letter, has it as its normal form).
    """
    counts = Counter(map(normalize_answer, majority_answers))
    return [answer for answer, count in counts.items() if count >= MIN_COUNT]


def soft_targets(
    annotators: Iterable[str], *, numbers: Mapping[str, int]
) -> tuple[list[int], list[float]]:
    """Return numbers and soft scores of those of the annotators' answers that are in the answer list.

    A soft score is what `leave_one_out_score` gives for ten annotators: 0.3, 0.6, 0.9, then 1. As
    in the published preparation the annotators' words are taken as they stand; only the answer list
    is normalized.
    """
    counts = Counter(answer for answer in annotators if answer in numbers)
    scores = [min(3 * count / 10, 1.0) for count in counts.values()]
    return [numbers[answer] for answer in counts], scores
