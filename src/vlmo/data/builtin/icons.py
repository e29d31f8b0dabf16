"""Lucide's icons with their names, as the package `python-lucide` holds them.

`vlmo data prepare icons` keeps the whole set out of training (`HELD_OUT` there), so vlmo-small has seen none of them.
"""

import sqlite3
from contextlib import closing
from importlib.resources import as_file, files

from vlmo.data.decoding import encode_image
from vlmo.data.prepare.svg import draw
from vlmo.data.schema import FEATURES, Built, make_row

PACKAGES = ("python-lucide", "resvg-py")
LICENCE = "ISC"
_PIXELS = 64


def build() -> dict[str, Built]:
    """`lucide-icons`: a row an icon, black on transparent, in the order of names."""
    with as_file(files("lucide") / "data" / "lucide-icons.db") as file, closing(sqlite3.connect(file)) as database:
        icons = database.execute("SELECT name, svg FROM icons ORDER BY name").fetchall()
    rows = [
        make_row(
            f"lucide:{name}",
            image=encode_image(draw(svg, pixels=_PIXELS), f"lucide/{name}.png"),
            captions=[name.replace("-", " ")],
            source="lucide",
            licence=LICENCE,
        )
        for name, svg in icons
    ]
    return {"lucide-icons": (FEATURES, {"test": rows})}
