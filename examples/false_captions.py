"""Give English captions false versions by rule: python examples/false_captions.py SOURCE NEW_FOLDER [SPLIT].

A true caption gets one color, number, size, side or relation changed, or two things exchanged. Such
captions are the negatives of "When and Why Vision-Language Models Behave like Bags-of-Words, and What
to Do About It?" (Yuksekgonul et al. 2023), made here from closed lists of words: a caption without any
of them has none.
"""

from __future__ import annotations

import itertools
import re
import sys
import zlib

import pyarrow as pa
from datasets import Dataset, DatasetDict

from vlmo.data.schema import CONTRAST_FEATURES
from vlmo.data.sources import open_source

SHOWN = 10

# What lies close together is not exchanged: the red of one is the orange or the pink of another.
_COLORS = {
    "red": ("green", "blue", "white", "black"),
    "orange": ("green", "blue", "purple", "black"),
    "yellow": ("blue", "purple", "black", "green"),
    "green": ("red", "pink", "white", "purple"),
    "blue": ("red", "yellow", "orange", "green"),
    "purple": ("green", "yellow", "white", "orange"),
    "pink": ("green", "blue", "black", "brown"),
    "brown": ("blue", "green", "pink", "white"),
    "black": ("white", "yellow", "red", "pink"),
    "white": ("black", "brown", "red", "green"),
}
# Only more: where there are three dogs, there are two.
_NUMBERS = {
    "two": ("three", "four"),
    "three": ("four", "five"),
    "four": ("five", "six"),
    "five": ("six", "eight"),
}
_QUALITIES = {
    "big": "small",
    "large": "small",
    "huge": "tiny",
    "tall": "short",
    "open": "closed",
    "empty": "full",
    "wet": "dry",
}
_PLACES = {
    "above": "below",
    "over": "under",
    "inside": "outside",
    "in front of": "behind",
    "on top of": "under",
    "left of": "right of",
    "left side": "right side",
    "on the left": "on the right",
    "at the top": "at the bottom",
    "upper": "lower",
}
_EXCHANGES: dict[str, tuple[str, ...]] = {**_COLORS, **_NUMBERS, "young": ("old",)}
for _one, _other in (_QUALITIES | _PLACES).items():
    _EXCHANGES.setdefault(_other, (_one,))
    _EXCHANGES[_one] = (_other,)
_RELATIONS = {*_PLACES, *_PLACES.values()}

_WORDS = "|".join(sorted(_EXCHANGES, key=len, reverse=True))
_WORD = re.compile(rf"\b({_WORDS})\b", re.IGNORECASE)
_ARTICLE = re.compile(rf"\b(a)n?(?= ({_WORDS}|old)\b)", re.IGNORECASE)
_VERBS = (
    "sits|sitting|stands|standing|lies|lying|hangs|hanging|rests|resting|sleeps|sleeping|parked"
)
_NOUN = r"(?!(?:is|are|[a-z]{2,}ing)\b)[a-z'-]+"
_LAST_NOUN = rf"(?!(?:{'|'.join([*_COLORS, *_QUALITIES, *_QUALITIES.values()])})\b){_NOUN}"
# Two things of which `a dog on a bed` is true and `a bed on a dog` is not. After `a` what ends in -s is a verb.
_PAIR = re.compile(
    rf"(?<!\band )\b(?P<first>(?:(?P<one>an?)|the) (?:{_NOUN} ){{0,2}}?{_LAST_NOUN}(?(one)(?<![^isu]s)))"
    rf"(?P<between> (?:(?:is|are) )?(?:(?(one)(?:[a-z]+(?:(?<![isu])s|ed)|[a-z]{{2,}}ing)|(?:{_VERBS})) )?"
    r"(?:on top of|in front of|(?:to the )?(?:left|right) of|inside|under|below|above|behind|over|on|in) )"
    r"(?P<second>(?:a|an|the) (?!left|right|top|bottom|pic[a-z]+|image|photo|background)(?:[a-z'-]+ )?[a-z'-]+)"
    r"(?=$|[.,;!]| in the (?:pic[a-z]+|image|photo))",
    re.IGNORECASE,
)
_LISTED_BEFORE = re.compile(rf"( and|\b({'|'.join(_COLORS)}),) $", re.IGNORECASE)
_LISTED_AFTER = re.compile(rf" and |, ({'|'.join(_COLORS)})\b", re.IGNORECASE)
_COLORED = re.compile(rf"\b({'|'.join(_COLORS)}) (?!and\b)([a-z'-]+)", re.IGNORECASE)


def with_false_captions(rows: Dataset) -> Dataset:
    """Return the rows with a column `false_captions`; ValueError if they have one, or no caption gets a false one."""
    if "false_captions" in rows.column_names:
        raise ValueError("the rows have false captions already")
    false = [[false_caption(text or "") for text in texts or ()] for texts in rows["captions"]]
    if not any(map(any, false)):
        raise ValueError(
            "no caption has a word of the rules: colors, numbers, sizes, sides, two things in a relation"
        )
    feature = CONTRAST_FEATURES["false_captions"]
    values = pa.array(false, type=CONTRAST_FEATURES.arrow_schema.field("false_captions").type)
    return rows.add_column("false_captions", values, feature=feature)


def false_caption(caption: str) -> str:
    """Return a caption that differs from a true one by one change that makes it false, "" if no rule fits.

    Which change is taken depends on the caption alone.
    """
    changes = false_captions(caption)
    # A checksum, as `hash` differs from one start of Python to the next.
    number = zlib.crc32(caption.encode())
    if not changes:
        return ""
    # The remainder chooses the change, and the quotient its alternative.
    number, change = divmod(number, len(changes))
    alternatives = changes[change]
    return alternatives[number % len(alternatives)]


def false_captions(caption: str) -> list[list[str]]:
    """Return all captions that a change makes out of a true one, the alternatives of each change in a list."""
    changes = []
    pair = _PAIR.search(caption)
    is_same = False
    if pair:
        # But for the article: a star above a star is a star below a star.
        is_same = len({_noun(pair["first"]), _noun(pair["second"])}) == 1
    for match in _WORD.finditer(caption):
        word = match[0].lower()
        before = caption[: match.start()]
        after = caption[match.end() :]
        if is_same and word in _RELATIONS:
            continue
        # Of a cat that is black and white, or a red, white and blue flag.
        if word in _COLORS and (_LISTED_BEFORE.search(before) or _LISTED_AFTER.match(after)):
            continue
        is_adjective = after.startswith(" ") or before.endswith((" is ", " are "))
        if word == "orange" and not is_adjective:  # the fruit
            continue
        words = [_like(word=other, model=match[0]) for other in _EXCHANGES[word]]
        changes.append([_with_articles(before + other + after) for other in words])
    if pair and not is_same:
        first = _like(word=pair["second"], model=pair["first"])
        second = _like(word=pair["first"], model=pair["second"])
        swapped = first + pair["between"] + second
        changes.append([caption[: pair.start()] + swapped + caption[pair.end() :]])
    for one, other in itertools.pairwise(_COLORED.finditer(caption)):
        if one[1].lower() != other[1].lower() and one[2].lower() != other[2].lower():
            first = caption[: one.start(1)] + _like(word=other[1], model=one[1])
            between = caption[one.end(1) : other.start(1)]
            second = _like(word=one[1], model=other[1]) + caption[other.end(1) :]
            changes.append([_with_articles(first + between + second)])
    return changes


def _noun(phrase: str) -> str:
    return phrase.lower().partition(" ")[2]


def _like(*, word: str, model: str) -> str:
    return (word[0].upper() if model[0].isupper() else word[0].lower()) + word[1:]


def _with_articles(text: str) -> str:
    return _ARTICLE.sub(lambda match: match[1] + "n" * (match[2][0].lower() in "aeiou"), text)


def main(source: str, folder: str, split: str = "train") -> None:
    """Write the rows of a split with their false captions, and print some pairs, spread over all rows."""
    rows = with_false_captions(open_source(source, split=split))
    captions = itertools.chain(*rows["captions"])
    pairs = list(zip(captions, itertools.chain(*rows["false_captions"]), strict=True))
    changed = [pair for pair in pairs if pair[1]]
    DatasetDict({split: rows}).save_to_disk(folder)
    for true, false in changed[:: len(changed) // SHOWN or 1]:
        print(f"{true}  ->  {false}")
    print(f"{len(changed):,} of {len(pairs):,} captions have a false version; {folder} is ready")


if __name__ == "__main__":
    main(*sys.argv[1:])
