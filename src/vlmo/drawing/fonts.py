"""Fonts that have the letters of a text; what none has is written in plain ones."""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_OURS = ""
"""Pillow's own font, which is the same everywhere; it has the letters of English."""
# Where Linux, macOS and Windows have them, in the order in which they are tried.
_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "wqy-zenhei.ttc",
    "Arial Unicode.ttf",
    "arialuni.ttf",
    "segoeui.ttf",
    "msyh.ttc",
)
_NOBODY = "\U0010fffe"
"""No font has a glyph of it: what is drawn is what stands for all that is missing."""
_PROBED_AT = 16


def fitting(text: str, *, size: float) -> tuple[Font, str]:
    """A font, and the text as it can be written in it.

    The first font that has every letter is taken; else the one that has the most, with accents left off and `?` for
    what it still lacks.
    """
    text = unicodedata.normalize("NFC", text)
    letters = {letter for letter in text if not letter.isspace()}
    most, best = -1, _OURS
    for name in (_OURS, *_FILES):
        number = sum(_has(name, letter) for letter in letters) if _font(name, _PROBED_AT) is not None else -1
        if number > most:
            most, best = number, name
        if number == len(letters):
            break
    else:
        text = "".join(letter if letter.isspace() or _has(best, letter) else _plain(letter, best) for letter in text)
    return _font(best, size) or ImageFont.load_default(size), text


def _plain(letter: str, name: str) -> str:
    bare = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return bare if bare and all(part.isspace() or _has(name, part) for part in bare) else "?"


@functools.lru_cache(maxsize=65_536)
def _has(name: str, letter: str) -> bool:
    font = _font(name, _PROBED_AT)
    return font is not None and _drawn(letter, font) != _drawn(_NOBODY, font)


def _drawn(letter: str, font: Font) -> bytes:
    picture = Image.new("L", (4 * _PROBED_AT, 4 * _PROBED_AT))
    ImageDraw.Draw(picture).text((_PROBED_AT, _PROBED_AT), letter, fill=255, font=font)
    return picture.tobytes()


@functools.lru_cache(maxsize=256)
def _font(name: str, size: float) -> Font | None:
    """A font by the name of its file; None if this machine has none."""
    if name == _OURS:
        return ImageFont.load_default(size)
    for place in (name, *_matplotlib(name)):
        try:
            return ImageFont.truetype(place, size)
        except OSError:
            continue
    return None


def _matplotlib(name: str) -> list[str]:
    """The font that matplotlib brings, where it is installed."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return []
    return [str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name)]
