"""Icons of six icon fonts (`qtawesome`) and of Lucide (`python-lucide`), a row an icon, with their names.

`vlmo-small` was trained on most icons of the fonts and on none of Lucide's; but artists draw a heart or an arrow alike.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import closing
from importlib.metadata import files
from importlib.resources import as_file
from importlib.resources import files as resources
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlmo.data.decoding import encode_image
from vlmo.data.schema import FEATURES, Built, make_row

PACKAGES = ("python-lucide", "qtawesome", "resvg-py")
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


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


LOOK_ALIKES = word_set(
    "arrow-down arrow-left arrow-left-right arrow-right arrow-up arrow-up-down ban box chevron-down chevron-left "
    "chevron-right chevron-up circle circle-alert circle-check circle-minus circle-parking circle-question-mark "
    "circle-stop circle-x code code-xml command currency diamond dice-1 ellipsis ellipsis-vertical "
    "git-commit-horizontal half-note heart hexagon infinity list loader map-pin-plus-inside maximize maximize-2 "
    "minus move move-right octagon package percent square square-check square-minus square-plus star tally-1 "
    "trending-down trending-up usb-c-port venus voicemail wifi x zoom-in zoom-out"
)
"""Icons of Lucide that look like one of the fonts': they are left out."""

_STYLES = word_set(
    "outline outlined filled fill solid duotone duo twotone stroke stroked linear alt variant expressive flat remix "
    "ltr rtl loop negative 24px 1x1 4x3"
)
"""Last words of a name that tell how it is drawn, in every set."""
_DOUBTFUL_STYLES = word_set(
    "line light thin regular bold rounded round sharp broken small large medium dark simple mini compact o f r sm md "
    "lg badged alerted active"
)
"""Words that tell a style if the name without them stands in the set too: "home-light", but not "traffic-light"."""
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
    """Return True for the sign of a company or product, as far as its name tells."""
    return not _BRANDS.isdisjoint(name.split("-"))


def styles_of(names: Collection[str]) -> frozenset[str]:
    """Return last words that tell a style wherever they stand in the names of a set."""
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
    if not any(len(word) > 1 and word.isalpha() for word in words) or any(map(_CODE.fullmatch, words)):
        return None
    return " ".join(words)


def icon_fonts() -> Built:
    """Return a row a glyph, black on transparent; each of its names is a caption.

    Raises:
        ValueError: The package has no font of a name that is read.
    """
    return FEATURES, {"test": [row for font in LICENCES for row in _font_rows(font)]}


def _font_rows(font: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one font, in the order of its code points."""
    found = (file for file in files("qtawesome") or () if file.name.startswith(f"{font}-"))
    parts = sorted(found, key=lambda file: file.suffix)
    if [part.suffix for part in parts] != [".json", ".ttf"]:
        raise ValueError(f"qtawesome: expected a font and a charmap {font}-*, found {[part.name for part in parts]}")
    charmap: dict[str, str] = json.loads(parts[0].read_text(encoding="utf-8"))
    outlines = ImageFont.truetype(BytesIO(parts[1].read_binary()), _LARGE)
    styles, captions = styles_of(charmap), defaultdict[int, dict[str, None]](dict)
    for name, code in charmap.items():
        if not is_brand(name) and (caption := caption_of(bare_name(name, names=charmap, styles=styles))):
            captions[int(code, 16)][caption] = None
    count: Counter[str] = Counter()
    for code, texts in sorted(captions.items()):
        first = next(iter(texts))
        if count[first] < _VARIANTS and (image := _glyph(outlines, chr(code))):
            count[first] += 1
            cell, licence = encode_image(image, f"{font}/{code:x}.png"), LICENCES[font]
            yield make_row(f"{font}:{code:x}", image=cell, captions=list(texts), source=font, licence=licence)


def _glyph(font: ImageFont.FreeTypeFont, glyph: str) -> Image.Image | None:
    """Draw a glyph so that its longer side fills the image but for the margin; None for an empty one."""
    canvas = Image.new("L", (3 * _LARGE, 3 * _LARGE))
    ImageDraw.Draw(canvas).text((_LARGE, _LARGE), glyph, font=font, fill=255)
    if (box := canvas.getbbox()) is None:
        return None
    ink = canvas.crop(box)
    scale = (_PIXELS - 2 * _MARGIN) / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    image = Image.new("RGBA", (_PIXELS, _PIXELS))
    corner = ((_PIXELS - width) // 2, (_PIXELS - height) // 2)
    image.paste("black", corner, ink.resize((width, height), Image.Resampling.LANCZOS))
    return image


def lucide_rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each icon of Lucide, black on transparent, in the order of names."""
    with as_file(resources("lucide") / "data" / "lucide-icons.db") as file, closing(sqlite3.connect(file)) as database:
        icons = database.execute("SELECT name, svg FROM icons ORDER BY name").fetchall()
    for name, svg in icons:
        cell = encode_image(draw_svg(svg, pixels=_PIXELS), f"lucide/{name}.png")
        caption = name.replace("-", " ")
        yield make_row(f"lucide:{name}", image=cell, captions=[caption], source="lucide", licence="ISC")


def draw_svg(svg: str, *, pixels: int) -> Image.Image:
    """Return a drawing with its transparency, `pixels` at its longer side; ValueError where it is damaged."""
    from resvg_py import svg_to_bytes

    # Sizes may be in millimeters.
    png = svg_to_bytes(svg_string=svg, width=pixels, height=pixels, dpi=96, skip_system_fonts=True)
    return Image.open(BytesIO(bytes(png))).convert("RGBA")


def lucide_icons() -> Built:
    """Return the icons of Lucide that look like none of the fonts'."""
    rows = [row for row in lucide_rows() if row["image_id"].removeprefix("lucide:") not in LOOK_ALIKES]
    return FEATURES, {"test": rows}


SETS = {"icon-fonts": icon_fonts, "lucide-icons": lucide_icons}
