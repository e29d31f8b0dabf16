"""Captions of icons, from their names: "arrow-left-2-outline-rounded" is an arrow left in some style."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmo.data.schema import hash_share


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


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
"""Words of a category that say something about the image; a category with others is left out."""
_CATEGORY_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

_STYLES = word_set(
    "outline outlined filled fill solid duotone duo twotone stroke stroked linear alt variant expressive flat remix "
    "ltr rtl loop negative 24px 1x1 4x3"
)
"""Last words of a name that stand for the way it is drawn, in every set."""
_DOUBTFUL_STYLES = word_set(
    "line light thin regular bold rounded round sharp broken small large medium dark simple mini compact o f r sm md "
    "lg badged alerted active"
)
"""Words for a style if the name without them stands in the set too: "home-light", but not "traffic-light"."""
_FREQUENT = 0.1
"""Share of a set's names that end with a doubtful word if the word is a style there."""
_NUMBER = re.compile(r"\d{1,3}|one|two|three|four|five|six")
_COUNTED = word_set(
    "backward battery clock code counter dice die digit exposure filter forward keycap letter level mahjong number "
    "replay rewind seek signal skip timer wifi zero"
)
"""Words whose number says something: "dice 4", but not "folder 4"."""
_CODE = re.compile(r"uni[0-9a-f]{4}")
_BRANDS = word_set(
    "adobe airbnb alipay amazon angular apple-pay aws azure bing bitbucket blackberry bluesky bootstrap chrome "
    "codepen deviantart discord docker dribbble dropbox ebay evernote facebook figma firefox flickr foursquare github "
    "gitlab gmail google gpt hulu ibm instagram kickstarter kubernetes laravel lastfm linkedin linux mastercard "
    "mastodon messenger microsoft netflix nodejs onedrive openai opera paypal pinterest playstation reddit safari "
    "skype slack snapchat soundcloud spotify stackoverflow steam stripe telegram tiktok trello tumblr twitch twitter "
    "typescript ubuntu unsplash viber vimeo visa vk vscode wechat weibo whatsapp wikipedia wordpress xbox yahoo yelp "
    "youtube zoom-app brand brands logo logos wordmark transition"
)
"""A name with one of these words is no icon that words describe."""


def is_brand(name: str) -> bool:
    """Return True for the sign of a company or product, as far as its name says."""
    return not _BRANDS.isdisjoint(name.split("-"))


def styles_of(names: Collection[str]) -> frozenset[str]:
    """Return last words for a style wherever they stand in the names of a set."""
    ends = Counter(name.rpartition("-")[2] for name in names)
    return _STYLES | {word for word in _DOUBTFUL_STYLES if ends[word] >= _FREQUENT * len(names)}


def bare_name(name: str, *, names: Collection[str], styles: Collection[str]) -> str:
    """Return a name of a set without style, size and serial number."""
    while "-" in name:
        rest, _, last = name.rpartition("-")
        is_style = last in styles or (last in _DOUBTFUL_STYLES and rest in names)
        is_counted = rest.rpartition("-")[2] in _COUNTED or "number" in rest.split("-")
        is_number = _NUMBER.fullmatch(last) and (last[0] == "0" or not is_counted)
        if not (is_style or is_number):
            break
        name = rest
    return name


def caption_of(bare: str) -> str | None:
    """Return the words of a bare name; None where there are none, as in "f053" or "x"."""
    words = [word for word in bare.lower().split("-") if word]
    if not any(len(word) > 1 and word.isalpha() for word in words) or any(
        map(_CODE.fullmatch, words)
    ):
        return None
    return " ".join(words)


def with_article(captions: Sequence[str], *, key: str) -> tuple[str, ...]:
    """Return captions, and the first one as people type it, such as "a red bell" or "an icon of a red bell".

    A hash of `key` chooses the words. Proper names, which start with a capital, and names with an article are left
    alone. If only some kinds of images had captions with articles, queries with an article would find those kinds.
    """
    name = captions[0]
    if not name[0].islower() or name.startswith(("a ", "an ", "the ")):
        return tuple(captions)
    words = TYPED[int(hash_share(f"{key}/typed") * len(TYPED))]
    return (*captions, words.format(f"{'an' if _AN.match(name) else 'a'} {name}"))


def is_sign(name: str, categories: Iterable[str]) -> bool:
    """Return True for the sign of a company or product, as far as its name or category says."""
    return is_brand(name) or any(map(_BRAND_CATEGORY.search, categories))


@dataclass(frozen=True)
class Naming:
    """The way in which one set names its icons.

    Attributes:
        names: All names of the set.
        suffixes: Styles that the set declares, such as "-outline-rounded", longest first.
        prefixes: The same in front, such as "baseline-".
        styles: Last words for a style wherever they stand.
        by_category: Names begin with their category: "food-drink-tea" in "FoodDrink".
    """

    names: Collection[str]
    suffixes: tuple[str, ...]
    prefixes: tuple[str, ...]
    styles: frozenset[str]
    by_category: bool

    @classmethod
    def of(cls, icon_set: Mapping[str, Any], categories: Mapping[str, Sequence[str]]) -> Naming:
        """Return the naming of a set as its file says, and as most of its names do."""
        names = icon_set["icons"].keys()
        suffixes, prefixes = (
            tuple(
                form.format(style)
                for style in sorted(icon_set.get(key) or (), key=len, reverse=True)
                if style
            )
            for key, form in _DECLARED
        )
        begun = sum(_without_category(name, found) != name for name, found in categories.items())
        return cls(names, suffixes, prefixes, styles_of(names), 2 * begun > len(categories))

    def bare(self, name: str, categories: Iterable[str] = ()) -> str:
        """Return a name without style, size, serial number and category."""
        bare = _SKIN_TONE.sub("", _NOISE.sub("", name))
        bare = bare.removeprefix(
            next((start for start in self.prefixes if bare.startswith(start)), "")
        )
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
