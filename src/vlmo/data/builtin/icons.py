"""Icons of Lucide (`python-lucide`) with their names: a set that the training of `vlmo-small` left out."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.resources import as_file, files
from io import BytesIO

from PIL import Image

from vlmo.data.decoding import encode_image
from vlmo.data.schema import FEATURES, Built, make_row

PACKAGES = ("python-lucide", "resvg-py")
_LOOK_ALIKES = """
    arrow-down arrow-left arrow-left-right arrow-right arrow-up arrow-up-down ban box chevron-down chevron-left
    chevron-right chevron-up circle circle-alert circle-check circle-minus circle-parking circle-question-mark
    circle-stop circle-x code code-xml command currency diamond dice-1 ellipsis ellipsis-vertical
    git-commit-horizontal half-note heart hexagon infinity list loader map-pin-plus-inside maximize maximize-2
    minus move move-right octagon package percent square square-check square-minus square-plus star tally-1
    trending-down trending-up usb-c-port venus voicemail wifi x zoom-in zoom-out
"""
"""Icons that look like one of an icon font that `vlmo-small` was trained on: they are left out."""
_PIXELS = 64


def lucide_icons() -> Built:
    """Return a row an icon, black on transparent, in the order of names."""
    with (
        as_file(files("lucide") / "data" / "lucide-icons.db") as file,
        closing(sqlite3.connect(file)) as database,
    ):
        icons = database.execute("SELECT name, svg FROM icons ORDER BY name").fetchall()
    rows = []
    for name, svg in icons:
        if name not in _LOOK_ALIKES.split():
            cell = encode_image(draw_svg(svg, pixels=_PIXELS), f"lucide/{name}.png")
            caption = name.replace("-", " ")
            rows.append(
                make_row(
                    f"lucide:{name}", image=cell, captions=[caption], source="lucide", licence="ISC"
                )
            )
    return FEATURES, {"test": rows}


SETS = {"lucide-icons": lucide_icons}


def draw_svg(svg: str, *, pixels: int) -> Image.Image:
    """Return a drawing with its transparency, `pixels` at its longer side; ValueError where it is damaged."""
    from resvg_py import svg_to_bytes

    # Sizes may be in millimeters.
    png = svg_to_bytes(svg_string=svg, width=pixels, height=pixels, dpi=96, skip_system_fonts=True)
    return Image.open(BytesIO(bytes(png))).convert("RGBA")
