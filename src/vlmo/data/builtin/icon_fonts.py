"""Icons of six icon fonts with their names, as the package `qtawesome` holds them; its files are read, not imported.

Training of vlmo-small sees most of these sets, as `vlmo data prepare icons` knows them: they are for search, not tests.
"""

import json
from collections import Counter, defaultdict
from importlib.metadata import files
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from vlmo.data.decoding import encode_image
from vlmo.data.prepare.icon_names import Naming, caption_of, is_brand
from vlmo.data.schema import make_row

PACKAGES = ("qtawesome",)
LICENCES = {
    "codicon": "CC-BY-4.0",
    "fontawesome6-regular": "OFL-1.1",
    "fontawesome6-solid": "OFL-1.1",
    "materialdesignicons6": "Apache-2.0",
    "phosphor": "MIT",
    "remixicon": "Apache-2.0",
}
"""Licence of each font, by the start of its files' names."""
_VARIANTS = 3
"""Icons of one caption that a font gives: the first three by code point, in as many styles."""
_PIXELS, _MARGIN, _LARGE = 64, 4, 256


def rows() -> list[dict]:
    """Return a row a glyph, black on transparent; each of its names is a caption.

    Raises:
        ValueError: The package has no font of a name that is read.
    """
    return [row for font in LICENCES for row in _rows(font)]


def _rows(font: str) -> list[dict]:
    """Return the rows of one font, in the order of its code points."""
    found = (file for file in files("qtawesome") or () if file.name.startswith(f"{font}-"))
    parts = sorted(found, key=lambda file: file.suffix)
    if [part.suffix for part in parts] != [".json", ".ttf"]:
        raise ValueError(f"qtawesome: expected a font and a charmap {font}-*, found {[part.name for part in parts]}")
    charmap: dict[str, str] = json.loads(parts[0].read_text(encoding="utf-8"))
    outlines = ImageFont.truetype(BytesIO(parts[1].read_binary()), _LARGE)
    naming = Naming.of({"icons": charmap}, {})
    captions: dict[int, dict[str, None]] = defaultdict(dict)
    for name, code in charmap.items():
        if not is_brand(name) and (caption := caption_of(naming.bare(name))):
            captions[int(code, 16)][caption] = None
    count: Counter[str] = Counter()
    rows = []
    for code, texts in sorted(captions.items()):
        first = next(iter(texts))
        if count[first] < _VARIANTS and (image := _draw(outlines, chr(code))):
            count[first] += 1
            rows.append(
                make_row(
                    f"{font}:{code:x}",
                    image=encode_image(image, f"{font}/{code:x}.png"),
                    captions=list(texts),
                    source=font,
                    licence=LICENCES[font],
                )
            )
    return rows


def _draw(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image | None:
    """Draw a glyph so that its longer side fills the image but for the margin; None for an empty one."""
    canvas = Image.new("L", (3 * _LARGE, 3 * _LARGE))
    ImageDraw.Draw(canvas).text((_LARGE, _LARGE), glyph, font=font, fill=255)
    if (box := canvas.getbbox()) is None:
        return None
    ink = canvas.crop(box)
    scale = (_PIXELS - 2 * _MARGIN) / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    image = Image.new("RGBA", (_PIXELS, _PIXELS))
    place = ((_PIXELS - width) // 2, (_PIXELS - height) // 2)
    image.paste("black", place, ink.resize((width, height), Image.Resampling.LANCZOS))
    return image
