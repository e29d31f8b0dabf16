"""Lucide's icons with their names, as the package `python-lucide` holds them, and those of icon fonts.

`vlmo data prepare icons` keeps Lucide's whole set out of training (`HELD_OUT` there). Artists draw a heart or an arrow
alike, so icons that look like one of the fonts', most of which vlmo-small was trained on, are left out here.
"""

import functools
import sqlite3
from contextlib import closing
from importlib.resources import as_file, files

from vlmo.data.builtin import icon_fonts
from vlmo.data.decoding import encode_image
from vlmo.data.prepare.svg import Looks, draw, look_of, open_png
from vlmo.data.schema import FEATURES, Built, make_row

PACKAGES = ("python-lucide", "resvg-py", *icon_fonts.PACKAGES)
LICENCE = "ISC"
_PIXELS = 64


def build() -> dict[str, Built]:
    """`icon-fonts`, and `lucide-icons`: a row an icon, black on transparent, in the order of names."""
    fonts = icon_fonts.rows()
    trained = Looks.of(functools.partial(open_png, row["image"]["bytes"]) for row in fonts)
    with as_file(files("lucide") / "data" / "lucide-icons.db") as file, closing(sqlite3.connect(file)) as database:
        icons = database.execute("SELECT name, svg FROM icons ORDER BY name").fetchall()
    drawn = ((name, draw(svg, pixels=_PIXELS)) for name, svg in icons)
    rows = [
        make_row(
            f"lucide:{name}",
            image=encode_image(image, f"lucide/{name}.png"),
            captions=[name.replace("-", " ")],
            source="lucide",
            licence=LICENCE,
        )
        for name, image in drawn
        if (look := look_of(image)) is not None and look not in trained
    ]
    return {"icon-fonts": (FEATURES, {"test": fonts}), "lucide-icons": (FEATURES, {"test": rows})}
