"""SVG by hand: shapes and words whose classes name rules of docs/stylesheets/figures.css.

The rules also become attributes with the colors of light pages, for renderers that read no style sheet.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from xml.etree import ElementTree

_STYLES = (Path(__file__).resolve().parents[1] / "stylesheets" / "figures.css").read_text(
    encoding="utf-8"
)


def _colors(selector: str) -> dict[str, str]:
    block = re.search(
        rf"^{re.escape(selector)} \{{(.*?)\}}", _STYLES, flags=re.MULTILINE | re.DOTALL
    )[1]
    return dict(re.findall(r"(--fig-[a-z]+): ([^;]+);", block))


LIGHT, DARK = _colors(":root"), _colors('[data-md-color-scheme="slate"]')
"""Values of the variables of figures.css on light and on dark pages."""
RULES = re.findall(r"^(svg\.vlmo [^{]+) \{([^}]*)\}", _STYLES, flags=re.MULTILINE)
"""Selectors and declarations of what stands in a figure."""


def with_colors(declarations: str, colors: dict[str, str]) -> str:
    """Return declarations with the values of their variables."""
    return re.sub(r"var\((--fig-[a-z]+)\)", lambda variable: colors[variable[1]], declarations)


def _set_attributes(element: ElementTree.Element) -> None:
    """Set what the rules for an element declare; where two disagree the later rule wins."""
    kinds = {"", *element.get("class", "").split()}
    for selectors, declarations in RULES:
        for selector in selectors.split(","):
            tag, _, kind = selector.strip().removeprefix("svg.vlmo ").partition(".")
            if tag in {"", element.tag} and kind in kinds:
                for name, value in re.findall(
                    r"([a-z-]+): ([^;]+);", with_colors(declarations, LIGHT)
                ):
                    element.set(name, value)


class Canvas:
    """An SVG that grows; lengths are in its own units, about a pixel each.

    Args:
        name: Begins the names of its parts, which must differ from those of all others on a page.
        title: What it is, in a few words.
    """

    def __init__(self, width: float, height: float, *, name: str, title: str) -> None:
        self._size = width, height
        self._name, self._title = name, title
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        kind: str,
        radius: float = 5,
        **facts: object,
    ) -> None:
        """A rectangle with round corners; `facts` become `data-` attributes, which tests read."""
        self._parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
            f"{_attributes(facts)}/>"
        )

    def text(
        self, words: str, *, x: float, y: float, kind: str = "", anchor: str = "middle"
    ) -> None:
        """One line, `y` its base line."""
        css = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text{css} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def slanted(self, words: str, *, x: float, y: float) -> None:
        """A line that rises to the right from its beginning."""
        place = f"translate({x:g} {y:g}) rotate(-50)"
        self._parts.append(
            f'<text class="small" transform="{place}" text-anchor="start">{escape(words)}</text>'
        )

    def path(self, way: str, *, kind: str) -> None:
        """A line by SVG's letters."""
        self._parts.append(f'<path class="{kind}" d="{way}"/>')

    def circle(self, x: float, y: float, radius: float, *, kind: str, **facts: object) -> None:
        """A circle around a middle."""
        self._parts.append(
            f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"{_attributes(facts)}/>'
        )

    def shape(self, way: str, *, kind: str, **facts: object) -> None:
        """A filled shape by SVG's letters."""
        self._parts.append(f'<path class="{kind}" d="{way}Z"{_attributes(facts)}/>')

    def hatched(self, x: float, y: float, width: float, height: float, *, step: float = 7) -> None:
        """Slanting lines inside a rectangle, which are seen apart without colors too."""
        lines = []
        start = step
        while start < width + height:
            left, upper = (x + start, y) if start <= width else (x + width, y + start - width)
            right, lower = (x, y + start) if start <= height else (x + start - height, y + height)
            lines.append(f"M{left:g} {upper:g}L{right:g} {lower:g}")
            start += step
        self.path("".join(lines), kind="hatch")

    def image(self, address: str, *, x: float, y: float, side: float) -> None:
        """A square image by its `data:` address."""
        self._parts.append(
            f'<image href="{escape(address)}" x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}"/>'
        )

    def finished(self, *, about: str) -> str:
        """The SVG; `about` tells those who do not see it what it shows."""
        width, height = self._size
        names = f"{self._name}-title {self._name}-about"
        text = (
            f'<svg class="vlmo" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
            f'aria-labelledby="{names}"><title id="{self._name}-title">{escape(self._title)}</title>'
            f'<desc id="{self._name}-about">{escape(about)}</desc>{"".join(self._parts)}</svg>'
        )
        svg = ElementTree.fromstring(text)
        for element in svg.iter():
            _set_attributes(element)
        return ElementTree.tostring(svg, encoding="unicode")


def _attributes(facts: dict[str, object]) -> str:
    return "".join(f' data-{name}="{escape(str(value))}"' for name, value in facts.items())
