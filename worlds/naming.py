"""Captions of icons, from their names: "arrow-left-2-outline-rounded" is an arrow left in some style."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmo.data.builtin.icons import bare_name, is_brand, styles_of, word_set
from vlmo.data.schema import hash_share

TYPED = ("{}", "{}", "a picture of {}", "an icon of {}")
"""Words that people type around a name with its article."""
_AN = re.compile(r"(?!eu|ewe|one\b|once|uni(?!n)|us[aeb]|uti|uk|url)[aeiou]|hour|heir|honest")

_DECLARED = (("suffixes", "-{}"), ("prefixes", "{}-"))
_SKIN_TONE = re.compile(r"-(medium-)?(light|dark|medium)-skin-tone$")
_NOISE = re.compile(r"^bxs?-|^flag-for-(?=flag-)|(?<=[a-z]{3})2x$")
"""The set's own prefix, a word said twice, a size."""
_BRAND_CATEGORY = re.compile(r"brand|logo", re.IGNORECASE)
_DESCRIPTIVE = word_set(
    """
    animal animals arrow arrows astronomy beauty beverage body building buildings chess clothes clothing construction
    culture currency drink drinks emotion emotions energy face faces family flags flowers food foods fruits furniture
    game games hand hands health hygiene instrument laundry math mathematics medical medicine money music nature people
    plants religion romance science shape shapes shopping smiley smileys sport sports transport transportation
    vegetables vehicles weather weapons
    """
)
"""Words of a category that say something about the image; a category with others is not told."""
_CATEGORY_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def with_article(captions: Sequence[str], *, key: str) -> tuple[str, ...]:
    """Return captions, and the first one as people type it, such as "a red bell" or "an icon of a red bell".

    A hash of `key` chooses the words. Proper names, which start with a capital, are left alone. If only some kinds of
    images had captions with articles, queries with an article would find those kinds.
    """
    name = captions[0]
    if not name[0].islower():
        return tuple(captions)
    words = TYPED[int(hash_share(f"{key}/typed") * len(TYPED))]
    return (*captions, words.format(f"{'an' if _AN.match(name) else 'a'} {name}"))


def is_sign(name: str, categories: Iterable[str]) -> bool:
    """Return True for the sign of a company or product, as far as its name or category tells."""
    return is_brand(name) or any(map(_BRAND_CATEGORY.search, categories))


@dataclass(frozen=True)
class Naming:
    """The way in which one set names its icons.

    Attributes:
        names: All names of the set.
        suffixes: Styles that the set declares, such as "-outline-rounded", longest first.
        prefixes: The same in front, such as "baseline-".
        styles: Last words that tell a style wherever they stand.
        by_category: Names begin with their category: "food-drink-tea" in "FoodDrink".
    """

    names: Collection[str]
    suffixes: tuple[str, ...]
    prefixes: tuple[str, ...]
    styles: frozenset[str]
    by_category: bool

    @classmethod
    def of(cls, icon_set: Mapping[str, Any], categories: Mapping[str, Sequence[str]]) -> Naming:
        """Return the naming of a set as its file tells it, and as most of its names do."""
        names = icon_set["icons"].keys()
        suffixes, prefixes = (
            tuple(form.format(style) for style in sorted(icon_set.get(key) or (), key=len, reverse=True) if style)
            for key, form in _DECLARED
        )
        begun = sum(_without_category(name, found) != name for name, found in categories.items())
        return cls(names, suffixes, prefixes, styles_of(names), 2 * begun > len(categories))

    def bare(self, name: str, categories: Iterable[str] = ()) -> str:
        """Return a name without style, size, serial number and category."""
        bare = _SKIN_TONE.sub("", _NOISE.sub("", name))
        bare = bare.removeprefix(next((start for start in self.prefixes if bare.startswith(start)), ""))
        bare = bare.removesuffix(next((end for end in self.suffixes if bare.endswith(end)), ""))
        bare = bare_name(bare, names=self.names, styles=self.styles)
        return _without_category(bare, categories) if self.by_category else bare


def _without_category(name: str, categories: Iterable[str]) -> str:
    for category in categories:
        prefix = "-".join(_CATEGORY_WORD.findall(category)).lower() + "-"
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def category_of(categories: Iterable[str]) -> str | None:
    """Return the first category that says something about an image: "FoodDrink" is "food and drink"."""
    for category in categories:
        words = [word.lower() for word in _CATEGORY_WORD.findall(category)]
        words = [word for word in words if word != "and"]
        if words and _DESCRIPTIVE.issuperset(words):
            return " and ".join(dict.fromkeys(words))
    return None
