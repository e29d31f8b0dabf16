"""Figures as files of their own, for README: `python docs/figures/images.py` writes them into docs/images."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS))

from figures.chart import comparison  # noqa: E402
from figures.routing import blocks  # noqa: E402

_STYLES = (DOCS / "stylesheets" / "figures.css").read_text(encoding="utf-8")
_GAP = 20


def alone(*figures: str, title: str) -> str:
    """Return figures side by side as one SVG that brings its colors for light and dark pages, and its background."""
    light, dark = re.search(r":root \{(.*?)\}.*?slate\"\] \{(.*?)\}", _STYLES, flags=re.DOTALL).groups()
    rules = "".join(re.findall(r"^svg\.vlmo[^{]*\{[^}]*\}\n", _STYLES, flags=re.MULTILINE))
    sizes = [tuple(map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', each).groups())) for each in figures]
    width = sum(size[0] for size in sizes) + _GAP * (len(sizes) + 1)
    height = max(size[1] for size in sizes) + 2 * _GAP
    x, parts = _GAP, []
    for (wide, high), figure in zip(sizes, figures, strict=True):
        parts.append(figure.replace("<svg ", f'<svg x="{x:g}" y="{_GAP}" height="{high:g}" ', 1))
        x += wide + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">'
        f"<title>{title}</title>\n<style>\n:root {{{light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{{dark}}} }}\n"
        f"svg {{ font-family: system-ui, sans-serif; }}\n{rules}</style>\n"
        f'<rect width="100%" height="100%" rx="10" fill="var(--fig-page)"/>\n{"".join(parts)}\n</svg>\n'
    )


def images() -> dict[str, str]:
    """Return the files by their names: a Multiway block, and the chart of dual and fusion encoder."""
    halves = re.findall(r"<svg.*?</svg>", blocks())
    return {
        "block.svg": alone(*halves, title="Multiway blocks of VLMo-Base with an image-text pair"),
        "comparison.svg": alone(comparison(), title="Dual and fusion encoder after the quickstart"),
    }


if __name__ == "__main__":
    for name, svg in images().items():
        (DOCS / "images" / name).write_text(svg, encoding="utf-8")
