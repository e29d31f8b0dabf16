"""The contact sheet of a report: queries and what they found."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vlmo.drawing.sheet import GREEN, MUTED, Sheet
from vlmo.evaluation.contents import PictureQuery

_MARGIN, _TEXT_WIDTH, _GAP, _ROW_GAP = 28, 200, 14, 18


def contact_sheet(queries: Sequence[PictureQuery], *, width: int = 900, top: int = 5) -> Image.Image:
    """Queries below each other, the text on the left, its best pictures beside it, the right one framed in green.

    Raises:
        ValueError: If there is no query or the width leaves no room for the pictures.
    """
    tile = (width - 2 * _MARGIN - _TEXT_WIDTH - top * _GAP) // top
    if not queries or tile < 16:
        raise ValueError(f"A contact sheet needs a query and more room: {len(queries)} queries, {width} pixels wide.")
    sheet = Sheet(width, 2 * _MARGIN + len(queries) * (tile + _ROW_GAP) - _ROW_GAP)
    for row, query in enumerate(queries):
        y = _MARGIN + row * (tile + _ROW_GAP)
        _draw_query(sheet, query, y=y, height=tile)
        for place, picture in enumerate(query.pictures[:top]):
            x = _MARGIN + _TEXT_WIDTH + _GAP + place * (tile + _GAP)
            sheet.tile(picture, x=x, y=y, side=tile)
            if place == query.correct:
                sheet.tick(x=x, y=y, side=tile)
    return sheet.finished()


def _draw_query(sheet: Sheet, query: PictureQuery, *, y: float, height: float) -> None:
    lines = sheet.wrapped(query.text, width=_TEXT_WIDTH, max_lines=3)
    y += (height - 22 * len(lines) - 20) / 2
    for line in lines:
        sheet.text(line, x=_MARGIN, y=y)
        y += 22
    found = query.correct is not None
    sheet.text(f"rank {query.rank}", x=_MARGIN, y=y + 4, size=12.5, colour=GREEN if found else MUTED)
