"""A sheet of pictures with words beside them."""

from __future__ import annotations

from PIL import Image, ImageDraw

from vlmo.drawing.fonts import fitting
from vlmo.drawing.pictures import on_white

# It is drawn twice as large as it will be and scaled down, which smooths every edge.
_SCALE = 2
_RADIUS = 10
INK, MUTED, GREEN = "#1f2328", "#6e7681", "#1f8a4c"
_LINE, _PAPER = "#dfe2e6", "#ffffff"


class Sheet:
    """A white sheet of `width` x `height` pixels; all lengths are in these pixels."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._picture = Image.new("RGB", (width * _SCALE, height * _SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._picture)

    def finished(self) -> Image.Image:
        """The sheet at its own size."""
        return self._picture.resize(self._size, Image.Resampling.LANCZOS)

    def text(self, line: str, *, x: float, y: float, size: float = 16, colour: str = INK) -> None:
        """One line, its upper left corner at (x, y)."""
        font, line = fitting(line, size=size * _SCALE)
        self._draw.text((x * _SCALE, y * _SCALE), line, fill=colour, font=font)

    def wrapped(self, text: str, *, width: float, max_lines: int, size: float = 16) -> list[str]:
        """Lines no longer than `width`, in letters that there is a font for; what does not fit ends with dots."""
        font, text = fitting(text, size=size * _SCALE)
        limit = width * _SCALE
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self._draw.textlength(longer, font=font) <= limit or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
        if len(lines) > max_lines:
            lines = [*lines[: max_lines - 1], f"{lines[max_lines - 1]} …"]
        # A word, or the dots, may still be too long for a line.
        for number, line in enumerate(lines):
            while self._draw.textlength(line, font=font) > limit:
                line = line.rstrip("…").rstrip()[:-1] + "…"
            lines[number] = line
        return lines

    def tile(self, picture: Image.Image, *, x: float, y: float, side: float) -> None:
        """The picture in the middle of a square with a thin frame."""
        self._draw.rounded_rectangle(_box(x, y, side, side), radius=_RADIUS * _SCALE, outline=_LINE, width=_SCALE)
        inner = round(side - 18) * _SCALE
        picture = on_white(picture)
        factor = inner / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        left = x * _SCALE + (side * _SCALE - size[0]) // 2
        upper = y * _SCALE + (side * _SCALE - size[1]) // 2
        self._picture.paste(picture, (round(left), round(upper)))

    def tick(self, *, x: float, y: float, side: float) -> None:
        """A green frame and a tick for the tile at this place."""
        draw = self._draw
        draw.rounded_rectangle(_box(x, y, side, side), radius=_RADIUS * _SCALE, outline=GREEN, width=3 * _SCALE)
        draw.ellipse(_box(x + side - 16, y - 8, 24, 24), fill=GREEN, outline=_PAPER, width=2 * _SCALE)
        points = [(x + side - 9.5, y + 4), (x + side - 5.5, y + 8.5), (x + side + 2, y + 0.5)]
        scaled = [(a * _SCALE, b * _SCALE) for a, b in points]
        draw.line(scaled, fill=_PAPER, width=round(2.4 * _SCALE), joint="curve")


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x * _SCALE, y * _SCALE, (x + width) * _SCALE - 1, (y + height) * _SCALE - 1
