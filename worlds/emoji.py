"""Every named drawing of Twemoji but those of new concepts, which are kept for testing, as all of OpenMoji is.

The first `NUM_TEST` concepts that look like no other are those that `emoji-pairs` tests. Of `NUM_NEW` further
ones, training has no drawing in any style, no variant, nothing that looks like one, and no caption that is a name.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from PIL import Image

from vlmo.data.builtin import emoji
from vlmo.data.builtin.emoji import LICENCES, OPENMOJI, TWEMOJI, Names
from vlmo.data.decoding import decode_image
from vlmo.data.schema import FEATURES, Built, hash_share, make_row

PACKAGES = emoji.PACKAGES
NUM_TEST, NUM_NEW = 500, 150

_SMALL_PIXELS = 40
_SAME_LOOK = 5.0
"""Root mean square difference of two drawings (0 to 255, at 40 x 40 pixels) below which they count as one image.

Found by looking at all close pairs: "full moon" and "yellow circle" lie below, distinct faces above.
"""

_SKIN_TONES = frozenset(("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))
_JOINER = "200d"
_NO_PARTS = frozenset(("2640", "2642", "27a1"))  # signs of gender, and of facing right
_PERSONS = frozenset(("1f468", "1f469", "1f9d1"))
_COUPLE = "1f9d1-200d-{}1f9d1"
_SEQUENCES_OF_ONE = {
    **dict.fromkeys(("1f46b", "1f46c", "1f46d"), _COUPLE.format("1f91d-200d-")),  # holding hands
    "1f46f": _COUPLE.format("1f430-200d-"),  # with bunny ears
    "1f48f": _COUPLE.format("2764-200d-1f48b-200d-"),  # kiss
    "1f491": _COUPLE.format("2764-200d-"),  # couple with heart
    "1f93c": _COUPLE.format("1faef-200d-"),  # wrestling
    "1f91d": "1faf1-200d-1faf2",  # handshake
    **dict.fromkeys(("1f385", "1f936"), "1f9d1-200d-1f384"),  # Santa, Mrs. and Mx. Claus
}
"""Emoji of one code point whose skin-tone variants are written as a sequence of people."""


@dataclass(frozen=True)
class Drawing:
    """One file; `image_id` is equal for files of equal pixels, `small` shows whether two nearly look the same."""

    style: str
    codes: str
    image_id: str
    png: bytes
    small: Float[ndarray, "small"]


class Concepts(NamedTuple):
    """Code points of concepts in the order of a hash.

    Attributes:
        codes: All.
        distinct: Those that look like no other, of variants one; the first `NUM_TEST` are kept for testing.
    """

    codes: tuple[str, ...]
    distinct: tuple[str, ...]


class Emoji(NamedTuple):
    """The drawings of both styles by code points, with their names and concepts."""

    names: Names
    twemoji: dict[str, Drawing]
    openmoji: dict[str, Drawing]
    concepts: Concepts

    @property
    def test(self) -> list[Drawing]:
        """OpenMoji's drawings that are kept for testing."""
        return [self.openmoji[codes] for codes in self.concepts.distinct[:NUM_TEST]]

    @property
    def new(self) -> list[Drawing]:
        """Twemoji's drawings of the new concepts."""
        return [
            self.twemoji[codes] for codes in self.concepts.distinct[NUM_TEST : NUM_TEST + NUM_NEW]
        ]

    def of_new(self, *styles: Mapping[str, Drawing]) -> list[Drawing]:
        """Return the drawings of the new concepts in all styles."""
        return [
            drawings[new.codes] for drawings in styles for new in self.new if new.codes in drawings
        ]

    @property
    def hidden_names(self) -> frozenset[str]:
        """All names of the new concepts and of their variants, as `plain_words`."""
        bases = {base_codes(drawing.codes) for drawing in self.new}
        return frozenset(
            plain_words(name)
            for codes, known in self.names.items()
            if base_codes(codes) in bases
            for name in known
        )


def read_emoji() -> Emoji:
    """Return all that is installed."""
    names, twemoji, openmoji = emoji.english_names(), read_style(TWEMOJI), read_style(OPENMOJI)
    return Emoji(
        names, twemoji, openmoji, choose_concepts(names, twemoji=twemoji, openmoji=openmoji)
    )


_installed = functools.lru_cache(maxsize=1)(
    read_emoji
)  # both sets are often built one after the other


def drawings_pairs() -> Built:
    """Return Twemoji's drawings without those of new concepts, and the drawings that `emoji-pairs` tests."""
    names, twemoji, openmoji, concepts = found = _installed()
    named = [*concepts.codes, *(codes for codes in names if codes not in set(concepts.codes))]
    usable = unlike(twemoji, found.of_new(twemoji, openmoji))
    train = [twemoji[codes] for codes in named if codes in usable]
    return FEATURES, {
        "train": rows_of(train, names=names),
        "test": rows_of(found.test, names=first_names(names)),
    }


def drawings_concepts() -> Built:
    """Return the new concepts in Twemoji's style."""
    found = _installed()
    return FEATURES, {"test": rows_of(found.new, names=first_names(found.names))}


SETS = {"drawings-pairs": drawings_pairs, "drawings-concepts": drawings_concepts}


def base_codes(codes: str) -> str:
    """Return the code points that variants in skin tone, gender and direction of one drawing share."""
    parts = "-".join(point for point in codes.split("-") if point not in _SKIN_TONES).split(
        f"-{_JOINER}-"
    )
    if len(parts) > 1:
        parts = [part for part in parts if part not in _NO_PARTS]
    if len(parts) > 1:
        parts = ["1f9d1" if part in _PERSONS else part for part in parts]
    joined = f"-{_JOINER}-".join(parts) or codes
    return _SEQUENCES_OF_ONE.get(joined, joined)


def plain_words(text: str) -> str:
    """Return the words of a text in lower case and ASCII, without other signs: "Côte d'Ivoire" is "cote divoire"."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", plain.lower().replace("'", "")))


def is_hidden(caption: str, names: Collection[str]) -> bool:
    """Return True for a caption that is one of `names` (`plain_words`), or a list ("pig, animals") with one in it."""
    return any(plain_words(part) in names for part in caption.split(","))


def first_names(names: Names) -> dict[str, tuple[str, ...]]:
    """Return the names without aliases."""
    return {codes: known[:1] for codes, known in names.items()}


def choose_concepts(
    names: Names, *, twemoji: Mapping[str, Drawing], openmoji: Mapping[str, Drawing]
) -> Concepts:
    """Return the concepts, without variants in skin tone and "man ..." and "woman ..."."""
    concepts = [
        codes
        for codes, (name, *_) in names.items()
        if emoji.is_concept(name) and codes in twemoji and codes in openmoji
    ]
    concepts.sort(key=lambda codes: hash_share(f"emoji/{codes}"))
    alike = np.zeros(len(concepts), dtype=bool)
    for drawings in (twemoji, openmoji):
        small = np.stack([drawings[codes].small for codes in concepts])
        alike |= _same_look(small, small).sum(axis=1) > 1
    uses = Counter(names[codes][0].lower() for codes in concepts)
    apart: dict[str, str] = {}
    for codes, ambiguous in zip(concepts, alike, strict=True):
        if not ambiguous and uses[names[codes][0].lower()] == 1:
            apart.setdefault(base_codes(codes), codes)
    return Concepts(tuple(concepts), tuple(apart.values()))


def unlike(
    drawings: Mapping[str, Drawing], kept: Sequence[Drawing], *, variants: bool = True
) -> frozenset[str]:
    """Return code points of drawings that look like none in `kept`, and with `variants` are a variant of none."""
    bases = {base_codes(drawing.codes) for drawing in kept} if variants else set()
    others = [codes for codes in drawings if base_codes(codes) not in bases]
    if not others or not kept:
        return frozenset(others)
    looks = np.stack([drawing.small for drawing in kept])
    seen = _same_look(np.stack([drawings[codes].small for codes in others]), looks)
    return frozenset(
        codes for codes, alike_to in zip(others, seen, strict=True) if not alike_to.any()
    )


def _same_look(
    left: Float[ndarray, "left small"], right: Float[ndarray, "right small"]
) -> Bool[ndarray, "left right"]:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    return squares < _SAME_LOOK**2 * left.shape[1]


def read_style(style: str) -> dict[str, Drawing]:
    """Return the drawings of an installed style by code points."""
    return read_drawings(style, {stem: emoji.png_of(style, stem) for stem in emoji.stems_of(style)})


def read_drawings(style: str, pngs: Mapping[str, bytes]) -> dict[str, Drawing]:
    """Return drawings by code points, from the content of files by their names.

    Of files with equal pixels, the one that is no variant gives the `image_id`.
    """
    by_codes = {emoji.plain_codes(name.split(".")[0]): png for name, png in pngs.items()}
    first_ids: dict[bytes, str] = {}
    drawings = {}
    for codes in sorted(by_codes, key=lambda codes: (codes != base_codes(codes), codes)):
        image = decode_image({"bytes": by_codes[codes], "path": f"{style}/{codes}"})
        image_id = first_ids.setdefault(
            hashlib.sha256(image.tobytes()).digest(), f"{style}/{codes}"
        )
        small = image.resize((_SMALL_PIXELS, _SMALL_PIXELS), Image.Resampling.BOX)
        drawings[codes] = Drawing(
            style, codes, image_id, by_codes[codes], np.asarray(small, dtype=np.float32).ravel()
        )
    return drawings


def rows_of(
    drawings: Iterable[Drawing], *, names: Names, licences: Mapping[str, str] = LICENCES
) -> list[dict[str, Any]]:
    """Return one row an image: files with equal pixels (Norway, Svalbard) are one row with the names of all."""
    groups: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        groups[drawing.image_id].append(drawing)
    rows = []
    for image_id, group in groups.items():
        known = [names[drawing.codes] for drawing in group if drawing.codes in names]
        captions = dict.fromkeys(
            [*(texts[0] for texts in known), *(alias for texts in known for alias in texts[1:])]
        )
        image, style = {"bytes": group[0].png, "path": f"{image_id}.png"}, group[0].style
        rows.append(
            make_row(
                image_id,
                image=image,
                captions=list(captions),
                source=style,
                licence=licences[style],
            )
        )
    return rows
